"""How much slower is training with snapshots? A ResNet-20 on 32x32 images, batches of 128, TensorBoard's logger.

Fits without the callback, with a snapshot an epoch, and with a snapshot each step take turns. They do the same work
batch by batch; of each batch (all hooks and logs that belong to it included) the fastest over the rounds counts, so
that what else the machine does drops out.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import lightning as L
import numpy as np
import torch
from _setting import environment
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader, TensorDataset

from lightning_traj import EveryNEpochs, EveryNSteps, TrajectoryCallback
from lightning_traj.schedule import Schedule
from recipes.resnet.model import ImageClassifier

SIDES: Mapping[str, Schedule | None] = {
    "without": None,
    "a snapshot an epoch": EveryNEpochs(1),
    "a snapshot each step": EveryNSteps(1),
}
WANTED = {"a snapshot an epoch": 1.005, "a snapshot each step": 1.03}
EPOCH = 391  # batches of 128 in 50,000 images


class Clock(L.Callback):
    """When each batch began, and when training ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.times.append(time.perf_counter())

    def on_train_end(self, *_: Any) -> None:
        self.times.append(time.perf_counter())


class Timed(TrajectoryCallback):
    """Times its own snapshots and logs."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__(schedule=schedule)
        self.seconds: dict[str, list[float]] = {"_record": [], "_log": []}
        for owner, (method, seconds) in zip((self._tracker, self._book), self.seconds.items(), strict=True):
            setattr(owner, method, self._timed(getattr(owner, method), seconds))

    @staticmethod
    def _timed(method: Any, seconds: list[float]) -> Any:
        def call(*args: Any, **settings: Any) -> None:
            start = time.perf_counter()
            method(*args, **settings)
            seconds.append(time.perf_counter() - start)

        return call


def fit(
    schedule: Schedule | None, batches: int, batch_size: int, depth: int
) -> tuple[list[torch.Tensor], np.ndarray, Timed | None]:
    """Final weights, seconds of each batch, and the callback."""
    torch.manual_seed(0)
    model = ImageClassifier(depth=depth)
    images = torch.randn(batches * batch_size, 3, 32, 32)
    labels = torch.randint(10, (len(images),))
    clock, recorder = Clock(), None if schedule is None else Timed(schedule)
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()):
        trainer = L.Trainer(
            accelerator="cpu",
            max_epochs=1,
            logger=TensorBoardLogger(folder),
            callbacks=[clock] if recorder is None else [recorder, clock],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, DataLoader(TensorDataset(images, labels), batch_size=batch_size))
    return [p.detach() for p in model.parameters()], np.diff(clock.times), recorder


def check(batches: int = 3, batch_size: int = 128, depth: int = 20) -> None:
    """The weights are the same to the last bit, with and without."""
    plain, *_ = fit(None, batches, batch_size, depth)
    for name in WANTED:
        observed, _, recorder = fit(SIDES[name], batches, batch_size, depth)
        if not all(map(torch.equal, plain, observed)):
            raise AssertionError(f"{name}: the weights differ")
        if recorder is None or len(recorder.trajectory) < 2:
            raise AssertionError(f"{name}: nothing was recorded")
    print("final weights: bit-identical with and without snapshots")


def measure(batches: int = 100, rounds: int = 4, batch_size: int = 128, depth: int = 20) -> dict[str, float]:
    times: dict[str, list[np.ndarray]] = {name: [] for name in SIDES}
    costs: dict[str, list[float]] = {"_record": [], "_log": []}
    for r in range(rounds):
        for s in range(len(SIDES)):
            name = list(SIDES)[(r + s) % len(SIDES)]
            _, seconds, recorder = fit(SIDES[name], batches, batch_size, depth)
            times[name].append(seconds)
            if recorder is not None:
                for method, own in recorder.seconds.items():
                    costs[method] += own
    fastest = {name: np.min(rows, axis=0) for name, rows in times.items()}
    batch, snapshot, log = float(np.median(fastest["without"])), min(costs["_record"]), min(costs["_log"])
    print(f"a batch {1e3 * batch:.0f} ms, a snapshot {1e3 * snapshot:.1f} ms, a log with pictures {1e3 * log:.0f} ms")
    ratios = {name: float(fastest[name].sum() / fastest["without"].sum()) for name in WANTED}
    for name, value in ratios.items():
        print(f"training with {name} / without, an epoch of {batches} batches: {value:.3f}")
    # Costs an epoch don't grow with its length: what is wanted is meant for epochs of an ordinary length.
    long = 1 + (snapshot + log) / (EPOCH * batch)
    print(f"the same with a snapshot an epoch, an epoch of {EPOCH} batches: {long:.4f}")
    print(f"wanted: {', '.join(f'{name} at most {limit}' for name, limit in WANTED.items())}")
    return ratios


if __name__ == "__main__":
    print(environment())
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    check()
    measure(*map(int, sys.argv[1:3]))  # batches and rounds
