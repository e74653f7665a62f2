"""Parameters sharded over several processes: the recorder gives what it gives for whole parameters on one device."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.distributed.tensor.placement_types import _StridedShard

import lightning_traj.distributed.ownership
from conftest import Snapshots
from launch import launch
from lightning_traj import CountSketch, FusedLayout, Trajectory
from lightning_traj.blocks.partition import Partition
from lightning_traj.distributed.process_group import Ranks
from lightning_traj.gram.sketched_gram import SketchedGram
from lightning_traj.recording import sketch_store
from lightning_traj.recording.history import History
from lightning_traj.recording.path_lengths import PathLengths
from lightning_traj.recording.process import Process
from lightning_traj.recording.quantities.step_quantities import _added_up
from lightning_traj.recording.recorder import Recorder
from lightning_traj.recording.settings import RecordingSettings
from lightning_traj.recording.snapshot_files import SnapshotFiles
from lightning_traj.recording.windows import StepWindows
from lightning_traj.tensors import LocalEntries, held_share, local_tensor

SHAPES: dict[str, tuple[int, ...]] = {
    "embed.weight": (10, 6),
    "h.0.attn.qkv.weight": (24, 8),
    "h.0.attn.qkv.bias": (24,),
    "h.0.heads.weight": (6, 24),
    "h.0.norm.weight": (5,),
    "h.0.kernel.weight": (3, 4, 2, 2),
    "scale": (),
    "few": (2, 3),
}
FUSED = {
    "*.qkv.*": FusedLayout({"q": 1, "k": 1, "v": 1}),
    "*.heads.weight": FusedLayout({"q": 1, "k": 1, "v": 1}, groups=4, axis=-1),
}
TYPES = {"few": torch.complex64, "h.0.kernel.weight": torch.bfloat16}
STEPS = 6

Place = Callable[[str, Tensor], Tensor]


def layouts() -> dict[str, Place]:
    """Ways to place parameters on the processes that there are; "scale" is always plain, as what FSDP2 ignores is."""
    line = init_device_mesh("cpu", (dist.get_world_size(),))

    def sharded(mesh: DeviceMesh, *placements: Any, plain: tuple[str, ...] = ()) -> Place:
        def place(name: str, tensor: Tensor) -> Tensor:
            least = 1 + max(getattr(p, "dim", 0) for p in placements)
            return tensor if name in plain or tensor.ndim < least else distribute_tensor(tensor, mesh, placements)

        return place

    found = {
        "plain": lambda name, tensor: tensor,
        "rows": sharded(line, Shard(0)),  # FSDP2: uneven, and empty on some
        "columns": sharded(line, Shard(1), plain=("embed.weight",)),  # tensor parallel
    }
    if dist.get_world_size() < 4:
        return found
    square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))

    def two_dimensional(name: str, tensor: Tensor) -> Tensor:
        """As FSDP2 leaves what tensor parallelism has sharded: along its rows, its columns, or not at all."""
        if tensor.ndim < 1:
            return tensor
        along = {"h.0.attn.qkv.weight": 0, "h.0.attn.qkv.bias": 0, "embed.weight": 1, "h.0.heads.weight": 1}
        inner = Shard(along[name]) if name in along else Replicate()
        outer = _StridedShard(0, split_factor=2) if along.get(name) == 0 else Shard(0)
        return distribute_tensor(tensor, square, (outer, inner))

    return found | {
        "FSDP2 x tensor parallel": two_dimensional,
        "HSDP": sharded(square, Replicate(), Shard(0)),
        "both dimensions": sharded(square, Shard(0), Shard(1)),
        "replicas of tensor parallel": sharded(square["tensor"], Shard(0)),
        "one dimension twice": sharded(square, Shard(0), Shard(0)),
    }


def walk() -> Snapshots:
    generator = torch.Generator().manual_seed(0)
    types = {name: TYPES.get(name, torch.float32) for name in SHAPES}
    return [
        {
            name: (1 + 0.1 * t) * torch.randn(shape, generator=generator, dtype=types[name])
            for name, shape in SHAPES.items()
        }
        for t in range(STEPS)
    ]


def recorder_of(folder: Path, ranks: Ranks, **settings: Any) -> Recorder:
    recorder = Recorder(
        RecordingSettings(**{"fused": FUSED, "sketch_dim": 16, "window": 2, "max_snapshots": 5, **settings}), folder
    )
    recorder.process.ranks = ranks
    return recorder


def placed(step: int, place: Place) -> dict[str, Tensor]:
    """The parameters after a step: one comes with the third snapshot, one leaves before the last."""
    gone = {"few": step < 2, "h.0.norm.weight": step == STEPS - 1}
    return {name: place(name, tensor) for name, tensor in walk()[step].items() if not gone.get(name)}


def take(recorder: Recorder, steps: range, place: Place) -> Recorder:
    """Record these steps, and windows end to end."""
    for step in steps:
        parameters = placed(step, place)
        if step == steps[0]:
            recorder.check(parameters)
            recorder.prepare(parameters)
        assert recorder.record(parameters, step, step / 10)
        recorder.windows.add(parameters, step)
        recorder.windows.begin(parameters, step)
    return recorder


def of_one_device(folder: Path, **settings: Any) -> Trajectory:
    recorder = recorder_of(folder / f"alone-{dist.get_rank()}", Ranks(), **settings)
    return take(recorder, range(STEPS), layouts()["plain"]).collect()[0]


def assert_same(ours: Trajectory, theirs: Trajectory) -> None:
    assert ours.blocks == theirs.blocks
    assert ours.steps.tolist() == theirs.steps.tolist()
    for array in ("anchored", "local", "paths"):
        expected = getattr(theirs, array)
        np.testing.assert_allclose(getattr(ours, array), expected, rtol=0, atol=1e-13 * np.abs(expected).max())
    sums = theirs.windows.sums
    np.testing.assert_allclose(ours.windows.sums, sums, rtol=0, atol=1e-13 * np.abs(sums).max())


MODES = ("sketch", "full")


def every_layout(folder: Path) -> list[np.ndarray]:
    arrays = []
    for mode in MODES:
        whole = of_one_device(folder, snapshot=mode)
        for name, place in layouts().items():
            recorder = take(recorder_of(folder / name, Ranks.of_world(), snapshot=mode), range(STEPS), place)
            trajectory = recorder.collect()[0]
            assert_same(trajectory, whole)
            assert recorder.state_dict()["files"] == [] or mode == "full"
            arrays += [trajectory.anchored, trajectory.local, trajectory.paths, trajectory.windows.sums]
    return arrays


def test_every_layout_gives_what_one_device_gives(tmp_path: Path) -> None:
    first, *others = launch(every_layout, 4, tmp_path)
    assert len(first) == 4 * 2 * 8
    for other in others:  # the same to the last bit on all ranks
        for ours, theirs in zip(other, first, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def coarser_blocks(folder: Path) -> None:
    for mode in MODES:
        for blocks in ("layer", "role", "model"):
            whole = of_one_device(folder, snapshot=mode, blocks=blocks)
            recorder = recorder_of(folder / blocks, Ranks.of_world(), snapshot=mode, blocks=blocks)
            trajectory = take(recorder, range(STEPS), layouts()["FSDP2 x tensor parallel"]).collect()[0]
            assert_same(trajectory, whole)


def test_blocks_of_several_tensors(tmp_path: Path) -> None:
    launch(coarser_blocks, 4, tmp_path)


def fully_sharded(folder: Path) -> list[list[float]]:
    """FSDP2's own shards over tensor parallel's, uneven and empty: what each holds, and what is recorded of it."""
    found = []
    for rows, shape in product((7, 8, 1), ((3, 2), (2, 3))):
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=("data", "tensor"))
        net = nn.Sequential(nn.Linear(2, rows, bias=False))
        whole = torch.arange(2.0 * rows).view(rows, 2)
        with torch.no_grad():
            net[0].weight.copy_(whole)
        parallelize_module(net, mesh["tensor"], {"0": ColwiseParallel()})
        fully_shard(net, mesh=mesh["data"])
        held = LocalEntries(local_tensor(net[0].weight), held_share("w", net[0].weight))
        for view, (first, _) in held.boxes():
            assert torch.equal(view, whole[first : first + len(view)])
        recorder = recorder_of(folder, Ranks.of_world(), snapshot="full")
        recorder.prepare({"w": net[0].weight})
        recorder.record({"w": net[0].weight}, 0, 0)
        assert recorder.collect()[0].anchored.item() == (whole**2).sum()
        found.append(held.flat().tolist())
    return found


def test_uneven_shards_of_shards(tmp_path: Path) -> None:
    cases = zip(*launch(fully_sharded, 6, tmp_path), strict=True)
    for rows, shards in zip((7, 7, 8, 8, 1, 1), cases, strict=True):
        assert sorted(entry for shard in shards for entry in shard) == [*range(2 * rows)]


# Communication ---------------------------------------------------------------------------------------------------


def communication(folder: Path) -> None:
    sent: list[int] = []
    reduce = dist.all_reduce

    def counting(tensor: Tensor, **group: Any) -> Any:
        sent.append(tensor.nbytes)
        return reduce(tensor, **group)

    dist.all_reduce = counting
    for mode in MODES:
        for place in (layouts()[name] for name in ("FSDP2 x tensor parallel", "rows")):
            recorder = recorder_of(folder / mode, Ranks.of_world(), snapshot=mode)
            take(recorder, range(4), place)
            parameters = placed(4, place)
            sent.clear()
            with CommDebugMode() as collectives:  # it sees also those that DTensor makes by itself
                recorder.record(parameters, 4, 0.4)
            assert sum(collectives.get_comm_counts().values()) == len(sent) == 1
            blocks, n = recorder.state.blocks, len(recorder)
            if mode == "sketch":
                assert sent == [8 * sum(min(block.numel, recorder.sketcher.sketch.dim) for block in blocks)]
                assert sent[0] <= 8 * len(blocks) * recorder.sketcher.sketch.dim
            else:
                assert sent == [8 * len(blocks) * (n + 6)]  # the row, and what its last updates are to each other
            sent.clear()
            with CommDebugMode() as collectives:
                recorder.windows.add(parameters, 4)  # has the sketch, where there is one
                recorder.windows.begin(parameters, 4)
                recorder.collect()
                recorder.state_dict()
            assert sum(collectives.get_comm_counts().values()) == len(sent) == (mode == "full")


def test_a_snapshot_is_one_small_collective(tmp_path: Path) -> None:
    launch(communication, 4, tmp_path)


def sketching(rows: int) -> tuple[int, int]:
    """Entries that this rank sketches of plain parameters, and numbers that it sends, in the one sum of a snapshot."""
    counts = {"entries": 0}
    sent: list[int] = []
    reduce, sketch = dist.all_reduce, CountSketch.of_blocks

    def counting(tensor: Tensor, **group: Any) -> None:
        sent.append(tensor.numel())
        reduce(tensor, **group)

    def counted(self: CountSketch, blocks: Any) -> Tensor:
        blocks = [block._replace(stretches=list(block.stretches)) for block in blocks]
        counts["entries"] += sum(tensor.numel() for block in blocks for tensor, *_ in block.stretches)
        return sketch(self, blocks)

    whole, ours = Recorder(RecordingSettings(sketch_dim=64)), Recorder(RecordingSettings(sketch_dim=64))
    ours.process.ranks = Ranks.of_world()
    generator = torch.Generator().manual_seed(rows)
    first, second = (
        {name: torch.randn(shape, generator=generator) for name, shape in (("a", (rows, 1024)), ("b", (300, 2)))}
        for _ in range(2)
    )
    ours.prepare(first)
    for step, parameters in enumerate((first, second)):
        whole.record(parameters, step, step)
    ours.record(first, 0, 0)
    dist.all_reduce, CountSketch.of_blocks = counting, counted  # type: ignore[method-assign]
    ours.record(second, 1, 1)
    a, b = (recorder.collect()[0].anchored for recorder in (ours, whole))
    if sent == [1]:  # whether all have their sketches
        np.testing.assert_array_equal(a, b)
    else:
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * np.abs(b).max())
    (numbers,) = sent
    return counts["entries"], numbers


def test_sketching_is_shared_out_where_it_pays() -> None:
    """Copies of a small model are sketched by everyone, who send but one number; those of a large one once in all."""
    assert launch(sketching, 3, 10) == [(10 * 1024 + 600, 1)] * 3
    entries, numbers = zip(*launch(sketching, 3, 1100), strict=True)
    assert numbers == (2 * 64,) * 3
    assert sum(entries) == 1100 * 1024 + 600
    assert max(entries) < 1.01 * sum(entries) / 3


# What goes wrong -------------------------------------------------------------------------------------------------


def raising(error: Exception) -> Any:
    """A function that reads no parameters, but raises the error."""

    def read() -> Any:
        raise error

    return read


def failing(folder: Path, mode: str, layout: str, what: str) -> tuple[list[int], list[str]]:
    """One rank fails in the fourth snapshot; what is kept, what it says."""
    owner: Any
    owner, name = (SnapshotFiles, "write") if mode == "full" else (CountSketch, "of_blocks")
    owner, name = (Partition, "extended") if what == "finding blocks" else (owner, name)
    working, trouble = getattr(owner, name), OSError(28, "No space left on device")

    def broken(*args: Any, **kwargs: Any) -> Any:
        if step == 3 and dist.get_rank() == 1:
            raise trouble
        return working(*args, **kwargs)

    if what != "reading":
        setattr(owner, name, broken)
    recorder = recorder_of(folder, Ranks.of_world(), snapshot=mode, max_snapshots=8)
    errors = []
    for step in range(STEPS):
        parameters = placed(step, layouts()[layout])
        if not step:
            recorder.prepare(parameters)
        given = raising(trouble) if what == "reading" and step == 3 and dist.get_rank() == 1 else parameters
        for do in (
            partial(recorder.record, given, step, step / 10),
            partial(recorder.windows.add, parameters, step),
            partial(recorder.windows.begin, parameters, step),
        ):
            try:
                do()
            except (OSError, FloatingPointError) as error:
                errors.append(str(error))
    setattr(owner, name, working)
    return recorder.collect()[0].steps.tolist(), errors


FAILING = tuple(product(MODES, ("rows", "plain"), ("taking", "reading", "finding blocks")))


def all_failing(folder: Path) -> list[tuple[list[int], list[str]]]:
    return [failing(folder.joinpath(*case), *case) for case in FAILING]


def test_a_rank_that_fails_does_not_hang_the_others(tmp_path: Path) -> None:
    results = launch(all_failing, 3, tmp_path)
    for (mode, *_), first, second, third in zip(FAILING, *results, strict=True):
        assert first[0] == second[0] == third[0] == [0, 1, 2, 4, 5]
        assert "No space left" in second[1][0]
        told = ["the snapshot at step 3 has non-finite entries, or failed on another process: it is left out."]
        assert first[1] == third[1] == (told if mode == "full" else [])
    names = [path.name for path in (tmp_path / "full" / "rows" / "taking").iterdir()]
    assert len(names) == 5 * 3  # nothing is left of the one that failed
    assert not any("step000000003" in name for name in names)


def coming_apart(folder: Path, mode: str, where: str) -> tuple[int, list[str], list[float]]:
    """The second rank fails after the sum of the fourth snapshot: what is kept, what is said, training's next sum."""
    recorder, errors = recorder_of(folder, Ranks.of_world(), snapshot=mode), []
    owner, name = {
        "taking in": (type(recorder.state.gram), "with_row"),
        "path lengths": (PathLengths, "with_updates"),
        "thinning": (History, "with_snapshot"),
        "windows": (StepWindows, "with_step"),
        "before the sum": (Process, "filled"),
    }[where]
    own = getattr(owner, name)

    def failing(*args: Any, **kwargs: Any) -> Any:
        if step == 3 and dist.get_rank() == 1:
            raise MemoryError("out of memory")
        return own(*args, **kwargs)

    setattr(owner, name, failing)
    gradient = torch.ones(3)
    for step in range(STEPS):
        parameters = placed(step, layouts()["rows"])
        for do in (recorder.record, recorder.windows.add, recorder.windows.begin):
            try:
                do(parameters, step, *([step / 10] if do == recorder.record else []))
            except (MemoryError, RuntimeError) as error:
                errors.append(str(error).split(":")[0])
        dist.all_reduce(gradient)
    setattr(owner, name, own)
    return len(recorder), errors, gradient.tolist()


