"""What is added to checkpoints: how much, in how few tensors, in which format; and the default length of sketches."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_traj import FusedLayout, TrajectoryCallback, from_checkpoints
from lightning_traj.cli.command import main
from lightning_traj.gram.sketched_gram import SketchedGram
from lightning_traj.recording.cost import cost_of
from lightning_traj.recording.packing import pack, symmetric_matrices, unpack, upper_triangle
from lightning_traj.recording.recorder import Recorder
from lightning_traj.recording.saved_state import FORMAT
from lightning_traj.recording.settings import RecordingSettings
from lightning_traj.sketch.countsketch import DEFAULT_DIM, CountSketch
from models import Module, mlp

pytestmark = pytest.mark.usefixtures("one_thread")

MODES = ["sketch", "full"]
SHAPES = {"embed.weight": (30, 20), "h.0.q.weight": (12, 9), "h.0.q.bias": (12,), "scale": ()}
DIM = 64


@pytest.fixture
def new(tmp_path: Any) -> Any:
    return lambda folder=tmp_path / "snapshots", **settings: Recorder(
        RecordingSettings(**{"sketch_dim": DIM, **settings}), folder
    )


def tensors_in(state: Any) -> list[Tensor]:
    """All tensors of a state; those that share their memory once."""
    found: dict[int, Tensor] = {}

    def visit(value: Any) -> None:
        if isinstance(value, Tensor):
            found.setdefault(value.untyped_storage().data_ptr() or id(value), value)
        elif isinstance(value, dict):
            visit(list(value.values()))
        elif isinstance(value, (list, tuple)):
            for item in value:
                visit(item)

    visit(state)
    return list(found.values())


# How much it is ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_the_number_of_tensors_grows_with_the_rows_alone(new: Any, walk: Any, recorded: Any, mode: str) -> None:
    counts = []
    for n in (12, 28):  # both within a window
        recorder = recorded(walk(SHAPES, n), new(snapshot=mode))
        counts.append(len(tensors_in(recorder.state_dict())) - (n - 1) * (mode == "sketch"))
    assert counts[0] == counts[1] <= 14


def test_the_bytes_of_a_snapshot(new: Any, walk: Any, recorded: Any) -> None:
    """A row in float32, ten entries of each block's local Gram matrix, path lengths: nothing grows faster than that."""
    row, blocks = DIM + DIM + 12 + 1, len(SHAPES)
    states = [recorded(walk(SHAPES, n), new()).state_dict() for n in (20, 40, 60)]
    sizes = [sum(t.nbytes for t in tensors_in({**state, "windows": None})) for state in states]
    groups = states[0]["paths"].shape[1]
    each = 4 * row + 8 * 10 * blocks + 8 * groups + 1
    assert np.diff(sizes).tolist() == [20 * each] * 2
    assert {tensor.dtype for tensor in states[0]["gram"]["rows"]} == {torch.float32}


def test_the_bytes_of_a_window(new: Any, walk: Any, recorded: Any) -> None:
    """Three sums for each step and block, in float32."""
    sums = [recorded(walk(SHAPES, n), new(window=4)).state_dict()["windows"]["sums"]["values"] for n in (20, 40)]
    assert sums[0].dtype == torch.float32
    assert sums[1].nbytes - sums[0].nbytes == 5 * len(SHAPES) * 3 * 4 * 4


def test_the_bytes_of_a_full_gram_matrix(new: Any, walk: Any, recorded: Any) -> None:
    state = recorded(walk(SHAPES, 20), new(snapshot="full")).state_dict()
    assert state["gram"]["anchored"].nbytes == 8 * len(SHAPES) * 20 * 21 // 2


def test_the_gram_matrix_of_sketches_is_not_saved_but_follows(new: Any, walk: Any, recorded: Any) -> None:
    recorder = recorded(walk(SHAPES, 12), new())
    expected = recorder.collect()[0].anchored
    state = recorder.state_dict()
    assert not [t for t in tensors_in(state) if t.shape[-2:] in ((12, 12), (len(SHAPES), 78))]
    resumed = new()
    resumed.load_state_dict(state)
    np.testing.assert_allclose(resumed.collect()[0].anchored, expected, rtol=1e-14, atol=1e-14)


def meta(shapes: Any) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


