"""Recording: against stacked parameters, in bounded memory, through everything that happens to parameters and disks."""

from __future__ import annotations

import copy
import math
import re

import numpy as np
import pytest
import torch
from torch import nn

from lightning_traj.blocks import block_groups
from lightning_traj.gram.exact_gram import ExactGram
from lightning_traj.gram.sketched_gram import SketchedGram
from lightning_traj.measures.catalogue import MEASURES
from lightning_traj.recording import recorder as recorder_module
from lightning_traj.recording.path_lengths import PathLengths
from lightning_traj.recording.recorder import Recorder
from lightning_traj.recording.settings import RecordingSettings
from lightning_traj.recording.windows import StepWindows
from lightning_traj.sketch.countsketch import CountSketch

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPES = {"embed.weight": (30, 20), "h.0.q.weight": (12, 9), "h.0.q.bias": (12,), "scale": ()}
ARRAYS = ("steps", "epochs", "anchored", "local", "paths")
MODES = ["sketch", "full"]


@pytest.fixture
def new(tmp_path):
    """A new Recorder; sketches are short enough that the first two blocks of SHAPES are really sketched."""
    return lambda folder=tmp_path / "snapshots", **settings: Recorder(
        RecordingSettings(**{"sketch_dim": 64, **settings}), folder
    )


def collected(recorder):
    trajectory, dropped = recorder.collect()
    assert not dropped
    return trajectory


def path_lengths(thetas):
    """Path length up to each snapshot."""
    return np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(thetas, axis=0), axis=1))])


def assert_same(ours, theirs, rtol=1e-12):
    """Equal trajectories: inner products up to the rounding of float64, everything else to the last bit."""
    assert ours.blocks == theirs.blocks
    assert ours.settings == theirs.settings
    for name in ARRAYS:
        if name == "anchored":
            scale = np.abs(theirs.anchored).max(axis=(1, 2), keepdims=True)
            assert (np.abs(ours.anchored - theirs.anchored) <= rtol * scale).all()
        else:
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)


# What is recorded


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("often", [True, False])
def test_full_snapshots_are_exact(new, walk, stacked, recorded, dtype, often):
    snapshots = walk(SHAPES, 9, dtype=dtype)
    recorder = new(snapshot="full")
    for step, snapshot in enumerate(snapshots):
        recorded([snapshot], recorder, first=step)
        if often:
            collected(recorder)
    trajectory = collected(recorder)
    for select, names in ((None, None), ("h.0.q", ["h.0.q.weight", "h.0.q.bias"]), ("scale", ["scale"])):
        theta = stacked(snapshots, names)
        about_zero = (theta - theta[0]) @ (theta - theta[0]).T
        np.testing.assert_allclose(trajectory.gram(select), theta @ theta.T, rtol=1e-10)
        np.testing.assert_allclose(trajectory.displacement_gram(select), about_zero, rtol=1e-10)
        assert trajectory.summary(select)["path_length"] == pytest.approx(path_lengths(theta)[-1], rel=1e-10)
    assert trajectory.steps.tolist() == list(range(9))
    assert trajectory.epochs.tolist() == [step / 10 for step in range(9)]
    assert trajectory.settings["snapshot"] == "full"
    assert trajectory.standard_errors() == {}


def test_sketched_snapshots_are_those_of_the_sketch(new, walk, recorded):
    snapshots = walk(SHAPES, 7)
    trajectory = collected(recorded(snapshots, new(seed=3)))
    sketch = CountSketch(64, seed=3)
    for b, name in enumerate(SHAPES):
        theta = np.stack([sketch(snapshot[name], name).numpy() for snapshot in snapshots])
        vectors = np.concatenate([theta[:1], theta[1:] - theta[0]])
        # Displacements are stored in float32.
        np.testing.assert_allclose(trajectory.anchored[b], vectors @ vectors.T, rtol=1e-6, atol=1e-6)
    errors = trajectory.standard_errors()
    assert errors["mds"] > 0
    assert trajectory.standard_errors("h.0.q.bias")["mds"] == 0  # kept whole
    assert set(errors) <= set(MEASURES)


@pytest.mark.parametrize(("prefix", "root"), [("", ""), ("net.", "net."), ("model.net.", "model.net.")])
def test_what_wraps_a_network_does_not_change_its_sketches(new, walk, recorded, prefix, root):
    snapshots = walk(SHAPES, 4)
    wrapped = [{prefix + name: tensor for name, tensor in snapshot.items()} for snapshot in snapshots]
    bare, named = (recorded(some, new(seed=3)) for some in (snapshots, wrapped))
    np.testing.assert_array_equal(named.rows(), bare.rows())
    assert collected(named).settings["root"] == root
    # A parameter beside the network takes nothing away: both begin with nothing in common.
    beside = recorded([{**snapshot, "loss.scale": torch.ones(1)} for snapshot in wrapped], new(seed=3))
    assert collected(beside).settings["root"] == ""
    assert np.array_equal(beside.rows()[:, :-1], bare.rows()) is (prefix == "")


def test_a_late_parameter_leaves_the_names_of_the_sketches_as_they_are(new, walk, recorded):
    snapshots = walk({f"net.{name}": shape for name, shape in SHAPES.items()}, 4)
    late = [snapshots[0], *({**snapshot, "loss.scale": torch.ones(1)} for snapshot in snapshots[1:])]
    rows, before = recorded(late, new()).rows(), recorded(snapshots, new()).rows()
    np.testing.assert_array_equal(rows[:, :-1], before)


