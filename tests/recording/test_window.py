"""Windows of single optimizer steps: against parameters that are stored in the training loop itself."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

import reference
from lightning_traj import AtEpochs, EveryNEpochs, EveryNSteps, Trajectory, TrajectoryCallback
from lightning_traj.gram.inner_products import Row
from lightning_traj.measures.windows import oscillation_of_window as oscillation
from lightning_traj.recording.host_copy import defined
from lightning_traj.recording.recorder import Recorder
from lightning_traj.recording.windows import StepWindows
from lightning_traj.schedule import AtSteps
from lightning_traj.sketch.countsketch import CountSketch
from models import CLASSES, Module, Stream, TwoOptimizers, Validated, batches
from optimizers import Bare, Stepping

MEASURES = ("oscillation_cosine", "oscillation_reversals", "oscillation_linearity", "oscillation_step_length")
SELECTIONS = (None, "layer:net.0", "layer:net.2", "*.bias", "net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias")


def long() -> DataLoader[Any]:
    """An epoch of 16 batches: longer than a window."""
    return DataLoader(batches().dataset, batch_size=2)


class Steps(pl.Callback):
    """Keeps the parameters before the first and after each optimizer step, and where epochs ended."""

    def __init__(self) -> None:
        self.thetas: list[dict[str, Tensor]] = []
        self.ends = [0]

    def take(self, module: Any) -> None:
        self.thetas.append({name: p.detach().double().flatten().clone() for name, p in module.named_parameters()})

    def on_train_start(self, trainer: Any, module: Any) -> None:
        if not any(map(nn.parameter.is_lazy, module.parameters())):
            self.take(module)
        for optimizer in trainer.optimizers:
            optimizer.register_step_post_hook(lambda *_: self.take(module))

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        if not self.thetas:
            self.take(module)

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        self.ends.append(len(self.thetas) - 1)

    def of(self, names: Sequence[str], begin: int, end: int) -> np.ndarray:
        """The parameters from one step to another, [steps + 1, p]; one that came late had its first value before."""
        first: dict[str, Tensor] = {}
        for theta in self.thetas:
            first = {**theta, **first}
        rows = [{**first, **theta} for theta in self.thetas[begin : end + 1]]
        return torch.stack([torch.cat([row[name] for name in names]) for row in rows]).numpy()


def measured(thetas: np.ndarray) -> list[float]:
    """What consecutive parameters give, by definition."""
    return [getattr(reference, name)(thetas) for name in MEASURES]


def spans(trajectory: Trajectory) -> list[tuple[int, int]]:
    """Steps at which the windows began and ended."""
    windows = trajectory.windows
    return [(step - count, step) for step, count in zip(windows.steps, windows.counts, strict=True)]


def assert_as_stored(trajectory: Trajectory, stored: Steps, expected: Sequence[tuple[int, int]]) -> None:
    """These are the windows, and each of them, in each selection, is what the stored parameters give."""
    assert spans(trajectory) == list(expected)
    for select in SELECTIONS:
        chosen = trajectory.select(select)
        names = [trajectory.blocks[i].name for i in chosen]
        values = [measured(stored.of(names, begin, end)) for begin, end in expected]
        for index, value in enumerate(values):
            ours = list(oscillation(trajectory.windows.of(chosen, index)))
            assert ours == pytest.approx(value, rel=1e-7, abs=1e-12, nan_ok=True), (select, expected[index])
        series = trajectory.series(select)
        for t, step in enumerate(trajectory.steps):  # the newest window that had ended by then
            newest = [value for value, (_, end) in zip(values, expected, strict=True) if end <= step][-1:]
            for m, name in enumerate(MEASURES):
                wanted = newest[0][m] if newest else math.nan
                assert series[name][t] == pytest.approx(wanted, rel=1e-7, abs=1e-12, nan_ok=True), (select, name, step)
        assert {name: trajectory.summary(select)[name] for name in MEASURES} == pytest.approx(
            {name: series[name][-1] for name in MEASURES}, nan_ok=True
        )


class Lazy(Module):
    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.LazyLinear(8), nn.Tanh(), nn.LazyLinear(CLASSES)))


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], list[tuple[int, int]]]] = {
    "eight steps an epoch": ({}, {"data": long()}, [(0, 8), (16, 24), (32, 40)]),
    "fewer where the epoch is shorter": ({}, {}, [(0, 4), (4, 8), (8, 12)]),
    "three": ({"window": 3}, {}, [(0, 3), (4, 7), (8, 11)]),
    "as long as an epoch": ({"window": 4}, {}, [(0, 4), (4, 8), (8, 12)]),
    "two": ({"window": 2}, {"data": long()}, [(0, 2), (16, 18), (32, 34)]),
    "none": ({"window": 0}, {}, []),
    "an epoch of one step": ({}, {"limit_train_batches": 1}, []),
    "an epoch of two steps": ({}, {"limit_train_batches": 2}, [(0, 2), (2, 4), (4, 6)]),
    "every second epoch": ({"window_schedule": EveryNEpochs(2)}, {"data": long()}, [(0, 8), (32, 40)]),
    "accumulation": (
        {"window": 5},
        {"data": long(), "accumulate_grad_batches": 3},  # the last of six steps an epoch is of one batch
        [(0, 5), (6, 11), (12, 17)],
    ),
    "accumulation, fewer": ({}, {"data": long(), "accumulate_grad_batches": 4}, [(0, 4), (4, 8), (8, 12)]),
    "two optimizers": ({"window": 3}, {"module": TwoOptimizers}, [(0, 3), (8, 11), (16, 19)]),
    "two optimizers, all steps": ({}, {"module": TwoOptimizers}, [(0, 8), (8, 16), (16, 24)]),
    "lazy parameters": ({}, {"module": Lazy, "data": long()}, [(0, 8), (16, 24), (32, 40)]),
    "data without a length": ({"window": 3}, {"data": DataLoader(Stream(), 8)}, [(0, 3), (4, 7), (8, 11)]),
    "training that ends within a window": ({}, {"data": long(), "max_steps": 19}, [(0, 8), (16, 19)]),
    "a snapshot each step": ({"schedule": EveryNSteps(1)}, {"data": long()}, [(0, 8), (16, 24), (32, 40)]),
    "a snapshot within a window": ({"schedule": AtSteps([5, 20])}, {"data": long()}, [(0, 8), (16, 24), (32, 40)]),
}  # fmt: skip


@pytest.mark.parametrize("snapshot", ["sketch", "full"])
@pytest.mark.parametrize("case", CASES)
def test_windows_are_what_the_stored_parameters_give(fit: Any, case: str, snapshot: Any) -> None:
    settings, arguments, expected = CASES[case]
    callback, stored = TrajectoryCallback(snapshot=snapshot, **settings), Steps()
    fit(callback, stored, **arguments)
    assert_as_stored(callback.trajectory, stored, expected)


STEPS: dict[str, tuple[int, int, list[tuple[int, int]]]] = {
    "apart": (5, 3, [(0, 3), (5, 8), (10, 13), (20, 23), (25, 28), (30, 32), (35, 38), (40, 43), (45, 48)]),
    "end to end": (5, 5, [(0, 5), (5, 10), (10, 15), (20, 25), (25, 30), (30, 32), (35, 40), (40, 45), (45, 48)]),
    # What is due while a window runs is left out; and none crosses the end of an epoch, after 16 and 32 steps.
    "overlapping": (5, 8, [(0, 8), (10, 16), (20, 28), (30, 32), (35, 43), (45, 48)]),
    "due where an epoch ends": (16, 3, [(0, 3), (16, 19), (32, 35)]),
}


@pytest.mark.parametrize("case", STEPS)
def test_windows_every_few_steps(fit: Any, case: str) -> None:
    every, length, expected = STEPS[case]
    callback, stored = TrajectoryCallback(window=length, window_schedule=EveryNSteps(every)), Steps()
    fit(callback, stored, data=long())
    assert_as_stored(callback.trajectory, stored, expected)


@pytest.mark.parametrize("schedule", [EveryNSteps(5), AtEpochs([1]), AtSteps([2])])
def test_a_window_begins_at_the_start_whatever_the_schedule(fit: Any, schedule: Any) -> None:
    callback = TrajectoryCallback(window=3, window_schedule=schedule)
    fit(callback)
    assert spans(callback.trajectory)[0] == (0, 3)


def test_sketched_windows_are_near_what_they_estimate(fit: Any) -> None:
    callback, stored = TrajectoryCallback(sketch_dim=32), Steps()
    fit(callback, stored, data=long())
    estimate = callback.trajectory.summary("net.0.weight")
    exact = dict(zip(MEASURES, measured(stored.of(["net.0.weight"], 32, 40)), strict=True))
    assert estimate["oscillation_step_length"] == pytest.approx(exact["oscillation_step_length"], rel=1.0)
    assert estimate["oscillation_step_length"] != pytest.approx(exact["oscillation_step_length"], rel=1e-7)


def test_a_quadratic_that_zigzags_has_the_known_cosine(fit: Any) -> None:
    """x goes to −x with each step, and y drifts half as far: steps (±2, 1) or so, of cosine (1 − 4) / (1 + 4)."""

    class Valley(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.x = nn.Parameter(torch.tensor([1.0]))
            self.y = nn.Parameter(torch.tensor([0.0]))

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return (self.x**2 / 2 - self.y / 2).sum()  # type: ignore[no-any-return]

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=2.0)

    callback = TrajectoryCallback()
    # Of an odd number of steps: else x would be where it was at each snapshot, and not counted as moving.
    trainer = fit(callback, module=Valley, data=long(), limit_train_batches=15)
    known = {"cosine": -0.6, "reversals": 1.0, "linearity": 1 / math.sqrt(5), "step_length": math.sqrt(5)}
    across = {"cosine": -1.0, "reversals": 1.0, "linearity": 0.0, "step_length": 2.0}
    along = {"cosine": 1.0, "reversals": 0.0, "linearity": 1.0, "step_length": 1.0}
    for select, values in ((None, known), ("x", across), ("y", along)):
        summary = callback.trajectory.summary(select)
        for name, value in values.items():
            assert summary[f"oscillation_{name}"] == pytest.approx(value, rel=1e-12, abs=1e-12)
    assert float(trainer.callback_metrics["traj/oscillation_cosine"]) == pytest.approx(-0.6)


def test_a_parameter_that_is_added_takes_part_from_the_next_window_on(fit: Any) -> None:
    class Growing(Module):
        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 1:
                self.extra = nn.Parameter(torch.ones(3))
                self.optimizers().add_param_group({"params": [self.extra]})

        def loss(self, batch: Any) -> Tensor:
            extra = self.extra.square().sum() if hasattr(self, "extra") else 0.0
            return super().loss(batch) + extra

    callback, stored = TrajectoryCallback(), Steps()
    fit(callback, stored, module=Growing)
    trajectory = callback.trajectory
    assert spans(trajectory) == [(0, 4), (4, 8), (8, 12)]
    everything = [block.name for block in trajectory.blocks]
    assert "extra" in everything
    known = [name for name in everything if name != "extra"]
    chosen = list(range(len(everything)))
    for index, names in enumerate((known, known, everything)):
        ours = list(oscillation(trajectory.windows.of(chosen, index)))
        assert ours == pytest.approx(measured(stored.of(names, 4 * index, 4 * index + 4)), rel=1e-7)
    # Where snapshots see it at once, the window ends there: without it, it would not be whole.
    often = TrajectoryCallback(schedule=EveryNSteps(1))
    fit(often, module=Growing)
    assert spans(often.trajectory) == [(0, 4), (8, 12)]


# What something else than a step does to the parameters ----------------------------------------------------------


class Moved(Stepping):
    """Has its parameters moved by ``move`` in a hook, at some batches or epochs."""

    def __init__(self, move: Any) -> None:
        super().__init__(partial(torch.optim.SGD, lr=0.05, momentum=0.9))
        self.move = move

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.loss(batch)

    def val_dataloader(self) -> Any:
        return batches()


@torch.no_grad()
def in_place(module: Any) -> None:
    for p in module.parameters():
        p.add_(1.0)


def as_data(module: Any) -> None:
    for p in module.parameters():
        p.data.add_(1.0)


def as_new_memory(module: Any) -> None:
    for p in module.parameters():
        p.data = p.data + 1.0


def by_state_dict(module: Any) -> None:
    module.load_state_dict({name: value + 1.0 for name, value in module.state_dict().items()})


class EpochStart(Moved):
    def on_train_epoch_start(self) -> None:
        self.move(self)


class FirstBatch(Moved):
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.move(self)


class AmidBatches(Moved):
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if batch_idx in (1, 3):
            self.move(self)


class WithinTrainingStep(Moved):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.move(self)
        return super().training_step(batch, batch_idx)


class AfterBatches(Moved):
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.move(self)


class BeforeOptimizerStep(Moved):
    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.move(self)


class Validation(Moved):
    """Leaves other weights behind."""

    def on_validation_end(self) -> None:
        self.move(self)


class SwappedForEpochs(Moved):
    """An average by hand: in the weights' place from an epoch's end on, and taken out when the next one begins."""

    def on_train_start(self) -> None:
        self.average = [p.detach().clone() for p in self.parameters()]

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        for p, average in zip(self.parameters(), self.average, strict=True):
            average.lerp_(p.detach(), 0.1)

    def swap(self) -> None:
        for p, average in zip(self.parameters(), self.average, strict=True):
            kept = p.data.clone()
            p.data.copy_(average)
            average.copy_(kept)

    on_train_epoch_end = swap

    def on_train_epoch_start(self) -> None:
        if self.current_epoch:
            self.swap()


@pytest.mark.parametrize(
    ("kind", "move"),
    [
        *((kind, move) for kind in (EpochStart, FirstBatch, Validation) for move in (in_place, as_data)),
        *((kind, m) for kind in (AmidBatches, AfterBatches) for m in (in_place, as_new_memory, by_state_dict)),
        (WithinTrainingStep, in_place),
        (SwappedForEpochs, None),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
@pytest.mark.parametrize("module_steps", ["by hooks", "by global_step"])
def test_what_moves_between_steps_is_no_part_of_them(fit: Any, kind: Any, move: Any, module_steps: str) -> None:
    def module() -> Any:
        made = kind(move)
        if module_steps != "by hooks":
            make = made.make
            made.make = lambda parameters: Bare(make(parameters))
        return made

    callback = TrajectoryCallback()
    trainer = fit(callback, module=module, val_check_interval=0.5)
    trajectory, moves = callback.trajectory, trainer.lightning_module.moves
    assert spans(trajectory) == [(0, 4), (4, 8), (8, 12)]
    names = [name for name, _ in trainer.lightning_module.named_parameters()]
    for select in SELECTIONS:
        chosen = trajectory.select(select)
        ours = [names.index(trajectory.blocks[i].name) for i in chosen]
        steps = [
            np.concatenate([(after[i].double() - before[i].double()).flatten() for i in ours])
            for before, _, after in moves
        ]
        for index, (begin, end) in enumerate(spans(trajectory)):
            thetas = np.cumsum([np.zeros_like(steps[0]), *steps[begin:end]], axis=0)
            window = list(oscillation(trajectory.windows.of(chosen, index)))
            assert window == pytest.approx(measured(thetas), rel=1e-5, abs=1e-9), (select, index)


def test_what_moves_right_before_a_step_is_no_part_of_it(fit: Any) -> None:
    """In the module's hook, which comes after that of every callback."""

    def module() -> Any:
        made = BeforeOptimizerStep(as_data)
        made.make = partial(torch.optim.SGD, lr=0.0)
        return made

    weights, updates = TrajectoryCallback(), TrajectoryCallback(track="update")
    trainer = fit(weights, updates, module=module)
    assert weights.trajectory.summary()["oscillation_step_length"] == 0
    assert updates.trajectory.summary()["param_norm"] == 0
    assert weights.trajectory.summary()["displacement"] == pytest.approx(
        math.sqrt(sum(p.numel() for p in trainer.lightning_module.parameters())) * trainer.global_step
    )