@pytest.fixture
def known_models(monkeypatch: pytest.MonkeyPatch, request: Any) -> Any:
    monkeypatch.syspath_prepend(request.config.rootpath / "benchmarks")
    import _setting

    return _setting


@pytest.mark.parametrize(
    ("model", "copies", "snapshots", "most"), [("resnet50", 2, 91, 0.15), ("gpt2", 3, 100, 0.04)], ids=str
)
def test_what_known_models_take_by_default(
    known_models: Any, model: str, copies: int, snapshots: int, most: float
) -> None:
    """By the formula of the cost line, which bounds the file (``test_the_cost_said_is_what_a_checkpoint_holds``)."""
    parameters = meta(getattr(known_models, model)())
    qkv = {"q": 1, "k": 1, "v": 1}
    fused = {"*.c_attn.weight": FusedLayout(qkv, axis=1), "*.c_attn.bias": FusedLayout(qkv)} if model == "gpt2" else {}
    settings = RecordingSettings(fused=fused, max_snapshots=snapshots)
    recorder = Recorder(settings)
    partition = recorder.state.partition.extended(parameters, None)
    cost = cost_of(partition, parameters, settings, recorder.sketcher.sketch)
    checkpoint = copies * 4 * sum(parameter.numel() for parameter in parameters.values())
    assert 0.5 * most * checkpoint < cost.checkpoint <= most * checkpoint
    longer = cost_of(partition, parameters, settings, CountSketch(2048))
    assert longer.checkpoint > most * checkpoint


