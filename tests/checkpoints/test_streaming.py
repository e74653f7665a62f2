"""Gram matrices streamed from files, against stacked parameters and against the Recorder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lightning_traj import FusedLayout, from_checkpoints
from lightning_traj.checkpoints import streaming
from lightning_traj.checkpoints.formats.checkpoint import Checkpoint
from lightning_traj.checkpoints.streaming import UpdateGram, anchored_gram, local_grams
from lightning_traj.recording.recorder import Recorder
from lightning_traj.recording.settings import RecordingSettings
from lightning_traj.tensors import flat_range
from saved import agree

pytestmark = pytest.mark.usefixtures("one_thread")
Snapshots = list[dict[str, torch.Tensor]]


class InMemory:
    """A Source of tensors in memory, which counts."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.tensors = tensors
        self.reads: list[str] = []
        self.releases = 0

    def shapes(self) -> dict[str, torch.Tensor]:
        return {name: tensor.to("meta") for name, tensor in self.tensors.items()}

    def read(self, name: str) -> torch.Tensor:
        self.reads.append(name)
        return self.tensors[name]

    def release(self) -> None:
        self.releases += 1


def save(folder: Path, snapshots: Snapshots) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for step, snapshot in enumerate(snapshots):
        torch.save(snapshot, folder / f"step{step}.pt")
    return folder


def recorder_of(snapshots: Snapshots, folder: Path | None = None, **arguments: Any) -> Any:
    recorder = Recorder(RecordingSettings(window=0, **arguments), folder)
    for step, snapshot in enumerate(snapshots):
        assert recorder.record(snapshot, step, 0.0)
    return recorder.collect()[0]


def by_definition(snapshots: Snapshots) -> NDArray[np.float64]:
    theta = np.stack([torch.cat([t.double().flatten() for t in s.values()]).numpy() for s in snapshots])
    return theta @ theta.T


