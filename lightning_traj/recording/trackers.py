"""Trackers of the two kinds of quantities: those of the state between steps, and those of a step."""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType
from typing import Any

from torch.nn.parameter import is_lazy

from lightning_traj.blocks import clean_name
from lightning_traj.recording.process import Read, attempt
from lightning_traj.recording.quantities.quantity import Quantity
from lightning_traj.recording.quantities.registry import quantity
from lightning_traj.recording.quantities.values import zeros_like
from lightning_traj.recording.recorder import Recorder
from lightning_traj.recording.steps import Look, StepCounter
from lightning_traj.recording.tracker import Attempt, Tracker, training_of
from lightning_traj.recording.triggers import Triggers


def new_tracker(recorder: Recorder, triggers: Triggers, counter: StepCounter, guard: Attempt) -> Tracker:
    """Return a tracker of the quantity that a recorder is for."""
    tracked = quantity(recorder.options.track)
    if tracked.at_steps:
        return StepTracker(recorder, tracked, triggers, counter, guard)
    return StateTracker(recorder, tracked, triggers, counter, guard, updated_late=recorder.options.track == "average")


class StateTracker(Tracker):
    """Records a quantity of the state between steps: the weights, or their average.

    Args:
        recorder: Recorder of the snapshots.
        quantity: Quantity that is recorded.
        triggers: Decisions when a snapshot or a window is due.
        counter: Count of the optimizer steps taken.
        attempt: Calls whatever may fail during training, and warns.
        updated_late: Whether the quantity is updated after the step, as averages are. A snapshot that is due after a
            step is then taken at the end of the batch.
    """

    def __init__(
        self,
        recorder: Recorder,
        quantity: Quantity,
        triggers: Triggers,
        counter: StepCounter,
        attempt: Attempt,
        updated_late: bool,
    ) -> None:
        super().__init__(recorder, quantity, triggers, counter, attempt)
        self._updated_late = updated_late
        self._due_at_batch_end = False

    def parameters(self) -> dict[str, Any]:  # noqa: D102 (see Tracker)
        return self._read()

    def begin(self, epochs: float, resumed: bool) -> None:  # noqa: D102
        between_epochs, epoch = epochs == self.run.epoch, self.run.epoch
        # A checkpoint of the last batch of an epoch lacks the snapshot at its end, which is not reported again.
        lacks_steps = resumed and (self.recorder.state.history.latest or (0, 0.0))[0] < self.steps
        if between_epochs and lacks_steps and self.triggers.schedule.due_after_epoch(epoch):
            self._attempt("recording", self._record, epochs)
        if not any(is_lazy(parameter) for parameter in self.parameters().values()):
            self._record_initial(epochs)
        if between_epochs:
            self.recorder.windows.end(self.steps)
            self._request_window(lambda: not self.steps or self.triggers.window_schedule.due_after_epoch(epoch))

    def _before_step(self, optimizer: Any, look: Look) -> None:
        is_initial = not len(self.recorder) and not self.steps  # lazy parameters have their values only now
        looks = look.is_last and (self.recorder.windows.due or self.recorder.windows.running)
        if not (is_initial or looks):
            return
        parameters = self.quantity.parameters.of(self.run.module)
        if any(is_lazy(parameter) for parameter in parameters.values()):
            return
        if is_initial:
            self._record_initial(self.run.epochs)
        if look.is_last:
            self._attempt("recording", self.recorder.windows.prepare, parameters)

    def batch_ends(self) -> None:  # noqa: D102
        if self._due_at_batch_end:
            self._due_at_batch_end = False
            self._attempt("recording", self._record, self.run.epochs)

    def _after_step(self, optimizer: Any, number: int) -> None:
        if self.triggers.schedule.due_after_steps(self.steps, number):
            if self._updated_late:
                self._due_at_batch_end = True
            else:
                self._record(self.run.epochs)

    def _after_epoch(self, epoch: int) -> None:
        if self.triggers.schedule.due_after_epoch(epoch):
            self._record(self.run.epochs)

    def _record_initial(self, epochs: float) -> None:
        if not len(self.recorder):
            self._attempt("recording", self._record, epochs)
        self._introduce()

    def _record(self, epochs: float) -> None:
        self._take(attempt(self._read), epochs)


class StepTracker(Tracker, transient={"_last": NoneType}):
    """Records a quantity of a step: a gradient, an update, or a moment right after the step.

    Args:
        recorder: Recorder of the snapshots.
        quantity: Quantity that is recorded.
        triggers: Decisions when a snapshot is due.
        counter: Count of the optimizer steps taken.
        attempt: Calls whatever may fail during training, and warns.
    """

    def __init__(
        self, recorder: Recorder, quantity: Quantity, triggers: Triggers, counter: StepCounter, attempt: Attempt
    ) -> None:
        super().__init__(recorder, quantity, triggers, counter, attempt)
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
            self._attempt("recording", self._keep, optimizer, look.has_gradients)

    def _keep(self, optimizer: Any, has_gradients: bool) -> None:
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
            reading, epochs = attempt(self._read), self.run.epochs
            if self.triggers.step_due:
                self._record(reading, epochs)
            else:
                self._last = reading, self.steps, epochs
        self.triggers.step_over()

    def _record(self, reading: Read, epochs: float) -> None:
        # Tried once: where it fails on one rank, others may have recorded it, and yet all have to go on alike.
        first_due, self.triggers.first_due = self.triggers.first_due, False
        if not self._take(reading, epochs):
            self.triggers.first_due = first_due

    def _after_epoch(self, epoch: int) -> None:
        last, self._last = self._last, None
        self.triggers.step_over()
        if last is not None:
            self.recorder.record(*last)
        recorded = (self.recorder.state.history.latest or (0, 0.0))[0]
        track = self.recorder.options.track
        if self.steps and not len(self.recorder):
            self._attempt.warn(
                "nothing",
                f"nothing was recorded: no step came with a value for track={track!r}, or all were left out",
            )
        elif last is None and recorded < self.steps and self.triggers.schedule.due_after_epoch(epoch):
            self._attempt.warn(
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