@pytest.mark.parametrize("mode", MODES)
def test_path_lengths_of_every_group(new, walk, stacked, recorded, mode):
    snapshots = walk(SHAPES, 6)
    trajectory = collected(recorded(snapshots, new(snapshot=mode, sketch_dim=1000)))
    groups = block_groups(trajectory.blocks)
    assert list(groups) == [
        "all",
        "layer:embed",
        "layer:h",
        "layer:h.0",
        "layer:h.0.q",
        "layer:",
        *dict.fromkeys(f"role:{block.role}" for block in trajectory.blocks),
        *(f"block:{name}" for name in SHAPES),
    ]
    for column, members in enumerate(groups.values()):
        thetas = stacked(snapshots, [trajectory.blocks[i].name for i in members])
        np.testing.assert_allclose(trajectory.paths[:, column], path_lengths(thetas), rtol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_what_has_been_recorded_is_not_recorded_again(new, walk, mode):
    first, second, third = walk(SHAPES, 3)
    recorder = new(snapshot=mode)
    assert recorder.record(first, 0, 0.0)
    assert not recorder.record(second, 0, 0.0)
    assert recorder.record(second, 5, 0.5)
    assert not recorder.record(third, 5, 0.5)
    assert not recorder.record(third, 4, 0.4)
    assert recorder.record(third, 5, 1.0)  # a skipped step, at the end of the epoch
    assert len(collected(recorder)) == 3


def test_parameters_are_left_alone(new, recorded):
    model = nn.Linear(100, 30)
    before = {name: (parameter.detach().clone(), parameter._version) for name, parameter in model.named_parameters()}
    state = torch.get_rng_state()
    recorded([dict(model.named_parameters())] * 3, new())
    assert torch.equal(torch.get_rng_state(), state)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name][0])
        assert parameter._version == before[name][1]
        assert parameter.requires_grad
        assert parameter.grad is None


# Thinning


@pytest.mark.parametrize("mode", MODES)
def test_thinning_keeps_entries_to_the_last_bit(new, walk, recorded, mode):
    snapshots = walk(SHAPES, 10)
    recorder = recorded(snapshots[:8], new(snapshot=mode, max_snapshots=8))
    before = collected(recorder)
    recorded(snapshots[8:9], recorder, first=8)
    after = collected(recorder)
    assert after.steps.tolist() == [0, 2, 4, 6, 8]
    at = after.steps[:-1]
    np.testing.assert_array_equal(after.anchored[:, :-1, :-1], before.anchored[:, at][:, :, at])
    np.testing.assert_array_equal(after.local[:-1], before.local[at])
    np.testing.assert_array_equal(after.paths[:-1], before.paths[at])
    unthinned = collected(recorded(snapshots[:9], new(snapshot=mode)))
    np.testing.assert_array_equal(after.paths[-1], unthinned.paths[-1])
    np.testing.assert_array_equal(after.local[-1], unthinned.local[-1])
    recorded(snapshots[9:], recorder, first=9)
    assert collected(recorder).steps.tolist() == [0, 2, 4, 6, 8, 9]


@pytest.fixture(scope="module")
def thousand(walk, recorded):
    """A thousand snapshots, and the trajectory of all of them."""
    snapshots = walk({"w": (20, 10), "b": (3,)}, 1000)
    return snapshots, collected(recorded(snapshots, Recorder(RecordingSettings(sketch_dim=64, max_snapshots=2000))))


@pytest.mark.parametrize(("maximum", "often"), [(4, True), (7, False), (8, True)])
def test_a_thousand_snapshots_are_thinned_to_a_few(new, thousand, maximum, often):
    snapshots, complete = thousand
    thinned = new(max_snapshots=maximum)
    for step, snapshot in enumerate(snapshots):
        thinned.record(snapshot, step, step / 10)
        assert len(thinned) <= maximum
        assert thinned.state.history.steps[0] == 0
        assert thinned.state.history.steps[-1] == step
        if often and step % 90 == 7:
            collected(thinned)
    trajectory = collected(thinned)
    stride = thinned.state.history.stride
    assert maximum / 2 <= len(trajectory) <= maximum
    assert set(trajectory.steps[:-1] % stride) == {0}
    at = trajectory.steps
    np.testing.assert_array_equal(trajectory.paths, complete.paths[at])
    np.testing.assert_array_equal(trajectory.local, complete.local[at])
    np.testing.assert_allclose(trajectory.anchored, complete.anchored[:, at][:, :, at], rtol=1e-12, atol=1e-12)
    ours, theirs = trajectory.summary(), complete.summary()
    for name in ("path_length", "tortuosity", "update_length", "update_angle", "origin_angle", "apex_angle", "turn"):
        assert ours[name] == theirs[name], name


# Frozen tensors


@pytest.fixture
def sketched_names(monkeypatch):
    """The names of the blocks that were sketched, in order."""
    calls = []
    sketch = CountSketch.of_blocks

    def counting(self, blocks):
        calls.extend(block.name for block in blocks)
        return sketch(self, blocks)

    monkeypatch.setattr(CountSketch, "of_blocks", counting)

    def since():
        names, calls[:] = list(calls), []
        return names

    return since