def test_a_window_is_shifted_along_with_the_parameters() -> None:
    """Where blocks were added meanwhile, it is left to the next step to end the window."""
    windows = StepWindows(4, limit=8)
    rows = [torch.randn(3, dtype=torch.float64, generator=torch.Generator().manual_seed(step)) for step in range(4)]
    windows = windows.begun(Row.of(rows[:1]))
    windows = windows.with_step(Row.of(rows[1:2]), 1)
    windows = windows.shifted(Row.of([rows[1] + 100]))
    windows = windows.with_step(Row.of([rows[2] + 100]), 2)
    windows = windows.shifted(Row.of([rows[2], rows[0]]))
    windows = windows.with_step(Row.of([rows[3], rows[0]]), 3)
    assert (windows.steps, windows.counts) == ((2,), (2,))
    thetas = torch.stack(rows[:3]).numpy()
    assert list(oscillation(windows.sums[0][0].numpy()[:, :2])) == pytest.approx(measured(thetas), rel=1e-9)


def test_a_window_that_an_older_version_began_early_begins_anew() -> None:
    begun = StepWindows(2, limit=8)
    begun = begun.begun(Row.of([torch.zeros(1)]))
    state = begun.state_dict()
    del state["due"]  # not known before
    resumed = StepWindows.from_state(state, 2, limit=8)
    assert resumed.due
    resumed = resumed.begun(Row.of([torch.full((1,), 5.0)]))
    for step, value in enumerate((6.0, 7.0), start=1):
        resumed = resumed.with_step(Row.of([torch.full((1,), value)]), step)
    assert not resumed.due
    assert resumed.sums[0][0].tolist() == [[1.0, 1.0], [0.0, 1.0], [1.0, 4.0]]


