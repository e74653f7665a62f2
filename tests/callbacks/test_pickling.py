"""Pickles and copies of callbacks and their Trainers: they keep what was recorded, and go on."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import pickletools
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import nn

import lightning_traj.loggers.trajectory
from launch import launch
from lightning_traj import After, CountSketch, EveryNSteps, HybridTraining, LineSearch, Trajectory, TrajectoryCallback
from lightning_traj.distributed.process_group import Ranks
from lightning_traj.files.pickling import Picklable, identity_of
from models import Failing, Module, Validated, batches, fit, mlp

COPIES: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda original: pickle.loads(pickle.dumps(original)),
    "deepcopy": copy.deepcopy,
    "cloudpickle": lambda original: pickle.loads(cloudpickle.dumps(original)),
}
TRACKS = ["weights", "average", "gradient", "update", "first_moment", "second_moment"]


class Adam(Module):
    """Has both moments."""

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def assert_equal(one: Trajectory, other: Trajectory) -> None:
    for name in ("steps", "epochs", "anchored", "local", "paths"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    np.testing.assert_array_equal(one.windows.sums, other.windows.sums)
    assert one.blocks == other.blocks
    assert one.settings == other.settings
    assert one.summary() == pytest.approx(other.summary(), rel=0, abs=0, nan_ok=True)


def recording(trainer: Any) -> TrajectoryCallback:
    (callback,) = (callback for callback in trainer.callbacks if isinstance(callback, TrajectoryCallback))
    return callback


def go_on(trainer: Any, epochs: int) -> None:
    trainer.fit_loop.max_epochs = epochs
    trainer.fit(trainer.lightning_module, batches())


@pytest.mark.parametrize("snapshot", ["sketch", "full"])
@pytest.mark.parametrize("track", TRACKS)
def test_a_copied_trainer_goes_on_as_the_original_does(fit: Any, track: str, snapshot: Any) -> None:
    callback = TrajectoryCallback(track=track, snapshot=snapshot, sketch_dim=16, max_snapshots=4)
    averaging = [WeightAveraging()] if track == "average" else []
    trainer = fit(*averaging, callback, module=Adam, max_epochs=2)
    copied = COPIES["deepcopy" if track == "weights" else "pickle"](trainer)
    assert_equal(recording(copied).trajectory, callback.trajectory)
    for one in (trainer, copied):
        go_on(one, 5)
    assert_equal(recording(copied).trajectory, callback.trajectory)
    assert callback.trajectory.steps[-1] == 20


@pytest.mark.parametrize("how", COPIES)
def test_callbacks_that_were_not_used_yet_are_copied(fit: Any, how: str) -> None:
    callback = COPIES[how](TrajectoryCallback())
    fit(callback, COPIES[how](HybridTraining(when=1, train="bias")))
    assert callback.trajectory.steps.tolist() == [0, 4, 8, 12]


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("snapshot", ["sketch", "full"])
def test_a_copied_callback_keeps_its_trajectory_and_begins_anew_on_another_module(
    fit: Any, how: str, snapshot: Any
) -> None:
    callback, alone = TrajectoryCallback(snapshot=snapshot), TrajectoryCallback(snapshot=snapshot)
    trainer = fit(callback)
    copied = COPIES[how](callback)
    assert_equal(copied.trajectory, callback.trajectory)
    assert copied.state_key == callback.state_key
    trainer.callbacks = [copied]
    trainer.fit_loop.max_epochs = 5
    trainer.fit(Module(), batches())  # global_step is 12 by now
    assert copied.trajectory.epochs.tolist() == [3, 4, 5]
    fit(copied, max_epochs=2)
    fit(alone, max_epochs=2)
    assert_equal(copied.trajectory, alone.trajectory)


def test_a_copied_callback_begins_anew_on_the_module_that_the_original_was_for(fit: Any) -> None:
    """It holds nothing of that module that would tell that it is still the same."""
    trainer = fit(TrajectoryCallback())
    trainer.callbacks = [copy.deepcopy(trainer.callbacks[0])]
    go_on(trainer, 4)
    assert trainer.callbacks[0].trajectory.epochs.tolist() == [3, 4]


class Unpicklable(Module):
    def __reduce__(self) -> Any:
        raise TypeError("it stays here")


def test_the_pickle_of_a_callback_holds_no_weights(fit: Any) -> None:
    callback = TrajectoryCallback(sketch_dim=4, max_snapshots=4, window=0)
    fit(callback, module=lambda: Unpicklable(mlp(nn.Linear(8, 1000), nn.Linear(1000, 8))))
    small = TrajectoryCallback(sketch_dim=4, max_snapshots=4, window=0)
    fit(small, module=lambda: Module(mlp(nn.Linear(8, 8), nn.Linear(8, 8))))
    assert len(pickle.dumps(callback)) < len(pickle.dumps(small)) + 4000


def test_full_snapshots_are_opened_again_and_not_copied(fit: Any, tmp_path: Path) -> None:
    callback = TrajectoryCallback(snapshot="full", dirpath=tmp_path / "here", include="net.2.*", window=0)
    trainer = fit(callback, module=lambda: Module(mlp(nn.Linear(8, 2000), nn.Linear(2000, 8))))
    numel = sum(block.numel for block in callback.trajectory.blocks)
    assert len(pickle.dumps(callback)) < 4 * numel  # less than one of four snapshots
    copied = COPIES["pickle"](trainer)
    for callbacks in (trainer.callbacks, copied.callbacks):
        callbacks[0].dirpath = tmp_path / "there"  # earlier snapshots stay where they were written
    go_on(copied, 4)
    go_on(trainer, 4)
    assert_equal(recording(copied).trajectory, callback.trajectory)


def test_missing_snapshots_are_said_before_training(fit: Any, tmp_path: Path) -> None:
    trainer = fit(TrajectoryCallback(snapshot="full"))
    copied = COPIES["pickle"](trainer)
    next((tmp_path / "traj-snapshots").iterdir()).unlink()
    assert len(recording(copied).trajectory) == 4  # its Gram matrix needs no file
    with pytest.raises(FileNotFoundError, match=r"the full snapshot .* is neither in"):
        go_on(copied, 4)


def test_a_copy_of_a_copy_that_was_never_trained_goes_on(fit: Any) -> None:
    callback = TrajectoryCallback(snapshot="full")
    trainer = fit(callback)
    again = COPIES["pickle"](COPIES["pickle"](trainer))
    go_on(again, 4)
    go_on(trainer, 4)
    assert_equal(recording(again).trajectory, callback.trajectory)


def test_a_run_that_was_broken_off_can_be_copied(fit: Any) -> None:
    callback = TrajectoryCallback(track="update", schedule=EveryNSteps(2))
    with pytest.raises(ZeroDivisionError):
        fit(callback, module=lambda: Failing(6, ZeroDivisionError()))
    assert_equal(COPIES["pickle"](callback).trajectory, callback.trajectory)


@pytest.mark.parametrize("how", COPIES)
def test_hybrid_training_is_copied_and_goes_on(fit: Any, how: str) -> None:
    def hybrid() -> HybridTraining:
        search = LineSearch(factors=[0.5, 1.0], batches=1)
        return HybridTraining(train="bias", when=1, thaw=After(2), line_search=search)

    trainer = fit(hybrid(), TrajectoryCallback(), module=Validated, max_epochs=2)
    copied = COPIES[how](trainer)
    assert copied.callbacks[0].frozen == trainer.callbacks[0].frozen == ("model",)
    for one in (trainer, copied):
        go_on(one, 6)
    ours, theirs = trainer.callbacks[0], copied.callbacks[0]
    assert [str(event) for event in theirs.timeline.events] == [str(event) for event in ours.timeline.events]
    assert {event.what for event in ours.timeline.events} >= {"frozen", "thawed"}
    torch.testing.assert_close(
        copied.lightning_module.state_dict(), trainer.lightning_module.state_dict(), rtol=0, atol=0
    )
    assert_equal(recording(copied).trajectory, recording(trainer).trajectory)


class Copying(Module):
    """Copies its Trainer's callbacks in the middle of an epoch, while hooks are set and windows run."""

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.trainer.global_step == 6:
            self.copies = [COPIES["pickle"](callback) for callback in self.trainer.callbacks]
            self.expected = [callback.trajectory for callback in self.trainer.callbacks]