def test_frozen_tensors_are_sketched_each_time(new, sketched_names):
    """No version counter tells whether they have changed."""
    frozen = nn.Parameter(torch.ones(60), requires_grad=False)
    trained = nn.Parameter(torch.ones(60))
    with torch.inference_mode():
        without_version = torch.ones(60)
    parameters = {"frozen": frozen, "trained": trained, "without version": without_version}
    recorder = new()
    changes = [lambda: None, lambda: None, lambda: frozen.data.add_(1), lambda: frozen.detach().numpy().__iadd__(1)]
    for step, change in enumerate(changes):
        version = frozen._version
        change()
        assert frozen._version == version
        assert recorder.record(parameters, step, 0.0)
        assert sketched_names() == list(parameters)
    moved = collected(recorder).local[:, 0, 2, 2]  # squared lengths of the updates of the frozen one
    assert moved.tolist() == [0.0, 0.0, 60.0, 60.0]


def test_an_unchanged_block_has_not_moved_at_all(new, walk, recorded):
    snapshots = walk(SHAPES, 5)
    for snapshot in snapshots:
        snapshot["embed.weight"] = snapshots[0]["embed.weight"].clone()
    trajectory = collected(recorded(snapshots, new()))
    assert not trajectory.anchored[0, 1:].any()
    assert not trajectory.paths[:, 1].any()
    assert trajectory.counted() == "3 of 4 blocks, 121 of 721 parameters"


# Everything that happens to parameters


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("often", [True, False])
def test_late_and_vanished_parameters_are_constant_before_and_after(new, walk, stacked, recorded, mode, often):
    snapshots = walk({"a": (5, 4), "gone": (7,), "late": (6,), "later": ()}, 8)
    there = {"a": range(8), "gone": range(3), "late": range(2, 8), "later": range(6, 8)}
    recorder = new(snapshot=mode)
    for t, snapshot in enumerate(snapshots):
        recorded([{name: snapshot[name] for name in snapshot if t in there[name]}], recorder, first=t)
        if often:
            collected(recorder)
    trajectory = collected(recorder)
    assert [block.name for block in trajectory.blocks] == ["a", "gone", "late", "later"]
    filled = [
        {name: snapshots[min(max(t, there[name][0]), there[name][-1])][name] for name in snapshots[0]} for t in range(8)
    ]
    for column, members in enumerate(block_groups(trajectory.blocks).values()):
        names = [trajectory.blocks[i].name for i in members]
        theta = stacked(filled, names)
        np.testing.assert_allclose(trajectory.gram(lambda block, n=names: block.name in n), theta @ theta.T, rtol=1e-6)
        np.testing.assert_allclose(trajectory.paths[:, column], path_lengths(theta), rtol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_parameters_of_every_kind(new, mode):
    parameters = {
        "complex": torch.tensor([3 + 4j]),
        "half": torch.ones(2, dtype=torch.float16),
        "scalar": torch.tensor(2.0),
        "integer": torch.arange(5),
        "empty": torch.ones(0, 3),
        "lazy": nn.UninitializedParameter(),
        "lazy and frozen": nn.UninitializedParameter(requires_grad=False),
        "transposed": torch.ones(3, 4).T,
    }
    recorder = new(snapshot=mode)
    recorder.check(parameters)
    assert recorder.record(parameters, 0, 0.0)
    assert recorder.record({**parameters, "complex": torch.tensor([3 + 5j])}, 1, 0.0)
    trajectory = collected(recorder)
    assert {block.name: block.numel for block in trajectory.blocks} == {
        "complex": 2,
        "half": 2,
        "scalar": 1,
        "transposed": 12,
    }
    assert trajectory.gram("complex").tolist() == [[25, 29], [29, 34]]
    assert trajectory.gram("scalar").tolist() == [[4, 4], [4, 4]]
    assert trajectory.counted() == "1 of 4 blocks, 2 of 17 parameters"


def test_tied_weights_are_one_block(new):
    model = nn.ModuleDict({"embed": nn.Embedding(10, 4), "head": nn.Linear(4, 10, bias=False)})
    model["head"].weight = model["embed"].weight
    recorder = new()
    recorder.record(dict(model.named_parameters()), 0, 0.0)
    assert [block.name for block in recorder.state.blocks] == ["embed.weight"]


def test_compiled_models_have_the_names_of_the_plain_ones(new, walk, recorded):
    snapshots = walk(SHAPES, 4)
    compiled = [{f"_orig_mod.{name}": tensor for name, tensor in snapshot.items()} for snapshot in snapshots]
    ours = collected(recorded(snapshots[:2] + compiled[2:], new()))
    assert_same(ours, collected(recorded(snapshots, new())))


@pytest.mark.parametrize("mode", MODES)
def test_a_parameter_of_another_size_is_refused(new, mode):
    recorder = new(snapshot=mode)
    recorder.record({"w": torch.ones(4)}, 0, 0.0)
    with pytest.raises(ValueError, match="parameter 'w' had 4 entries and now has 5"):
        recorder.record({"w": torch.ones(5)}, 1, 0.0)
    assert recorder.record({"w": torch.ones(4)}, 1, 0.0)
    assert len(collected(recorder)) == 2


def test_without_any_block_nothing_is_recorded(new):
    recorder = new()
    assert not recorder.record({"integer": torch.arange(3)}, 0, 0.0)
    assert len(recorder) == 0


# Before training


@pytest.mark.parametrize(
    ("include", "exclude", "names"),
    [
        (None, None, list(SHAPES)),
        ("*.weight", None, ["embed.weight", "h.0.q.weight"]),
        (["embed.*", "scale"], None, ["embed.weight", "scale"]),
        (None, ["*.bias", "scale"], ["embed.weight", "h.0.q.weight"]),
        ("h.*", "*.bias", ["h.0.q.weight"]),
    ],
)
def test_include_and_exclude(new, walk, recorded, include, exclude, names):
    snapshots = walk(SHAPES, 2)
    recorder = new(include=include, exclude=exclude)
    recorder.check(snapshots[0])
    trajectory = collected(recorded(snapshots, recorder))
    assert [block.name for block in trajectory.blocks] == names


@pytest.mark.parametrize(
    ("settings", "parameters", "message"),
    [
        (
            {"include": "fc.*"},
            SHAPES,
            r"include='fc\.\*': 'fc\.\*' matches none of the parameters; names: 'embed\.weight'",
        ),
        ({"exclude": ["scale", "x"]}, SHAPES, r"exclude=\['scale', 'x'\]: 'x' matches none"),
        ({"exclude": "*"}, SHAPES, r"include=None, exclude='\*' leave none of 4 parameters: record at least one"),
        ({"include": []}, SHAPES, r"include=\[\], exclude=None leave none of 4 parameters"),
        ({}, {}, "none of the 0 parameters|leave none of 0 parameters"),
        ({}, {"empty": (0,)}, "none of the 1 parameters of the model is floating-point and non-empty"),
    ],
)
def test_having_nothing_to_record_is_said_before_training(new, settings, parameters, message):
    with pytest.raises(ValueError, match=message):
        new(**settings).check({name: torch.ones(shape) for name, shape in parameters.items()})


def test_lazy_parameters_may_be_all_there_is(new):
    new().check({"w": nn.UninitializedParameter()})


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"a": (3,)}, "the parameter 'b', which the model lacks: resume with the same model"),
        ({"a": (3,), "b": (5,)}, "4 entries in 'b', and the model has 5"),
    ],
)
def test_another_model_than_the_checkpoints_is_refused(new, parameters, message):
    earlier, recorder = new(), new()
    earlier.record({"a": torch.ones(3), "b": torch.ones(4)}, 0, 0.0)
    recorder.load_state_dict(earlier.state_dict())
    with pytest.raises(ValueError, match=message):
        recorder.check({name: torch.ones(shape) for name, shape in parameters.items()})
    recorder.check({"a": torch.ones(3), "b": torch.ones(2, 2), "new": torch.ones(1)})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"sketch_dim": 64}, r"recording 4 blocks, 721 parameters as sketch snapshots: 564 B a snapshot in memory; "),
        (
            {"sketch_dim": 2048},
            "recording 4 blocks, 721 parameters as sketch snapshots: 2.88 kB a snapshot in memory; ",
        ),
        ({"snapshot": "full"}, "recording 4 blocks, 721 parameters as full snapshots: 2.88 kB a snapshot on disk, in "),
    ],
)
def test_the_cost_is_said_in_one_line(new, walk, settings, said):
    line = new(**settings).prepare(walk(SHAPES, 1)[0])
    assert line.startswith(said)
    assert "\n" not in line


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("maximum", "blocks", "shape"), [(8, 8, (40, 30)), (32, 8, (40, 30)), (64, 60, (3,))])
def test_the_cost_said_is_what_a_checkpoint_holds(new, walk, recorded, tmp_path, mode, maximum, blocks, shape):
    shapes = {f"model.layers.{i}.weight": shape for i in range(blocks)}
    recorder = new(snapshot=mode, max_snapshots=maximum)
    said = re.search(r"([\d.]+) (k|M?)B at most in each checkpoint", recorder.prepare(walk(shapes, 1)[0]))
    recorded(walk(shapes, maximum), recorder)
    torch.save(recorder.state_dict(), tmp_path / "checkpoint")
    size, expected = (tmp_path / "checkpoint").stat().st_size, float(said[1]) * {"k": 1e3, "M": 1e6}[said[2]]
    assert 0.5 * expected < size <= expected  # of the windows that are counted only one in eight comes


