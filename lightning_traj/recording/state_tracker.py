"""Tracker of a quantity of the state between steps."""

from __future__ import annotations

from typing import Any

from torch.nn.parameter import is_lazy

from lightning_traj.recording.process import read_now
from lightning_traj.recording.quantities.quantity import Quantity
from lightning_traj.recording.recorder import Recorder
from lightning_traj.recording.steps import Look, StepCounter
from lightning_traj.recording.tracker import Guard, Tracker
from lightning_traj.recording.triggers import Triggers


class StateTracker(Tracker):
    """Records a quantity of the state between steps: the weights, or their average.

    The other arguments are those of ``Tracker``.

    Args:
        updated_late: Whether the quantity is updated after the step, as averages are. A snapshot that is due after a
            step is then taken at the end of the batch.
    """

    def __init__(
        self,
        recorder: Recorder,
        quantity: Quantity,
        triggers: Triggers,
        counter: StepCounter,
        guard: Guard,
        updated_late: bool,
    ) -> None:
        super().__init__(recorder, quantity, triggers, counter, guard)
        self._updated_late = updated_late
        self._due_at_batch_end = False

    def parameters(self) -> dict[str, Any]:  # noqa: D102 (see Tracker)
        return self._read()

    def begin(self, epochs: float, resumed: bool) -> None:  # noqa: D102
        between_epochs, epoch = epochs == self.run.epoch, self.run.epoch
        # A checkpoint of the last batch of an epoch lacks the snapshot at its end, which is not reported again.
        lacks_steps = resumed and (self.recorder.state.history.latest or (0, 0.0))[0] < self.steps
        if between_epochs and lacks_steps and self.triggers.schedule.due_after_epoch(epoch):
            self._guard("recording", self._record, epochs)
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
            self.recorder.windows.prepare(parameters)

    def batch_ends(self) -> None:  # noqa: D102
        if self._due_at_batch_end:
            self._due_at_batch_end = False
            self._guard("recording", self._record, self.run.epochs)

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
            self._guard("recording", self._record, epochs)
        self._introduce()

    def _record(self, epochs: float) -> None:
        self._take(read_now(self._read), self.steps, epochs)
