"""A process that is killed or told to stop, at any moment: the run that goes on is the one that was never disturbed."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors import safe_open
from torch.utils.data import DataLoader, TensorDataset

import lightning_traj.recording.history
from lightning_traj import EveryNSteps, Trajectory, TrajectoryCallback
from lightning_traj.recording.recorder import Recorder
from lightning_traj.recording.settings import RecordingSettings
from models import Module, batches, fit
from slurm import slurm
from trajectories import assert_same

pytestmark = pytest.mark.filterwarnings(
    "ignore:You're resuming from a checkpoint that ended before the epoch ended",  # hence the batches that are alike
    "ignore:Be aware that when using `ckpt_path`, callbacks used to create the checkpoint",
    "ignore:Checkpoint directory .* exists and is not empty",
)

EPOCHS, STEPS = 2, 48  # an epoch's
KILLS = 24
WRITES = {"open", "os.rename", "os.remove", "os.mkdir", "os.chmod", "os.truncate"}  # of Python's audit events


def callbacks() -> list[TrajectoryCallback]:
    settings = {"schedule": EveryNSteps(1), "max_snapshots": 16, "sketch_dim": 8}
    return [TrajectoryCallback(**settings), TrajectoryCallback(name="full", snapshot="full", **settings)]


def train(root: Path, recorders: list[TrajectoryCallback], **arguments: Any) -> None:
    # Never at the last batch of an epoch: Lightning itself loses count where it goes on from there time and again.
    saving = ModelCheckpoint(root / "saved", filename="{step:06d}", save_top_k=-1, every_n_train_steps=5)
    x, y = next(iter(batches()))
    alike = DataLoader(TensorDataset(x.repeat(STEPS, 1), y.repeat(STEPS)), batch_size=len(x))
    fit(*recorders, saving, root=root, data=alike, max_epochs=EPOCHS, **arguments)


def checkpoint(root: Path) -> Path | None:
    """The last one that is whole: Lightning does not write its own atomically."""
    for path in sorted((root / "saved").glob("*.ckpt"), reverse=True):
        try:
            torch.load(path, weights_only=True)
        except Exception:  # half of a file can be anything
            path.unlink()
            continue
        return path
    return None


def forked(target: Callable[..., Any], *args: Any, seconds: float | None = None) -> int | None:
    """Call it in a process of its own, which is killed after so many seconds; its exit code."""
    process = multiprocessing.get_context("fork").Process(target=target, args=args)
    process.start()
    process.join(60.0 if seconds is None else seconds)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode


def attempt(root: Path, killed_at: int | None) -> None:
    """Go on from the last checkpoint; die before the so-manieth change of a file."""
    torch.set_num_threads(1)
    left = -1 if killed_at is None else killed_at

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event in WRITES and str(arguments[0]).startswith(str(root)) and (event != "open" or arguments[1] != "r"):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    path = checkpoint(root)
    sys.addaudithook(count)
    train(root, callbacks(), ckpt_path=path)


def assert_whole(root: Path) -> None:
    """Whatever has a file's name is that file, and can be read."""
    # A hidden one is what was being written when it was killed; glob finds those, too.
    for path in (path for path in root.rglob("*.safetensors") if not path.name.startswith(".")):
        with safe_open(path, framework="np") as file:
            assert all(np.isfinite(file.get_tensor(name)).all() for name in list(file.keys()))
        if path.parent == root:
            Trajectory.load(path)


def test_a_run_that_is_killed_time_and_again(one_thread: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the kills come between two changes of files, half at any other moment."""
    monkeypatch.setattr("lightning_traj.loggers.trajectory.log_figures", lambda *_: None)
    whole = callbacks()
    train(tmp_path / "whole", whole)
    chance, kills, resumed, finished = random.Random(0), 0, set(), 0
    while kills < KILLS or not finished:
        root = tmp_path / f"run-{finished}"
        root.mkdir(exist_ok=True)
        at = chance.randrange(1, 80)
        seconds = chance.uniform(0.05, 0.5)
        if kills == KILLS:  # enough
            code = forked(attempt, root, None)
        elif kills % 2:
            code = forked(attempt, root, None, seconds=seconds)
        else:
            code = forked(attempt, root, at)
        assert_whole(root)
        if code == 0:
            finished += 1
            for theirs in whole:
                stem = "trajectory" if theirs.name == "traj" else theirs.name
                assert_same(Trajectory.load(root / f"{stem}.safetensors"), theirs.trajectory)
        else:
            assert code == -signal.SIGKILL
            kills += 1
            resumed.add(checkpoint(root))
    assert len(resumed) > 4  # they did not all come before the first checkpoint


class Requeued(Module):
    """Is told by SLURM to go, once, within the sixth step."""

    def __init__(self, marker: Path) -> None:
        super().__init__()
        self.marker = marker

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.trainer.global_step == 5 and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGTERM)
        return super().training_step(batch, batch_idx)


def on_slurm(root: Path) -> None:
    torch.set_num_threads(1)
    plugin = slurm(root)
    recorders = callbacks()
    trainer = fit(
        *recorders,
        root=root,
        data=batches(alike=True),
        module=lambda: Requeued(root / "asked"),
        plugins=[plugin],
        max_epochs=3,
    )
    for recorder in recorders:
        recorder.trajectory.save(root / f"{recorder.name}.result")
    (root / "steps").write_text(str(len(trainer.lightning_module.losses)))


def test_a_job_that_slurm_requeues(tmp_path: Path, fit: Any) -> None:
    whole = callbacks()
    steps = len(fit(*whole, data=batches(alike=True)).lightning_module.losses)
    root = tmp_path / "job"
    root.mkdir()
    codes = [forked(on_slurm, root) for _ in range(2)]
    assert (root / "scontrol").read_text() == "requeue 42\n"
    assert (root / "hpc_ckpt_1.ckpt").exists()
    assert codes[1] == 0
    assert int((root / "steps").read_text()) == steps - 5  # it went on where it was told to go
    for recorder in whole:
        assert_same(Trajectory.load(root / f"{recorder.name}.result"), recorder.trajectory)


@pytest.mark.parametrize("mode", ["sketch", "full"])
def test_a_checkpoint_in_the_midst_of_a_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: Any, walk: Any, mode: str
) -> None:
    """A signal may ask for one at any moment: it gets what was there before."""
    snapshots = walk({"w": (5, 4), "late": (3,)}, 6)
    settings = RecordingSettings(snapshot=mode, max_snapshots=4, window=2)
    recorder, before, resumed = (Recorder(settings, tmp_path) for _ in range(3))
    states = []

    def interrupted(*args: Any) -> Any:
        states.append(recorder.state_dict())
        return thinned(*args)

    thinned = lightning_traj.recording.history.thinned
    monkeypatch.setattr("lightning_traj.recording.history.thinned", interrupted)
    monkeypatch.setattr("lightning_traj.recording.windows.thinned", interrupted)
    recorded(snapshots, recorder)
    monkeypatch.undo()
    assert len(states) == 6 + 2
    state = next(state for state in states if len(state["steps"]) and state["steps"][-1] == 3)
    resumed.load_state_dict(state)
    recorded(snapshots[:4], before)
    expected, ours = before.collect()[0], resumed.collect()[0]
    assert ours.steps.tolist() == expected.steps.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(ours.anchored, expected.anchored, rtol=1e-13)
    np.testing.assert_array_equal(ours.paths, expected.paths)