# On a device


@pytest.fixture
def copied(monkeypatch):
    """The bytes of every copy to the host."""
    sizes = []
    cpu = torch.Tensor.cpu

    def counting(self, *args, **kwargs):
        sizes.append(self.numel() * self.element_size())
        return cpu(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "cpu", counting)
    return sizes


def test_only_what_is_new_is_copied_to_the_host_and_in_one_piece(new, walk, recorded, copied):
    snapshots = walk(SHAPES, 40)
    recorder = recorded(snapshots[:30], new())
    assert copied == []
    collected(recorder)
    recorded(snapshots[30:32], recorder, first=30)
    collected(recorder)
    groups = len(block_groups(recorder.state.blocks))

    def size(rows, n, windows):
        # Gram rows, local Gram matrices, path lengths; sums of windows of 8 steps
        return 8 * rows * (4 * n + 16 * 4 + groups) + 8 * windows * 4 * 3 * 8

    assert copied == [size(30, 30, windows=3), size(2, 32, windows=0)]
    collected(recorder)
    assert len(copied) == 2  # nothing new: nothing copied


@pytest.mark.parametrize("frozen", [True, False])
def test_recording_never_waits_for_the_device(new, frozen):
    """On meta tensors whatever asks for a value raises."""

    def parameters(late=False):
        shapes = {"w": (300, 300), "b": (40,), "s": ()} | ({"late": (100,)} if late else {})
        return {
            name: nn.Parameter(torch.empty(shape, device="meta"), requires_grad=not frozen)
            for name, shape in shapes.items()
        }

    recorder = new(max_snapshots=4)
    recorder.prepare(parameters())
    assert recorder.process.device.type == "meta"
    for step in range(12):
        assert recorder.record(parameters(), step, 0.0)
        recorder.windows.add(parameters(), step)
        if not recorder.windows.running:
            recorder.windows.begin(parameters(), step)
    assert len(recorder) <= 4
    state = recorder.state_dict()
    assert {state["gram"]["local"]["values"].device.type, state["paths"].device.type} == {"meta"}
    assert state["windows"]["sums"]["values"].device.type == "meta"
    # What does need the values: the check can fail.
    with pytest.raises((NotImplementedError, RuntimeError)):
        recorder.collect()
    with pytest.raises((NotImplementedError, RuntimeError)):
        recorder.record(parameters(late=True), 12, 0.0)