def test_a_state_is_not_taken_before_rows_have_arrived_on_the_host(
    new: Any, walk: Any, recorded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU sends them without waiting, and a file would take what is there by then."""
    recorder, waits = recorded(walk(SHAPES, 3), new()), []
    monkeypatch.setattr(SketchedGram, "wait_for_rows", lambda gram: waits.append(gram))
    recorder.state_dict()
    assert waits == [recorder.state.gram]


# Formats ----------------------------------------------------------------------------------------------------------


def test_packed_tensors_are_unpacked() -> None:
    tensors = [torch.rand(2, 3), torch.rand(0, 3), torch.rand(5, 3)]
    unpacked = unpack(pack(tensors))
    assert all(map(torch.equal, unpacked, tensors))
    assert len({tensor.untyped_storage().data_ptr() for tensor in (unpacked[0], unpacked[2])}) == 2
    assert unpack(pack([])) == []


@pytest.mark.parametrize("n", [1, 2, 5])
def test_triangles_are_symmetric_matrices(n: int) -> None:
    matrices = torch.rand(3, n, n)
    matrices = matrices + matrices.mT
    entries = upper_triangle(matrices)
    assert entries.shape == (3, n * (n + 1) // 2)
    assert torch.equal(symmetric_matrices(entries, n), matrices)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("n", [1, 2, 12])
def test_a_state_that_is_loaded_and_saved_again_is_the_same(
    new: Any, walk: Any, recorded: Any, mode: str, n: int
) -> None:
    snapshots = walk({**SHAPES, "late": (200,)}, n)
    for snapshot in snapshots[:1]:
        del snapshot["late"]
    state = recorded(snapshots, new(snapshot=mode)).state_dict()
    assert state["format"] == FORMAT
    resumed = new(snapshot=mode)
    resumed.load_state_dict(through_a_file(state))
    assert plain(resumed.state_dict()) == plain(state)


def plain(value: Any) -> Any:
    """The same with lists of numbers in the place of tensors."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return (str(value.dtype), value.tolist()) if isinstance(value, Tensor) else value


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("mode", MODES)
def test_a_snapshot_that_is_not_finite_does_not_come_back(new: Any, walk: Any, recorded: Any, mode: str) -> None:
    """Saved before it was noticed, it is dropped where it is loaded."""
    snapshots = walk(SHAPES, 6)
    snapshots[3]["scale"] = torch.tensor(float("nan"))
    recorder, resumed = new(snapshot=mode), new(snapshot=mode)
    for step, snapshot in enumerate(snapshots):
        try:
            recorder.record(snapshot, step, float(step))
        except FloatingPointError:
            assert (mode, step) == ("full", 3)
    resumed.load_state_dict(recorder.state_dict())
    (ours, dropped), (theirs, expected) = resumed.collect(), recorder.collect()
    assert dropped == expected == ({3: ("scale",)} if mode == "sketch" else {})
    assert ours.steps.tolist() == [0, 1, 2, 4, 5]
    np.testing.assert_allclose(ours.anchored, theirs.anchored, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("number", [3, "2.1"])
def test_a_state_of_a_later_release_is_refused(new: Any, walk: Any, recorded: Any, number: Any) -> None:
    recorder = recorded(walk(SHAPES, 3), new())
    state = {**recorder.state_dict(), "format": number}
    with pytest.raises(ValueError, match=f"has the format {number}, and this release reads up to 2: upgrade"):
        recorder.load_state_dict(state)
    assert len(recorder) == 3


def test_steps_whose_squares_are_beyond_float32_become_undefined_and_warn_of_nothing(new: Any) -> None:
    """Of a run that diverges: not of other blocks, and not before it is resumed."""
    recorder = new(window=2)
    theta = {"w": torch.ones(3, dtype=torch.float64), "b": torch.ones(2, dtype=torch.float64)}
    recorder.record(theta, 0, 0.0)
    recorder.windows.begin(theta, 0)
    for step in (1, 2):
        theta = {"w": theta["w"] - 1e25 * step, "b": theta["b"] + 1}
        recorder.windows.add(theta, step)
    recorder.record(theta, 2, 1.0)
    resumed = new(window=2)
    resumed.load_state_dict(recorder.state_dict())
    for one, defined in ((recorder, True), (resumed, False)):
        sums = one.collect()[0].windows.sums
        assert np.isfinite(sums[0, 0]).all() == defined
        assert sums[0, 1].tolist() == [[2, 2], [0, 2], [2, 8]]


# The default length -------------------------------------------------------------------------------------------------


class Wide(Module):
    """With a weight that is longer than any sketch here."""

    def __init__(self) -> None:
        super().__init__(mlp(nn.Linear(8, 400), nn.Linear(400, 8)))


def lengths(callback: TrajectoryCallback) -> tuple[int, int]:
    """The length that is said, and that of the sketch of a long block."""
    settings = callback.trajectory.settings
    numel = max(block.numel for block in callback.trajectory.blocks)
    return settings["sketch_dim"], callback._recorder.sketcher.sketch.length(numel)


def test_the_default_length_is_one_and_the_same(fit: Any, tmp_path: Any, capsys: Any) -> None:
    callback = TrajectoryCallback()
    trainer = fit(callback, module=Wide, max_epochs=1)
    assert lengths(callback) == (DEFAULT_DIM, DEFAULT_DIM) == (512, 512)
    assert f"{DEFAULT_DIM}" in str(TrajectoryCallback.__doc__)
    for name in ("a", "b"):
        trainer.save_checkpoint(tmp_path / f"{name}.ckpt")
    offline = from_checkpoints(tmp_path, snapshot="sketch", order="given")
    assert offline.settings["sketch_dim"] == DEFAULT_DIM
    with pytest.raises(SystemExit):
        main(["analyze", "--help"])
    assert f"length of a sketch (default: {DEFAULT_DIM})" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("snapshot", MODES)
@pytest.mark.parametrize("dim", [64, 2048])
def test_a_run_goes_on_with_the_length_that_it_has(fit: Any, tmp_path: Any, snapshot: Any, dim: int) -> None:
    whole, first = (TrajectoryCallback(sketch_dim=dim, snapshot=snapshot) for _ in range(2))
    fit(first, module=Wide, max_epochs=2).save_checkpoint(tmp_path / "saved.ckpt")
    fit(whole, module=Wide)
    resumed = TrajectoryCallback(snapshot=snapshot)
    fit(resumed, module=Wide, ckpt_path=tmp_path / "saved.ckpt")
    assert lengths(resumed) == (dim, dim)
    ours, theirs = resumed.trajectory, whole.trajectory
    assert ours.settings == theirs.settings
    for name in ("steps", "local", "paths"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    # A length of its own is no default, also where it is the default's.
    other = TrajectoryCallback(snapshot=snapshot, sketch_dim=DEFAULT_DIM)
    with pytest.raises(ValueError, match=f"sketch_dim={DEFAULT_DIM} differs from sketch_dim={dim}"):
        fit(other, module=Wide, ckpt_path=tmp_path / "saved.ckpt")
    # A new run of the same callback takes the default again.
    fit(resumed, module=Wide, max_epochs=1)
    assert lengths(resumed) == (DEFAULT_DIM, DEFAULT_DIM)