def all_coming_apart(folder: Path) -> list[tuple[int, list[str], list[float]]]:
    return [coming_apart(folder.joinpath(*case), *case) for case in APART]


KEPT = {"taking in": 3, "path lengths": 3, "thinning": 3, "windows": 4, "before the sum": 3}  # where it fails
APART = tuple(product(MODES, KEPT))


def test_a_rank_that_fails_after_a_sum_ends_the_recording_and_nothing_else(tmp_path: Path) -> None:
    for (mode, where), *results in zip(APART, *launch(all_coming_apart, 3, tmp_path), strict=True):
        others = 3 if where == "before the sum" else 4
        assert [kept for kept, *_ in results] == [others, KEPT[where], others], (mode, where)
        assert results[1][1][0] == "out of memory"
        for _, errors, gradient in results:
            assert "processes no longer record together" in errors[-1]
            assert gradient == [3.0**STEPS] * 3
        # Nothing more is written, and what others have kept is whole.
        written = list((tmp_path / mode / where).glob("*.safetensors"))
        assert len(written) == (mode == "full") * 3 * others


def unread(folder: Path, mode: str, layout: str, at: int, what: str) -> tuple[list[int], list[float]]:
    """The second rank fails at the first snapshot, or at one that brings a new parameter; which are kept."""
    recorder, gradient = recorder_of(folder, Ranks.of_world(), snapshot=mode), torch.ones(3)
    own, trouble = Partition.held, MemoryError("out of memory")

    def held(partition: Partition, *args: Any) -> Any:
        if step == at and dist.get_rank() == 1:
            raise trouble
        return own(partition, *args)

    if what == "taking":
        Partition.held = held  # type: ignore[method-assign]
    place, pays = layouts()[layout.split(",")[0]], sketch_store.DIVIDED
    if "shared out" in layout:  # from when on there is what is new
        sketch_store.DIVIDED = (
            0,
            sum(2 * t.numel() if t.is_complex() else t.numel() for t in walk()[0].values()),
        )
    for step in range(STEPS):
        parameters = placed(step, place)
        if not step:
            recorder.prepare(parameters)
        given = raising(trouble) if what == "reading" and step == at and dist.get_rank() == 1 else parameters
        for do in (
            partial(recorder.record, given, step, step / 10),
            partial(recorder.windows.add, parameters, step),
            partial(recorder.windows.begin, parameters, step),
        ):
            with suppress(MemoryError, RuntimeError, FloatingPointError):
                do()
        if len(recorder):
            recorder.collect()
        dist.all_reduce(gradient)
    trajectory = recorder.collect()[0]
    whole = recorder_of(folder / f"alone-{dist.get_rank()}", Ranks(), snapshot=mode)
    for step in trajectory.steps.tolist():
        whole.record(placed(step, layouts()["plain"]), step, step / 10)
    expected = whole.collect()[0].anchored
    np.testing.assert_allclose(trajectory.anchored, expected, rtol=0, atol=1e-13 * np.abs(expected).max())
    Partition.held = own  # type: ignore[method-assign]
    sketch_store.DIVIDED = pays
    assert recorder.process.ownership.is_shared == (mode == "full" or layout != "plain")
    return trajectory.steps.tolist(), gradient.tolist()