def test_a_window_is_cut_short_where_a_block_comes(new, walk):
    recorder = new()
    for step, snapshot in enumerate(walk({"a": (5,), "late": (6,)}, 12)):
        parameters = snapshot if step > 5 else {"a": snapshot["a"]}
        recorder.record(parameters, step, 0.0)
        recorder.windows.add(parameters, step)
        recorder.windows.begin(parameters, step)
    assert recorder.windows.state.counts == (5,)


def test_what_would_fill_a_device_is_kept_on_the_host(new, monkeypatch):
    monkeypatch.setattr(recorder_module, "ROW_BUDGET", 1000)
    recorder = new()
    said = recorder.prepare({"w": torch.empty(1000, device="meta")})
    assert "in memory of the host (above 1 kB in all)" in said
    assert recorder.state.gram.storage == torch.device("cpu")
    assert "of the host" not in new().prepare({"w": torch.empty(1000)})


# State


def through_a_file(state, path):
    torch.save(state, path)
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("maximum", [256, 6])
@pytest.mark.parametrize("cut", [1, 2, 3, 8, 12])
@pytest.mark.parametrize("often", [True, False])
def test_a_resumed_recording_equals_an_uninterrupted_one(new, walk, recorded, tmp_path, mode, maximum, cut, often):
    snapshots = walk({**SHAPES, "late": (9,), "gone": (50, 3)}, 16)
    for t, snapshot in enumerate(snapshots):
        del snapshot["late" if t < 2 else "gone"]

    def taken(recorder, start, stop):
        for t in range(start, stop):
            recorded(snapshots[t : t + 1], recorder, first=t)
            if often and t % 3 == 0:
                collected(recorder)
        return recorder

    settings = {"snapshot": mode, "max_snapshots": maximum, "include": ["*"]}
    whole = taken(new(**settings), 0, 16)
    state = through_a_file(taken(new(**settings), 0, cut).state_dict(), tmp_path / "checkpoint")
    resumed = new(**settings)
    resumed.load_state_dict(state)
    assert len(resumed) == len(state["steps"])
    taken(resumed, cut, 16)
    assert_same(collected(resumed), collected(whole))
    # Once more from the same checkpoint: what has been recorded since has left it alone.
    again = new(**settings)
    again.load_state_dict(state)
    assert_same(collected(taken(again, cut, 16)), collected(whole))


def test_full_snapshots_whose_folder_has_moved_are_found(new, walk, recorded, tmp_path):
    snapshots = walk(SHAPES, 6)
    first = recorded(snapshots[:4], new(snapshot="full", folder=tmp_path / "here"))
    state = through_a_file(first.state_dict(), tmp_path / "checkpoint")
    whole = collected(recorded(snapshots, new(snapshot="full")))

    elsewhere = new(snapshot="full", folder=tmp_path / "there")  # new files go there, old ones are still here
    elsewhere.load_state_dict(state)
    assert_same(collected(recorded(snapshots[4:], elsewhere, first=4)), whole)
    assert len(list((tmp_path / "here").iterdir())) == 4
    assert len(list((tmp_path / "there").iterdir())) == 2

    (tmp_path / "here").rename(tmp_path / "moved")
    moved = new(snapshot="full", folder=tmp_path / "moved")
    moved.load_state_dict(state)
    assert_same(collected(recorded(snapshots[4:], moved, first=4)), whole)

    with pytest.raises(FileNotFoundError, match=r"is neither in .*nowhere nor in .*here: pass the dirpath"):
        new(snapshot="full", folder=tmp_path / "nowhere").load_state_dict(state)


def test_files_of_full_snapshots_are_never_changed_or_removed(new, walk, recorded, tmp_path):
    recorded(walk(SHAPES, 20), new(snapshot="full", max_snapshots=4))
    files = sorted((tmp_path / "snapshots").iterdir())
    assert len(files) == 20
    assert len({file.name for file in files}) == 20


