"""Thinning: which snapshots are kept, that nothing else changes, and that memory and time stay bounded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import reference
from lightning_traj import EveryNEpochs, LogSpaced, Trajectory, TrajectoryCallback
from lightning_traj.blocks import block_groups
from lightning_traj.plots import trajectory as plot
from lightning_traj.plots.layers import progress
from lightning_traj.recording.history import thinned
from lightning_traj.recording.recorder import Recorder
from lightning_traj.recording.settings import RecordingSettings
from lightning_traj.trajectory.times import Times

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPES = {"h.0.q.weight": (12, 9), "h.0.q.bias": (12,), "h.1.v.weight": (7, 4), "scale": ()}
MODES = ["sketch", "full"]


def kept(newest: int, limit: int) -> tuple[list[int], int]:
    """By definition: every stride-th and the newest, the stride being the least power of two that fits the limit."""
    stride = 1
    while len(found := sorted({*range(0, newest + 1, stride), newest})) > limit:
        stride *= 2
    return found, stride


@given(st.integers(4, 40), st.integers(1, 600))
def test_what_is_kept(limit: int, count: int) -> None:
    order: list[int] = []
    stride = 1
    for newest in range(count):
        order.append(newest)
        keep, stride = thinned(order, stride, limit)
        order = [order[i] for i in keep]
        assert (order, stride) == kept(newest, limit)
        assert {0, newest} <= set(order)
        assert len(order) <= limit
        assert newest < limit or len(order) >= limit / 2


@given(st.integers(4, 20), st.lists(st.booleans(), min_size=1, max_size=200))
def test_what_is_kept_where_some_are_taken_out(limit: int, finite: list[bool]) -> None:
    """A snapshot that is not finite is taken out at the next log, whether or not it was on the stride."""
    order: list[int] = []
    stride = 1
    for newest, good in enumerate([True, *finite]):
        order.append(newest)
        keep, stride = thinned(order, stride, limit)
        order = [order[i] for i in keep]
        assert order == sorted(set(order))
        assert order[0] == 0
        assert order[-1] == newest
        assert len(order) <= limit
        assert all(i % stride == 0 for i in order[:-2])
        if not good:
            order.pop()


@settings(deadline=None, max_examples=15)
@given(st.integers(4, 9), st.lists(st.booleans(), min_size=1, max_size=40), st.sampled_from(MODES))
def test_what_was_collected_stays_as_it_is_to_the_last_bit(
    walk: Any, tmp_path_factory: Any, limit: int, collects: list[bool], mode: str
) -> None:
    snapshots = walk(SHAPES, len(collects))
    recorder = Recorder(
        RecordingSettings(snapshot=mode, sketch_dim=16, max_snapshots=limit), folder=tmp_path_factory.mktemp("kept")
    )
    seen: dict[Any, Any] = {}
    for step, (snapshot, collect) in enumerate(zip(snapshots, collects, strict=True)):
        recorder.record(snapshot, step, step / 10)
        if not collect:
            continue
        trajectory, _ = recorder.collect()
        steps = trajectory.steps.tolist()
        assert steps == kept(step, limit)[0]
        now = {("local", t): trajectory.local[i].tobytes() for i, t in enumerate(steps)}
        now |= {("path", t): trajectory.paths[i].tobytes() for i, t in enumerate(steps)}
        now |= {
            ("gram", t, u): trajectory.anchored[:, i, j].tobytes()
            for i, t in enumerate(steps)
            for j, u in enumerate(steps)
        }
        for key, value in now.items():
            assert seen.setdefault(key, value) == value, key


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("limit", [4, 7, 16])
def test_a_thinned_recording_beside_a_complete_one(
    walk: Any, stacked: Any, tmp_path: Any, mode: str, limit: int
) -> None:
    snapshots = walk(SHAPES, 60)
    few, all_of_them = (
        Recorder(RecordingSettings(snapshot=mode, sketch_dim=16, max_snapshots=most), folder=tmp_path / str(most))
        for most in (limit, 100)
    )
    for step, snapshot in enumerate(snapshots):
        few.record(snapshot, step, step / 10)
        all_of_them.record(snapshot, step, step / 10)
    ours, theirs = few.collect()[0], all_of_them.collect()[0]
    at = ours.steps
    assert at.tolist() == kept(59, limit)[0]
    np.testing.assert_array_equal(ours.local, theirs.local[at])
    np.testing.assert_array_equal(ours.paths, theirs.paths[at])
    anchored = theirs.anchored[:, at][:, :, at]
    if mode == "full":
        np.testing.assert_array_equal(ours.anchored, anchored)
    else:
        # Of sketches, all rows that are new to a log are multiplied at once: how many decides how they are rounded.
        scale = np.sqrt(np.einsum("bii,bjj->bij", anchored, anchored))
        assert (np.abs(ours.anchored - anchored) <= 1e-14 * scale).all()
        # But for that, the rows are the same.
        np.testing.assert_array_equal(few.rows(), all_of_them.rows()[at])  # type: ignore[index]
    # Path lengths of all that is accumulated, as if nothing had been dropped.
    for members in block_groups(ours.blocks).values():
        names = [ours.blocks[i].name for i in members]
        ours_, theirs_ = (x.summary(lambda block, n=names: block.name in n)["path_length"] for x in (ours, theirs))
        assert ours_ == theirs_
        if mode == "full":
            assert ours_ == pytest.approx(reference.path_length(stacked(snapshots, names)), rel=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_updates_are_those_between_scheduled_snapshots(walk: Any, stacked: Any, tmp_path: Any, mode: str) -> None:
    snapshots = walk(SHAPES, 40)
    thetas = stacked(snapshots)
    recorder = Recorder(
        RecordingSettings(snapshot=mode, max_snapshots=5), folder=tmp_path
    )  # sketches are long enough: nothing is lost
    for step, snapshot in enumerate(snapshots):
        recorder.record(snapshot, step, step / 10)
        summary = recorder.collect()[0].summary("*")
        last = thetas[max(0, step - 2) : step + 1]
        expected = {"update_length": reference.update_length(last)[-1:], "update_angle": reference.update_angle(last)}
        expected["origin_angle"] = reference.origin_angle(last)[-1:]
        if step > 1:
            expected["apex_angle"] = [reference.angle(last[-2] - thetas[0], last[-1] - thetas[0])]
        for name, values in expected.items():
            if values:
                assert summary[name] == pytest.approx(values[0], rel=1e-6), (name, step)
            else:
                assert np.isnan(summary[name])
        assert summary["path_length"] == pytest.approx(reference.path_length(thetas[: step + 1]), rel=1e-9)


# Bounded --------------------------------------------------------------------------------------------------------


class Launches(TorchDispatchMode):
    """Counts the operations that reach the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def held(recorder: Recorder) -> int:
    """Bytes of all tensors and arrays that a recorder holds, each storage once."""
    seen: dict[int, int] = {}
    visited: set[int] = set()

    def visit(thing: Any) -> None:
        if isinstance(thing, torch.Tensor):
            storage = thing.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
        elif isinstance(thing, np.ndarray):
            owner = thing if thing.base is None or not isinstance(thing.base, np.ndarray) else thing.base
            seen[owner.__array_interface__["data"][0]] = owner.nbytes
        elif id(thing) not in visited and (isinstance(thing, (list, tuple, dict)) or hasattr(thing, "__dict__")):
            visited.add(id(thing))
            inner = thing.values() if isinstance(thing, dict) else thing
            for item in inner if isinstance(thing, (list, tuple, dict)) else vars(thing).values():
                visit(item)

    visit(
        [
            vars(recorder.state.gram),
            vars(recorder.state.path_lengths),
            recorder._collector,
            recorder.windows.state,
            recorder.sketcher._latest,
        ]
    )
    return sum(seen.values())


