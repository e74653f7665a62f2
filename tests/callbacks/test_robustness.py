"""Whatever fails in the observer, training goes on, with one warning and the same weights."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import nn

from lightning_traj import EveryNSteps, Trajectory, TrajectoryCallback
from lightning_traj.recording.snapshot_files import SnapshotFiles
from lightning_traj.schedule import Schedule
from models import Failing, Module, Validated, batches

WARNING = "Training goes on; this is said once"


@pytest.fixture
def survives(fit: Any) -> Any:
    """Train with a callback that fails, and without; assert one warning and equal weights; the warning's text."""

    def train(*callbacks: Any, **arguments: Any) -> str:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            observed = fit(*callbacks, **arguments)
        arguments.pop("logger", None)
        alone = fit(**arguments)
        torch.testing.assert_close(
            observed.lightning_module.state_dict(), alone.lightning_module.state_dict(), rtol=0, atol=0, equal_nan=True
        )
        assert observed.global_step == alone.global_step == 12
        texts = [str(warning.message) for warning in caught]
        said = [text for text in texts if WARNING in text]
        assert len(said) == 1, texts
        return said[0]

    return train


class Straying(Module):
    """A parameter outside the loss is infinite at the end of the second and third of five epochs."""

    def __init__(self) -> None:
        super().__init__()
        self.stray = nn.Parameter(torch.ones(5))

    def on_train_epoch_start(self) -> None:
        self.stray.data.fill_(float("inf") if self.current_epoch in self.when else 1.0 + self.current_epoch)

    when = (1, 2)


@pytest.mark.parametrize("snapshot", ["sketch", "full"])
@pytest.mark.parametrize("at", ["epoch ends", "end of training"])
def test_snapshots_with_infinite_entries(fit: Any, survives: Any, snapshot: Any, at: str) -> None:
    callback = TrajectoryCallback(snapshot=snapshot)
    options = {"max_epochs": 3, "module": Straying}
    if at == "end of training":  # nothing is logged before
        callback = TrajectoryCallback(snapshot=snapshot, schedule=EveryNSteps(4))
    text = survives(callback, **options)
    assert "non-finite entries" in text
    assert "at step" in text
    assert callback.trajectory.steps.tolist() == [0, 4]
    assert np.isfinite(list(callback.trajectory.summary().values())[:4]).all()


class Recovering(Straying):
    when = (0,)


@pytest.mark.parametrize("snapshot", ["sketch", "full"])
def test_run_that_recovers_from_infinite_entries(survives: Any, snapshot: Any) -> None:
    callback = TrajectoryCallback(snapshot=snapshot)
    survives(callback, module=Recovering)
    trajectory = callback.trajectory
    assert trajectory.steps.tolist() == [0, 8, 12]
    updates = np.diff(trajectory.pca()[0], axis=0)
    assert trajectory.summary()["path_length"] == pytest.approx(np.linalg.norm(updates, axis=1).sum(), rel=1e-6)


class Hopeless(Straying):
    when = (0, 1, 2)

    def on_train_start(self) -> None:
        self.on_train_epoch_start()


@pytest.mark.parametrize("snapshot", ["sketch", "full"])
def test_run_that_is_infinite_throughout(survives: Any, snapshot: Any) -> None:
    class Early(Hopeless):
        def __init__(self) -> None:
            super().__init__()
            for parameter in self.parameters():
                parameter.data.fill_(float("nan"))

    callback = TrajectoryCallback(snapshot=snapshot)
    survives(callback, module=Early)
    with pytest.raises(RuntimeError, match="has recorded nothing yet"):
        callback.trajectory  # noqa: B018


@pytest.mark.parametrize("snapshot", ["sketch", "full"])
def test_a_parameter_that_is_infinite_from_the_start_is_left_out(survives: Any, fit: Any, snapshot: Any) -> None:
    class Early(Hopeless):
        def __init__(self) -> None:
            super().__init__()
            self.stray.data.fill_(float("nan"))

    callback, others = TrajectoryCallback(snapshot=snapshot), TrajectoryCallback(snapshot=snapshot, exclude="stray")
    text = survives(callback, module=Early)
    assert "'stray' (it has entries that are not finite before training)" in text
    fit(others, module=Early)
    assert "stray" not in [block.name for block in callback.trajectory.blocks]
    np.testing.assert_array_equal(callback.trajectory.anchored, others.trajectory.anchored)


class BrokenLogger(pl.loggers.CSVLogger):
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if any(key.startswith("traj/") for key in metrics):
            raise ConnectionError("the server is gone")
        super().log_metrics(metrics, step)


def test_logger_that_raises(survives: Any, tmp_path: Path) -> None:
    callback = TrajectoryCallback()
    text = survives(callback, logger=BrokenLogger(tmp_path, name="logs"), log_every_n_steps=2)
    assert "logging failed with ConnectionError: the server is gone" in text
    assert len(Trajectory.load(tmp_path / "logs" / "version_0" / "trajectory.safetensors")) == 4


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(28, "No space left on device")