NEW = tuple(product(MODES, ("rows", "plain", "plain, shared out from then on"), (0, 2), ("reading", "taking")))


def all_unread(folder: Path) -> list[tuple[list[int], list[float]]]:
    return [unread(folder / str(i), *case) for i, case in enumerate(NEW)]


def test_a_rank_that_fails_at_what_is_new(tmp_path: Path) -> None:
    """That snapshot is left out by all, and the next one brings what was new then."""
    results = launch(all_unread, 3, tmp_path)
    assert results[0] == results[1] == results[2]
    for (*_, at, _), (kept, gradient) in zip(NEW, results[0], strict=True):
        assert kept == [step for step in range(STEPS) if step != at]
        assert gradient == [3.0**STEPS] * 3  # training's own sums are as ever


def failing_at_first(what: str) -> tuple[list[int], list[float]]:
    """Copies that everyone sketches: the second rank fails at the first snapshot. What is kept."""
    recorder, gradient = Recorder(), torch.ones(3)
    recorder.process.ranks = Ranks.of_world()
    owner: Any = Partition if what == "sketching" else SketchedGram
    name = "held" if what == "sketching" else "with_row"
    own = getattr(owner, name)

    def failing(*args: Any) -> Any:
        if step == 0 and dist.get_rank() == 1:
            raise MemoryError("out of memory")
        return own(*args)

    setattr(owner, name, failing)
    for step in range(4):
        parameters = placed(step, layouts()["plain"])
        if not step:
            recorder.prepare(parameters)
        with suppress(MemoryError, RuntimeError, FloatingPointError):
            recorder.record(parameters, step, step / 10)
        dist.all_reduce(gradient)
    setattr(owner, name, own)
    return recorder.collect()[0].steps.tolist() if len(recorder) else [], gradient.tolist()