@pytest.mark.parametrize("snapshot", ["sketch", "full"])
def test_callbacks_of_a_running_fit_can_be_copied(fit: Any, snapshot: Any) -> None:
    callbacks = [
        TrajectoryCallback(track=track, snapshot=snapshot, schedule=EveryNSteps(1)) for track in ("weights", "gradient")
    ]
    module = fit(*callbacks, module=Copying).lightning_module
    for copied, expected in zip(module.copies, module.expected, strict=True):
        assert_equal(copied.trajectory, expected)


# The mechanism ---------------------------------------------------------------------------------------------------


class Running(Picklable, transient={"thread": dict}):
    def __init__(self) -> None:
        self.thread: Any = threading.Lock()
        self.kept = [1]


class Further(Running, transient={"hooks": list}):
    def __init__(self) -> None:
        super().__init__()
        self.hooks: Any = [threading.Lock()]


def test_transient_attributes_are_left_out_also_of_subclasses() -> None:
    original = Further()
    copied = COPIES["pickle"](original)
    assert (copied.thread, copied.hooks, copied.kept) == ({}, [], [1])
    assert original.hooks  # unchanged
    assert COPIES["pickle"](Running()).thread == {}


def test_identity_is_kept_within_a_pickle_and_by_no_copy() -> None:
    module = Module()
    mark = identity_of(module)
    assert identity_of(module) is mark
    assert identity_of(Module()) is not mark
    assert identity_of(copy.deepcopy(module)) is not mark
    for make in COPIES.values():
        copied, its = make((module, mark))
        assert identity_of(copied) is its
        assert its is not mark


