"""The record of a run: what it answers, against definitions on stacked parameters, and how it is kept in files."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import pickle
from contextlib import suppress

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import reference
from lightning_traj import Trajectory, measures
from lightning_traj.blocks.block import Block
from lightning_traj.measures.catalogue import MEASURES

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPES = {
    "embed.weight": (30, 20),
    "h.0.q.weight": (12, 9),
    "h.0.q.bias": (12,),
    "h.0.lora.B": (8, 2),
    "frozen.weight": (9, 9),
}
WINDOW = 8  # optimizer steps: the windows of the walks follow each other
ARRAYS = ("steps", "epochs", "anchored", "local", "paths", "sketches")


@pytest.fixture(scope="module")
def snapshots(walk):
    """A walk in which one block starts at zero, one never moves, and one stops."""
    snapshots = walk(SHAPES, 12)
    for t, snapshot in enumerate(snapshots):
        snapshot["frozen.weight"] = snapshots[0]["frozen.weight"]
        if t < 2:
            snapshot["h.0.lora.B"] = torch.zeros(8, 2)
        if t > 8:
            snapshot["h.0.q.bias"] = snapshots[8]["h.0.q.bias"]
    return snapshots


@pytest.fixture(scope="module")
def full(snapshots, recorded, tmp_path_factory):
    folder = tmp_path_factory.mktemp("snapshots")
    return recorded(snapshots, snapshot="full", folder=folder, sketch_dim=2048).collect()[0]  # windows are sketched


@pytest.fixture(scope="module")
def sketched(snapshots, recorded):
    recorder = recorded(snapshots, sketch_dim=64, seed=2, include=["*"])
    return recorder.collect()[0].with_sketches(recorder.rows())


def summary_by_definition(thetas, steps):
    """Every scalar by its definition on stacked parameters."""

    def latest(values):
        return values[-1] if len(values) else math.nan

    displacements = reference.vectors_of(thetas, "displacements")
    end = (len(thetas) - 1) // WINDOW * WINDOW
    window = thetas[end - WINDOW : end + 1] if end else thetas[:0]
    of_window = {
        "oscillation_cosine": reference.oscillation_cosine,
        "oscillation_reversals": reference.oscillation_reversals,
        "oscillation_linearity": reference.oscillation_linearity,
        "oscillation_step_length": reference.oscillation_step_length,
    }
    vectors = list(thetas)
    return {
        "mds": reference.mean_directional_similarity(vectors),
        "mds_relative": reference.mean_directional_similarity(displacements),
        "param_norm": latest(reference.parameter_norm(thetas)),
        "displacement": latest(reference.displacement(thetas)),
        "update_length": latest(reference.update_length(thetas)),
        "path_length": reference.path_length(thetas),
        "tortuosity": reference.tortuosity(thetas),
        "update_angle": latest(reference.update_angle(thetas)),
        "origin_angle": latest(reference.origin_angle(thetas)),
        "turn": latest(reference.turn(thetas)),
        "apex_angle": latest(reference.apex_angle(thetas)),
        "cone_angle": reference.cone_angle(thetas),
        "effective_rank": reference.effective_rank(vectors),
        "participation_ratio": reference.participation_ratio(vectors),
        "top1_share": reference.top1_share(vectors),
        "saturation": reference.saturation(thetas, steps),
        "direction_drift": reference.direction_drift(thetas),
        **{name: measure(window) if len(window) else math.nan for name, measure in of_window.items()},
    }


# What it answers

SELECTIONS = {
    "all that moves": (None, ["embed.weight", "h.0.q.weight", "h.0.q.bias", "h.0.lora.B"]),
    "a layer": ("h.0.q", ["h.0.q.weight", "h.0.q.bias"]),
    "some": ("*.weight", ["embed.weight", "h.0.q.weight", "frozen.weight"]),
    "one that stops": ("h.0.q.bias", ["h.0.q.bias"]),
    "one that starts at zero": ("h.0.lora.B", ["h.0.lora.B"]),
    "one that stands still": ("frozen.weight", ["frozen.weight"]),
}


@pytest.mark.parametrize("name", SELECTIONS)
def test_summary_follows_the_definitions(name, full, snapshots, stacked):
    select, names = SELECTIONS[name]
    expected = summary_by_definition(stacked(snapshots, names), full.steps.tolist())
    summary = full.summary(select)
    assert list(summary) == list(MEASURES)
    assert all(type(value) is float for value in summary.values())
    assert summary == pytest.approx(expected, rel=1e-8, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("name", SELECTIONS)
def test_series_are_the_summaries_of_their_time(name, full, snapshots, stacked):
    select, names = SELECTIONS[name]
    series, thetas = full.series(select), stacked(snapshots, names)
    for t in range(len(full)):
        expected = summary_by_definition(thetas[: t + 1], full.steps[: t + 1].tolist())
        assert {key: values[t] for key, values in series.items()} == pytest.approx(
            expected, rel=1e-8, abs=1e-9, nan_ok=True
        )
    np.testing.assert_equal({key: values[-1] for key, values in series.items()}, full.summary(select))


def test_maps_follow_the_definitions(full, snapshots, stacked):
    for select, names in SELECTIONS.values():
        thetas = stacked(snapshots, names)
        np.testing.assert_allclose(full.gram(select), thetas @ thetas.T, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(
            full.displacement_gram(select), reference.relative_gram(thetas), rtol=1e-10, atol=1e-12
        )
        np.testing.assert_allclose(full.map(select), reference.trajectory_map(thetas), atol=1e-10)
        np.testing.assert_allclose(full.relative_map(select), reference.relative_trajectory_map(thetas), atol=1e-10)
        coordinates, ratios = full.pca(select)
        expected, shares = reference.pca(thetas, len(ratios)) if len(ratios) else (np.zeros((12, 0)), np.zeros(0))
        np.testing.assert_allclose(ratios, shares, atol=1e-10)
        assert coordinates.shape == (12, len(ratios))
        np.testing.assert_allclose(coordinates, expected, atol=1e-5)
        for matrix in (full.gram(select), full.map(select), full.relative_map(select)):
            assert matrix.dtype == np.float64
    assert full.gram().shape == full.map().shape == (12, 12)
    assert full.relative_map().shape == (11, 11)


def test_answers_are_copies(full):
    before = full.anchored.copy(), full.summary()
    for matrix in (full.gram(), full.gram("h.0.q.bias"), full.displacement_gram(), full.map()):
        matrix[:] = 7
    np.testing.assert_array_equal(full.anchored, before[0])
    np.testing.assert_equal(full.summary(), before[1])


@pytest.mark.parametrize("numel", [1, 2, 3, 5, 8, 100, 1001, 70_000])
def test_undefined_angles_are_not_made_of_rounding(numel, recorded):
    """The first update has none before it, and the first displacement is the first update."""
    generator = torch.Generator().manual_seed(numel)
    snapshots = [{name: torch.randn(numel, generator=generator) for name in "abc"} for _ in range(3)]
    series = recorded(snapshots).collect()[0].series()
    for name in ("update_angle", "apex_angle"):
        assert np.isnan(series[name]).tolist() == [True, True, False], name
    # Standing still, and going on.
    snapshots = [snapshots[0], snapshots[1], snapshots[1], snapshots[2], snapshots[0]]
    series = recorded(snapshots).collect()[0].series()
    assert np.isnan(series["update_angle"]).tolist() == [True, True, True, True, False]
    assert series["apex_angle"][2] == 0
    assert np.isnan(series["tortuosity"]).tolist() == [True, False, False, False, True]


def test_one_snapshot(snapshots, recorded):
    trajectory = recorded(snapshots[:1]).collect()[0]
    summary = trajectory.summary()
    defined = {name for name, value in summary.items() if not math.isnan(value)}
    lengths = {"param_norm", "displacement", "path_length"}
    assert defined == {"mds", "turn", "effective_rank", "participation_ratio", "top1_share"} | lengths
    assert summary["mds"] == 1
    assert summary["path_length"] == summary["displacement"] == 0
    assert trajectory.counted() == "all 5 blocks, 817 parameters"  # none has changed yet
    assert trajectory.relative_map().shape == (0, 0)


# What is counted


def test_what_has_not_changed_is_not_counted_unless_it_is_asked_for(full):
    assert [full.blocks[i].name for i in full.select()] == SELECTIONS["all that moves"][1]
    assert full.counted() == "4 of 5 blocks, 736 of 817 parameters"
    assert full.counted("frozen") == "1 of 5 blocks, 81 of 817 parameters"
    assert full.counted("*") == "all 5 blocks, 817 parameters"
    assert full.counted("role:q") == "1 of 5 blocks, 108 of 817 parameters"
    assert repr(full) == "Trajectory(12 snapshots, 4 of 5 blocks, 736 of 817 parameters, full)"
    with pytest.raises(ValueError, match="select='nothing' matches none of 5 blocks"):
        full.summary("nothing")
    with pytest.raises(TypeError, match="select=3"):
        full.gram(3)


def test_a_block_that_went_and_came_back_between_kept_snapshots_has_changed(walk, recorded):
    snapshots = walk({"a": (5,), "b": (5,)}, 9)
    for t, snapshot in enumerate(snapshots):
        if t != 3:
            snapshot["b"] = snapshots[0]["b"]
    trajectory = recorded(snapshots, max_snapshots=5).collect()[0]
    assert 3 not in trajectory.steps
    assert trajectory.counted() == "all 2 blocks, 10 parameters"


def test_path_lengths_of_other_selections_come_from_the_snapshots_that_were_kept(walk, recorded, stacked):
    snapshots = walk({"a.w": (5,), "a.b": (3,), "c.w": (4,), "d.frozen": (6,)}, 20)
    for snapshot in snapshots:
        snapshot["d.frozen"] = snapshots[0]["d.frozen"]
    trajectory = recorded(snapshots, max_snapshots=8).collect()[0]
    for select, names in (
        (None, ["a.w", "a.b", "c.w"]),
        ("layer:a", ["a.w", "a.b"]),
        ("[ad].*", ["a.w", "a.b"]),  # a layer and what stands still
        ("c.w", ["c.w"]),
    ):
        assert trajectory.summary(select)["path_length"] == pytest.approx(
            reference.path_length(stacked(snapshots, names))
        )
    kept = [snapshots[step] for step in trajectory.steps]
    expected = reference.path_length(stacked(kept, ["a.w", "c.w"]))
    assert trajectory.summary("*.w")["path_length"] == pytest.approx(expected, rel=1e-6)


def test_standard_errors_belong_to_sketches(full, sketched):
    assert full.standard_errors() == {}
    errors = sketched.standard_errors()
    assert set(errors) == {name for name, measure in MEASURES.items() if measure.error}
    assert all(error > 0 for error in errors.values())
    assert not any(sketched.standard_errors("h.0.q.bias").values())
    assert set(sketched.standard_errors("frozen")) < set(errors)


def test_arrays_of_other_shapes_are_refused(full):
    with pytest.raises(ValueError, match=r"local has shape \(11, 5, 4, 4\), where \(12, 5, 4, 4\) was expected"):
        dataclasses.replace(full, local=full.local[1:])
    with pytest.raises(ValueError, match=r"anchored has shape \(5, 12, 12\), where \(6, 12, 12\) was expected"):
        dataclasses.replace(full, blocks=(*full.blocks, Block("w", "", "other", 1)))


# Files


def assert_equal(ours, theirs):
    assert ours.blocks == theirs.blocks
    assert dict(ours.settings) == dict(theirs.settings)
    for name in ARRAYS:
        one, other = getattr(ours, name), getattr(theirs, name)
        np.testing.assert_array_equal(one, other)
        assert other is None or one.dtype == other.dtype


@pytest.mark.parametrize("kind", ["full", "sketched"])
def test_save_and_load(kind, request, tmp_path):
    trajectory = request.getfixturevalue(kind)
    path = tmp_path / "folder" / "trajectory.safetensors"
    trajectory.save(path)
    assert os.listdir(path.parent) == [path.name]
    for given in (path, str(path)):
        loaded = Trajectory.load(given)
        assert_equal(loaded, trajectory)
        np.testing.assert_equal(loaded.summary(), trajectory.summary())
        assert loaded.standard_errors() == trajectory.standard_errors()
    loaded.save(path)
    assert_equal(Trajectory.load(path), trajectory)


def test_the_file_is_tensors_and_a_header(sketched, tmp_path):
    path = tmp_path / "t.safetensors"
    sketched.save(path)
    windows = {"window_sums", "window_steps", "window_counts"}
    assert set(load_file(path)) == {*ARRAYS, *windows}
    header = path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")]
    metadata = json.loads(json.loads(header)["__metadata__"]["lightning_traj"])
    assert metadata["format"] == "lightning_traj.trajectory"
    assert metadata["version"] == 1
    assert metadata["blocks"][1] == {"name": "h.0.q.weight", "layer": "h.0.q", "role": "q", "numel": 108}
    assert metadata["settings"]["include"] == ["*"]


@pytest.mark.parametrize("write", ["save", "to_csv", "to_numpy"])
def test_a_failure_while_writing_leaves_the_old_file(write, full, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("No space left on device")

    path = tmp_path / "old"
    getattr(full, write)(path)
    before = path.read_bytes()
    for function in ("safetensors.numpy.save_file", "csv.writer", "numpy.savez"):
        monkeypatch.setattr(function, fail)
    with pytest.raises(OSError, match="No space left"):
        getattr(full, write)(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["old"]


class Exploding:
    def __reduce__(self):
        return (exec, ("raise SystemExit('a pickle was executed')",))


def damaged(content, seed):
    rng = np.random.default_rng(seed)
    header = 8 + int.from_bytes(content[:8], "little")
    spoilt = bytearray(content)
    for i in rng.integers(0, header, 3):
        spoilt[i] = rng.integers(256)
    return bytes(spoilt)


def header_of(**changes):
    return lambda metadata: {"lightning_traj": json.dumps({**json.loads(metadata["lightning_traj"]), **changes})}


FOREIGN = {
    "empty": lambda content: b"",
    "text": lambda content: b"step,epoch\n0,0\n",
    "zeros": lambda content: bytes(1000),
    "random": lambda content: np.random.default_rng(0).bytes(5000),
    "a pickle": lambda content: pickle.dumps(Exploding()),
    "cut in the data": lambda content: content[:-1],
    "cut in the middle": lambda content: content[: len(content) // 2],
    "cut in the header": lambda content: content[:100],
    "cut in the length": lambda content: content[:5],
    "too long": lambda content: content + b"more",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_and_damaged_files_are_refused_and_left_alone(name, full, tmp_path):
    path = tmp_path / "t.safetensors"
    full.save(path)
    path.write_bytes(FOREIGN[name](path.read_bytes()))
    before = path.read_bytes(), path.stat().st_mtime_ns
    with pytest.raises(ValueError, match=r"cannot be read as a trajectory: .*this one was left untouched") as error:
        Trajectory.load(path)
    assert f"path={str(path)!r}" in str(error.value)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_header_is_refused_or_does_no_harm(seed, full, tmp_path):
    path = tmp_path / "t.safetensors"
    full.save(path)
    path.write_bytes(damaged(path.read_bytes(), seed))
    with suppress(ValueError):  # whatever else it raises fails the test
        assert len(Trajectory.load(path)) == len(full)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (lambda metadata: None, "it is a safetensors file, but holds no trajectory"),
        (lambda metadata: {"other": "x"}, "it is a safetensors file, but holds no trajectory"),
        (header_of(format="something.else"), "it is a safetensors file, but holds no trajectory"),
        (header_of(version=2), "its format is 2, and this release reads up to 1: upgrade lightning-traj"),
        (header_of(version="new"), "cannot be read"),
        (header_of(blocks=[{"name": "w"}]), "cannot be read"),
        (header_of(blocks=[3]), "cannot be read"),
        (header_of(blocks=None), "cannot be read"),
        (header_of(settings=None), "cannot be read"),
        (header_of(blocks=[]), "cannot be read"),
        (lambda metadata: {"lightning_traj": "[1, 2]"}, "cannot be read"),
        (lambda metadata: {"lightning_traj": "{"}, "cannot be read"),
    ],
)
def test_other_headers_are_refused(metadata, message, full, tmp_path):
    from safetensors import safe_open

    path = tmp_path / "t.safetensors"
    full.save(path)
    with safe_open(path, framework="numpy") as file:
        changed = metadata(file.metadata())
    save_file(load_file(path), path, metadata=changed)
    with pytest.raises(ValueError, match=message):
        Trajectory.load(path)


@pytest.mark.parametrize("tensor", [name for name in ARRAYS if name != "sketches"])
def test_missing_tensors_and_wrong_types_are_refused(tensor, full, tmp_path):
    from safetensors import safe_open

    path = tmp_path / "t.safetensors"
    full.save(path)
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    for changed in (
        {name: values for name, values in tensors.items() if name != tensor},
        {**tensors, tensor: tensors[tensor][..., :-1].copy()},
        {**tensors, tensor: np.zeros(())},
        {**tensors, tensor: tensors[tensor].astype(np.int8)},
    ):
        save_file(changed, path, metadata=metadata)
        with pytest.raises(ValueError, match="cannot be read as a trajectory"):
            Trajectory.load(path)


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(FileNotFoundError, match="no such file; pass a trajectory"):
            Trajectory.load(path)


@pytest.mark.parametrize("select", [None, "h.0.q"])
def test_csv(select, full, tmp_path):
    full.to_csv(tmp_path / "t.csv", select)
    with (tmp_path / "t.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["step", "epoch", *MEASURES]
    columns = list(zip(*rows, strict=True))
    assert [int(step) for step in columns[0]] == full.steps.tolist()
    assert [float(epoch) for epoch in columns[1]] == full.epochs.tolist()
    series = full.series(select)
    for name, column in zip(header[2:], columns[2:], strict=True):
        np.testing.assert_array_equal([float(value) if value else math.nan for value in column], series[name])


@pytest.mark.parametrize("select", [None, "h.0.q"])
def test_npz(select, full, tmp_path):
    full.to_numpy(tmp_path / "t.npz", select)
    with np.load(tmp_path / "t.npz", allow_pickle=False) as file:
        arrays = dict(file)
    assert set(arrays) == {"steps", "epochs", "gram", "map", "relative_map", *MEASURES}
    np.testing.assert_array_equal(arrays["gram"], full.gram(select))
    np.testing.assert_array_equal(arrays["map"], measures.trajectory_map(arrays["gram"]))
    np.testing.assert_array_equal(arrays["relative_map"], full.relative_map(select))
    np.testing.assert_array_equal(arrays["steps"], full.steps)
    for name, values in full.series(select).items():
        np.testing.assert_array_equal(arrays[name], values)
