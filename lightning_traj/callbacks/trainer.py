"""Questions about a Trainer that its public interface does not answer directly."""

from __future__ import annotations

import os
from collections.abc import Sequence
from math import ceil, inf
from typing import Any, TypeAlias

from lightning.pytorch import LightningModule
from torch.optim.swa_utils import AveragedModel

from lightning_traj.callbacks.averaging import averaged_model
from lightning_traj.schedule import limit

# Of lightning.pytorch or of pytorch_lightning; both set most attributes where type checkers don't see them.
Trainer: TypeAlias = Any

DEFAULT_MAX_EPOCHS = 1000  # what Lightning chooses for a Trainer without limits


class LightningRun:
    """A fit, as far as recording asks about it: the ``Run`` of a Trainer and a module."""

    def __init__(self, trainer: Trainer, module: LightningModule) -> None:
        self._trainer = trainer
        self.module = module

    @property
    def optimizers(self) -> Sequence[Any]:
        """The optimizers that the Trainer holds now."""
        optimizers: Sequence[Any] = self._trainer.optimizers
        return optimizers

    @property
    def averaged(self) -> AveragedModel | None:
        """The average of the module that one of the callbacks keeps."""
        return averaged_model(self._trainer.callbacks)

    @property
    def epoch(self) -> int:
        """Number of epochs completed before the running one."""
        epoch: int = self._trainer.current_epoch
        return epoch

    @property
    def epochs(self) -> float:
        """Completed epochs, with the fraction of the running one."""
        return completed_epochs(self._trainer)

    @property
    def is_last_batch(self) -> bool:
        """Whether the running batch is the last of its epoch."""
        return bool(self._trainer.is_last_batch)


def completed_epochs(trainer: Trainer, starting: bool = False) -> float:
    """Return the completed epochs, with the fraction of the running one.

    Where the length of an epoch is unknown, that fraction is 0 before the last batch.

    Args:
        trainer: Trainer of the fit.
        starting: Whether training is about to start, perhaps from a checkpoint.
    """
    epochs, progress = trainer.fit_loop.epoch_progress.current, trainer.fit_loop.epoch_loop.batch_progress
    if starting and epochs.started == epochs.completed:  # the batches are still those of the last epoch
        return float(epochs.completed)
    if trainer.num_training_batches == inf:
        return float(epochs.completed + progress.is_last_batch)
    return float(epochs.completed + progress.current.ready / trainer.num_training_batches)


def batches_of(trainer: Trainer) -> int:
    """Return where Lightning puts values that are logged now on the x axis."""
    batches: int = trainer.fit_loop.epoch_loop._batches_that_stepped
    return batches


def last_step(trainer: Trainer) -> int:
    """Return where Lightning puts values that are logged at the end of an epoch on the x axis."""
    return max(0, batches_of(trainer) - 1)


def steps_in_epoch(trainer: Trainer) -> float:
    """Return the number of optimizer steps in an epoch, infinite where it is unknown."""
    if not trainer.lightning_module.automatic_optimization or trainer.num_training_batches == inf:
        return inf
    steps: int = ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
    return steps


def epochs_may_not_end(trainer: Trainer) -> bool:
    """Return whether the training data have no length and the user has not limited the run to some epochs."""
    by_epochs = limit(trainer.max_epochs) < inf and limit(trainer.max_steps) == inf
    by_epochs = by_epochs and trainer.max_epochs != DEFAULT_MAX_EPOCHS
    return bool(trainer.num_training_batches == inf and not by_epochs and not trainer.fast_dev_run)


def may_skip_steps(trainer: Trainer) -> bool:
    """Return whether a GradScaler skips steps that the Trainer counts all the same."""
    return getattr(trainer.precision_plugin, "scaler", None) is not None


def is_resumed(trainer: Trainer) -> bool:
    """Return whether the fit continues from a checkpoint that the user named.

    Lightning's searches for a learning rate or a batch size restore a checkpoint of their own, from the moment before
    the search.
    """
    name = os.path.basename(trainer.ckpt_path or "")
    return bool(name) and not name.startswith((".lr_find_", ".scale_batch_size_"))
