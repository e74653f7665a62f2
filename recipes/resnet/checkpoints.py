"""A checkpoint before the first step: ModelCheckpoint writes none, and every trajectory begins there."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class CheckpointAtStart(Callback):
    """Saves ``epoch=0-step=0.ckpt`` where the Trainer's ModelCheckpoint puts its own."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        checkpoint = trainer.checkpoint_callback
        if trainer.global_step == 0 and isinstance(checkpoint, ModelCheckpoint) and checkpoint.dirpath is not None:
            trainer.save_checkpoint(f"{checkpoint.dirpath}/epoch=0-step=0.ckpt")