def test_a_rank_that_fails_at_the_first_snapshot_of_copies_keeps_nobody_waiting() -> None:
    """All begin with the next one; where it fails after they have met, nobody records any more."""
    assert launch(failing_at_first, 2, "sketching") == [([1, 2, 3], [16.0] * 3)] * 2
    assert launch(failing_at_first, 2, "taking in") == [([0], [16.0] * 3), ([], [16.0] * 3)]


def new_on_one(folder: Path) -> list[list[int]]:
    """Only the second rank has a new parameter in the third snapshot, and they come apart."""
    kept = []
    for mode in MODES:
        recorder = recorder_of(folder, Ranks.of_world(), snapshot=mode)
        for step in range(3):
            parameters = placed(step, layouts()["rows"])
            if not dist.get_rank():
                parameters.pop("few", None)
            with suppress(FloatingPointError, RuntimeError):
                recorder.record(parameters, step, step / 10)
        recorder.process.ranks.leave()
        kept.append(recorder.collect()[0].steps.tolist())
    return kept


def test_a_sum_that_lacks_a_rank_is_no_snapshot(tmp_path: Path) -> None:
    assert launch(new_on_one, 2, tmp_path) == [[[0, 1]] * 2] * 2


def unlike(folder: Path) -> list[str]:
    """What is said where the second rank has other parameters, or other settings, than the first."""
    told = []
    parameters = placed(4, layouts()["plain"])
    others = {
        "name": {"scala" if name == "scale" else name: p for name, p in parameters.items()},
        "shape": {name: p[None] if name == "scale" else p for name, p in parameters.items()},
        "number": {name: p for name, p in parameters.items() if name != "few"},
        "order": dict(reversed(parameters.items())),
        "settings": parameters,
        "patterns": parameters,
    }
    for mode, (what, other) in product(MODES, others.items()):
        second = dist.get_rank() == 1
        settings = {"seed": 1} if what == "settings" else {"include": ["*"]} if what == "patterns" else {}
        recorder = recorder_of(folder, Ranks.of_world(), snapshot=mode, **settings if second else {})
        own = other if second else parameters
        recorder.check(own)
        with pytest.raises(ValueError, match="Sums over ranks need the same on all of them") as caught:
            recorder.prepare(own)
        told.append(str(caught.value))
    return told