def rough(snapshots: Snapshots, seed: int = 0) -> Snapshots:
    """The same in memory layouts that change: transposed, sliced, flipped."""
    generator = torch.Generator().manual_seed(seed)
    changed = []
    for snapshot in snapshots:
        state = {}
        for name, tensor in snapshot.items():
            kind = int(torch.randint(4, (), generator=generator))
            if kind == 1 and tensor.ndim > 1:
                tensor = tensor.transpose(0, -1).contiguous().transpose(0, -1)
            if kind == 2:
                tensor = torch.stack([tensor, tensor + 1], dim=-1)[..., 0]
            if kind == 3 and tensor.ndim:
                tensor = torch.cat([tensor, tensor])[: len(tensor)]
            state[name] = tensor
        changed.append(state)
    return changed


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    shapes=st.lists(st.lists(st.integers(1, 7), max_size=4), min_size=1, max_size=4),
    n=st.integers(2, 5),
    seed=st.integers(0, 99),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    stretch=st.integers(1, 40),
    mapped=st.integers(1, 2000),
    blocks=st.sampled_from(["tensor", "layer", "model"]),
)
def test_random_shapes(
    walk: Callable[..., Snapshots],
    tmp_path_factory: pytest.TempPathFactory,
    shapes: list[list[int]],
    n: int,
    seed: int,
    dtype: torch.dtype,
    stretch: int,
    mapped: int,
    blocks: Any,
) -> None:
    snapshots = walk({f"l{i % 2}.w{i}": tuple(shape) for i, shape in enumerate(shapes)}, n, seed, dtype)
    folder = save(tmp_path_factory.mktemp("x"), rough(snapshots, seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "LEAST", stretch)
        patch.setattr(streaming, "STRETCH", stretch)
        patch.setattr(streaming, "MAPPED", mapped)
        trajectory = from_checkpoints(folder, blocks=blocks)
    exact = by_definition(snapshots)
    np.testing.assert_allclose(trajectory.gram("*"), exact, rtol=1e-12, atol=1e-12 * np.abs(exact).max())
    agree(trajectory, recorder_of(snapshots, snapshot="full", blocks=blocks, folder=folder / "full"), 1e-12)


@pytest.mark.parametrize(
    "dtype",
    [torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float64],
    ids=str,
)
def test_dtypes(walk: Callable[..., Snapshots], tmp_path: Path, dtype: torch.dtype) -> None:
    """Entries as they are in the file, in float64; a complex one is a pair of reals."""
    rows = walk({"w": (6, 4)}, 3, dtype=torch.float64)
    if dtype.is_complex:
        saved = [{"w": torch.complex(s["w"][:, ::2], s["w"][:, 1::2]).to(dtype)} for s in rows]
        entries = [{"w": torch.view_as_real(s["w"]).double()} for s in saved]
    else:
        saved = [{"w": s["w"].to(dtype)} for s in rows]
        entries = [{"w": s["w"].double()} for s in saved]
    exact = by_definition(entries)
    np.testing.assert_allclose(from_checkpoints(save(tmp_path, saved)).gram(), exact, rtol=1e-12)
    sketch = from_checkpoints(tmp_path, snapshot="sketch", sketch_dim=64)  # kept whole
    np.testing.assert_allclose(sketch.gram(), exact, rtol=1e-6)


@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("groups", [1, 3])
def test_parts_of_fused_tensors(walk: Callable[..., Snapshots], tmp_path: Path, axis: int, groups: int) -> None:
    snapshots = walk({"attn.qkv.weight": (18, 18), "attn.qkv.bias": (18,)}, 4)
    fused = {
        "*.weight": FusedLayout({"q": 1, "k": 1, "v": 1}, groups=groups, axis=axis),
        "*.bias": FusedLayout({"q": 1, "k": 1, "v": 1}, groups=groups),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("LEAST", 1), ("STRETCH", 28), ("MAPPED", 500)):
            patch.setattr(streaming, name, value)
        trajectory = from_checkpoints(save(tmp_path, rough(snapshots)), fused=fused)
    agree(trajectory, recorder_of(snapshots, snapshot="full", fused=fused, folder=tmp_path / "full"), 1e-12)
    whole = snapshots[2]["attn.qkv.weight"].double().movedim(axis, 0).reshape(groups, 3, 6 // groups, -1)
    np.testing.assert_allclose(trajectory.gram("*weight:k")[2, 2], float((whole[:, 1] ** 2).sum()), rtol=1e-12)


@pytest.mark.parametrize("blocks", ["tensor", "layer", "role", "model"])
def test_parameters_that_come_late_and_go(walk: Callable[..., Snapshots], tmp_path: Path, blocks: Any) -> None:
    snapshots = walk({"a.weight": (5, 3), "a.bias": (5,), "late.weight": (4,), "late.bias": (2,), "gone.w": (3, 3)}, 6)
    for step, names in {
        0: ["late.weight", "late.bias"],
        1: ["late.weight", "late.bias"],
        2: ["late.bias"],
        3: ["gone.w", "a.bias"],  # which comes back
        4: ["gone.w"],
        5: ["gone.w"],
    }.items():
        for name in names:
            del snapshots[step][name]
    trajectory = from_checkpoints(save(tmp_path, snapshots), blocks=blocks)
    agree(trajectory, recorder_of(snapshots, snapshot="full", blocks=blocks, folder=tmp_path / "full"), 1e-12)
    assert any("not in every checkpoint" in finding for finding in trajectory.settings["findings"])
    sketched = from_checkpoints(tmp_path, blocks=blocks, snapshot="sketch", sketch_dim=8)
    agree(sketched, recorder_of(snapshots, sketch_dim=8, blocks=blocks))


@pytest.mark.parametrize("bad", [[0], [2], [5], [0, 1], [2, 3], [0, 3, 5]])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("snapshot", ["full", "sketch"])
def test_non_finite_checkpoints(
    walk: Callable[..., Snapshots], tmp_path: Path, bad: list[int], value: float, snapshot: Any
) -> None:
    """The rest is as if they had never been there, whichever blocks they spoil."""
    shapes = {"a.weight": (5, 3), "a.bias": (5,), "b.weight": (9,)}
    snapshots = walk(shapes, 6)
    del snapshots[4]["a.bias"]  # as in the one before, if that is finite
    good = [step for step in range(6) if step not in bad]
    rest = from_checkpoints(
        [save(tmp_path / "good", snapshots) / f"step{step}.pt" for step in good], snapshot=snapshot, sketch_dim=8
    )
    for step in bad:
        name = list(snapshots[step])[step % len(snapshots[step])]
        snapshots[step][name].view(-1)[-1] = value
    trajectory = from_checkpoints(save(tmp_path / "bad", snapshots), snapshot=snapshot, sketch_dim=8)
    agree(trajectory, rest, 1e-12)
    said = [f for f in trajectory.settings["findings"] if "non-finite" in f]
    assert said == [f"step{step}.pt has non-finite entries, and is left out." for step in bad]
    assert [Path(path).name for path in trajectory.settings["checkpoints"]] == [f"step{step}.pt" for step in good]


def test_too_few_finite_checkpoints(walk: Callable[..., Snapshots], tmp_path: Path) -> None:
    snapshots = walk({"w": (3,)}, 3)
    for count in (2, 3):
        for snapshot in snapshots[:count]:
            snapshot["w"][0] = torch.nan
        save(tmp_path, snapshots)
        for kind in ("full", "sketch"):
            with pytest.raises(ValueError, match=f"{3 - count} of 3 checkpoints are finite"):
                from_checkpoints(tmp_path, snapshot=kind)


# Pieces -----------------------------------------------------------------------------------------------------


@given(shape=st.lists(st.integers(1, 5), min_size=1, max_size=4), data=st.data())
@settings(deadline=None)
def test_a_flat_range_of_any_layout(shape: list[int], data: st.DataObject) -> None:
    tensor = torch.arange(2 * int(np.prod(shape))).view(*shape, 2)[..., 0]
    tensor = tensor.permute(*data.draw(st.permutations(range(len(shape)))))
    start = data.draw(st.integers(0, tensor.numel() - 1))
    stop = data.draw(st.integers(start + 1, tensor.numel()))
    assert flat_range(tensor, start, stop).tolist() == tensor.reshape(-1)[start:stop].tolist()


def test_a_range_of_a_long_row_copies_the_range_alone() -> None:
    tensor = torch.zeros(2, 10**6, 2)[:, :, 0]
    entries = flat_range(tensor, 10**6 - 3, 10**6 + 3)
    assert entries.untyped_storage().nbytes() == 6 * 4


@given(n=st.integers(1, 7), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_sums_of_updates(n: int, seed: int) -> None:
    theta = np.random.default_rng(seed).normal(size=(n, 5))
    updates = np.concatenate([theta[:1], np.diff(theta, axis=0)])
    gram = updates @ updates.T
    d = theta - theta[0]
    anchored = np.concatenate([theta[:1], d[1:]])
    np.testing.assert_allclose(anchored_gram(gram), anchored @ anchored.T, atol=1e-12)
    zero = np.zeros(5)
    for t, local in enumerate(local_grams(gram)):
        before = updates[t - 1] if t > 1 else zero
        rows = np.stack([theta[t], d[t], updates[t] if t else zero, before])
        np.testing.assert_allclose(local, rows @ rows.T, atol=1e-12)
    kept = tuple(range(10, 10 + n))
    wanted = [t for t in kept if (seed >> (t - 10)) & 1 or t == 10]
    fewer = theta[[t - 10 for t in wanted]]
    fewer = np.concatenate([fewer[:1], np.diff(fewer, axis=0)])
    np.testing.assert_allclose(UpdateGram(kept, (), gram).over(wanted), fewer @ fewer.T, atol=1e-12)


# Memory -----------------------------------------------------------------------------------------------------


def test_no_more_is_mapped_than_allowed(walk: Callable[..., Snapshots], monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two releases, the entries taken in are at most MAPPED bytes, and at most a stretch at once."""
    monkeypatch.setattr(streaming, "MAPPED", 4000)
    monkeypatch.setattr(streaming, "LEAST", 10)
    sources = [InMemory(snapshot) for snapshot in walk({"a": (30, 20), "b": (7,), "c": (900,)}, 4)]
    reader = streaming.Reader([Checkpoint(Path(f"step{t}"), source, t) for t, source in enumerate(sources)])
    mapped: list[int] = []
    total = 0
    for name in "abc":
        for flats in reader.stretches([streaming.Piece(name)], range(4), 25):
            if len(mapped) != sources[0].releases:
                mapped.append(0)
            assert len(flats) == 4
            assert all(len(flat) <= 25 for flat in flats)
            held = 4 * sum(len(flat) for flat in flats)
            total += held
            if mapped:
                mapped[-1] += held
    assert total == 4 * 4 * (600 + 7 + 900)
    assert len(mapped) >= total // 4000
    assert max(mapped) <= 4000
    assert all(source.releases == sources[0].releases for source in sources)
