"""How long should a block's sketch be? What lengths cost in checkpoints and time, and their standard errors.

Each run is trained once, with a callback of each length; so all of them see the same path. Errors are those at the end:
of everything that moves, and of the layers with a tensor that the shortest sketch does not keep whole.
"""

from __future__ import annotations

import io
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

import lightning as L
import numpy as np
import torch
from _setting import environment, in_turns
from torch.utils.data import DataLoader, TensorDataset

from lightning_traj import EveryNEpochs, EveryNSteps, Trajectory, TrajectoryCallback
from lightning_traj.recording.recorder import Recorder
from lightning_traj.recording.settings import RecordingSettings
from lightning_traj.sketch.countsketch import DEFAULT_DIM
from recipes.gpt.data import TextData
from recipes.gpt.model import LanguageModel
from recipes.resnet.data import ImageData
from recipes.resnet.model import ImageClassifier

DIMS = (256, 512, 1024, 2048)
MEASURES = ("mds", "mds_relative", "direction_drift")
WANTED = 0.002  # of the whole model's MDS, at the default length
DRIFT = 0.01  # the threshold of the recipes: below it a direction counts as found
NORMS = {"gpt-neox": "*norm.weight", "gpt2": "*.ln_*"}  # which the recipes of language models exclude, as biases


@dataclass(frozen=True)
class Run:
    """A short training run.

    Attributes:
        name: How it is called in the table.
        module, data: Make the module and its data.
        trainer: Arguments of the Trainer.
        callback: Arguments of the callbacks.
    """

    name: str
    module: Callable[[], L.LightningModule]
    data: Callable[[], Any]
    trainer: Mapping[str, Any]
    callback: Mapping[str, Any] = field(default_factory=dict)


def random_images(count: int = 96, size: int = 64, classes: int = 1000) -> DataLoader[Any]:
    """Noise, each image with a label of its own."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, size, size, generator=generator)
    return DataLoader(TensorDataset(images, torch.arange(count) % classes), batch_size=8)


def language(architecture: str, steps: int, every: int, context: int, batch_size: int, **model: Any) -> dict[str, Any]:
    """A run of the language models' recipe, on the text that comes with Python."""
    return {
        "module": partial(LanguageModel, architecture=architecture, context=context, **model),
        "data": partial(TextData, tokenizer="characters", context=context, batch_size=batch_size),
        "trainer": {"max_steps": steps, "gradient_clip_val": 1.0},
        "callback": {"schedule": EveryNSteps(every), "exclude": ["*.bias", NORMS[architecture]]},
    }


small: dict[str, Any] = {"steps": 200, "every": 5, "context": 64, "batch_size": 16, "warmup_steps": 10}
small |= {"width": 64, "depth": 6, "heads": 4, "vocabulary": 128}
large: dict[str, Any] = {
    "steps": 16,
    "every": 1,
    "context": 32,
    "batch_size": 1,
    "warmup_steps": 4,
    "vocabulary": 50257,
}
RUNS = (
    Run(
        "ResNet-20, digits, 20 epochs",
        partial(ImageClassifier, depth=20, weight_decay=5e-3, milestones=(12, 17)),
        partial(ImageData, source="digits", batch_size=64),
        {"max_epochs": 20},
        {"schedule": EveryNEpochs(1)},
    ),
    Run(
        "ResNet-50, random images, 36 steps",
        partial(ImageClassifier, network="resnet50", classes=1000, weight_decay=1e-4, learning_rate=0.05),
        random_images,
        {"max_epochs": 3},
        {"schedule": EveryNSteps(2)},
    ),
    Run("GPT-NeoX, width 64, 200 steps", **language("gpt-neox", **small)),
    Run("GPT-2, width 64, 200 steps", **language("gpt2", **small)),
    Run("GPT-2, 124 million, 16 steps", **language("gpt2", **large)),
)


