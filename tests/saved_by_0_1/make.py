"""Writes the files of this folder: ``python tests/saved_by_0_1/make.py``, with the release that they are named after.

They are made once. What later releases write differs, and these files have to load for ever: don't make them again.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_traj import EveryNSteps, HybridTraining, Trajectory, TrajectoryCallback

HERE = Path(__file__).parent
INPUTS, HIDDEN = 6, 400  # the first weight has more entries than a sketch


class Recorded(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(INPUTS, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 1))

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        x, y = batch
        return nn.functional.mse_loss(self.net(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def data() -> DataLoader[tuple[torch.Tensor, ...]]:
    """Four batches."""
    x = torch.randn(16, INPUTS, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(x, x.sin().sum(1, keepdim=True)), batch_size=4)


def callbacks(folder: Path) -> list[pl.Callback]:
    """Defaults; every step, in full; and a part of the parameters frozen midway."""
    return [
        TrajectoryCallback(dirpath=folder),
        TrajectoryCallback(
            name="full", snapshot="full", schedule=EveryNSteps(2), exclude="*.bias", window=0, dirpath=folder
        ),
        HybridTraining(train="bias", when=1),
    ]


def trainer(folder: Path, *more: pl.Callback, epochs: int = 3) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=epochs,
        callbacks=[*callbacks(folder), *more],
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=bool(more),
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def main() -> None:
    if list(HERE.glob("*.ckpt")):
        sys.exit(f"{HERE} has its files already, and they stay as they are.")
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        torch.manual_seed(0)
        # In the third epoch, whose window has begun.
        save = ModelCheckpoint(folder, filename="run", every_n_train_steps=10)
        fitted = trainer(folder, save)
        fitted.fit(Recorded(), data())
        torch.manual_seed(0)
        part = trainer(folder / "part", epochs=-1)
        part.fit_loop.epoch_loop.max_steps = 10
        part.fit(Recorded(), data())
        for callback in part.callbacks:
            if isinstance(callback, TrajectoryCallback):
                trajectory = callback.trajectory
                np.savez(
                    HERE / f"{callback.name}.npz",
                    steps=trajectory.steps,
                    gram=np.stack(
                        [trajectory.gram(lambda b, n=block.name: b.name == n) for block in trajectory.blocks]
                    ),
                    path_length=trajectory.series(names=["path_length"])["path_length"],
                    windows=trajectory.windows.sums,
                )
        shutil.copy(folder / "run.ckpt", HERE)
        shutil.copy(folder / "trajectory.safetensors", HERE)
        used = set(torch.load(HERE / "run.ckpt")["callbacks"][fitted.callbacks[1].state_key]["files"])
        (HERE / "full-snapshots").mkdir()
        for name in used:
            shutil.copy(folder / "full-snapshots" / name, HERE / "full-snapshots")
        whole = Trajectory.load(HERE / "trajectory.safetensors")
        np.savez(HERE / "trajectory.npz", steps=whole.steps, **whole.summary())


if __name__ == "__main__":
    main()
