"""Settings of HybridTraining, checked when it is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_traj.hybrid.conditions import Condition, Threshold, as_condition
from lightning_traj.hybrid.groups import UNITS, Train, Unit
from lightning_traj.hybrid.line_search import LineSearch
from lightning_traj.schedule import Schedule
from lightning_traj.text import function_name


@dataclass(frozen=True)
class HybridSettings:
    """Arguments of HybridTraining, where they are described.

    Raises:
        TypeError, ValueError: An argument is wrong.
    """

    train: Train
    when: int | Schedule | Condition | None
    thaw: int | Schedule | Condition | None
    by: Unit
    line_search: LineSearch | None
    running_statistics: bool
    keep_state: bool

    def __post_init__(self) -> None:
        if isinstance(self.train, Sequence) and not isinstance(self.train, str | list | tuple):
            object.__setattr__(self, "train", list(self.train))  # OmegaConf has lists of its own
        listed = list(self.train) if isinstance(self.train, list | tuple) else [self.train]
        if not listed or not (callable(self.train) or all(isinstance(select, str) for select in listed)):
            raise TypeError(
                f'train={self.train!r}: pass a role such as "norm", a glob pattern over parameter names, a list of '
                "these, or a predicate over blocks."
            )
        if self.by not in UNITS:
            raise ValueError(f"by={self.by!r}: pass one of {', '.join(map(repr, UNITS))}.")
        if self.line_search is not None and not isinstance(self.line_search, LineSearch):
            raise TypeError(f"line_search={self.line_search!r}: pass LineSearch() or None.")
        if self.when is None and (self.line_search is None or self.thaw is not None):
            raise ValueError(
                f"when={self.when!r}, thaw={self.thaw!r}, line_search={self.line_search!r}: there is nothing to do; "
                "pass when= an epoch or a condition, or line_search=LineSearch() alone."
            )
        if isinstance(self.thaw, Threshold):
            raise ValueError(
                f"thaw={self.thaw!r}: the trajectory of frozen parameters stands still and says nothing: pass After(…) "
                "or Plateau(…)."
            )
        if isinstance(self.when, int) and isinstance(self.thaw, int) and self.thaw <= self.when:
            raise ValueError(
                f"thaw={self.thaw} is not after when={self.when}: nothing is frozen by then; pass a later epoch."
            )
        self.conditions  # noqa: B018 (raises for values that are no conditions)

    @property
    def conditions(self) -> tuple[Condition | None, Condition | None]:
        """Conditions for freezing and for thawing; None for never."""
        return as_condition("when", self.when), as_condition("thaw", self.thaw)

    @property
    def lasting(self) -> dict[str, str]:
        """Descriptions of the settings that a run has to keep to continue from a checkpoint."""
        train = f"function {function_name(self.train)}" if callable(self.train) else repr(self.train)
        return {"train": train, "by": repr(self.by)}
