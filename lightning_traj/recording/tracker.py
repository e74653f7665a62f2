"""Recording of one quantity of a model while a training loop runs; knows no Lightning.

A training loop reports when steps, batches and epochs begin and end. A tracker asks its triggers whether a snapshot or
a window is due, reads the quantity, and hands it to its recorder.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from torch import nn

from lightning_traj.blocks import clean_name
from lightning_traj.files import Picklable
from lightning_traj.recording.notices import Notices
from lightning_traj.recording.quantities import Quantity
from lightning_traj.recording.recorder import Recorder
from lightning_traj.recording.steps import StepCounter
from lightning_traj.recording.triggers import Triggers
from lightning_traj.text import check_unchanged

Reading: TypeAlias = Mapping[str, Any] | Exception  # tensors by parameter, or why they could not be read


class Run(Protocol):
    """A running training loop, as far as recording asks about it."""

    @property
    def module(self) -> nn.Module:
        """The module that is trained."""

    @property
    def optimizers(self) -> Sequence[Any]:
        """The optimizers that train it now."""

    @property
    def epoch(self) -> int:
        """Number of epochs completed before the running one."""

    @property
    def epochs(self) -> float:
        """Completed epochs, with the fraction of the running one."""

    @property
    def is_last_batch(self) -> bool:
        """Whether the running batch is the last of its epoch."""


class Attempt(Protocol):
    """Calls functions that may fail: a failure is reported, and training goes on."""

    def __call__(self, what: str, do: Callable[..., Any], *args: Any) -> None:
        """Call ``do(*args)``; a warning names ``what`` failed."""

    def warn(self, what: str, message: str) -> None:
        """Warn, unless there was a warning of this kind before."""


def reading_of(read: Callable[[], dict[str, Any]]) -> Reading:
    """Return the tensors, or the error of reading them, which the recorder raises once the other ranks know of it."""
    try:
        return read()
    except Exception as error:
        return error


class Tracker(Picklable, ABC, transient={"run": None, "_introduce": None}):
    """Records one quantity of a model whenever it is due.

    Args:
        recorder: Recorder of the snapshots.
        quantity: Quantity that is recorded.
        triggers: Decisions when a snapshot or a window is due.
        counter: Count of the optimizer steps taken.
        attempt: Calls whatever may fail during training, and warns.

    Attributes:
        run: The training loop that is recorded, from ``attach`` to ``stop``.
    """

    run: Run
    _introduce: Callable[[], object]

    def __init__(
        self, recorder: Recorder, quantity: Quantity, triggers: Triggers, counter: StepCounter, attempt: Attempt
    ) -> None:
        self.recorder, self.quantity, self.triggers, self.counter = recorder, quantity, triggers, counter
        self._attempt = attempt
        self._notices = Notices(attempt.warn)

    @property
    def steps(self) -> int:
        """Number of optimizer steps taken."""
        return self.counter.count

    # Before training

    def attach(self, run: Run, introduce: Callable[[], object]) -> None:
        """Take up a training loop.

        Args:
            run: The training loop.
            introduce: Called when θ_0 is there, before the first step.
        """
        self.run, self._introduce = run, introduce

    def clear(self, aliases: Mapping[str, str] | None = None) -> None:
        """Start a new, empty trajectory.

        Args:
            aliases: First names of parameters by the names that they have now, where these differ.
        """
        self.quantity.restart_names(aliases or {})
        self.recorder.clear()
        self.counter.count = 0

    def prepare(self) -> str:
        """Check that everything can be recorded, on all ranks, and return a line that says what it will cost.

        Raises:
            ValueError: The model or the settings cannot be recorded, or differ between ranks.
        """
        self.quantity.begin(self.run.module)
        parameters = self.parameters()
        self.recorder.ended |= self._ended
        self.recorder.check(parameters, self.run.module)
        self.recorder.ranks.compare(self.triggers.settings_of_ranks)
        cost = self.recorder.prepare(parameters)
        self._notices.restart(self.recorder.unreadable)
        return cost

    def begin(self, epochs: float, resumed: bool) -> None:
        """Record the state before the first step.

        Args:
            epochs: Completed epochs.
            resumed: Whether the run continues from a checkpoint.
        """

    def parameters(self) -> dict[str, Any]:
        """Return tensors that have the names and shapes of those that will be recorded."""
        return self.quantity.parameters.of(self.run.module)

    # During training

    @abstractmethod
    def before_step(self, optimizer: Any, has_gradients: bool) -> None:
        """Look at the parameters right before an optimizer step; arguments as of ``StepCounter.start``."""

    def after_step(self, optimizer: Any, number: int) -> None:
        """Record after optimizer steps, if it is due; arguments as of ``StepCounter.start``."""
        self._attempt("recording", self._after_step, optimizer, number)
        if number > 1:
            self.recorder.cancel_window()
            self._attempt.warn(
                "several steps",
                f"{number} optimizer steps were noticed at once, since the optimizer neither runs step hooks nor "
                "evaluates the closure that Lightning passes: windows of single steps are left out, and an update is "
                "that of all steps in a batch",
            )
        elif self.recorder.windows.running:
            parameters = self.quantity.parameters.of(self.run.module)
            self._attempt("recording", self.recorder.add_to_window, parameters, self.steps)
        self._request_window(lambda: self.triggers.window_schedule.due_after_steps(self.steps, number))

    def batch_ends(self) -> None:
        """Record at the end of a batch, if it is due."""

    def epoch_ends(self) -> None:
        """Record at the end of an epoch, if it is due."""
        self._attempt("recording", self._after_epoch, self.run.epoch + 1)
        self._attempt("recording", self.recorder.end_window, self.steps)
        self._request_window(lambda: self.triggers.window_schedule.due_after_epoch(self.run.epoch + 1))

    def stop(self) -> None:
        """Let go of the training loop, its optimizers and its parameters."""
        self.quantity.clear()
        self.quantity.release()
        self.recorder.ranks.leave()
        for attribute in ("run", "_introduce"):
            vars(self).pop(attribute, None)

    # State

    def state_dict(self) -> dict[str, Any]:
        """Return everything recorded, as tensors and primitives."""
        return {
            **self.recorder.state_dict(),
            "schedules": self.triggers.settings,
            "optimizer_steps": self.steps,
            "aliases": dict(self.quantity.parameters.names.aliases),
            "ended": sorted(self.recorder.ended | self._ended),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where ``state_dict`` was taken, with the training loop that is attached.

        Raises:
            ValueError: The settings differ from those of the state.
        """
        check_unchanged(self.triggers.settings, state["schedules"], "the trajectory in the checkpoint was recorded")
        self.clear(state.get("aliases"))  # which older checkpoints lack
        self.recorder.load_state_dict(state, self.parameters())
        self.recorder.ended = set(state.get("ended", ()))
        self.counter.count = state["optimizer_steps"]

    # Inside

    @abstractmethod
    def _after_step(self, optimizer: Any, number: int) -> None:
        """Take a snapshot if one is due after the latest ``number`` optimizer steps."""

    @abstractmethod
    def _after_epoch(self, epoch: int) -> None:
        """Take a snapshot if one is due at the end of this epoch, counted from 1."""

    def _read(self) -> dict[str, Any]:
        """Return the tensors to be recorded, by name of their parameter."""
        tensors = self.quantity.read(self.run, self.run.module)
        if self.quantity.left_out:
            names = ", ".join(f"{name} ({why})" for name, why in self.quantity.left_out.items())
            self._attempt.warn("left out", f"the {self.recorder.track} of these parameters is left out: {names}")
        return tensors

    def _take(self, reading: Reading, epochs: float) -> bool:
        """Hand a snapshot to the recorder; return whether it has been recorded."""
        try:
            return self.recorder.record(reading, self.steps, epochs)
        finally:
            self._notices.of_unreadable(self.recorder.unreadable)
            self._notices.of_new_blocks(self.quantity.parameters.names, self.recorder.partition)

    def _request_window(self, is_due: Callable[[], bool]) -> None:
        def request() -> None:  # schedules can be the user's own, and may fail
            if is_due():
                self.recorder.request_window()

        if self.recorder.window:
            self._attempt("recording", request)

    @property
    def _ended(self) -> set[str]:
        """Clean names of the parameters that left the model in this process while they were recorded."""
        return {clean_name(name) for name in self.quantity.parameters.names.ended}