def test_a_sketch_is_copied_without_its_tables() -> None:
    sketch = CountSketch(dim=64, seed=3)
    tensor = torch.randn(100_000)
    expected = sketch(tensor, "w")
    pickled = pickle.dumps(sketch)
    assert len(pickled) < 2000
    torch.testing.assert_close(pickle.loads(pickled)(tensor, "w"), expected, rtol=0, atol=0)


# Several processes -----------------------------------------------------------------------------------------------


def copied_in_ddp(folder: str, snapshot: Any) -> tuple[list[str], Any, Any]:
    lightning_traj.loggers.trajectory.log_figures = lambda *_: None  # type: ignore[assignment]
    callback = TrajectoryCallback(snapshot=snapshot, sketch_dim=16)
    fit(callback, root=Path(folder), strategy="ddp", devices=2, max_epochs=2)
    alive = Ranks(0, 2, torch.distributed.new_group())
    names = [str(argument) for _, argument, _ in pickletools.genops(pickle.dumps([callback, alive])) if argument]
    copied = COPIES["pickle"](callback)
    return names, copied.trajectory.gram(), callback.trajectory.gram()


@pytest.mark.parametrize("snapshot", ["sketch", "full"])
def test_pickles_hold_nothing_of_a_process_group(tmp_path: Path, snapshot: str) -> None:
    for names, copied, original in launch(copied_in_ddp, 2, str(tmp_path), snapshot):
        assert not any("torch.distributed" in name or "c10d" in name or "ProcessGroup" in name for name in names)
        np.testing.assert_array_equal(copied, original)


def spawn_with_used_callbacks(folder: str) -> None:
    torch.set_num_threads(1)
    printed = os.open(Path(folder) / "printed", os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(printed, stream)
    sys.stdout, sys.stderr = (os.fdopen(stream, "w") for stream in (1, 2))
    callbacks = [
        TrajectoryCallback(figures=False),
        TrajectoryCallback(figures=False, snapshot="full", name="full"),
        HybridTraining(train="bias", line_search=LineSearch(batches=1)),
    ]
    fit(*callbacks, root=Path(folder) / "first", max_epochs=1)
    fit(*callbacks, root=Path(folder) / "second", max_epochs=2, strategy="ddp_spawn", devices=2)
    assert len(callbacks[0].trajectory) == 2  # what the processes recorded stays with them, and in the file


def test_ddp_spawn_takes_used_callbacks(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=spawn_with_used_callbacks, args=(str(tmp_path),))
    process.start()
    process.join(timeout=240)
    process.kill()
    assert process.exitcode == 0, (tmp_path / "printed").read_text()
    for name in ("trajectory", "full"):
        assert Trajectory.load(tmp_path / "second" / f"{name}.safetensors").steps.tolist() == [0, 2, 4]