@pytest.mark.parametrize(
    ("theirs", "ours", "said"),
    [
        ({"snapshot": "sketch"}, {"snapshot": "full"}, "snapshot='full' differs from snapshot='sketch'"),
        ({"sketch_dim": 64}, {"sketch_dim": 32}, "sketch_dim=32 differs from sketch_dim=64"),
        ({"seed": 1}, {"seed": 2}, "seed=2 differs from seed=1"),
        ({"include": "*"}, {"include": None}, "include=None differs from include='*'"),
        ({"exclude": ["s*"]}, {"exclude": ("e*",)}, "exclude=['e*'] differs from exclude=['s*']"),
        ({"max_snapshots": 8}, {"max_snapshots": 9}, "max_snapshots=9 differs from max_snapshots=8"),
    ],
)
def test_other_settings_than_the_checkpoints_are_refused(new, walk, recorded, theirs, ours, said):
    state = recorded(walk(SHAPES, 2), new(**theirs)).state_dict()
    recorder = recorded(walk(SHAPES, 3), new(**ours))
    setting = next(iter(theirs))
    remedy = (
        f", with which the trajectory in the checkpoint was recorded: pass {setting}={state['settings'][setting]!r}"
    )
    with pytest.raises(ValueError, match=re.escape(said + remedy)):
        recorder.load_state_dict(state)
    assert len(collected(recorder)) == 3  # still what it was


def test_a_list_and_a_tuple_of_patterns_are_the_same_setting(new, walk, recorded):
    state = recorded(walk(SHAPES, 2), new(include=("s*", "e*"))).state_dict()
    new(include=["s*", "e*"]).load_state_dict(state)


def test_clear_begins_anew(new, walk, recorded):
    snapshots = walk(SHAPES, 5)
    recorder = recorded(walk({"other": (3,)}, 9, seed=1), new(max_snapshots=4))
    collected(recorder)
    recorder.clear()
    assert_same(collected(recorded(snapshots, recorder)), collected(recorded(snapshots, new(max_snapshots=4))))


def test_rows_are_the_sketches(new, walk, recorded):
    snapshots = walk({**SHAPES, "late": (5,)}, 6)
    for snapshot in snapshots[:3]:
        del snapshot["late"]
    recorder = recorded(snapshots, new())
    rows = recorder.rows()
    assert rows.dtype == np.float32
    assert rows.shape == (6, 64 + 64 + 12 + 1 + 5)
    theta = np.stack([row if t == 0 else rows[0] + row for t, row in enumerate(rows)]).astype(np.float64)
    np.testing.assert_allclose(theta @ theta.T, collected(recorder).gram(lambda _: True), rtol=1e-5)
    assert not rows[1:4, -5:].any()  # late: it has not moved yet
    assert new().rows() is None
    assert recorded(snapshots, new(snapshot="full")).rows() is None


# Failures


def spoilt(snapshot, value=math.nan):
    return {**snapshot, "h.0.q.bias": torch.full_like(snapshot["h.0.q.bias"], value)}


@pytest.mark.parametrize("bad", [[4], [2, 3], [7], [1, 7], range(1, 8)])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("often", [True, False])
def test_non_finite_snapshots_are_left_out_and_said(new, walk, recorded, bad, value, often):
    snapshots = walk(SHAPES, 8)
    recorder, dropped = new(), []
    for t, snapshot in enumerate(snapshots):
        recorded([spoilt(snapshot, value) if t in bad else snapshot], recorder, first=t)
        if often:
            dropped += list(recorder.collect()[1])
    trajectory, more = recorder.collect()
    assert dropped + list(more) == list(bad)
    assert all(names == ("h.0.q.bias",) for names in more.values())
    good = [t for t in range(8) if t not in bad]
    expected = new()
    for t in good:
        recorded(snapshots[t : t + 1], expected, first=t)
    assert_same(trajectory, collected(expected))
    assert collected(recorder).steps.tolist() == good
    # And on it goes, with memory bounded and updates between neighbours.
    more = walk(SHAPES, 10, seed=1)
    for continued in (recorder, expected):
        recorded(more, continued, first=8)
    assert_same(collected(recorder), collected(expected))


@pytest.mark.parametrize("often", [True, False])
def test_a_non_finite_first_snapshot_is_no_beginning(new, walk, recorded, often):
    snapshots = walk(SHAPES, 6)
    recorder = recorded([spoilt(snapshots[0])], new(max_snapshots=8))
    if not often:
        recorded(snapshots[:2], recorder, first=1)  # these have nothing to be compared with
    trajectory, dropped = recorder.collect()
    assert list(dropped) == ([0] if often else [0, 1, 2])
    assert len(trajectory) == 0
    assert repr(trajectory).startswith("Trajectory(0 snapshots")
    recorded(snapshots, recorder, first=3)
    assert collected(recorder).steps.tolist() == list(range(3, 9))
    assert_same(collected(recorder), collected(recorded(snapshots, new(max_snapshots=8), first=3)))


def test_rows_stay_on_their_device_when_a_recording_begins_anew(new, monkeypatch):
    recorder = new()
    recorder.prepare({"w": torch.empty(100, device="meta")})
    recorder.clear()
    assert recorder.record({"w": torch.empty(100, device="meta")}, 0, 0.0)
    assert recorder.state.gram.latest[0].device.type == "meta"
    monkeypatch.setattr(recorder_module, "ROW_BUDGET", 1000)
    recorder.prepare({"w": torch.empty(1000, device="meta")})
    recorder.clear()
    assert recorder.state.gram.storage == torch.device("cpu")


