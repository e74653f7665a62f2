"""from_checkpoints as a whole: interrupted and resumed, in several processes, with what cannot be read."""

from __future__ import annotations

import pydoc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lightning_traj
from lightning_traj import Trajectory, from_checkpoints
from lightning_traj.checkpoints import analysis as checkpoints
from lightning_traj.checkpoints import resumption
from lightning_traj.checkpoints.formats.checkpoint import Checkpoint
from lightning_traj.checkpoints.formats.errors import CheckpointError
from saved import agree, write_all

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPES = {"fc1.weight": (4, 3), "fc1.bias": (4,), "fc2.weight": (2, 4), "fc2.bias": (2,)}


@pytest.fixture
def folder(walk: Callable[..., Any], tmp_path: Path) -> Path:
    return write_all(".pt", tmp_path / "run", dict(enumerate(walk(SHAPES, 6))))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is read, of which checkpoint."""
    log: list[tuple[str, str]] = []
    read = Checkpoint.read

    def logged(self: Checkpoint, name: str) -> torch.Tensor:
        log.append((self.path.name, name))
        return read(self, name)

    monkeypatch.setattr(Checkpoint, "read", logged)
    return log


def test_several_processes(folder: Path) -> None:
    agree(from_checkpoints(folder, processes=2), from_checkpoints(folder), 1e-14)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("snapshot", ["full", "sketch"])
@pytest.mark.parametrize("error", [Interrupted, KeyboardInterrupt])
def test_interrupted_and_resumed(
    folder: Path, tmp_path: Path, reads: Any, monkeypatch: pytest.MonkeyPatch, snapshot: Any, error: Any
) -> None:
    """What was done is not read again, and the result is the same to the last bit."""
    whole = from_checkpoints(folder, snapshot=snapshot, sketch_dim=4)
    arguments: dict[str, Any] = {"snapshot": snapshot, "sketch_dim": 4, "resume": tmp_path / "resume"}
    interrupt = Interrupting(2 if snapshot == "full" else 3, error)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "_bar", interrupt)
        with pytest.raises(error):
            from_checkpoints(folder, **arguments)
    assert (tmp_path / "resume").exists()
    before = len(reads)
    resumed = from_checkpoints(folder, **arguments)
    again = reads[before:]
    # Of full ones the third block was interrupted; the beginnings of matrices are looked at for tied ones.
    done = {"fc1.bias"} if snapshot == "full" else {"step0.pt", "step1.pt", "step2.pt"}
    assert not {name for pair in again for name in pair} & done
    assert len(again) < before
    (tmp_path / "resume").unlink()  # it is the caller's
    agree(resumed, whole, 1e-15)
    if snapshot == "sketch":
        np.testing.assert_array_equal(resumed.sketches, whole.sketches)


class Interrupting:
    """In place of the progress bar: fails when it has been told of so many pieces of work."""

    def __init__(self, after: int, error: type[BaseException]) -> None:
        self.left, self.error = after, error

    def __call__(self, *_: Any) -> Any:
        from contextlib import nullcontext

        return nullcontext(self.advance)

    def advance(self, count: int) -> None:
        self.left -= 1
        if self.left < 0:
            raise self.error


@pytest.mark.parametrize("change", ["file", "seed", "blocks", "content", "model"])
def test_another_task_is_begun_anew(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    resume = tmp_path / "resume"
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "_bar", Interrupting(3, Interrupted))
        with pytest.raises(Interrupted):
            from_checkpoints(folder, resume=resume)
    arguments: dict[str, Any] = {}
    if change == "file":
        torch.save({name: torch.ones(shape) for name, shape in SHAPES.items()}, folder / "step1.pt")
    elif change == "seed":
        arguments = {"seed": 1}
    elif change == "blocks":
        arguments = {"blocks": "layer"}
    elif change == "model":
        arguments = {"model": nn.ModuleDict({"fc2": nn.Linear(4, 2), "fc1": nn.Linear(3, 4)})}
    else:
        content = bytearray(resume.read_bytes())
        content[len(content) // 2] ^= 1
        resume.write_bytes(content)
    agree(from_checkpoints(folder, resume=resume, **arguments), from_checkpoints(folder, **arguments), 1e-15)


@pytest.mark.parametrize(
    "done", [5, None, {"a": 1}, {0: ([0], [], torch.ones(3, 3))}, {9: ([0], [], torch.ones(1, 1))}]
)
@pytest.mark.parametrize("snapshot", ["full", "sketch"])
def test_a_resume_file_of_something_else(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: Any, snapshot: Any
) -> None:
    """Written for this very task, with a digest that is right."""
    save = resumption.Resumption.save
    monkeypatch.setattr(resumption.Resumption, "save", lambda self, _, **__: save(self, lambda: done, now=True))
    whole = from_checkpoints(folder, snapshot=snapshot, resume=tmp_path / "resume")
    agree(from_checkpoints(folder, snapshot=snapshot, resume=tmp_path / "resume"), whole, 1e-15)


@pytest.mark.parametrize("snapshot", ["full", "sketch"])
def test_what_cannot_be_read_when_it_is_used(folder: Path, tmp_path: Path, snapshot: Any) -> None:
    """As shards of torch.distributed.checkpoint, which are not looked into before."""
    states = {step: torch.load(folder / f"step{step}.pt") for step in range(4)}
    run = write_all("distributed", tmp_path / "d", states)
    good = from_checkpoints([run / f"run-{step}.ckpt" for step in (0, 2, 3)], snapshot=snapshot, order="given")
    shard = run / "run-1.ckpt" / "__0_0.distcp"
    shard.write_bytes(bytes(len(shard.read_bytes())))
    with pytest.raises(CheckpointError, match=r"run-1\.ckpt cannot be read"):
        from_checkpoints(run, snapshot=snapshot)
    rest = from_checkpoints(run, snapshot=snapshot, skip_bad=True)
    np.testing.assert_array_equal(rest.gram(), good.gram())
    assert rest.settings["findings"][0].startswith(f"skipped: {run / 'run-1.ckpt'} cannot be read")
    rest.save(tmp_path / "rest.safetensors")
    for source in (rest.provenance.source, Trajectory.load(tmp_path / "rest.safetensors").provenance.source):
        assert source is not None
        assert (source.findings[0].kind, source.findings[0].severity) == ("unreadable", "error")
        assert {finding.severity for finding in source.findings[1:]} <= {"note"}


def test_progress_is_shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    agree(from_checkpoints(folder, progress=True), from_checkpoints(folder), 1e-15)


def test_what_is_counted(folder: Path) -> None:
    trajectory = from_checkpoints(folder, include="*.weight", exclude="fc2*")
    assert [block.name for block in trajectory.blocks] == ["fc1.weight"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"order": "name"}, "order='name': pass 'step' or 'given'"),
        ({"weights": "ema"}, "weights='ema': pass 'raw' or 'average'"),
        ({"snapshot": "exact"}, "snapshot='exact': pass 'full' or 'sketch'"),
        ({"processes": 0}, "processes=0: pass a positive integer"),
        ({"processes": 1.5}, r"processes=1\.5: pass a positive integer"),
        ({"sketch_dim": 0, "snapshot": "sketch"}, "dim=0"),
        ({"include": "conv*"}, r"include='conv\*': 'conv\*' matches none of the parameters"),
        ({"exclude": "*"}, "leave none of 4 parameters"),
        ({"key": "weights"}, "key='weights' leads to no tensors; the file has 'fc1.weight'"),
        (
            {"model": nn.LSTM(2, 2)},
            "model=LSTM has none of the parameters of the checkpoints, such as 'fc1.weight'",
        ),
        (
            {"model": nn.ModuleDict({"fc1": nn.Linear(3, 5), "fc2": nn.Linear(5, 2)})},
            r"model=ModuleDict: its fc1\.weight has the shape \[5, 3\], and in the checkpoints it is \[4, 3\]",
        ),
    ],
)
def test_wrong_arguments(folder: Path, arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_checkpoints(folder, **arguments)


def test_nothing_that_moves(tmp_path: Path) -> None:
    for step in range(2):
        torch.save({"positions": torch.arange(3)}, tmp_path / f"step{step}.pt")
    with pytest.raises(ValueError, match="floating-point"):
        from_checkpoints(tmp_path)


def test_the_trajectory_is_saved_and_loaded(folder: Path, tmp_path: Path) -> None:
    trajectory = from_checkpoints(folder)
    trajectory.save(tmp_path / "trajectory.safetensors")
    loaded = lightning_traj.Trajectory.load(tmp_path / "trajectory.safetensors")
    agree(loaded, trajectory, 1e-15)
    assert loaded.settings == trajectory.settings


def test_the_help(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = pydoc.plain(pydoc.render_doc(from_checkpoints))
    for word in ("paths", "skip_bad", "CheckpointError", "FileNotFoundError", 'from_checkpoints("logs/version_0'):
        assert word in text
    logs = folder.parent / "logs" / "version_0"
    logs.mkdir(parents=True)
    folder.rename(logs / "checkpoints")
    monkeypatch.chdir(folder.parent)
    example = text[text.index("trajectory = from_checkpoints") :].splitlines()[0].partition("#")[0]
    names: dict[str, Any] = {"from_checkpoints": from_checkpoints}
    exec(example, names)
    assert len(names["trajectory"]) == 6
