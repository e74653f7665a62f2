"""Decisions which groups to freeze or thaw now, and the record that conditions need for them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from lightning_traj.hybrid.conditions import Condition, ConditionContext
from lightning_traj.hybrid.groups import Group
from lightning_traj.hybrid.monitors import Monitors
from lightning_traj.trajectory import Trajectory


class Decisions:
    """Asks ``when`` of groups that are trained, and ``thaw`` of those that are frozen.

    Args:
        when: Condition for freezing; None for never.
        thaw: Condition for thawing; None for never.

    Attributes:
        epoch: Epoch of the latest decision; −1 before the first.
        step: Number of optimizer steps up to which schedules were asked.
        changed: Epoch in which each group was frozen or thawed last.
        monitors: Logged values that the conditions look at.
    """

    def __init__(self, when: Condition | None, thaw: Condition | None) -> None:
        self.conditions = {argument: c for argument, c in (("when", when), ("thaw", thaw)) if c is not None}
        self.epoch = -1
        self.step = 0
        self.changed: dict[str, int] = {}
        self.monitors = Monitors([c.monitor for c in self.conditions.values() if c.monitor is not None])

    @property
    def measures(self) -> list[str]:
        """Measures of the trajectory that conditions look at."""
        return [condition.measure for condition in self.conditions.values() if condition.measure is not None]

    def at_epoch(
        self, epoch: int, groups: Mapping[str, Group], frozen: Collection[str], trajectory: Trajectory | None
    ) -> list[str]:
        """Return the groups to change at the start of an epoch."""
        changing = []
        for label, group in groups.items():
            condition = self._asked(label, frozen)
            if condition is None:
                continue
            changed = self.changed.get(label, -1)
            values = self.monitors.since(condition.monitor, changed)
            if condition.holds(ConditionContext(epoch, changed, trajectory, group.has, values)):
                changing.append(label)
        self.epoch = epoch
        return changing

    def after_steps(self, step: int, groups: Mapping[str, Group], frozen: Collection[str]) -> list[str]:
        """Return the groups to change after ``step`` optimizer steps; each step is asked about once."""
        new, self.step = range(self.step + 1, step + 1), step
        due = [c for c in self.conditions.values() if any(map(c.holds_after_step, new))]
        return [label for label in groups if self._asked(label, frozen) in due] if due else []

    def asked_between_epochs(self) -> list[str]:
        """Return the conditions that are asked at the starts of epochs only, such as ``"when=epoch 3"``."""
        return [f"{argument}={c}" for argument, c in self.conditions.items() if not c.is_asked_within_epochs]

    def state_dict(self) -> dict[str, Any]:
        """Return everything as primitives."""
        decided = {"epoch": self.epoch, "step": self.step, "changed": dict(self.changed)}
        return decided | self.monitors.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where ``state_dict`` was taken."""
        self.epoch, self.step, self.changed = state["epoch"], state["step"], dict(state["changed"])
        self.monitors.load_state_dict(state)

    def _asked(self, label: str, frozen: Collection[str]) -> Condition | None:
        return self.conditions.get("thaw" if label in frozen else "when")
