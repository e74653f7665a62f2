"""Which groups are to be frozen or thawed now: conditions, and what has to be remembered for them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import isfinite
from typing import Any

from lightning_traj.hybrid.conditions import Condition, ConditionContext
from lightning_traj.hybrid.freezing import Group
from lightning_traj.trajectory import Trajectory


class Decisions:
    """Asks ``when`` of groups that are trained, and ``thaw`` of those that are frozen.

    Args:
        when, thaw: The conditions; None: never.

    Attributes:
        epoch: For which was decided last; −1 before.
        step: Optimizer steps up to which schedules were asked.
        changed: Epoch in which each group was frozen or thawed last.
        pending: Values of monitors that were logged since ``note`` was called last.
    """

    def __init__(self, when: Condition | None, thaw: Condition | None) -> None:
        self.conditions = {argument: c for argument, c in (("when", when), ("thaw", thaw)) if c is not None}
        self.epoch = -1
        self.step = 0
        self.changed: dict[str, int] = {}
        self.pending: dict[str, float] = {}
        self._values: dict[str, list[tuple[int, float]]] = {}  # of each monitor, at the start of an epoch

    @property
    def measures(self) -> list[str]:
        """Measures of the trajectory that are looked at."""
        return [condition.measure for condition in self.conditions.values() if condition.measure is not None]

    @property
    def monitors(self) -> list[str]:
        """Logged values that are looked at."""
        return [condition.monitor for condition in self.conditions.values() if condition.monitor is not None]

    def note(self, epoch: int) -> None:
        """Remember, at the start of an epoch, the values that are pending."""
        for monitor, value in self.pending.items():
            values = self._values.setdefault(monitor, [])
            if isfinite(value):
                values.append((epoch, value))
        self.pending = {}

    @property
    def missing(self) -> list[str]:
        """Monitors of which no value was ever noted."""
        return [monitor for monitor in self.monitors if monitor not in self._values]

    def at_epoch(
        self, epoch: int, groups: Mapping[str, Group], frozen: Collection[str], trajectory: Trajectory | None
    ) -> list[str]:
        """Groups that are to be changed at the start of an epoch."""
        changing = []
        for label, group in groups.items():
            condition = self._asked(label, frozen)
            if condition is None:
                continue
            changed = self.changed.get(label, -1)
            values = [value for at, value in self._values.get(condition.monitor or "", []) if at > changed]
            if condition.holds(ConditionContext(epoch, changed, trajectory, group.has, values)):
                changing.append(label)
        self.epoch = epoch
        return changing

    def after_steps(self, step: int, groups: Mapping[str, Group], frozen: Collection[str]) -> list[str]:
        """Groups that are to be changed after so many optimizer steps, of which some were asked about before."""
        new, self.step = range(self.step + 1, step + 1), step
        due = [c for c in self.conditions.values() if any(map(c.holds_after_step, new))]
        return [label for label in groups if self._asked(label, frozen) in due] if due else []

    def asked_between_epochs(self) -> list[str]:
        """Conditions that are asked at the starts of epochs only: ``"when=…"``, ``"thaw=…"``."""
        return [f"{argument}={c}" for argument, c in self.conditions.items() if not c.is_asked_within_epochs]

    def state_dict(self) -> dict[str, Any]:
        """Everything, as primitives."""
        values = {monitor: list(listed) for monitor, listed in self._values.items()}
        decided = {"epoch": self.epoch, "step": self.step, "changed": dict(self.changed)}
        return {**decided, "values": values, "pending": dict(self.pending)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was taken."""
        self.epoch, self.step, self.changed = state["epoch"], state["step"], dict(state["changed"])
        self._values = {monitor: [(at, value) for at, value in listed] for monitor, listed in state["values"].items()}
        self.pending = dict(state["pending"])

    def _asked(self, label: str, frozen: Collection[str]) -> Condition | None:
        return self.conditions.get("thaw" if label in frozen else "when")