def test_disk_that_is_full_for_the_file(survives: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trajectory, "save", full_disk)
    callback = TrajectoryCallback()
    assert "saving failed with OSError: [Errno 28] No space left on device" in survives(callback)
    assert len(callback.trajectory) == 4


@pytest.mark.parametrize("written", [0, 1, 2])
def test_disk_that_is_full_for_snapshots(survives: Any, monkeypatch: pytest.MonkeyPatch, written: int) -> None:
    write, calls = SnapshotFiles.write, iter(range(100))
    monkeypatch.setattr(SnapshotFiles, "write", lambda *args: (full_disk if next(calls) >= written else write)(*args))
    callback = TrajectoryCallback(snapshot="full")
    assert "recording failed with OSError: [Errno 28] No space left on device" in survives(callback)
    if written:
        assert callback.trajectory.steps.tolist() == [0, 4][:written]


def test_snapshot_that_could_not_be_written_is_left_out(survives: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    write, calls = SnapshotFiles.write, iter(range(100))
    monkeypatch.setattr(SnapshotFiles, "write", lambda *args: (full_disk if next(calls) == 1 else write)(*args))
    callback = TrajectoryCallback(snapshot="full")
    survives(callback)
    assert callback.trajectory.steps.tolist() == [0, 8, 12]


def test_folder_that_cannot_be_written(survives: Any, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file, not a folder")
    assert "saving failed with" in survives(TrajectoryCallback(dirpath=tmp_path / "taken"))


def test_parameter_that_changes_its_size(survives: Any) -> None:
    class Changing(Module):
        def __init__(self) -> None:
            super().__init__()
            self.memory = nn.Parameter(torch.zeros(2), requires_grad=False)

        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 1:
                self.memory.data = torch.zeros(3)

    callback = TrajectoryCallback()
    assert "parameter 'memory' had 2 entries and now has 3" in survives(callback, module=Changing)
    assert callback.trajectory.steps.tolist() == [0, 4]


class BrokenSchedule(Schedule):
    def due_after_step(self, step: int) -> bool:
        if step > 5:
            raise LookupError("no such step")
        return True

    def due_after_epoch(self, epoch: int) -> bool:
        return False


def test_schedule_that_raises(survives: Any) -> None:
    callback = TrajectoryCallback(schedule=BrokenSchedule())
    assert "recording failed with LookupError: no such step" in survives(callback)
    assert callback.trajectory.steps.tolist() == [0, 1, 2, 3, 4, 5]


def test_monitors_of_the_same_name(fit: Any) -> None:
    class Same(pl.Callback):
        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            module.log("traj/mds", -1.0, prog_bar=True)

    trainer = fit(Same(), TrajectoryCallback())
    assert trainer.callback_metrics["traj/mds"] == -1.0  # the user's own comes first


def test_each_run_warns_once(fit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trajectory, "save", full_disk)
    callback = TrajectoryCallback()
    for _ in range(2):
        with pytest.warns(UserWarning, match=WARNING) as caught:
            fit(callback)
        assert sum(WARNING in str(warning.message) for warning in caught) == 1


def test_warnings_as_errors_do_not_end_training(fit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trajectory, "save", full_disk)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*saving failed")
        assert fit(TrajectoryCallback()).global_step == 12


@pytest.fixture
def interrupt_handler() -> Iterator[None]:
    """Lightning ignores further Ctrl-C once it has seen one."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.mark.usefixtures("interrupt_handler")
@pytest.mark.parametrize("error", [KeyboardInterrupt(), ZeroDivisionError("in training")], ids=repr)
@pytest.mark.parametrize("snapshot", ["sketch", "full"])
def test_file_is_written_when_training_breaks_off(fit: Any, tmp_path: Path, error: Any, snapshot: Any) -> None:
    callback = TrajectoryCallback(snapshot=snapshot, schedule=EveryNSteps(1))
    with pytest.raises((SystemExit, KeyboardInterrupt, ZeroDivisionError)):
        fit(callback, module=lambda: Failing(6, error))
    loaded = Trajectory.load(tmp_path / "trajectory.safetensors")
    assert loaded.steps.tolist() == list(range(7))
    assert (loaded.sketches is not None) == (snapshot == "sketch")
    np.testing.assert_array_equal(loaded.gram(), callback.trajectory.gram())


def test_hooks_are_removed_when_training_breaks_off(fit: Any) -> None:
    callback = TrajectoryCallback(schedule=EveryNSteps(1))
    module = Failing(6, ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        fit(callback, module=lambda: module)
    module.trainer.optimizers[0].step()
    assert len(callback.trajectory) == 7


def test_no_temporary_files_are_left(fit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", os.fspath(folder))
    fit(TrajectoryCallback(snapshot="full"), module=Validated, data=batches(), fast_dev_run=True)
    with pytest.raises(ZeroDivisionError):
        fit(TrajectoryCallback(snapshot="full"), module=lambda: Failing(0, ZeroDivisionError()), fast_dev_run=True)
    assert not list(folder.iterdir())