# A run that is resumed ------------------------------------------------------------------------------------------

SAVES: dict[str, dict[str, Any]] = {
    "within a window": {"every_n_train_steps": 6},
    "after a window, within an epoch": {"every_n_train_steps": 7},
    "at the end of the epoch": {"save_on_train_epoch_end": True, "every_n_epochs": 2},
    "after validation, before the end of the epoch": {"save_on_train_epoch_end": False, "every_n_epochs": 2},
    "at the last batch of an epoch": {"every_n_train_steps": 8},
    "after one step": {"every_n_train_steps": 1},
}


@pytest.mark.filterwarnings(
    "ignore:You're resuming from a checkpoint that ended before the epoch ended",  # hence the batches that are alike
    "ignore:Be aware that when using `ckpt_path`, callbacks used to create the checkpoint",  # ModelCheckpoint
    "ignore:Checkpoint directory .* exists and is not empty",
)
@pytest.mark.parametrize("settings", [{"window": 3}, {}, {"window": 4, "window_schedule": EveryNSteps(5)}], ids=str)
@pytest.mark.parametrize("snapshot", ["sketch", "full"])
@pytest.mark.parametrize("when", SAVES)
def test_a_resumed_run_has_the_same_windows(
    fit: Any, tmp_path: Path, when: str, snapshot: Any, settings: dict[str, Any]
) -> None:
    arguments: dict[str, Any] = {"data": batches(alike=True), "module": Validated, "max_epochs": 4}
    whole, resumed = (TrajectoryCallback(snapshot=snapshot, **settings) for _ in range(2))
    saving = ModelCheckpoint(tmp_path / "saved", save_top_k=-1, **SAVES[when])
    fit(whole, saving, **arguments)
    checkpoint = min((tmp_path / "saved").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    fit(resumed, ckpt_path=checkpoint, **arguments)
    ours, theirs = resumed.trajectory, whole.trajectory
    assert spans(ours) == spans(theirs)
    assert len(spans(ours)) >= 2
    # Those that had ended by then were rounded to float32; all others are the same to the last bit.
    saved = torch.load(checkpoint, weights_only=True)["callbacks"][resumed.state_key]["windows"]["steps"]
    np.testing.assert_allclose(ours.windows.sums, theirs.windows.sums, rtol=2**-24, atol=0)
    np.testing.assert_array_equal(ours.windows.sums[len(saved) :], theirs.windows.sums[len(saved) :])
    file = Trajectory.load(tmp_path / "trajectory.safetensors")
    assert spans(file) == spans(theirs)
    np.testing.assert_array_equal(file.windows.sums, ours.windows.sums)


@pytest.mark.parametrize("different", [{"window": 3}, {"window_schedule": EveryNEpochs(2)}])
def test_a_run_is_not_resumed_with_other_windows(fit: Any, tmp_path: Path, different: dict[str, Any]) -> None:
    fit(TrajectoryCallback(), max_epochs=2).save_checkpoint(tmp_path / "saved.ckpt")
    with pytest.raises(ValueError, match=f"{next(iter(different))}=.* differs from"):
        fit(TrajectoryCallback(**different), ckpt_path=tmp_path / "saved.ckpt")


# What cannot be, and what must not happen -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("window", "error", "message"),
    [
        (1, ValueError, "window=1: an angle takes two steps; pass 0 for no windows, or at least 2"),
        (-1, ValueError, "window=-1: pass an int of 0 or more"),
        (2.0, TypeError, "window=2.0: pass an int"),
        (True, TypeError, "window=True: pass an int"),
    ],
)
def test_a_window_that_cannot_be(window: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        TrajectoryCallback(window=window)


def test_a_schedule_of_windows_that_is_none() -> None:
    with pytest.raises(TypeError, match="window_schedule=5 is not a schedule"):
        TrajectoryCallback(window_schedule=5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("window", "arguments", "steps"),
    [
        (5, {}, 4),
        (6, {"data": long(), "accumulate_grad_batches": 4}, 4),
        (7, {"data": long(), "accumulate_grad_batches": 3}, 6),
        (3, {"limit_train_batches": 2}, 2),
    ],
)
def test_a_window_longer_than_an_epoch_is_an_error_before_training(
    fit: Any, window: int, arguments: dict[str, Any], steps: int
) -> None:
    stored = Steps()
    message = f"window={window} is longer than an epoch, which has {steps} optimizer steps: pass at most that, or None"
    with pytest.raises(ValueError, match=message):
        fit(stored, TrajectoryCallback(window=window), **arguments)
    assert len(stored.thetas) <= 1
    assert stored.ends == [0]


def test_a_window_over_the_steps_of_two_optimizers_is_no_error(fit: Any) -> None:
    callback = TrajectoryCallback(window=8)
    fit(callback, module=TwoOptimizers)  # four batches, eight steps an epoch
    assert spans(callback.trajectory) == [(0, 8), (8, 16), (16, 24)]


def test_training_is_the_same_with_windows_and_without(fit: Any) -> None:
    def outcome(*callbacks: Any) -> Any:
        trainer = fit(*callbacks, data=long())
        module = trainer.lightning_module
        return module.state_dict(), trainer.optimizers[0].state_dict(), module.losses, torch.get_rng_state()

    alone = outcome()
    for settings in ({"window": 0}, {}, {"window": 4, "window_schedule": EveryNSteps(4), "snapshot": "full"}):
        observed = outcome(TrajectoryCallback(sketch_dim=16, **settings))
        torch.testing.assert_close(observed, alone, rtol=0, atol=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_window_with_a_value_that_is_not_finite_is_undefined(fit: Any, bad: float) -> None:
    class Spoilt(pl.Callback):
        """One entry is not finite after the sixth step, and again what it was before the seventh."""

        def on_train_start(self, trainer: Any, module: Any) -> None:
            self.bias, self.steps = module.net[0].bias, 0
            trainer.optimizers[0].register_step_post_hook(self.spoil)

        def spoil(self, *_: Any) -> None:
            self.steps += 1
            if self.steps == 6:
                self.value = float(self.bias.data[0])
                self.bias.data[0] = bad

        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            if self.steps == 6:
                self.bias.data[0] = self.value

    callback = TrajectoryCallback()
    trainer = fit(Spoilt(), callback)
    trajectory = callback.trajectory
    assert spans(trajectory) == [(0, 4), (4, 8), (8, 12)]
    assert all(map(math.isfinite, trainer.lightning_module.losses))
    for select, is_defined in ((None, False), ("net.0.bias", False), ("net.2.weight", True), ("net.2.bias", True)):
        for name in MEASURES:
            series = trajectory.series(select)[name]
            assert np.isfinite(series).tolist() == [False, True, is_defined, True], (select, name)


def test_an_infinite_step_of_a_single_number_warns_of_nothing() -> None:
    windows = StepWindows(3, 8)
    windows = windows.begun(Row.of([torch.zeros(1, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)]))
    for step, value in enumerate((1.0, math.inf, 2.0), start=1):
        windows = windows.with_step(
            Row.of([torch.tensor([value], dtype=torch.float64), torch.tensor([step, 0.0], dtype=torch.float64)]), step
        )
    sums = defined(windows.sums[0].numpy())
    assert np.isnan(list(oscillation(sums.sum(axis=0)))).all()
    assert np.isnan(list(oscillation(sums[0]))).all()
    assert list(oscillation(sums[1])) == [1.0, 0.0, 1.0, 1.0]


# Memory and sketches --------------------------------------------------------------------------------------------


@pytest.fixture
def sketches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the blocks that were sketched."""
    calls: list[str] = []
    sketch = CountSketch.of_blocks

    def counting(self: CountSketch, blocks: Any) -> Tensor:
        calls.extend(block.name for block in blocks)
        return sketch(self, blocks)

    monkeypatch.setattr(CountSketch, "of_blocks", counting)
    return calls


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"window": 0}, 4),  # θ_0 and three epochs
        ({}, 4 + 3 * 16),  # right before and right after each step
        ({"snapshot": "full"}, 3 * 16),  # snapshots are not sketched
        ({"schedule": EveryNSteps(1)}, 49 + 3 * 8),  # after each step they have been sketched anyway
        ({"schedule": EveryNSteps(2)}, 25 + 3 * (8 + 4)),
        ({"schedule": AtEpochs([3])}, 1 + 3 * 16 + 1),
    ],
    ids=str,
)
def test_sketches_an_epoch(fit: Any, sketches: list[str], settings: dict[str, Any], expected: int) -> None:
    callback = TrajectoryCallback(**settings)
    fit(callback, data=long())
    blocks = len(callback.trajectory.blocks)
    assert len(sketches) == expected * blocks
    assert len(set(sketches)) == blocks


def test_a_running_window_has_three_rows_and_its_sums(walk: Any) -> None:
    lengths = (2, 8, 64)
    sizes = []
    for length in lengths:
        windows = StepWindows(length, limit=8)
        rows = [[tensor.double().flatten() for tensor in row.values()] for row in walk({"a": (40,), "b": (3,)}, length)]
        windows = windows.begun(Row.of(rows[0]))
        for step, row in enumerate(rows[1:], start=1):
            windows = windows.with_step(Row.of(row), step)
        state = windows.state_dict()
        assert (len(state["rows"]), state["lengths"]) == (3, [40, 3])
        sizes.append(sum(row.numel() for row in state["rows"]))
        assert {tuple(part.shape) for part in state["parts"]} == {(2, 3)}
        assert len(state["parts"]) == length - 1
    assert sizes == [3 * 43] * len(lengths)


def test_windows_are_thinned_as_snapshots_are() -> None:
    windows, limit = StepWindows(2, limit=6), 6
    for step in range(0, 200, 2):
        windows = windows.begun(Row.of([torch.tensor([float(step)])]))
        for after in (step + 1, step + 2):
            windows = windows.with_step(Row.of([torch.tensor([float(after)])]), after)
        assert len(windows.sums) == len(windows.steps) == len(windows.counts) == len(windows.order) <= limit
        assert windows.order[0] == 0
        assert windows.steps[-1] == step + 2
    assert windows.stride == 32
    assert windows.order == (0, 32, 64, 96, 99)


def test_a_window_that_is_due_while_one_runs_is_left_out() -> None:
    windows = StepWindows(4, limit=8)
    windows = windows.begun(Row.of([torch.zeros(1)]))
    windows = windows.with_step(Row.of([torch.ones(1)]), 1)
    windows = windows.begun(Row.of([torch.ones(1)]))
    for step in (2, 3, 4):
        windows = windows.with_step(Row.of([torch.full((1,), float(step))]), step)
    assert (windows.steps, windows.counts) == ((4,), (4,))
    assert not windows.running


def test_windows_begin_anew_with_the_recorder(walk: Any) -> None:
    recorder = Recorder()
    first, second = walk({"w": (5,)}, 2)
    recorder.record(first, 0, 0.0)
    recorder.windows.begin(first, 0)
    recorder.windows.add(second, 1)
    recorder.clear()
    assert not recorder.windows.running
    recorder.windows.begin(first, 0)  # there is no θ_0 yet: nothing to begin at
    assert not recorder.windows.running


def test_state_of_a_running_window() -> None:
    whole = StepWindows(4, limit=8)
    rows = [torch.randn(3, dtype=torch.float64, generator=torch.Generator().manual_seed(step)) for step in range(5)]
    whole = whole.begun(Row.of(rows[:1]))
    for step in (1, 2):
        whole = whole.with_step(Row.of([rows[step]]), step)
    resumed = StepWindows.from_state(copy.deepcopy(whole.state_dict()), 4, limit=8)
    for step in (3, 4):
        whole, resumed = (windows.with_step(Row.of([rows[step]]), step) for windows in (whole, resumed))
    assert torch.equal(resumed.sums[0], whole.sums[0])
    theta = torch.stack(rows).numpy()
    assert list(oscillation(whole.sums[0][0].numpy())) == pytest.approx(measured(theta), rel=1e-12)
    assert [len(pair) for pair in pairwise([*whole.steps, 0])] == [2]