@pytest.mark.parametrize("often", [True, False])
def test_a_block_that_comes_with_a_non_finite_snapshot_begins_there(new, walk, recorded, often):
    snapshots = walk({"a": (5,), "late": (6,)}, 6)
    recorder = recorded([{"a": snapshot["a"]} for snapshot in snapshots[:2]], new())
    if often:
        collected(recorder)
    recorded([{**snapshots[2], "a": torch.full((5,), math.nan)}], recorder, first=2)
    if often:
        assert recorder.collect()[1] == {2: ("a",)}
    recorded(snapshots[3:], recorder, first=3)
    trajectory, dropped = recorder.collect()
    assert list(dropped) == ([] if often else [2])
    assert trajectory.steps.tolist() == [0, 1, 3, 4, 5]
    late = np.stack([snapshots[max(t, 2)]["late"].double().numpy() for t in (0, 1, 3, 4, 5)])
    np.testing.assert_allclose(trajectory.gram("late"), late @ late.T, rtol=1e-6)


@pytest.mark.parametrize("mode", ["sketch", "full"])
def test_a_block_whose_first_value_is_not_finite_begins_with_the_next_one(new, walk, recorded, mode, tmp_path):
    snapshots = walk({"a": (5,), "late": (6,)}, 6)
    recorder = recorded([{"a": snapshot["a"]} for snapshot in snapshots[:2]], new(snapshot=mode, folder=tmp_path / "0"))
    with pytest.raises(FloatingPointError, match="step 2 has non-finite entries in late: it is left out"):
        recorded([{**snapshots[2], "late": torch.full((6,), math.inf)}], recorder, first=2)
    recorded(snapshots[3:], recorder, first=3)
    whole = recorded([{"a": snapshot["a"]} for snapshot in snapshots[:2]], new(snapshot=mode, folder=tmp_path / "1"))
    recorded(snapshots[3:], whole, first=3)
    assert collected(recorder).steps.tolist() == [0, 1, 3, 4, 5]
    assert_same(collected(recorder), collected(whole))


def test_path_lengths_outlive_snapshots_that_were_dropped(new, walk, stacked, recorded):
    """A non-finite snapshot may be the one that replaces the latest of a thinned recording."""
    snapshots = walk(SHAPES, 12)
    recorder = recorded(snapshots[:8], new(max_snapshots=4, sketch_dim=1000))
    assert recorder.state.history.order[-1] % recorder.state.history.stride
    recorded([spoilt(snapshots[8])], recorder, first=8)
    assert list(recorder.collect()[1]) == [8]
    recorded(snapshots[9:], recorder, first=9)
    thetas = stacked([snapshot for t, snapshot in enumerate(snapshots) if t != 8])
    assert collected(recorder).summary()["path_length"] == pytest.approx(path_lengths(thetas)[-1], rel=1e-12)


@pytest.mark.parametrize("bad", [0, 3])
def test_one_may_look_without_dropping(new, walk, recorded, bad):
    """What one process asks for by itself changes nothing of what it keeps; the drop that is due comes all the same."""
    snapshots = walk(SHAPES, 6)
    snapshots[bad] = spoilt(snapshots[bad])
    asked, other = new(), new()
    for t, snapshot in enumerate(snapshots[:5]):
        for recorder in (asked, other):
            recorded([snapshot], recorder, first=t)
        seen, dropped = asked.collect(drop=False)
        assert not dropped
        assert len(asked) == t + 1
        assert seen.steps.tolist() == [step for step in range(t + 1) if step != bad and bad]
    (ours, dropped), (theirs, expected) = asked.collect(), other.collect()
    assert dropped == expected
    assert list(dropped) == ([bad] if bad else [*range(5)])
    for recorder in (asked, other):
        recorded(snapshots[5:], recorder, first=5)
    if bad:  # without θ_0 there is nothing
        assert_same(ours, theirs)
    assert_same(collected(asked), collected(other))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_full_snapshots_are_not_written(new, walk, recorded, tmp_path, value):
    snapshots = walk(SHAPES, 4)
    recorder = new(snapshot="full")
    with pytest.raises(FloatingPointError, match=r"step 0 has non-finite entries in h\.0\.q\.bias: it is left out"):
        recorder.record(spoilt(snapshots[0], value), 0, 0.0)
    recorded(snapshots[:2], recorder)
    with pytest.raises(FloatingPointError, match="step 2"):
        recorder.record(spoilt(snapshots[2], value), 2, 0.2)
    recorded(snapshots[2:], recorder, first=2)
    assert_same(collected(recorder), collected(recorded(snapshots, new(snapshot="full"))))
    assert len(list((tmp_path / "snapshots").iterdir())) == 8


