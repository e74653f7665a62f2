"""Figures of the README that depend on no machine: launches, calls, bytes, passes. Each is counted here.

Others are held elsewhere: what a snapshot sends in ``test_distributed.py`` and ``test_benchmarks.py``, memory in
``test_duplicates.py``, ``test_streaming.py`` and ``test_thinning.py``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode

from conftest import ROOT
from launch import launch
from lightning_traj import CountSketch, HybridTraining, LineSearch, TrajectoryCallback, from_checkpoints
from lightning_traj.checkpoints.formats.checkpoint import Checkpoint
from lightning_traj.checkpoints.formats.opening import open_checkpoint
from lightning_traj.distributed.process_group import TIMEOUT, Ranks
from lightning_traj.recording.recorder import Recorder
from lightning_traj.recording.settings import RecordingSettings
from models import Validated, mlp

README = " ".join((ROOT / "README.md").read_text().split())
Walk = Callable[..., list[dict[str, Tensor]]]


def said(sentence: str) -> None:
    """What is counted is what the README says."""
    assert sentence in README


# Launches ---------------------------------------------------------------------------------------------------


class Launches(TorchDispatchMode):
    """Counts what would be a kernel on an accelerator: every operation but views."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        is_view = function._schema.returns and function._schema.returns[0].alias_info is not None
        self.count += not (is_view and not function._schema.returns[0].alias_info.is_write)
        return result


@pytest.mark.parametrize("chunks", [1, 2, 10, 40])
def test_launches_of_a_sketch(chunks: int, one_thread: None) -> None:
    said("A sketch launches four small kernels for each 262,144 parameters, and up to five for each block")
    sketch, theta = CountSketch(2048), torch.ones(chunks * 262_144)
    sketch(theta, "block")  # what is made once
    with Launches() as launches:
        sketch(theta, "block")
    # A chunk is whole rows, so a little shorter, and a last one is left.
    assert 3 * chunks <= launches.count <= 4 * (chunks + 1) + 5 + 1  # and one that makes room for the result


def test_launches_of_many_small_blocks(one_thread: None) -> None:
    sketch = CountSketch(2048)
    tensors = {f"block{i}": torch.ones(50_000) for i in range(20)}
    for name, theta in tensors.items():
        sketch(theta, name)
    with Launches() as launches:
        for name, theta in tensors.items():
            sketch(theta, name)
    assert launches.count <= 20 * (4 + 5 + 1)


# Bytes between processes ------------------------------------------------------------------------------------


def start(parameters: int) -> tuple[list[int], list[int], list[int]]:
    """Bytes of all collectives when ranks prepare, at the first snapshot, and at each step of a window."""
    sent: list[int] = []
    reduce = dist.all_reduce

    def counting(tensor: Tensor, **group: Any) -> Any:
        sent.append(tensor.nbytes)
        return reduce(tensor, **group)

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    recorder = Recorder(RecordingSettings(sketch_dim=16))
    recorder.process.ranks = Ranks.of_world()

    def theta(step: int) -> dict[str, Tensor]:
        tensors = {f"{i}.weight": torch.arange(48.0).view(8, 6) + step + i for i in range(parameters)}
        return {name: distribute_tensor(tensor, mesh, [Shard(0)]) for name, tensor in tensors.items()}

    dist.all_reduce = counting
    try:
        recorder.prepare(theta(0))
        prepared = sent.copy()
        sent.clear()
        recorder.record(theta(0), 0, 0.0)
        first = sent.copy()
        sent.clear()
        recorder.windows.begin(theta(0), 0)  # has the sketch of the snapshot
        for step in (1, 2, 3):
            if step > 1:
                recorder.windows.prepare(theta(step - 1))
            recorder.windows.add(theta(step), step)
        return prepared, first, sent.copy()
    finally:
        dist.all_reduce = reduce


@pytest.mark.parametrize("size", [2, 3])
def test_bytes_at_the_start_and_of_a_window(size: int) -> None:
    said("compare what they have and agree on who answers for what (of each rank a few hundred bytes, and 16 for each "
         "parameter")  # fmt: skip
    said("A window of single steps sends as much as two sketched snapshots for each step")
    few, many = (launch(start, size, count)[0] for count in (5, 25))
    prepared = [sum(bytes_sent[0]) for bytes_sent in (few, many)]
    # A table with a row for each rank: what is compared, and a number for each parameter.
    assert (prepared[1] - prepared[0]) / 20 == 8 * size
    assert prepared[0] - 5 * 8 * size <= 400 * size
    for count, (_, first, window) in zip((5, 25), (few, many), strict=True):
        snapshot = 8 * count * 16
        # Whether all have read it; how many parameters there are, and which of them can be read; and the snapshot.
        assert first == [8, 8 * size, 8 * size * count, snapshot]
        assert window == 5 * [snapshot]  # it began with that of the first snapshot


def test_how_long_ranks_wait() -> None:
    said("wait five minutes for each other")
    assert TIMEOUT.total_seconds() == 5 * 60