def train(run: Run, dims: Sequence[int]) -> tuple[L.LightningModule, list[TrajectoryCallback]]:
    """The trained module, and a callback of each length that saw it."""
    callbacks = [
        TrajectoryCallback(sketch_dim=dim, name=f"dim{dim}", figures=False, window=0, **run.callback) for dim in dims
    ]
    L.seed_everything(0, verbose=False)
    module = run.module()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        trainer = L.Trainer(
            **run.trainer,
            callbacks=list(callbacks),
            default_root_dir=folder,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
        )
        trainer.fit(module, run.data())
    return module, callbacks


def check(trajectories: Sequence[Trajectory], sigmas: float = 6.0) -> None:
    """The longest sketch and the others give the same values, within their standard errors."""
    *others, longest = trajectories
    for name in MEASURES:
        best, its_error = longest.summary()[name], longest.standard_errors()[name]
        for other in others:
            value, error = other.summary()[name], other.standard_errors()[name]
            if not abs(value - best) <= sigmas * np.hypot(error, its_error):
                raise AssertionError(f"{name}: {value} ± {error}, and with the longest sketch {best} ± {its_error}")


def layer_errors(trajectory: Trajectory, least: int) -> dict[str, dict[str, float]]:
    """Standard errors of each layer with a tensor of more than so many entries, and its drift."""
    errors = {}
    for layer, members in trajectory.groups("layer").items():
        if any(block.numel > least for block in trajectory.blocks if members(block)):
            drift = trajectory.summary(members)["direction_drift"]
            errors[layer] = {**trajectory.standard_errors(members), "drift": drift}
    return errors


def seconds(module: L.LightningModule, dims: Sequence[int], repeats: int = 5) -> list[float]:
    """Seconds of a snapshot of each length."""
    parameters = dict(module.named_parameters())
    recorders = {f"{dim}": Recorder(RecordingSettings(sketch_dim=dim)) for dim in dims}

    def record(recorder: Recorder) -> None:
        recorder.record(parameters, len(recorder), 0.0)

    times = in_turns({name: partial(record, recorder) for name, recorder in recorders.items()}, repeats)
    return [min(each) for each in times.values()]


def measure(run: Run, dims: Sequence[int] = DIMS, repeats: int = 5) -> list[str]:
    """The lines of the table for a run, the first of them its values."""
    module, callbacks = train(run, dims)
    trajectories = [callback.trajectory for callback in callbacks]
    check(trajectories)
    values = trajectories[-1].summary()
    lines = [
        f"| {run.name}: {len(trajectories[0])} snapshots of {len(trajectories[0].blocks)} blocks | | | "
        + " | ".join(f"*{values[name]:.4f}*" for name in MEASURES)
        + " | |"
    ]
    for dim, callback, trajectory, taken in zip(
        dims, callbacks, trajectories, seconds(module, dims, repeats), strict=True
    ):
        torch.save(callback.state_dict(), file := io.BytesIO())
        whole, layers = trajectory.standard_errors(), layer_errors(trajectory, min(dims))
        cells = [f"{dim:,}", f"{file.tell() / len(trajectory) / 1e3:,.0f} kB", f"{1e3 * taken:.1f} ms"]
        for name in MEASURES:
            each = [errors[name] for errors in layers.values() if name in errors]
            cells.append(f"{whole[name]:.2g}; {median(each):.2g}, {max(each):.2g}")
        found = [errors["direction_drift"] for errors in layers.values() if errors["drift"] < DRIFT]
        cells.append(f"{max(found):.2g} in {len(found)}" if found else "none")
        lines.append(f"| {' | '.join(cells)} |")
        if dim == DEFAULT_DIM and whole["mds"] >= WANTED:
            raise AssertionError(f"{run.name}: the standard error of MDS is {whole['mds']}, and {WANTED} is too much")
    return lines


HEADER = (
    "| sketch_dim | checkpoint, each snapshot | time | MDS | relative MDS | direction drift | "
    f"drift of layers below {DRIFT} |",
    "| --- | --- | --- | --- | --- | --- | --- |",
)


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    print(environment())
    print("\n".join(HEADER))
    for run in [run for run in RUNS if not sys.argv[1:] or sys.argv[1] in run.name]:
        print("\n".join(measure(run)), flush=True)