def test_parameters_that_differ_between_ranks_are_an_error_on_all(tmp_path: Path) -> None:
    told = launch(unlike, 2, tmp_path)
    remedy = (
        " is not what all others have. Sums over ranks need the same on all of them: build the same model and the same "
        "callback on each."
    )
    differs = [
        ["parameters[6]=('scale', [])", "parameters[6]=('scala', [])"],
        ["parameters[6]=('scale', [])", "parameters[6]=('scale', [1])"],
        ["parameters[7]=('few', [2, 3])", "parameters[7]=nothing"],
        ["parameters[0]=('embed.weight', [10, 6])", "parameters[0]=('few', [2, 3])"],
        ["seed=0", "seed=1"],
        ["include=None", "include=['*']"],
    ]
    for rank in range(2):
        assert told[rank] == [f"{both[rank]} on rank {rank} of 2{remedy}" for both in differs] * 2


def not_finite(folder: Path) -> list[list[int]]:
    """The second rank has such entries, at the start, at a step that brings a new parameter, or at any other one."""
    kept = []
    for mode, layout, (at, name) in NOT_FINITE:
        recorder = recorder_of(folder, Ranks.of_world(), snapshot=mode)
        for step in range(5):
            parameters = placed(step, layouts()[layout])
            if step == at and dist.get_rank() == 1:
                local_tensor(parameters[name]).fill_(torch.nan)
            if not step:
                recorder.prepare(parameters)
            with suppress(FloatingPointError):
                recorder.record(parameters, step, step / 10)
            recorder.windows.add(parameters, step)
            recorder.windows.begin(parameters, step)
        kept.append(recorder.collect()[0].steps.tolist())
    return kept


