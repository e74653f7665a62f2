"""Tracker of a quantity of a step."""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType
from typing import Any

from lightning_traj.blocks import clean_name
from lightning_traj.recording.process import Read, read_now
from lightning_traj.recording.quantities.quantity import Quantity
from lightning_traj.recording.quantities.values import zeros_like
from lightning_traj.recording.recorder import Recorder
from lightning_traj.recording.steps import Look, StepCounter
from lightning_traj.recording.tracker import Guard, Tracker, training_of
from lightning_traj.recording.triggers import Triggers


class StepTracker(Tracker, transient={"_last": NoneType}):
    """Records a quantity of a step: a gradient, an update, or a moment right after the step.

    The arguments are those of ``Tracker``.
    """

    def __init__(
        self, recorder: Recorder, quantity: Quantity, triggers: Triggers, counter: StepCounter, guard: Guard
    ) -> None:
        super().__init__(recorder, quantity, triggers, counter, guard)
        # Values after the latest step of a last batch, with the counts of steps and epochs: of several steps in that
        # batch, the last one is recorded when the epoch ends.
        self._last: tuple[Read, int, float] | None = None

    def clear(self, state: Mapping[str, Any] | None = None) -> None:  # noqa: D102 (see Tracker)
        super().clear(state)
        self._last = None  # of a run that was interrupted

    def begin(self, epochs: float, resumed: bool) -> None:  # noqa: D102 (there is no value before the first step)
        self.triggers.first_due = not len(self.recorder)

    def _before_step(self, optimizer: Any, look: Look) -> None:
        if look.is_first if self.quantity.is_of_first_look else look.is_last:
            self._keep(optimizer, look.has_gradients)

    def _keep(self, optimizer: Any, has_gradients: bool) -> None:
        """Have the quantity keep what the coming step changes, if that step may be recorded."""
        # The decision is the same on all ranks, whatever gradients each of them has. A gradient in partial sums is
        # added up on training's own process group, where a single rank would meet other sums of the other ranks.
        is_due = self.triggers.expect_step(self.steps + 1, self.run.epoch + 1 if self.run.is_last_batch else None)
        # With several optimizers, another one's step may be due next, and this one's quantity is recorded with it.
        # Without gradients, nobody knows when the step will come, or how many there will be.
        if is_due or len(self.run.optimizers) > 1 or not has_gradients:
            self.quantity.before_step(self.run.module, optimizer, has_gradients)

    def _after_step(self, optimizer: Any, number: int) -> None:
        is_due = self.triggers.step_taken(self.steps, number)
        if is_due or len(self.run.optimizers) > 1:
            for stepped in self.run.optimizers if optimizer is None else [optimizer]:
                self.quantity.after_step(self.run.module, stepped)
        if is_due:
            reading, epochs = read_now(self._read), self.run.epochs
            if self.triggers.step_due:
                self._record(reading, epochs)
            else:
                self._last = reading, self.steps, epochs
        self.triggers.step_over()

    def _record(self, reading: Read, epochs: float) -> None:
        # Try only once. If one rank fails, the others may have recorded it, and all must still decide alike.
        first_due, self.triggers.first_due = self.triggers.first_due, False
        if not self._take(reading, self.steps, epochs):
            self.triggers.first_due = first_due

    def _after_epoch(self, epoch: int) -> None:
        last, self._last = self._last, None
        self.triggers.step_over()
        if last is not None:
            self._take(*last)
        recorded = (self.recorder.state.history.latest or (0, 0.0))[0]
        track = self.recorder.settings.track
        if self.steps and not len(self.recorder):
            self._guard.warn(
                "nothing",
                f"nothing was recorded: no step came with a value for track={track!r}, or all were left out",
            )
        elif last is None and recorded < self.steps and self.triggers.schedule.due_after_epoch(epoch):
            self._guard.warn(
                "last batch",
                f"no {track} was recorded at the end of this epoch: its last batch took no optimizer step, or was not "
                "known to be the last one; use EveryNSteps",
            )

    def _read(self) -> dict[str, Any]:
        tensors = super()._read()
        known = {piece.parameter for pieces in self.recorder.state.partition.pieces for piece in pieces}
        waiting = self.quantity.waiting(training_of(self.run))
        zeros = {}
        for name, parameter in self.parameters().items():
            if name in tensors:
                continue
            # Until its optimizer takes a step, a parameter is zero; in a resumed run it is as last recorded.
            is_new = bool(tensors) and name in waiting and clean_name(name) not in known
            is_without = self.quantity.zero_if_missing and name not in waiting and clean_name(name) in known
            if is_new or is_without:
                zeros[name] = zeros_like(parameter)
        return zeros | tensors
