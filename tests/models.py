"""Small models, data and fits that the tests of the callback share."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_traj import EveryNSteps, TrajectoryCallback
from lightning_traj.blocks import clean_name
from lightning_traj.tensors import has_entries, real_entries

INPUTS, CLASSES, BATCH, BATCHES = 6, 3, 8, 4  # an epoch has 4 batches


def batches(*, shuffle: bool = False, alike: bool = False) -> DataLoader[Any]:
    """An epoch of data; ``alike``: the same batch four times, so that it is all the same where an epoch is resumed."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(BATCH * BATCHES, INPUTS, generator=generator)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0.5).long()
    if alike:
        x, y = x[:BATCH].repeat(BATCHES, 1), y[:BATCH].repeat(BATCHES)
    return DataLoader(TensorDataset(x, y), batch_size=BATCH, shuffle=shuffle)


class Stream(IterableDataset[Any]):
    """The same data without a length."""

    def __iter__(self) -> Iterator[Any]:
        return iter(batches().dataset)  # type: ignore[call-overload]


def mlp(*more: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(INPUTS, 8), nn.Tanh(), *more, nn.Linear(8, CLASSES))


class Training:
    """What the modules of both Lightning packages have in common."""

    def __init__(self, net: nn.Module | None = None) -> None:
        super().__init__()
        self.net = mlp() if net is None else net
        self.losses: list[float] = []

    def loss(self, batch: Any) -> Tensor:
        x, y = batch
        scores = self.net(x.to(getattr(self, "dtype", None)))
        return nn.functional.cross_entropy(scores.float(), y)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss(batch)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(float(outputs["loss"]) if outputs else float("nan"))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)  # type: ignore[attr-defined]


class Module(Training, pl.LightningModule):
    pass


class Reported(Module):
    """Logs what is reduced over processes when somebody reads it."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.log("train_loss", loss, on_epoch=True, on_step=False, sync_dist=True)
        return loss


class TwoOptimizers(Module):
    """Each steps once a batch, under manual optimisation."""

    automatic_optimization = False

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.net[i].parameters(), lr=0.1, momentum=0.9) for i in (0, 2)]

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()


class Validated(Module):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.loss(batch)

    def val_dataloader(self) -> Any:
        return batches()


class Failing(Validated):
    """Raises once, in its ``at``-th training step, counted from 0."""

    def __init__(self, at: int, error: BaseException) -> None:
        super().__init__()
        self.at, self.error = at, error

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if len(self.losses) == self.at:
            raise self.error
        return super().training_step(batch, batch_idx)


class Witness(pl.Callback):
    """Keeps the parameters at the start and after each epoch in float64: what a trajectory is to be compared with."""

    def __init__(self) -> None:
        self.snapshots: list[dict[str, Tensor]] = []

    def take(self, trainer: Any, module: Any) -> None:
        entries = {clean_name(n): real_entries(p) for n, p in module.named_parameters() if has_entries(p)}
        snapshot = {name: tensor.double().flatten() for name, tensor in entries.items()}
        self.snapshots.append({name: tensor.clone() for name, tensor in snapshot.items()})

    on_train_epoch_end = take

    def on_train_start(self, trainer: Any, module: Any) -> None:
        if not self.snapshots:
            self.take(trainer, module)

    def gram(self) -> np.ndarray:
        """Of θ, by definition: a parameter that came late had its first value before."""
        first: dict[str, Tensor] = {}
        for snapshot in self.snapshots:
            first = {**snapshot, **first}
        theta = torch.stack([torch.cat([{**first, **snapshot}[name] for name in first]) for snapshot in self.snapshots])
        return (theta @ theta.T).numpy()


def seed(value: int = 0) -> None:
    torch.manual_seed(value)
    np.random.seed(value)  # noqa: NPY002 - the global state is what is tested
    random.seed(value)


def fit(
    *callbacks: Any,
    root: Path,
    module: Callable[[], Any] = Module,
    data: Any = None,
    ckpt_path: Any = None,
    trainer_type: Any = pl.Trainer,
    **trainer_arguments: Any,
) -> Any:
    """Train a new module for three epochs, from a fixed seed; the Trainer."""
    seed()
    built = module()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    writes = any("Checkpoint" in type(callback).__name__ for callback in callbacks)
    defaults = {"max_epochs": 3, "enable_checkpointing": writes, "default_root_dir": root}
    trainer = trainer_type(callbacks=list(callbacks), **{**quiet, **defaults, **trainer_arguments})
    trainer.fit(built, batches() if data is None else data, ckpt_path=ckpt_path)
    return trainer


def both_schedules(**arguments: Any) -> tuple[TrajectoryCallback, TrajectoryCallback]:
    """One callback that records each epoch, and one that records each step."""
    return (
        TrajectoryCallback(name="epochs", **arguments),
        TrajectoryCallback(name="steps", schedule=EveryNSteps(1), **arguments),
    )