WHERE = *((at, "h.0.attn.qkv.weight") for at in (0, 2, 3)), (2, "few")
NOT_FINITE = tuple(product(MODES, ("rows", "plain"), WHERE))


def test_an_entry_on_one_rank_that_is_not_finite(tmp_path: Path) -> None:
    """Of copies too: gradients, or what DDP is told to leave alone, may differ."""
    results = launch(not_finite, 2, tmp_path)
    assert results[0] == results[1]
    assert results[0] == [[step for step in range(5) if step != at] for _, _, (at, _) in NOT_FINITE]


def not_finite_at_the_start() -> list[Any]:
    """The second rank has such entries in one parameter, and then in all of them; what is left out."""
    answers = []
    for spoilt in (["h.0.attn.qkv.weight"], list(placed(0, layouts()["rows"]))):
        recorder, parameters = Recorder(), placed(0, layouts()["rows"])
        recorder.process.ranks = Ranks.of_world()
        for name in spoilt:
            if dist.get_rank() == 1 and local_tensor(parameters[name]).is_floating_point():
                local_tensor(parameters[name]).fill_(torch.nan)
        recorder.check(parameters)
        recorder.prepare(parameters)
        answers.append(dict(recorder.state.partition.unreadable))
    return answers


def test_entries_on_one_rank_that_are_not_finite_at_the_start() -> None:
    one, other = launch(not_finite_at_the_start, 2)
    assert one == other
    assert one[0] == {"h.0.attn.qkv.weight": "it has entries that are not finite before training"}


