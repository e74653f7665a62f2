"""Decisions when to take a snapshot and when to begin a window, from counts of steps and epochs alone."""

from __future__ import annotations

from lightning_traj.schedule import Schedule
from lightning_traj.text import stable_repr


class Triggers:
    """Decides when a snapshot and when a window of steps is due.

    A quantity of the state between steps (weights) is due right after the steps and epochs that the schedule names. A
    quantity of a step (a gradient) exists only at a step, so that two more rules hold: it is due at the first step
    that has it, and where the end of an epoch is due, the last step of that epoch is.

    Args:
        schedule: When a snapshot is due.
        window_schedule: When a window begins, besides the start of training.

    Attributes:
        first_due: Whether a quantity of a step is still to be recorded for the first time.
        step_due: Whether the coming or latest step is due by itself.
        epoch_due: Whether the coming or latest step may be the last of an epoch whose end is due.
    """

    def __init__(self, schedule: Schedule, window_schedule: Schedule) -> None:
        self.schedule, self.window_schedule = schedule, window_schedule
        self.first_due = self.step_due = self.epoch_due = False

    @property
    def settings(self) -> dict[str, str]:
        """Descriptions of the schedules, the same in every process; a run has to keep them to continue."""
        return {"schedule": _describe(self.schedule), "window_schedule": _describe(self.window_schedule)}

    @property
    def settings_of_ranks(self) -> dict[str, str]:
        """Descriptions that must be equal on all ranks.

        A user's own schedule appears by the name of its class: its values may well depend on the rank, and its answers
        be the same all the same.
        """
        schedules = {"schedule": self.schedule, "window_schedule": self.window_schedule}
        own = {name: type(s).__name__ for name, s in schedules.items() if type(s).__module__ != Schedule.__module__}
        return self.settings | own

    def check(self, max_steps: float, max_epochs: float) -> None:
        """Raise ValueError if no snapshot is ever due within a run of this length."""
        if not self.schedule.begins_by(max_steps, max_epochs):
            raise ValueError(
                f"schedule={self.schedule!r}: none of these is within max_steps={max_steps} and "
                f"max_epochs={max_epochs}; name earlier ones."
            )

    # Quantities of a step

    def expect_step(self, step: int, ending_epoch: int | None) -> bool:
        """Return whether the quantity of the coming step may be recorded.

        Args:
            step: Number of the coming step, counted from 1.
            ending_epoch: Number of the epoch that may end with this step, counted from 1; None within an epoch.
        """
        self.epoch_due = ending_epoch is not None and self.schedule.due_after_epoch(ending_epoch)
        return self.step_taken(step, 1)

    def step_taken(self, step: int, number: int) -> bool:
        """Return whether the quantity of the step just taken is recorded, now or at the end of the epoch.

        Args:
            step: Steps taken so far.
            number: Steps that were noticed together, of which this is the last.
        """
        self.step_due = self.first_due or self.schedule.due_after_steps(step, number)
        return self.step_due or self.epoch_due

    def step_over(self) -> None:
        """Clear the flags of the latest step."""
        self.step_due = self.epoch_due = False


def _describe(schedule: Schedule) -> str:
    """Return a description that is the same in every process, also of a user's own schedule without a repr."""
    plain = type(schedule).__repr__ is object.__repr__
    return f"{type(schedule).__qualname__}({stable_repr(vars(schedule))})" if plain else stable_repr(schedule)
