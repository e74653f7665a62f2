"""Records windows of consecutive optimizer steps, between the snapshots of a recorder."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from lightning_traj.gram import Row
from lightning_traj.recording.process import NamedTensors
from lightning_traj.recording.windows import StepWindows
from lightning_traj.tensors import UnreadableError

if TYPE_CHECKING:
    from lightning_traj.recording.recorder import Recorder


class WindowRecorder:
    """Records windows of consecutive optimizer steps: sketches of the parameters before and after each step.

    Args:
        recorder: Recorder of the snapshots, whose blocks and sketches these are.
        state: Windows so far, which are replaced in one assignment: a checkpoint has consistent ones at any time.
    """

    def __init__(self, recorder: Recorder, state: StepWindows) -> None:
        self.recorder, self.state = recorder, state

    def __getstate__(self) -> dict[str, Any]:
        """Return what pickles and deep copies hold: on the host, so that any machine can read it."""
        return {"recorder": self.recorder, "state": self.state.to(torch.device("cpu"))}

    @property
    def due(self) -> bool:
        """Whether a window is to begin right before the next step."""
        return self.state.due

    @property
    def running(self) -> bool:
        """Whether a window has begun, and waits for more steps."""
        return self.state.running

    def request(self) -> None:
        """Have a window begin right before the next step, unless one is running that has steps."""
        self.state = self.state.requested()

    def prepare(self, parameters: NamedTensors) -> None:
        """Take in the parameters right before an optimizer step.

        A window that is due begins at them. A running one goes on from them: something else than a step may have moved
        the parameters since the last step, and only their values tell.
        """
        if self.due:
            self._with_row(parameters, None, StepWindows.begun)
        elif self.running:
            self._with_row(parameters, None, StepWindows.shifted)

    def begin(self, parameters: NamedTensors, step: int) -> None:
        """Begin a window at the parameters right after a step, such as those of a snapshot.

        Args:
            parameters: Tensors by qualified name.
            step: Optimizer steps taken.
        """
        self._with_row(parameters, step, StepWindows.begun)

    def add(self, parameters: NamedTensors, step: int) -> None:
        """Take the parameters after a step into the running window, if there is one.

        Args:
            parameters: Tensors by qualified name.
            step: Optimizer steps taken.
        """
        if self.running:
            self._with_row(parameters, step, lambda state, row: state.with_step(row, step))

    def cancel(self) -> None:
        """Forget the running window, if there is one."""
        self.state = self.state.cancelled()

    def end(self, step: int) -> None:
        """End the running window, if there is one, after ``step`` optimizer steps in all."""
        self.state = self.state.ended(step)

    def _with_row(
        self, parameters: NamedTensors, step: int | None, after: Callable[[StepWindows, Row], StepWindows]
    ) -> None:
        """Replace the windows by those after taking in sketches of all blocks.

        Args:
            parameters: Tensors by qualified name.
            step: Optimizer steps taken; None right before a step, when the parameters may have been moved since.
            after: Returns the windows after taking in a row.
        """
        recorder = self.recorder
        if not recorder.state.blocks:  # before θ_0
            return
        while not recorder.state.is_lost:
            try:
                return self._take(parameters, step, after)
            except UnreadableError as error:
                if recorder.process.ranks.size > 1:  # others have a row that is not finite
                    raise
                recorder.leave_out(error.reasons)

    def _take(
        self, parameters: NamedTensors, step: int | None, after: Callable[[StepWindows, Row], StepWindows]
    ) -> None:
        recorder, sketcher, ranks = self.recorder, self.recorder.sketcher, self.recorder.process.ranks
        partition = recorder.state.partition
        recorded = partition.recorded(parameters)
        made = None if step is None else sketcher.row_after(step, partition)  # for a snapshot, say
        if made is None:
            sketcher.forget()
            sketcher.divide(partition, recorded)
        with ranks.alone():
            if made is None:
                last = recorder.store.last_row(recorder.state) or self.state.last
                made = sketcher.row(partition, lambda: recorded, last)
                if step is not None:
                    sketcher.remember(step, *made)
            row, failure = made
            self.state = after(self.state, row)
        if failure is not None:
            raise failure
