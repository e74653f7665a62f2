"""One run: a ResNet-20 on real images, of which from some point on only a part is trained."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_traj import After, HybridTraining, LineSearch, Threshold, TrajectoryCallback
from recipes.resnet.data import ImageData
from recipes.resnet.model import ImageClassifier


@dataclass(frozen=True)
class Setting:
    """What all runs of a comparison have in common.

    Attributes:
        epochs: of training, the same for all.
        train_images: how many; None: all there are.
        side: 32 as they are, 16 halved: a quarter of the work.
        data_path: folder with CIFAR-10's binary files; None: MNIST.
        crop_padding, flip, batch_size: see ImageData.
        learning_rate, weight_decay: of SGD with momentum 0.9; the learning rate falls to zero as a cosine.
        depth, width: of the ResNet.
        drift: the automatic rule freezes once the direction drift is below this for five snapshots.
    """

    epochs: int = 28
    train_images: int | None = 1280
    side: int = 16
    data_path: Path | None = None
    crop_padding: int = 2
    flip: bool = False
    batch_size: int = 128
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    depth: int = 20
    width: int = 16
    drift: float = 0.01


class Images(ImageData):
    """The recipe's images, halved if asked for."""

    def __init__(self, side: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.side = side

    def on_after_batch_transfer(self, batch: list[Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        images, labels = super().on_after_batch_transfer(batch, dataloader_idx)
        return F.avg_pool2d(images, images.shape[-1] // self.side), labels


class RandomSubset(L.Callback):
    """A control: from the start of an epoch on, only so many numbers are trained, drawn from all at random."""

    def __init__(self, epoch: int, count: int, seed: int) -> None:
        self.epoch, self.count, self.seed = epoch, count, seed

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch != self.epoch:
            return
        parameters = list(pl_module.parameters())
        total = sum(p.numel() for p in parameters)
        drawn = torch.randperm(total, generator=torch.Generator().manual_seed(self.seed))[: self.count]
        flat = torch.zeros(total, dtype=torch.bool).index_fill(0, drawn, True)
        masks = [m.view(p.shape) for m, p in zip(flat.split([p.numel() for p in parameters]), parameters, strict=True)]
        kept = [p.detach().clone() for p in parameters]

        def put_back(*_: Any) -> None:
            with torch.no_grad():
                for p, mask, value in zip(parameters, masks, kept, strict=True):
                    p.copy_(torch.where(mask, p, value))

        trainer.optimizers[0].register_step_post_hook(put_back)


class Notes(L.Callback):
    """Of each epoch: mean training loss, validation accuracy, and seconds of training, validation left out."""

    def __init__(self) -> None:
        self.columns: dict[str, list[float]] = {name: [] for name in ("train_loss", "accuracy", "wall", "cpu")}
        self._losses: list[float] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._losses = []
        self._started = time.perf_counter(), time.process_time()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any) -> None:
        self._losses.append(float(outputs["loss"]))
        self._ended = time.perf_counter(), time.process_time()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.columns["train_loss"].append(round(sum(self._losses) / len(self._losses), 5))
        self.columns["accuracy"].append(round(100 * float(trainer.callback_metrics["val/accuracy"]), 3))
        for clock, ended, started in zip(("wall", "cpu"), self._ended, self._started, strict=True):
            self.columns[clock].append(round(ended - started, 3))


def norm_from(share: float) -> Callable[[Setting, int], list[L.Callback]]:
    return lambda setting, seed: [HybridTraining(train="norm", when=round(share * setting.epochs))]


def random_numbers_from_half(setting: Setting, seed: int) -> list[L.Callback]:
    return [RandomSubset(setting.epochs // 2, 1376, seed)]  # as many as a ResNet-20 has BatchNorm scalars


def norm_from_random_epoch(setting: Setting, seed: int) -> list[L.Callback]:
    return [HybridTraining(train="norm", when=random.Random(seed).randrange(1, setting.epochs))]


VARIANTS: Mapping[str, Callable[[Setting, int], list[L.Callback]]] = {
    "everything": lambda setting, seed: [],
    **{f"BatchNorm only, from {share:.0%}": norm_from(share) for share in (0.1, 0.25, 0.5, 0.75)},
    "BatchNorm only, automatic": lambda setting, seed: [
        HybridTraining(train="norm", when=Threshold("direction_drift", below=setting.drift, snapshots=5))
    ],
    "BatchNorm only, from a random epoch": norm_from_random_epoch,
    "1,376 random numbers only, from 50%": random_numbers_from_half,
    "layers paused by turns": lambda setting, seed: [
        HybridTraining(
            train="norm",
            when=Threshold("direction_drift", below=setting.drift, snapshots=2),
            thaw=After(2),
            by="layer",
        )
    ],
    "everything, line search": lambda setting, seed: [HybridTraining(line_search=LineSearch())],
}


def run(setting: Setting, variant: str, seed: int) -> dict[str, Any]:
    """Train once; plain values of each epoch, and of what was done."""
    L.seed_everything(seed, verbose=False)
    notes = Notes()
    callbacks = [notes, *VARIANTS[variant](setting, seed)]  # its clock starts first
    model = ImageClassifier(
        depth=setting.depth,
        width=setting.width,
        learning_rate=setting.learning_rate,
        weight_decay=setting.weight_decay,
        schedule="cosine",
    )
    data = Images(
        setting.side,
        source="cifar10" if setting.data_path else "mnist",
        data_path=setting.data_path,
        batch_size=setting.batch_size,
        train_images=setting.train_images,
        crop_padding=setting.crop_padding,
        flip=setting.flip,
    )
    with TemporaryDirectory() as folder:
        trainer = L.Trainer(
            max_epochs=setting.epochs,
            callbacks=callbacks,
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            devices=1,
        )
        trainer.fit(model, data)
        return {**notes.columns, **what_was_done(trainer.callbacks)}  # type: ignore[attr-defined]  # Lightning sets it


def what_was_done(callbacks: Sequence[L.Callback]) -> dict[str, Any]:
    """Events, shares of the parameters that were trained in each epoch, direction drift at each."""
    done: dict[str, Any] = {"events": [], "trained_share": [], "drift": []}
    for callback in callbacks:
        if isinstance(callback, HybridTraining):
            done["events"] += map(str, callback.timeline.events)
            done["trained_share"] += [share for _, _, share in callback.timeline.epochs]
        if isinstance(callback, TrajectoryCallback):
            drift = callback.trajectory.series(names=["direction_drift"])["direction_drift"].tolist()
            done["drift"] += [float(f"{value:.3g}") if value == value else None for value in drift]
    return done
