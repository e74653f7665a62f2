"""Conditions for freezing and thawing: a time, or a state of the trajectory or of a logged value."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from math import inf
from typing import Literal

from lightning_traj.blocks import Block
from lightning_traj.checks import check_int
from lightning_traj.measures import MEASURES
from lightning_traj.schedule import Schedule, is_due_within_epochs
from lightning_traj.trajectory import Trajectory


@dataclass(frozen=True)
class ConditionContext:
    """Facts by which a condition is judged, for one group of parameters at the start of an epoch.

    Attributes:
        epoch: Epoch that begins, counted from 0.
        changed: Epoch in which the group was frozen or thawed last; −1 before.
        trajectory: Trajectory up to now; None where no condition asks for it.
        select: Predicate that chooses the group's blocks in the trajectory.
        values: Values of the condition's ``monitor`` that were logged since the group was changed, the last one of each
            epoch.
    """

    epoch: int
    changed: int
    trajectory: Trajectory | None
    select: Callable[[Block], bool]
    values: Sequence[float]


class Condition(ABC):
    """Condition for freezing or thawing, asked at the start of every epoch for each group of parameters.

    Attributes:
        measure: Measure of the trajectory that it looks at; None for none.
        monitor: Logged value that it looks at; None for none.
    """

    measure: str | None = None
    monitor: str | None = None

    @abstractmethod
    def holds(self, context: ConditionContext) -> bool:
        """Return whether to change the group now."""

    def holds_after_step(self, step: int) -> bool:
        """Return whether to change the group right after optimizer step ``step`` (counted from 1)."""
        return False

    @property
    def is_asked_within_epochs(self) -> bool:
        """Whether it can hold before an epoch ends."""
        return type(self).holds_after_step is not Condition.holds_after_step

    def begins_by(self, steps: float, epochs: float) -> bool:
        """Return whether it can ever hold in a run of at most this many steps and epochs, as far as it can tell."""
        return True


@dataclass(frozen=True)
class Threshold(Condition):
    """A measure of the group's own trajectory stays below, or above, a value.

    Args:
        measure: Name of the measure: ``"direction_drift"``, ``"mds"``, ``"saturation"``, or any other of the tags.
        below: Value that the measure has to stay below. Undefined measures are not below it.
        above: Value that the measure has to stay above, instead of ``below``.
        snapshots: Number of snapshots in a row for which that holds, all of them since the group was changed last.
            Pauses are not looked back on: after a thaw, ``"direction_drift"`` is judged once the five snapshots that
            it looks back on are of the time after the thaw. Measures of the whole path count the snapshots of pauses
            like all others.

    Raises:
        TypeError, ValueError: The measure is unknown, none or both values are given, or the number of snapshots is
            below 1.
    """

    measure: str
    below: float | None = None
    above: float | None = None
    snapshots: int = 1

    def __post_init__(self) -> None:
        if self.measure not in MEASURES:
            close = get_close_matches(str(self.measure), MEASURES, n=1)
            hint = f"close to it: {close[0]!r}; " if close else ""
            raise ValueError(f"Threshold(measure={self.measure!r}): {hint}pass one of {', '.join(MEASURES)}.")
        if (self.below is None) == (self.above is None):
            raise ValueError(
                f"Threshold({self.measure!r}, below={self.below!r}, above={self.above!r}): pass one of below and above."
            )
        check_int("snapshots", self.snapshots, least=1, owner="Threshold")

    def __str__(self) -> str:
        side, value = ("below", self.below) if self.above is None else ("above", self.above)
        return f"{self.measure} {side} {value:g}" + f" for {self.snapshots} snapshots" * (self.snapshots > 1)

    def holds(self, context: ConditionContext) -> bool:  # noqa: D102 (see Condition)
        trajectory = context.trajectory
        assert trajectory is not None
        # Snapshots that were taken while the group was frozen say nothing about it. The one that was taken where it was
        # thawed is the first to look back on.
        back = 1 if context.changed < 0 else MEASURES[self.measure].looks_back
        if int((trajectory.epochs > context.changed).sum()) < self.snapshots - 1 + back:
            return False
        low, high = -inf if self.above is None else self.above, inf if self.below is None else self.below
        values = trajectory.series(context.select, [self.measure], last=self.snapshots)[self.measure]
        return bool(((low < values) & (values < high)).all())


@dataclass(frozen=True)
class Plateau(Condition):
    """A logged value, such as the validation loss, has stopped improving.

    Args:
        monitor: Name of the value, as the module logs it. Values that are not finite are left out.
        patience: Number of logged values in a row that did not improve on the best before, since the group was changed
            last. An epoch counts one: the last of several validations, and none where no validation was run.
        mode: Whether ``"min"`` or ``"max"`` is better.
        min_delta: Smallest change that counts as an improvement.

    Raises:
        TypeError, ValueError: An argument is wrong.
    """

    monitor: str = "val/loss"
    patience: int = 3
    mode: Literal["min", "max"] = "min"
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        check_int("patience", self.patience, least=1, owner="Plateau")
        if self.mode not in ("min", "max"):
            raise ValueError(f"Plateau(mode={self.mode!r}): pass 'min' or 'max'.")

    def __str__(self) -> str:
        return f"{self.monitor} no better for {self.patience} logged values"

    def holds(self, context: ConditionContext) -> bool:  # noqa: D102 (see Condition)
        sign = 1.0 if self.mode == "min" else -1.0
        values = [sign * value for value in context.values]
        before, latest = values[: -self.patience], values[-self.patience :]
        return bool(before) and min(latest) >= min(before) - self.min_delta


@dataclass(frozen=True)
class After(Condition):
    """A number of epochs have begun since the group was frozen or thawed last, or since the start.

    Args:
        epochs: Number of epochs, at least 1.

    Raises:
        TypeError, ValueError: The number is not an integer, or below 1.
    """

    epochs: int

    def __post_init__(self) -> None:
        check_int("epochs", self.epochs, least=1, owner="After")

    def __str__(self) -> str:
        return f"after {self.epochs} epochs"

    def holds(self, context: ConditionContext) -> bool:  # noqa: D102 (see Condition)
        return context.epoch - max(context.changed, 0) >= self.epochs


@dataclass(frozen=True)
class FromEpoch(Condition):
    """From the start of an epoch on, once; a plain number stands for it."""

    epoch: int

    def __str__(self) -> str:
        return f"epoch {self.epoch}"

    def holds(self, context: ConditionContext) -> bool:  # noqa: D102 (see Condition)
        return context.changed < self.epoch <= context.epoch

    def begins_by(self, steps: float, epochs: float) -> bool:  # noqa: D102
        return self.epoch < epochs


@dataclass(frozen=True)
class Scheduled(Condition):
    """Whenever a schedule of snapshots is due; the end of an epoch is the start of the next."""

    schedule: Schedule

    def __str__(self) -> str:
        return repr(self.schedule)

    def holds(self, context: ConditionContext) -> bool:  # noqa: D102 (see Condition)
        return context.epoch > 0 and self.schedule.due_after_epoch(context.epoch)

    def holds_after_step(self, step: int) -> bool:  # noqa: D102
        return self.schedule.due_after_step(step)

    @property
    def is_asked_within_epochs(self) -> bool:  # noqa: D102
        return is_due_within_epochs(self.schedule)

    def begins_by(self, steps: float, epochs: float) -> bool:  # noqa: D102
        return self.schedule.begins_by(steps, epochs - 1)


def as_condition(argument: str, value: object) -> Condition | None:
    """Return the condition that an argument stands for: an epoch, a schedule, a condition, or None.

    Raises:
        TypeError, ValueError: The value is something else, or a negative epoch; the message names the argument.
    """
    if value is None or isinstance(value, Condition):
        return value
    if isinstance(value, Schedule):
        return Scheduled(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(
            f"{argument}={value!r}: pass an epoch (an int, counted from 0), a schedule such as AtSteps([1000]), or a "
            'condition such as Threshold("direction_drift", below=0.01, snapshots=5).'
        )
    if value < 0:
        raise ValueError(f"{argument}={value}: epochs are counted from 0.")
    return FromEpoch(value)