def partial_sums() -> str:
    mesh = init_device_mesh("cpu", (2,))
    tensor = DTensor.from_local(torch.ones(3), mesh, (Partial(),))
    recorder = Recorder()
    recorder.process.ranks = Ranks.of_world()
    with pytest.raises(ValueError, match="only shards and replicas can be recorded") as caught:
        recorder.prepare({"w": tensor})
    gradient = _added_up(tensor)  # as a gradient may be
    assert gradient.placements == (Replicate(),)
    assert gradient.to_local().tolist() == [2.0] * 3
    return str(caught.value)


def test_partial_sums_are_refused_but_for_gradients_which_are_added_up() -> None:
    assert "parameter 'w' is placed as" in launch(partial_sums, 2)[0]


def unknown() -> str:
    """The second rank cannot tell what it holds."""
    recorder = Recorder(RecordingSettings(snapshot="full"))
    recorder.process.ranks = Ranks.of_world()
    if dist.get_rank() == 1:
        lightning_traj.distributed.ownership.held_share = broken
    with pytest.raises((ValueError, RuntimeError)) as caught:
        recorder.prepare({"w": torch.ones(3)})
    return str(caught.value)


def broken(*_: Any) -> Any:
    raise ValueError("this placement is not supported")


def test_a_placement_that_one_rank_does_not_know_is_an_error_on_all() -> None:
    first, second, third = launch(unknown, 3)
    assert second == "this placement is not supported"
    assert first == third == "this failed on 1 of 3 processes, whose messages say why."


