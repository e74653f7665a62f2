"""Recording of one quantity of a model while a training loop runs; knows no Lightning.

A training loop reports when steps, batches and epochs begin and end. A tracker asks its triggers whether a snapshot or
a window is due, reads the quantity, and hands it to its recorder.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import nn
from torch.optim.swa_utils import AveragedModel

from lightning_traj.blocks import clean_name
from lightning_traj.files import Picklable
from lightning_traj.recording.notices import Notices
from lightning_traj.recording.process import Read
from lightning_traj.recording.quantities.quantity import Quantity, Training
from lightning_traj.recording.recorder import Recorder
from lightning_traj.recording.steps import Look, StepCounter
from lightning_traj.recording.triggers import Triggers
from lightning_traj.text import check_unchanged


class Run(Protocol):
    """A running training loop, as far as recording asks about it."""

    @property
    def module(self) -> nn.Module:
        """The module that is trained."""

    @property
    def optimizers(self) -> Sequence[Any]:
        """The optimizers that train it now."""

    @property
    def averaged(self) -> AveragedModel | None:
        """The average of the whole module that is kept outside of it, if there is one."""

    @property
    def epoch(self) -> int:
        """Number of epochs completed before the running one."""

    @property
    def epochs(self) -> float:
        """Completed epochs, with the fraction of the running one."""

    @property
    def is_last_batch(self) -> bool:
        """Whether the running batch is the last of its epoch."""


class Guard(Protocol):
    """Calls functions that may fail: a failure is reported, and training goes on."""

    def __call__(self, what: str, do: Callable[..., Any], *args: Any) -> None:
        """Call ``do(*args)``; a warning names ``what`` failed."""

    def warn(self, what: str, message: str) -> None:
        """Warn, unless there was a warning of this kind before."""


def training_of(run: Run) -> Training:
    """Return the part of a training loop that quantities are read from."""
    return Training(run.module, run.optimizers, run.averaged)


class Tracker(Picklable, ABC, transient={"run": None, "_introduce": None}):
    """Records one quantity of a model whenever it is due.

    Args:
        recorder: Recorder of the snapshots.
        quantity: Quantity that is recorded.
        triggers: Decisions when a snapshot or a window is due.
        counter: Count of the optimizer steps taken.
        guard: Calls whatever may fail during training, and warns.

    Attributes:
        run: The training loop that is recorded, from ``attach`` to ``stop``.
    """

    run: Run
    _introduce: Callable[[], object]

    def __init__(
        self, recorder: Recorder, quantity: Quantity, triggers: Triggers, counter: StepCounter, guard: Guard
    ) -> None:
        self.recorder, self.quantity, self.triggers, self.counter = recorder, quantity, triggers, counter
        self._guard = guard
        self._notices = Notices(guard.warn)

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

    def clear(self, state: Mapping[str, Any] | None = None) -> None:
        """Start a new, empty trajectory.

        Args:
            state: Saved state of the trajectory that is going to be restored, whose names of parameters go on.
        """
        self.quantity.restart_names(*({}, {}) if state is None else _known_parameters(state))
        self.recorder.clear()
        self.counter.count = 0

    def prepare(self) -> str:
        """Check that everything can be recorded, on all ranks, and return a line that says what it will cost.

        Raises:
            ValueError: The model or the settings cannot be recorded, or differ between ranks.
        """
        self.quantity.begin(self.run.module)
        parameters = self.parameters()
        self.recorder.ended |= _ended(self.quantity)
        self.recorder.check(parameters, self.run.module, are_values=not self.quantity.at_steps)
        self.recorder.process.ranks.compare(self.triggers.settings_of_ranks)
        cost = self.recorder.prepare(parameters)
        self._notices.restart(self.recorder.state.partition.unreadable)
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

    def before_step(self, optimizer: Any, look: Look) -> None:
        """Look at the parameters before an optimizer step; arguments as of ``StepCounter.start``."""
        if look.is_first:
            self._guard("following parameters", self.quantity.parameters.follow, self.run.module, optimizer)
        self._guard("recording", self._before_step, optimizer, look)

    def after_step(self, optimizer: Any, number: int) -> None:
        """Record after optimizer steps, if it is due; arguments as of ``StepCounter.start``."""
        self._guard("recording", self._after_step, optimizer, number)
        if number > 1:
            self.recorder.windows.cancel()
            self._guard.warn(
                "several steps",
                f"{number} optimizer steps were noticed at once, since the optimizer neither runs step hooks nor "
                "evaluates the closure that Lightning passes: windows of single steps are left out, and an update is "
                "that of all steps in a batch",
            )
        elif self.recorder.windows.running:
            windows, parameters = self.recorder.windows, self.quantity.parameters
            self._guard("recording", lambda: windows.add(parameters.of(self.run.module), self.steps))
        self._request_window(lambda: self.triggers.window_schedule.due_after_steps(self.steps, number))

    def batch_ends(self) -> None:
        """Record at the end of a batch, if it is due."""

    def epoch_ends(self) -> None:
        """Record at the end of an epoch, if it is due."""
        self._guard("recording", self._after_epoch, self.run.epoch + 1)
        self._guard("recording", self.recorder.windows.end, self.steps)
        self._request_window(lambda: self.triggers.window_schedule.due_after_epoch(self.run.epoch + 1))

    def stop(self) -> None:
        """Let go of the training loop, its optimizers and its parameters."""
        self.quantity.clear()
        self.quantity.release()
        self.recorder.process.ranks.leave()
        for attribute in ("run", "_introduce"):
            vars(self).pop(attribute, None)

    # State

    def state_dict(self) -> dict[str, Any]:
        """Return everything recorded, as tensors and primitives."""
        names = self.quantity.parameters.names
        return {
            **self.recorder.state_dict(),
            "schedules": self.triggers.settings,
            "optimizer_steps": self.steps,
            "aliases": dict(names.aliases),
            "shapes": {clean_name(first): shape for first, shape in names.shapes.items()},
            "ended": sorted(self.recorder.ended | _ended(self.quantity)),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where ``state_dict`` was taken, with the training loop that is attached.

        Raises:
            ValueError: The settings differ from those of the state.
        """
        check_unchanged(self.triggers.settings, state["schedules"], "the trajectory in the checkpoint was recorded")
        self.clear(state)
        self.recorder.load_state_dict(state, self.parameters())
        self.recorder.ended = set(state.get("ended", ()))
        self.counter.count = state["optimizer_steps"]

    # Inside

    @abstractmethod
    def _before_step(self, optimizer: Any, look: Look) -> None:
        """Keep what the coming step is about to change, if that is recorded."""

    @abstractmethod
    def _after_step(self, optimizer: Any, number: int) -> None:
        """Take a snapshot if one is due after the latest ``number`` optimizer steps."""

    @abstractmethod
    def _after_epoch(self, epoch: int) -> None:
        """Take a snapshot if one is due at the end of this epoch, counted from 1."""

    def _read(self) -> dict[str, Any]:
        """Return the tensors to be recorded, by name of their parameter."""
        tensors = self.quantity.read(training_of(self.run))
        if self.quantity.left_out:
            names = ", ".join(f"{name} ({why})" for name, why in self.quantity.left_out.items())
            self._guard.warn("left out", f"the {self.recorder.settings.track} of these parameters is left out: {names}")
        return tensors

    def _take(self, read: Read, steps: int, epochs: float) -> bool:
        """Hand a snapshot to the recorder; return whether it has been recorded."""
        try:
            return self.recorder.record(read, steps, epochs)
        finally:
            partition = self.recorder.state.partition
            self._notices.of_unreadable(partition.unreadable)
            self._notices.of_new_blocks(self.quantity.parameters.names, partition)

    def _request_window(self, is_due: Callable[[], bool]) -> None:
        def request() -> None:  # schedules can be the user's own, and may fail
            if is_due():
                self.recorder.windows.request()

        if self.recorder.settings.window_steps:
            self._guard("recording", request)


def _ended(quantity: Quantity) -> set[str]:
    """Return clean names of the parameters that left the model in this process while they were recorded."""
    return {clean_name(name) for name in quantity.parameters.names.ended}


def _known_parameters(state: Mapping[str, Any]) -> tuple[Mapping[str, str], Mapping[str, Any]]:
    """Return the aliases and shapes of the parameters in a saved state; older states lack shapes, or both."""
    recorded = [piece["parameter"] for pieces in state["pieces"] for piece in pieces]
    return state.get("aliases", {}), state.get("shapes") or dict.fromkeys(recorded)