# Calls ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("factors", "batches"), [((0.5, 1.0), 3), ((0.5, 1.0, 2.0, 4.0), 1)])
def test_forward_passes_of_a_line_search(fit: Any, factors: tuple[float, ...], batches: int) -> None:
    said("It costs (values of a + 1) · batches forward passes a search")
    calls: list[int] = []

    def loss(module: Any, batch: Any) -> Tensor:
        calls.append(1)
        value: Tensor = module.loss(batch)
        return value

    search = LineSearch(factors=factors, batches=batches, loss=loss)
    fit(HybridTraining(train="layer:net.0", line_search=search), module=lambda: Validated(mlp()), max_epochs=4)
    searches = 3  # at the start of each epoch that has one before it
    # And one when the first batch is there, which finds out whether the loss can be had.
    assert len(calls) == searches * (len(factors) + 1) * batches + 1


def test_how_often_pictures_by_layer_are_drawn(fit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    said("drawn at 6 of the first 10 epochs and ever more rarely")
    said("nine at most whatever the number of layers")
    steps: list[int] = []

    def count(loggers: Any, trajectory: Any, step: int, **_: Any) -> None:
        steps.append(step)

    monkeypatch.setattr("lightning_traj.loggers.trajectory.log_layers", count)
    trainer = fit(TrajectoryCallback(window=0), module=lambda: Validated(mlp()), max_epochs=22)
    epochs = [(step + 1) // trainer.num_training_batches for step in steps]
    assert epochs == [1, 2, 3, 5, 7, 10, 14, 19, 22]  # the last: at the end


# Reading ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("snapshot", ["sketch", "full"])
def test_each_checkpoint_is_passed_over_once(
    walk: Walk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, snapshot: Any, one_thread: None
) -> None:
    said("`--sketch` makes one pass over each checkpoint instead")
    shapes = {"a.weight": (30, 20), "b.weight": (7, 5), "b.bias": (7,)}
    for step, some in enumerate(walk(shapes, 4)):
        torch.save(some, tmp_path / f"step{step}.pt")
    read = Checkpoint.read
    reads: Counter[tuple[str, str]] = Counter()
    order: list[str] = []

    def counted(self: Checkpoint, name: str) -> Tensor:
        reads[self.path.name, name] += 1
        order.append(self.path.name)
        return read(self, name)

    monkeypatch.setattr(Checkpoint, "read", counted)
    from_checkpoints(tmp_path, snapshot=snapshot, sketch_dim=16)
    # The first entries of the last one's matrices are looked at before, to find tied ones.
    before = {("step3.pt", name): 1 for name in shapes if "weight" in name}
    assert reads == Counter({(f"step{step}.pt", name): 1 for step in range(4) for name in shapes}) + Counter(before)
    if snapshot == "sketch":
        assert order[2:] == sorted(order[2:])  # one checkpoint after the other


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_disk_space_for_what_cannot_be_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    said("what cannot be mapped is copied into the temporary folder (`TMPDIR`), namely the weights of files in "
         "torch's format from before 1.6 (no zip archives), of those that `pickle.dump` wrote and of archives of "
         "Stable-Baselines3, once, and once more by each worker")  # fmt: skip
    temporary, run = tmp_path / "temporary", tmp_path / "run"
    temporary.mkdir()
    run.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    paths = [run / f"step{step}.pt" for step in range(3)]
    for step, path in enumerate(paths):
        torch.save({"weight": torch.ones(100, 1000) + step}, path, _use_new_zipfile_serialization=False)
    overhead = 3 * 4096  # of the format
    weights = 3 * 400_000
    opened = [open_checkpoint(path, None, "raw") for path in paths]
    for checkpoint in opened:
        checkpoint.read("weight").sum()
    assert weights <= size_of(temporary) <= weights + overhead
    another = [open_checkpoint(path, None, "raw") for path in paths]  # what a worker does
    assert 2 * weights <= size_of(temporary) <= 2 * (weights + overhead)
    del opened, another, checkpoint
    assert size_of(temporary) == 0


@pytest.mark.filterwarnings("ignore")  # of torch, that there is but one process
def test_disk_space_for_a_distributed_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    said("and one tensor at a time of a folder of torch.distributed.checkpoint")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    names = [f"{i}.weight" for i in range(4)]
    state = {"state_dict": {name: torch.ones(100, 500) * i for i, name in enumerate(names)}}
    torch.distributed.checkpoint.save(state, checkpoint_id=tmp_path / "step0.ckpt", no_dist=True)
    (checkpoint,) = [open_checkpoint(tmp_path / "step0.ckpt", None, "raw")]
    for name in names:
        checkpoint.read(name).sum()
        assert 200_000 <= size_of(temporary) <= 200_000 + 4096


# Storage ----------------------------------------------------------------------------------------------------


def test_bytes_of_a_sketch(walk: Walk, one_thread: None) -> None:
    said("A sketch keeps `sketch_dim` numbers of each parameter tensor (tensors that are no longer are kept whole) in "
         "float32")  # fmt: skip
    recorder = Recorder(RecordingSettings(sketch_dim=64))
    for step, some in enumerate(walk({"long": (30, 20), "short": (5, 3)}, 4)):
        recorder.record(some, step, float(step))
    assert {row.nbytes for row in recorder.state.gram.rows} == {4 * (64 + 15)}
    rows = recorder.rows()
    assert rows is not None
    assert rows.shape == (4, 64 + 15)
    assert rows.dtype == "float32"
