"""Parameters that are no ordinary tensors: read where they can be, else left out and named, and all others recorded."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from launch import launch
from lightning_traj import EveryNSteps, Trajectory, TrajectoryCallback
from lightning_traj.distributed.process_group import Ranks
from lightning_traj.recording.recorder import Recorder
from lightning_traj.recording.settings import RecordingSettings
from lightning_traj.tensors.reading import is_ordinary, read, unreadable_reason
from models import Module
from odd_tensors import FLOAT8, Dequantizable, Flaky, Plain, Quantized, packed

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state:UserWarning")
OURS = ["net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias"]
MODES = ["sketch", "full"]


def values() -> Tensor:
    return torch.randn(6, 5, generator=torch.Generator().manual_seed(1)).abs() + 0.1


# What a parameter is made of these values, and what it stands for: None where that cannot be read.
KINDS: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor] | None]] = {
    "dequantizable": (lambda: Dequantizable.of(values()), lambda: Dequantizable.of(values()).dequantize()),
    "quantized": (lambda: Quantized.of(values()), None),
    "COO": (lambda: (values() * (values() > 1)).to_sparse(), lambda: values() * (values() > 1)),
    "CSR": (lambda: (values() * (values() > 1)).to_sparse_csr(), lambda: values() * (values() > 1)),
    "qint8": (
        lambda: torch.quantize_per_tensor(values(), 0.1, 0, torch.qint8),
        lambda: torch.quantize_per_tensor(values(), 0.1, 0, torch.qint8).dequantize(),
    ),
    "plain subclass": (lambda: values().as_subclass(Plain), values),
    "float4": (packed, None),
    "meta": (lambda: values().to("meta"), None),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(1, 3)]), None),
}


def _float8(name: str) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    dtype = getattr(torch, name)
    return lambda: values().to(dtype), lambda: values().to(dtype).double()


KINDS |= {name: _float8(name) for name in FLOAT8}
pytestmark = [pytestmark, pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")]
UNREADABLE = [kind for kind, (_, stands_for) in KINDS.items() if stands_for is None]


class Odd(Module):
    def _apply(self, fn: Any, recurse: bool = True) -> Any:  # nothing without values can be moved
        self.net._apply(fn)
        return self

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=0.9)


def with_odd(make: Callable[[], Tensor]) -> Callable[[], Module]:
    class WithOdd(Odd):
        def __init__(self) -> None:
            super().__init__()
            self.odd = nn.Parameter(make(), requires_grad=False)

    return WithOdd


@pytest.fixture
def said(fit: Any) -> Callable[..., tuple[Any, list[str]]]:
    """Train; the Trainer and what our callbacks warned of."""

    def train(*callbacks: Any, **settings: Any) -> tuple[Any, list[str]]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer = fit(*callbacks, **settings)
        return trainer, [text for text in map(str, (w.message for w in caught)) if "Training goes on" in text]

    return train


@pytest.mark.parametrize("snapshot", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_recorded_or_named(said: Any, kind: str, snapshot: Any) -> None:
    make, stands_for = KINDS[kind]
    callback, plain = TrajectoryCallback(snapshot=snapshot), TrajectoryCallback(snapshot=snapshot)
    _, texts = said(callback, module=with_odd(make))
    _, others = said(plain)
    assert others == []
    ours, theirs = callback.trajectory, plain.trajectory
    assert ours.steps.tolist() == [0, 4, 8, 12]
    names = [block.name for block in ours.blocks]
    if stands_for is None:
        assert len(texts) == 1
        assert "'odd' (" in texts[0]
        assert "exclude=['odd']" in texts[0]
        assert "\n" not in texts[0]
        assert names == OURS
    else:
        assert texts == []
        assert sorted(names) == sorted([*OURS, "odd"])
        square = float(stands_for().double().square().sum())
        np.testing.assert_allclose(ours.gram("odd"), np.full((4, 4), square), rtol=1e-12)
    np.testing.assert_array_equal(ours.gram("net.*"), theirs.gram("net.*"))


@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_is_excluded_is_not_named(said: Any, kind: str) -> None:
    callback = TrajectoryCallback(exclude="odd")
    _, texts = said(callback, module=with_odd(KINDS[kind][0]))
    assert texts == []
    assert [block.name for block in callback.trajectory.blocks] == OURS
    callback = TrajectoryCallback(include="net.*")
    assert said(callback, module=with_odd(KINDS[kind][0]))[1] == []


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_left_alone(fit: Any, kind: str) -> None:
    states = []
    for callbacks in ([TrajectoryCallback(schedule=EveryNSteps(1))], []):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            states.append(fit(*callbacks, module=with_odd(KINDS[kind][0])).lightning_module.net.state_dict())
    torch.testing.assert_close(*states, rtol=0, atol=0)


def test_a_model_of_nothing_else_is_refused(fit: Any) -> None:
    recorder = Recorder()
    with pytest.raises(ValueError, match=r"'odd' cannot be read \(Quantized: Quantized dispatch: no aten"):
        recorder.check({"odd": Quantized.of(values())})
    with pytest.raises(ValueError, match="none of the 1 parameters"):
        recorder.check({"integers": torch.ones(3, dtype=torch.int64)})


@pytest.mark.parametrize("snapshot", MODES)
def test_values_that_move_are_followed(tmp_path: Path, snapshot: str) -> None:
    """Of tensors that are read as others, in windows too."""
    for make in (
        lambda t: Dequantizable.of(values() * (1 + t)),
        lambda t: (values() * (1 + t) * (values() > 1)).to_sparse(),
        lambda t: (values() * (1 + t)).to(torch.float8_e4m3fn),
    ):
        recorder, thetas = Recorder(RecordingSettings(snapshot=snapshot, window=2), folder=tmp_path), []
        for t in range(4):
            parameters = {"w": values() + t, "odd": make(t)}
            if not t:
                recorder.check(parameters)
                recorder.prepare(parameters)
            assert recorder.record(parameters, t, float(t))
            recorder.windows.add(parameters, t)
            recorder.windows.begin(parameters, t)
            thetas.append(read(make(t)).double().flatten())
        theta = torch.stack(thetas)
        trajectory = recorder.collect()[0]
        np.testing.assert_allclose(trajectory.gram("odd"), (theta @ theta.T).numpy(), rtol=1e-6)
        squares = trajectory.windows.sums[0, [b.name for b in trajectory.blocks].index("odd"), 0]
        np.testing.assert_allclose(squares, theta.diff(dim=0).square().sum(1)[:2], rtol=1e-6)


# Later


class Turning(Odd):
    """A parameter is another kind of tensor from the third of five epochs on."""

    turn: Callable[[Any], None]

    def __init__(self) -> None:
        super().__init__()
        self.odd = nn.Parameter(values(), requires_grad=False)

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 2:
            type(self).turn(self)
        elif self.current_epoch < 2:
            self.odd.data.add_(0.1)


def turning(turn: Callable[[Any], None]) -> Callable[[], Module]:
    return type("TurningTo", (Turning,), {"turn": staticmethod(turn)})


def replaced_by(kind: str) -> Callable[[Any], None]:
    def replace(module: Any) -> None:
        module.odd = nn.Parameter(KINDS[kind][0](), requires_grad=False)

    return replace


def another(kind: str) -> Callable[[Any], None]:
    def add(module: Any) -> None:
        module.later = nn.Parameter(KINDS[kind][0](), requires_grad=False)

    return add


def assert_without_odd(callback: TrajectoryCallback, plain: TrajectoryCallback) -> None:
    """Every number is that of a run in which the parameter was excluded from the start."""
    ours, theirs = callback.trajectory, plain.trajectory
    assert ours.blocks == theirs.blocks
    assert ours.steps.tolist() == theirs.steps.tolist()
    for name, series in theirs.series().items():
        np.testing.assert_allclose(ours.series()[name], series, rtol=1e-9, atol=1e-6, err_msg=name)
    for one, other in ((ours.local, theirs.local), (ours.anchored, theirs.anchored), (ours.paths, theirs.paths)):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(ours.windows.sums, theirs.windows.sums)


@pytest.mark.parametrize("snapshot", MODES)
@pytest.mark.parametrize("kind", ["quantized", "float4", "meta"])
def test_a_parameter_that_can_no_longer_be_read(said: Any, tmp_path: Path, kind: str, snapshot: Any) -> None:
    """It is left out, also of what was recorded, and named; no snapshot is lost."""
    callback = TrajectoryCallback(snapshot=snapshot, dirpath=tmp_path)
    trainer, texts = said(callback, module=turning(replaced_by(kind)), max_epochs=5)
    plain = TrajectoryCallback(snapshot=snapshot, exclude="odd", name="plain", dirpath=tmp_path)
    _, others = said(plain, module=turning(replaced_by(kind)), max_epochs=5)
    assert others == []
    assert len(texts) == 1
    assert "'odd' (" in texts[0]
    assert_without_odd(callback, plain)
    saved = Trajectory.load(tmp_path / "trajectory.safetensors")
    assert [block.name for block in saved.blocks] == OURS
    if snapshot == "sketch":
        assert saved.sketches is not None
        assert saved.sketches.shape == (6, sum(block.numel for block in saved.blocks))
    trainer.save_checkpoint(tmp_path / "left-out.ckpt")
    resumed = TrajectoryCallback(snapshot=snapshot, dirpath=tmp_path)
    recorder = resumed._recorder
    recorder.load_state_dict(
        torch.load(tmp_path / "left-out.ckpt", weights_only=False)["callbacks"][callback.state_key]
    )
    assert recorder.state.partition.unreadable.keys() == {"odd"}
    assert [block.name for block in recorder.collect()[0].blocks] == OURS


@pytest.mark.parametrize("snapshot", MODES)
@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_late_parameter_that_cannot_be_read(said: Any, tmp_path: Path, kind: str, snapshot: Any) -> None:
    callback = TrajectoryCallback(snapshot=snapshot, dirpath=tmp_path)
    _, texts = said(callback, module=turning(another(kind)), max_epochs=5)
    plain = TrajectoryCallback(snapshot=snapshot, name="plain", dirpath=tmp_path)
    said(plain, module=turning(lambda _: None), max_epochs=5)
    assert len(texts) == 1
    assert "'later' (" in texts[0]
    assert_without_odd(callback, plain)


@pytest.mark.parametrize("snapshot", MODES)
@pytest.mark.parametrize("at", [[0], [5], range(5, 21)])
def test_a_parameter_whose_reading_fails(said: Any, tmp_path: Path, snapshot: Any, at: Any) -> None:
    """At one step alone or from one on, in a snapshot or in a window: left out from there on, never a silent zero."""
    module: Any = None

    class Failing(Flaky):
        fails = staticmethod(lambda: module is not None and module.trainer.global_step in at)

    class Watched(with_odd(lambda: Failing.of(values()))):  # type: ignore[misc]
        def on_train_start(self) -> None:
            nonlocal module
            module = self

    callback = TrajectoryCallback(schedule=EveryNSteps(1), snapshot=snapshot, dirpath=tmp_path)
    _, texts = said(callback, module=Watched, max_epochs=5)
    plain = TrajectoryCallback(schedule=EveryNSteps(1), snapshot=snapshot, exclude="odd", name="p", dirpath=tmp_path)
    _, others = said(plain, module=Watched, max_epochs=5)
    assert others == []
    assert len(texts) == 1
    assert "'odd' (Failing: the file of its scales is gone)" in texts[0]
    assert_without_odd(callback, plain)


def test_too_little_memory_says_nothing_of_a_tensor(tmp_path: Path) -> None:
    class Large(Flaky):
        def dequantize(self) -> Tensor:
            if step == 1:
                raise MemoryError("no room")
            return super().dequantize()

    recorder, parameters, step = Recorder(), {"w": values(), "odd": Large.of(values())}, 0
    for step in range(3):
        if step == 1:
            with pytest.raises(MemoryError):
                recorder.record(parameters, step, float(step))
        else:
            assert recorder.record(parameters, step, float(step))
    assert recorder.state.partition.unreadable == {}
    trajectory = recorder.collect()[0]
    assert trajectory.steps.tolist() == [0, 2]
    assert len(trajectory.blocks) == 2


def test_a_trajectory_ends_where_nothing_can_be_read(said: Any) -> None:
    """In one block of the whole model nothing is left; what was recorded stays."""
    callback = TrajectoryCallback(blocks="model")
    _, texts = said(callback, module=turning(replaced_by("float4")), max_epochs=5)
    assert len(texts) == 1
    assert "'odd'" in texts[0]
    assert callback.trajectory.steps.tolist() == [0, 4, 8]


@pytest.mark.parametrize("maximum", [4, 256])
def test_path_lengths_without_a_block(maximum: int) -> None:
    """Exact as long as all snapshots are kept; then between those that are."""
    recorder, plain = (Recorder(RecordingSettings(max_snapshots=maximum, window=0)) for _ in range(2))
    for step in range(12):
        ordinary = {"a.w": values() + step**2, "a.v": values() * step, "b.w": values() - step}
        odd = Quantized.of(values()) if step > 6 else values() * (1 + step)
        recorder.record({**ordinary, "a.odd": odd}, step, float(step))
        plain.record(ordinary, step, float(step))
    ours, theirs = recorder.collect()[0], plain.collect()[0]
    assert ours.blocks == theirs.blocks
    if maximum == 256:
        np.testing.assert_allclose(ours.paths, theirs.paths, rtol=1e-6)
    else:
        assert (ours.paths <= theirs.paths * (1 + 1e-6)).all()
        np.testing.assert_allclose(ours.paths[:, -3:], theirs.paths[:, -3:])  # of the blocks themselves


# Quantities of steps


class EightBit(torch.optim.Optimizer):
    """Keeps its moment as a tensor of eight bits."""

    def __init__(self, params: Any, kind: Any) -> None:
        super().__init__(params, {"momentum": 0.9})
        self.kind = kind

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                before = state["values"] if state else torch.zeros_like(p)
                state["values"] = 0.9 * before + p.grad
                state["momentum_buffer"] = self.kind.of(state["values"], torch.float32)
                p.sub_(0.1 * state["values"])
        return loss


@pytest.mark.parametrize("snapshot", MODES)
@pytest.mark.parametrize("kind", [Dequantizable, Quantized])
def test_moments_of_eight_bits(said: Any, kind: Any, snapshot: Any) -> None:
    moments: list[Tensor] = []

    class WithMoments(Module):
        def configure_optimizers(self) -> Any:
            first, *others = self.net.parameters()
            return EightBit([{"params": [first]}, {"params": others}], kind)

        def on_train_batch_end(self, *_: Any) -> None:
            state = self.optimizers().state[next(self.net.parameters())]
            if kind is Dequantizable:
                moments.append(state["momentum_buffer"].dequantize().double().flatten())

    callback = TrajectoryCallback(track="first_moment", schedule=EveryNSteps(1), snapshot=snapshot)
    _, texts = said(callback, module=WithMoments)
    if kind is Dequantizable:
        theta = torch.stack(moments)
        assert texts == []
        np.testing.assert_allclose(callback.trajectory.gram("net.0.weight"), (theta @ theta.T).numpy(), rtol=1e-5)
    else:
        assert any(all(f"'{name}' (Quantized" in text for name in OURS) for text in texts)


@pytest.mark.parametrize("track", ["gradient", "update"])
@pytest.mark.parametrize("kind", KINDS)
def test_quantities_of_steps_beside_odd_parameters(said: Any, track: Any, kind: str) -> None:
    """Also where an optimizer has them."""

    class Optimized(with_odd(KINDS[kind][0])):  # type: ignore[misc]
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    callback, plain = (TrajectoryCallback(track=track, schedule=EveryNSteps(1)) for _ in range(2))
    said(callback, module=Optimized)
    said(plain)
    ours, theirs = callback.trajectory, plain.trajectory
    assert ours.steps.tolist() == theirs.steps.tolist()
    np.testing.assert_array_equal(ours.gram("net.*"), theirs.gram("net.*"))


# Reading


@pytest.mark.parametrize("name", FLOAT8)
def test_all_numbers_of_eight_bits_are_read_exactly(name: str) -> None:
    numbers = torch.arange(256, dtype=torch.uint8).view(getattr(torch, name))
    assert torch.equal(read(numbers).double().nan_to_num(), numbers.double().nan_to_num())
    assert torch.equal(read(numbers).isnan(), numbers.double().isnan())


def test_ordinary_tensors_are_read_without_a_copy() -> None:
    for tensor in (values(), nn.Parameter(values()), values().T, values().half(), values().to(torch.complex64)):
        assert is_ordinary(tensor)
        assert read(tensor).data_ptr() == tensor.data_ptr()
        assert unreadable_reason(tensor) == ""
    assert unreadable_reason(torch.ones(3, dtype=torch.int8)) == ""


# Several processes


def on_some_ranks(folder: Path, snapshot: str, when: int) -> tuple[list[str], list[int], np.ndarray, list[str]]:
    """One rank alone cannot read a parameter: from the start, when it comes, or at a step."""
    ranks = Ranks.of_world()
    step = -1

    class Mine(Flaky):
        fails = staticmethod(lambda: ranks.rank == 1 and step >= when)

    recorder = Recorder(RecordingSettings(snapshot=snapshot, window=2), folder=folder)
    recorder.process.ranks = ranks
    errors = []
    for step in range(-1, 6):
        parameters = {"w": values() + step, "odd": Mine.of(values() * (3 + step))}
        if step > 1:
            parameters["late"] = Mine.of(values())
        if step == -1:
            recorder.check(parameters)
            recorder.prepare(parameters)
            continue
        for do in (recorder.record, recorder.windows.add, recorder.windows.begin):
            try:
                do(parameters, step, *([float(step)] if do == recorder.record else []))
            except (RuntimeError, FloatingPointError) as error:
                errors.append(str(error))
        recorder.collect()
    trajectory = recorder.collect()[0]
    return [b.name for b in trajectory.blocks], trajectory.steps.tolist(), trajectory.anchored, errors


@pytest.mark.parametrize("snapshot", MODES)
@pytest.mark.parametrize(
    ("when", "blocks", "steps"),
    [
        (-1, ["w"], [0, 1, 2, 3, 4, 5]),  # found before training
        (2, ["w"], [0, 1, 3, 4, 5]),  # in the snapshot in which another one came
        (4, ["w"], [0, 1, 2, 3, 5]),
        (9, ["w", "odd", "late"], [0, 1, 2, 3, 4, 5]),
    ],
)
def test_ranks_leave_out_alike(tmp_path: Path, snapshot: str, when: int, blocks: list[str], steps: list[int]) -> None:
    first, second = launch(on_some_ranks, 2, tmp_path, snapshot, when)
    for found in (first, second):
        assert found[:2] == (blocks, steps)
        np.testing.assert_array_equal(found[2], first[2])
    assert any("'odd'" in error for error in second[3]) == (0 < when < 9)