# Resume on another world size ------------------------------------------------------------------------------------


def begun(folder: Path, mode: str, layout: str) -> None:
    recorder = take(recorder_of(folder, Ranks.of_world(), snapshot=mode), range(4), layouts()[layout])
    if not dist.get_rank():
        torch.save(recorder.state_dict(), folder / f"{mode}.pt")


def gone_on(folder: Path, mode: str, layout: str) -> list[np.ndarray]:
    recorder = recorder_of(folder, Ranks.of_world(), snapshot=mode)
    state = torch.load(folder / f"{mode}.pt", weights_only=True)
    recorder.load_state_dict(state, placed(4, layouts()[layout]))
    trajectory = take(recorder, range(4, STEPS), layouts()[layout]).collect()[0]
    assert_same(trajectory, of_one_device(folder, snapshot=mode))
    return [trajectory.anchored, trajectory.local]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("before", "first", "after", "second"),
    [
        (1, "plain", 2, "columns"),
        (4, "FSDP2 x tensor parallel", 3, "rows"),
        (2, "columns", 1, "plain"),
        (3, "rows", 4, "replicas of tensor parallel"),
        (2, "rows", 2, "rows"),
    ],
)
def test_a_run_goes_on_with_another_number_of_ranks(
    tmp_path: Path, mode: str, before: int, first: str, after: int, second: str
) -> None:
    launch(begun, before, tmp_path, mode, first)
    results = launch(gone_on, after, tmp_path, mode, second)
    for other in results[1:]:
        for ours, theirs in zip(other, results[0], strict=True):
            np.testing.assert_array_equal(ours, theirs)


def lacking(folder: Path) -> str:
    """What is said on this rank, of whom only the second one looks where nothing is."""
    recorder = recorder_of(folder / str(dist.get_rank()), Ranks.of_world(), snapshot="full")
    state = torch.load(folder / "full.pt", weights_only=True)
    if dist.get_rank() == 1:
        state["folder"] = str(folder / "nowhere")
    with pytest.raises((FileNotFoundError, RuntimeError)) as caught:
        recorder.load_state_dict(state, placed(4, layouts()["rows"]))
    return str(caught.value)


def test_files_that_one_rank_lacks_are_an_error_on_all(tmp_path: Path) -> None:
    launch(begun, 2, tmp_path, "full", "rows")
    first, second = launch(lacking, 2, tmp_path)
    assert "pass the dirpath under which" in second
    assert "failed on 1 of 2 processes" in first


# Moves between the steps of a window ------------------------------------------------------------


def window_with_moves(folder: Path, layout: str, validated: bool) -> np.ndarray:
    """A window of three steps of length 1, 2 and 3 along one line, with something else between the last two."""
    recorder = Recorder(RecordingSettings(window=3), folder=folder)
    recorder.process.ranks = Ranks.of_world()
    parameters = {"w": layouts()[layout]("w", torch.ones(6, 4, dtype=torch.float64))}
    recorder.check(parameters)
    recorder.prepare(parameters)
    recorder.record(parameters, 0, 0.0)
    recorder.windows.request()
    for step in (1, 2, 3):
        if step == 3 and validated:  # everywhere
            parameters["w"].add_(10.0)
        elif (
            step == 3 and recorder.process.ranks.rank == 0
        ):  # changes nothing, on this rank alone: others do not know of it
            local_tensor(parameters["w"]).add_(1.0).sub_(1.0)
        recorder.windows.prepare(parameters)
        parameters["w"].add_(step)
        recorder.windows.add(parameters, step)
    return recorder.collect()[0].windows.sums[0, 0]


@pytest.mark.parametrize("validated", [False, True])
@pytest.mark.parametrize("layout", ["plain", "rows"])
def test_ranks_decide_alike_where_a_window_looks_again(tmp_path: Path, layout: str, validated: bool) -> None:
    for sums in launch(window_with_moves, 2, tmp_path, layout, validated):
        np.testing.assert_allclose(sums, 24.0 * np.array([[1, 4, 9], [0, 2, 6], [1, 9, 36]]), rtol=1e-12)
