"""Base of callbacks that count optimizer steps and continue from checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.utilities import rank_zero_info

from lightning_traj.callbacks.guard import Guard
from lightning_traj.callbacks.trainer import Trainer, is_resumed, may_skip_steps
from lightning_traj.files import METHODS_OF_MODULE, Picklable, identity_of
from lightning_traj.recording import Look, StepCounter


class ResumableCallback(Picklable, Callback, transient=METHODS_OF_MODULE):
    """Callback that counts optimizer steps, and whose state outlives a fit.

    A fit continues from the state of a checkpoint, or, with the same module on the same Trainer, from where the last
    fit ended. A restored state is taken up when training starts: only then has everything else been restored too, under
    every strategy. Until then it is saved again as it is.

    Args:
        name: Prefix of the tags, and part of the key of this callback's state in checkpoints.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._counter = StepCounter()
        self._guard = Guard(name)
        self._restored: Mapping[str, Any] | None = None  # state that no fit has taken up yet
        self._module: object = None  # stands for the module that the present state belongs to

    @property
    def state_key(self) -> str:
        """Key of this callback's state in checkpoints: by name, so that several live side by side."""
        return self._generate_state_key(name=self.name)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict or None

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self._counter.announce(optimizer, trainer.optimizers, trainer.global_step)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._clean_up()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._clean_up()

    def _clean_up(self) -> None:
        """Let go of everything that belongs to the fit; may be called more than once."""
        self._counter.stop()

    def _take_restored(self) -> Mapping[str, Any] | None:
        """Return the restored state, if there is one, to be taken up now."""
        restored, self._restored = self._restored, None
        return restored

    def _continues(self, trainer: Trainer, module: LightningModule) -> bool:
        """Return whether a fit without restored state continues the last one: same module, steps already taken."""
        return bool(self._module is identity_of(module) and trainer.global_step and not is_resumed(trainer))

    def _remember(self, module: LightningModule) -> None:
        """Remember which module the present state belongs to."""
        self._module = identity_of(module)

    def _start_counting(
        self,
        trainer: Trainer,
        before: Callable[[Any, Look], None] | None = None,
        after: Callable[[Any, int], None] | None = None,
    ) -> None:
        """Count optimizer steps from here on; ``before`` and ``after`` are called around each of them."""
        self._counter.start(
            trainer.optimizers,
            trainer.global_step,
            say=self._say,
            before=before,
            after=after,
            skips=may_skip_steps(trainer),
        )

    def _say(self, line: str) -> None:
        rank_zero_info(f"{self.name}: {line}")