def test_ten_thousand_snapshots_in_bounded_memory_and_launches(walk: Any) -> None:
    """All that is counted here is the same after a hundred thousand: ``benchmarks/windows.py`` goes there."""
    limit, count = 64, 10_000
    first, other = walk({"w": (20, 10), "b": (3,)}, 2)
    weight = first["w"]
    recorder = Recorder(RecordingSettings(sketch_dim=64, max_snapshots=limit))
    launches: dict[int, int] = {}
    sizes: dict[int, int] = {}
    for step in range(count):
        weight.add_(other["w"], alpha=0.01 * (-1) ** (step // 7))
        if step % 10 == 9:
            with Launches() as counted:
                recorder.record(first, step, step / 10)
            launches[step] = counted.count
        else:
            recorder.record(first, step, step / 10)
        recorder.windows.add(first, step)
        if step % 50 == 0:
            recorder.windows.begin(first, step)
        gram = recorder.state.gram
        lists = [
            recorder.state.history.steps,
            recorder.state.history.epochs,
            recorder.state.history.order,
            recorder.state.path_lengths.kept,
            gram.local,
            gram.finite,
        ]
        assert {len(values) for values in lists} == {len(recorder)}
        assert len(gram.rows) == len(recorder) - 1
        assert len(recorder) <= limit
        assert gram.anchored.shape[-1] <= limit
        assert len(recorder.windows.state.sums) <= limit
        if step % 500 == 499:
            trajectory, _ = recorder.collect()
            assert len(trajectory) == len(recorder)
            sizes[step] = held(recorder)
    assert len(recorder) >= limit / 2
    # From the first thinning on: no more launches, and no more memory than a recording that is just full.
    early = {n for step, n in launches.items() if limit < step < 1000}
    late = {n for step, n in launches.items() if step >= count - 1000}
    assert max(late) <= max(early)
    assert (
        max(n for step, n in sizes.items() if step >= count / 2)
        <= max(n for step, n in sizes.items() if step < 1000) * 1.5
    )
    assert recorder.state.path_lengths.latest is not None
    assert trajectory.steps.tolist() == kept(count - 1, limit)[0]


# Figures --------------------------------------------------------------------------------------------------------


def time_axes(figure: Any, times: Times) -> list[tuple[Any, bool]]:
    """The axes of a figure along which there are cells, one a snapshot; and whether that is the vertical axis too."""
    n = len(times.values)
    return [
        (axes, axes.get_ylabel() == times.unit or axes.get_yticks().tolist() == axes.get_xticks().tolist())
        for axes in figure.axes
        if tuple(sorted(axes.get_xlim())) == (-0.5, n - 0.5)
    ]


def number(label: str) -> float:
    factor = {"k": 1e3, "M": 1e6}.get(label[-1:], 1.0)
    return float(label.rstrip("kM")) * factor


FIGURES: dict[str, tuple[Callable[[Trajectory], Any], int, int]] = {
    "trajectory map": (plot.trajectory_map, 0, 1),
    "relative map": (plot.relative_map, 1, 1),
    "overview": (plot.overview, 0, 1),
    "progress": (lambda trajectory: progress(trajectory, "mds"), 0, 1),
}


@pytest.mark.parametrize("figure", FIGURES)
@pytest.mark.parametrize("maximum", [4, 20])
@pytest.mark.parametrize("count", [7, 33, 41])
@pytest.mark.parametrize("schedule", [EveryNEpochs(1), LogSpaced(64)], ids=str)
def test_axes_tell_the_time_right_after_thinning(
    walk: Any, figure: str, maximum: int, count: int, schedule: Any
) -> None:
    recorder = Recorder(RecordingSettings(max_snapshots=maximum))
    snapshots = iter(walk({"h.0.w": (5, 4), "h.1.w": (3,)}, 200))
    recorder.record(next(snapshots), 0, 0.0)
    step = 0
    while recorder.state.history.scheduled <= count:
        step += 1
        if schedule.due_after_step(step) or (step % 5 == 0 and schedule.due_after_epoch(step // 5)):
            recorder.record(next(snapshots), step, step / 5)
    trajectory = recorder.collect()[0]
    draw, first, least = FIGURES[figure]
    times = Times(trajectory, first)
    assert times.unit == "epoch"
    n = len(times.values)
    drawn = time_axes(draw(trajectory), times)
    assert len(drawn) >= least
    for axes, vertical in drawn:
        for axis in (axes.xaxis, axes.yaxis)[: 1 + vertical]:
            places = axis.get_ticklocs()
            labels = [number(label.get_text()) for label in axis.get_ticklabels()]
            assert len(labels) == len(places) > 1
            # Between the cells of two snapshots, the time between theirs; at a cell, its snapshot's.
            np.testing.assert_allclose(labels, np.interp(places, np.arange(n), times.values), rtol=1e-3)


def test_a_run_that_is_thinned_shows_its_epochs(fit: Any) -> None:
    callback = TrajectoryCallback(max_snapshots=4)
    fit(callback, max_epochs=7)
    trajectory = callback.trajectory
    assert trajectory.epochs.tolist() == [0, 4, 7]
    assert trajectory.steps.tolist() == [0, 16, 28]
    axes = plot.trajectory_map(trajectory).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "4", "7"]
    assert axes.get_xticks().tolist() == [0, 1, 2]
    lines = next(axes for axes in plot.overview(trajectory).axes if axes.get_ylabel() == "degrees").get_lines()
    assert lines[0].get_xdata().tolist() == [0, 4, 7]
    assert lines[1].get_xdata().tolist() == [7]