@pytest.mark.parametrize("failing", [0, 1, 3])
def test_a_full_disk_leaves_the_recorder_usable(new, walk, recorded, tmp_path, monkeypatch, failing):
    from safetensors import SafetensorError

    snapshots = walk({**SHAPES, "late": (4,)}, 5)
    for snapshot in snapshots[:3]:
        del snapshot["late"]

    def disk_full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise SafetensorError("No space left on device (os error 28)")

    recorder = new(snapshot="full", folder=tmp_path / "disk")
    recorded(snapshots[:failing], recorder)
    with monkeypatch.context() as patched:
        patched.setattr("safetensors.torch.save_file", disk_full)
        with pytest.raises(OSError, match=r"cannot write the snapshot .*: No space left on device"):
            recorder.record(snapshots[failing], failing, failing / 10)
    assert len(list((tmp_path / "disk").iterdir())) == failing
    recorded(snapshots[failing:], recorder, first=failing)
    assert_same(collected(recorder), collected(recorded(snapshots, new(snapshot="full"))))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_a_snapshot_that_is_broken_off_leaves_the_others(new, walk, recorded, monkeypatch, mode, error):
    snapshots = walk(SHAPES, 6)
    recorder = recorded(snapshots[:4], new(snapshot=mode))

    def broken(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(*((ExactGram, "products") if mode == "full" else (SketchedGram, "_stored")), broken)
        with pytest.raises(error):
            recorder.record(snapshots[4], 4, 4.0)
    recorded(snapshots[5:], recorder, first=5)
    trajectory = collected(recorder)
    assert trajectory.steps.tolist() == [0, 1, 2, 3, 5]
    others = collected(recorded([*snapshots[:4], snapshots[5]], new(snapshot=mode)))
    for name in ("anchored", "local", "paths"):
        np.testing.assert_array_equal(getattr(trajectory, name), getattr(others, name))


def test_a_frozen_tensor_that_changes_with_a_snapshot_that_is_left_out(new):
    parameters = {"a": torch.ones(3, requires_grad=True), "teacher": torch.ones(4)}
    recorder = new()
    recorder.record(parameters, 0, 0.0)
    parameters["teacher"].mul_(2)
    recorder.record({**parameters, "a": torch.full((3,), float("nan"), requires_grad=True)}, 1, 1.0)
    recorder.record(parameters, 2, 2.0)
    trajectory, dropped = recorder.collect()
    assert dropped == {1: ("a",)}
    assert trajectory.summary("teacher")["param_norm"] == pytest.approx(4)


def test_roundings_of_a_frozen_block_are_no_movement(new):
    base = torch.rand(300, dtype=torch.float64)
    recorder = new()
    for step in range(3):
        lora = torch.full((5,), float(step))
        recorder.record({"base": base * (1 + 2e-16 * step), "lora": lora}, step, float(step))
    assert collected(recorder).counted() == "1 of 2 blocks, 5 of 305 parameters"


@pytest.mark.parametrize("mode", MODES)
def test_a_failure_after_the_gram_matrix_has_grown_loses_that_snapshot_alone(new, walk, stacked, mode, monkeypatch):
    snapshots = walk(SHAPES, 6)
    recorder = new(snapshot=mode, sketch_dim=1000)
    for step, snapshot in enumerate(snapshots):
        if step == 3:
            with monkeypatch.context() as patch:
                patch.setattr(PathLengths, "with_updates", None)  # stands for any failure of what follows
                with pytest.raises(TypeError):
                    recorder.record(snapshot, step, 0.0)
        else:
            recorder.record(snapshot, step, 0.0)
    trajectory = collected(recorder)
    assert trajectory.steps.tolist() == [0, 1, 2, 4, 5]
    thetas = stacked([snapshots[i] for i in trajectory.steps])
    np.testing.assert_allclose(trajectory.gram("*"), thetas @ thetas.T, rtol=1e-6)


# Parameters that are not finite before training


@pytest.mark.parametrize("mode", MODES)
def test_a_parameter_that_is_not_finite_at_the_start_is_left_out_for_good(new, walk, tmp_path, mode):
    snapshots = [spoilt(snapshot) for snapshot in walk(SHAPES, 6)]
    others = [{name: t for name, t in snapshot.items() if name != "h.0.q.bias"} for snapshot in snapshots]
    recorder, expected = new(snapshot=mode), new(snapshot=mode)
    recorder.check(snapshots[0])
    assert recorder.state.partition.unreadable == {"h.0.q.bias": "it has entries that are not finite before training"}
    for step in range(3):
        assert recorder.record(snapshots[step], step, float(step))
    resumed = new(snapshot=mode)
    resumed.load_state_dict(through_a_file(recorder.state_dict(), tmp_path / "checkpoint"))
    resumed.check(snapshots[3])
    for step in range(3, 6):
        assert resumed.record(snapshots[step], step, float(step))
    for step, snapshot in enumerate(others):
        expected.record(snapshot, step, float(step))
    assert_same(collected(resumed), collected(expected))


def test_that_all_are_not_finite_leaves_none_out(new, walk):
    recorder = new()
    recorder.check({name: torch.full_like(t, math.inf) for name, t in walk(SHAPES, 1)[0].items()})
    assert not recorder.state.partition.unreadable


def test_names_and_shapes_alone_are_not_asked_whether_they_are_finite(new, walk):
    recorder = new()
    recorder.check(spoilt(walk(SHAPES, 1)[0]), are_values=False)
    assert not recorder.state.partition.unreadable


def test_a_new_beginning_leaves_out_the_same_parameters(new, walk, recorded):
    snapshots = walk(SHAPES, 4)
    recorder = new()
    recorder.check(spoilt(snapshots[0]))
    recorder.record({**spoilt(snapshots[0]), "scale": torch.tensor(math.nan)}, 0, 0.0)
    assert list(recorder.collect()[1]) == [0]
    recorded([spoilt(snapshot) for snapshot in snapshots[1:]], recorder, first=1)
    assert collected(recorder).steps.tolist() == [1, 2, 3]


def test_copies_have_their_windows_on_the_host(new, walk, recorded, monkeypatch):
    recorder, devices = recorded(walk(SHAPES, 2), new()), []
    monkeypatch.setattr(StepWindows, "to", lambda windows, device: devices.append(device) or windows)
    twin = copy.deepcopy(recorder)
    assert devices == [torch.device("cpu")]
    assert twin.windows.recorder is twin
