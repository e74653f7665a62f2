"""Trajectories of other quantities than the weights, against values taken in the training loop by hand."""

from __future__ import annotations

from functools import partial
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import schedulefree
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, WeightAveraging
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from lightning_traj import EveryNEpochs, EveryNSteps, Trajectory, TrajectoryCallback
from models import BATCHES, Module, batches, mlp
from optimizers import SGD, Codes, EightBit, Lion, Lookahead, Stepping

STEP_QUANTITIES = ("gradient", "update", "first_moment", "second_moment")
MOMENTS = {
    "sgd": {"first_moment": "momentum_buffer"},
    "adamw": {"first_moment": "exp_avg", "second_moment": "exp_avg_sq"},
}


class ByHand(Module):
    """Keeps what each optimizer step saw and did, by its own means: a step of the optimizer wrapped by hand."""

    def __init__(self, optimizer: str = "sgd") -> None:
        super().__init__()
        self.kind = optimizer
        self.seen: dict[str, list[dict[str, Tensor]]] = {name: [] for name in (*STEP_QUANTITIES, "weights", "average")}

    def configure_optimizers(self) -> Any:
        if self.kind == "sgd":
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, nesterov=True)
        return torch.optim.AdamW(self.parameters(), lr=0.01)

    def keep(self, quantity: str, values: Any) -> None:
        self.seen[quantity].append(
            {name: value.detach().double().clone() for name, value in values if value is not None}
        )

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.keep("gradient", ((name, p.grad) for name, p in self.named_parameters()))
        self.before = {name: p.detach().double().clone() for name, p in self.named_parameters()}

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_end(outputs, batch, batch_idx)
        if len(self.seen["gradient"]) == len(self.seen["update"]):
            return  # accumulating
        state = self.optimizers().optimizer.state
        named = dict(self.named_parameters())
        self.keep("weights", named.items())
        self.keep("update", ((name, p.detach().double() - self.before[name]) for name, p in named.items()))
        for moment, key in MOMENTS[self.kind].items():
            self.keep(moment, ((name, state[p][key]) for name, p in named.items()))


def stacked(snapshots: list[dict[str, Tensor]]) -> np.ndarray:
    return np.stack([torch.cat([snapshot[name].flatten() for name in snapshots[0]]).numpy() for snapshot in snapshots])


def check(trajectory: Trajectory, snapshots: list[dict[str, Tensor]], tolerance: float = 1e-6) -> None:
    vectors = stacked(snapshots)
    exact = vectors @ vectors.T
    np.testing.assert_allclose(trajectory.gram("*"), exact, rtol=tolerance, atol=tolerance * np.abs(exact).max())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("mode", ["sketch", "full"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_what_the_optimizer_sees_and_does(fit: Any, optimizer: str, mode: Any, accumulate: int) -> None:
    tracked = ["gradient", "update", *MOMENTS[optimizer]]
    callbacks = [TrajectoryCallback(track=name, schedule=EveryNSteps(1), snapshot=mode) for name in tracked]
    trainer = fit(*callbacks, module=lambda: ByHand(optimizer), accumulate_grad_batches=accumulate)
    module = trainer.lightning_module
    for callback in callbacks:
        trajectory = callback.trajectory
        assert trajectory.steps.tolist() == list(range(1, 3 * BATCHES // accumulate + 1))
        check(trajectory, module.seen[callback.track])
        assert [block.role for block in trajectory.blocks] == ["linear", "bias", "linear", "bias"]


@pytest.mark.parametrize("track", STEP_QUANTITIES)
def test_once_an_epoch_it_is_of_the_last_step(fit: Any, track: str) -> None:
    callback = TrajectoryCallback(track=track, schedule=EveryNEpochs(1))
    trainer = fit(callback, module=lambda: ByHand("adamw"))
    seen = trainer.lightning_module.seen[track]
    ends = [0, *range(BATCHES - 1, 3 * BATCHES, BATCHES)]  # the first step, and the last of each epoch
    assert callback.trajectory.steps.tolist() == [end + 1 for end in ends]
    assert callback.trajectory.epochs.tolist() == [1 / BATCHES, 1, 2, 3]
    check(callback.trajectory, [seen[end] for end in ends])


def test_gradients_are_those_before_clipping_and_the_update_is_after(fit: Any) -> None:
    callbacks = [TrajectoryCallback(track=name, schedule=EveryNSteps(2)) for name in ("gradient", "update")]
    trainer = fit(*callbacks, module=lambda: ByHand("adamw"), gradient_clip_val=0.01)
    for callback in callbacks:
        seen = trainer.lightning_module.seen[callback.track]
        check(callback.trajectory, [seen[0], *seen[1::2]])


class Averaging(pl.Callback):
    """Keeps the average after each batch, when WeightAveraging has updated it."""

    def __init__(self) -> None:
        self.snapshots: list[dict[str, Tensor]] = []

    def take(self, trainer: Any) -> None:
        averaged = next(c._average_model for c in trainer.callbacks if isinstance(c, WeightAveraging))
        self.snapshots.append({n: p.detach().double().clone() for n, p in averaged.module.named_parameters()})

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.take(trainer)

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.take(trainer)


@pytest.mark.parametrize("schedule", [EveryNSteps(1), EveryNEpochs(1)])
def test_the_average_of_weight_averaging(fit: Any, schedule: Any) -> None:
    callback, witness = TrajectoryCallback(track="average", schedule=schedule), Averaging()
    fit(EMAWeightAveraging(decay=0.7), callback, witness)
    every = 1 if isinstance(schedule, EveryNSteps) else BATCHES
    assert callback.trajectory.steps.tolist() == list(range(0, 3 * BATCHES + 1, every))
    check(callback.trajectory, witness.snapshots[::every])


class OwnAverage(Module):
    def __init__(self) -> None:
        super().__init__()
        self.ema = AveragedModel(self.net)
        self.kept = [stacked([{n: p.detach().double() for n, p in self.ema.module.named_parameters()}])[0]]

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.net.parameters(), lr=0.1)

    def on_train_epoch_end(self) -> None:
        self.ema.update_parameters(self.net)
        self.kept.append(stacked([{n: p.detach().double() for n, p in self.ema.module.named_parameters()}])[0])


def test_an_averaged_model_of_the_users_own(fit: Any) -> None:
    weights, average = TrajectoryCallback(exclude="ema.*"), TrajectoryCallback(track="average")
    trainer = fit(weights, average, module=OwnAverage)
    kept = np.stack(trainer.lightning_module.kept)
    assert [b.name for b in average.trajectory.blocks] == [b.name for b in weights.trajectory.blocks]
    # Lightning calls callbacks before the module: this epoch's update of the average comes with the next.
    np.testing.assert_allclose(average.trajectory.gram("*")[1:, 1:], (kept @ kept.T)[:-1, :-1], rtol=1e-6)


class Recorded:
    """A logger that keeps what it is given."""

    def __new__(cls) -> Any:
        from lightning.pytorch.loggers.logger import Logger

        class Keeper(Logger):
            name, version = "kept", 0

            def __init__(self) -> None:
                super().__init__()
                self.values: list[tuple[int, dict[str, float]]] = []

            def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
                pass

            def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
                self.values.append((step or 0, metrics))

        return Keeper()


def degrees(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.degrees(np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))))


def test_angles_between_quantities(fit: Any) -> None:
    logger = Recorded()
    callbacks = [TrajectoryCallback(track=name) for name in ("gradient", "update", "weights", "average")]
    averaging, witness = EMAWeightAveraging(decay=0.7), Averaging()
    settings = {"module": lambda: ByHand("adamw"), "logger": logger, "log_every_n_steps": BATCHES}
    trainer = fit(averaging, witness, *callbacks, **settings)
    module = trainer.lightning_module
    logged: dict[str, list[float]] = {}
    for _, metrics in logger.values:
        for tag, value in metrics.items():
            if tag.startswith("traj_cross/"):
                logged.setdefault(tag.removeprefix("traj_cross/"), []).append(value)
    ends = range(BATCHES - 1, 3 * BATCHES, BATCHES)
    gradient, update, weights = (stacked([module.seen[q][i] for i in ends]) for q in ("gradient", "update", "weights"))
    average = stacked([witness.snapshots[i + 1] for i in ends])
    start = stacked(witness.snapshots[:1])[0]  # the average begins at θ_0
    expected = {
        "gradient_update_angle": [degrees(-g, u) for g, u in zip(gradient, update, strict=True)],
        "weights_average_angle": [degrees(w, a) for w, a in zip(weights, average, strict=True)],
        "direction_update_angle": [degrees(w - start, u) for w, u in zip(weights, update, strict=True)],
    }
    assert logged.keys() == expected.keys()
    for tag, values in expected.items():
        assert logged[tag] == pytest.approx(values, rel=1e-5), tag


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        (
            [TrajectoryCallback(track="average")],
            "there is no WeightAveraging or EMAWeightAveraging among the callbacks",
        ),
        (
            [TrajectoryCallback(track="average"), EMAWeightAveraging()],
            "list the TrajectoryCallback after EMAWeightAveraging",
        ),
        ([TrajectoryCallback(track="second_moment")], "track='second_moment': SGD keeps no such moment"),
    ],
)
def test_what_a_run_does_not_have(fit: Any, callbacks: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(*callbacks)


@pytest.mark.parametrize(
    ("make", "track"),
    [
        (partial(torch.optim.SGD, lr=0.1), "first_moment"),
        (torch.optim.Adamax, "second_moment"),
        (Lion, "second_moment"),
        (schedulefree.SGDScheduleFree, "first_moment"),
        (schedulefree.AdamWScheduleFree, "first_moment"),
        (lambda parameters: Lookahead(Lion(parameters)), "second_moment"),
    ],
)
def test_a_moment_that_never_comes_is_refused_before_training(fit: Any, make: Any, track: str) -> None:
    module = Stepping(make)
    with pytest.raises(ValueError, match=f"track='{track}': .* keeps no such moment; use an optimizer that does"):
        fit(TrajectoryCallback(track=track), module=lambda: module)
    assert not module.moves


def test_a_moment_that_cannot_be_read_is_left_out_and_named(fit: Any) -> None:
    class Half(Stepping):
        """One layer's momentum is kept in a form of its own, and the other's is not."""

        automatic_optimization = False

        def configure_optimizers(self) -> Any:
            return [EightBit(list(self.net[2].parameters()), kind=Codes), SGD(self.net[0].parameters())]

        def training_step(self, batch: Any, batch_idx: int) -> None:
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                self.manual_backward(self.loss(batch))
                optimizer.step()

    callback = TrajectoryCallback(track="first_moment")
    with pytest.warns(UserWarning, match=r"'net\.2\.weight' \(Codes: "):
        trainer = fit(callback, module=lambda: Half(SGD))
    trajectory = callback.trajectory
    kept = trainer.optimizers[1].state
    momentum = torch.cat([kept[p]["momentum_buffer"].flatten() for p in trainer.lightning_module.net[0].parameters()])
    assert trajectory.gram("layer:net.0")[-1, -1] == pytest.approx(float(momentum.double() @ momentum.double()))
    assert {block.layer for block in trajectory.blocks} == {"net.0"}


def test_wrong_names() -> None:
    with pytest.raises(ValueError, match="track='weight': pass one of 'weights', 'average', 'gradient', 'update'"):
        TrajectoryCallback(track="weight")
    with pytest.raises(ValueError, match="window=8 with track='gradient'"):
        TrajectoryCallback(track="gradient", window=8)
    for settings in ({"track": "gradient"}, {"window": 0}):
        with pytest.raises(ValueError, match=r"window_schedule=EveryNSteps\(n=5\) .* no windows begin there"):
            TrajectoryCallback(window_schedule=EveryNSteps(5), **settings)


def test_each_has_its_own_name_and_file(fit: Any, tmp_path: Any) -> None:
    callbacks = [TrajectoryCallback(), TrajectoryCallback(track="gradient"), TrajectoryCallback(track="update")]
    assert [callback.name for callback in callbacks] == ["traj", "traj_gradient", "traj_update"]
    fit(*callbacks)
    for file in ("trajectory", "traj_gradient", "traj_update"):
        assert (tmp_path / f"{file}.safetensors").is_file()


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")  # the second run writes no checkpoints
@pytest.mark.parametrize("track", ["gradient", "update", "first_moment", "average"])
def test_training_is_the_same_and_resumes(fit: Any, tmp_path: Any, track: str) -> None:
    def run(*more: Any, root: str, **settings: Any) -> Any:
        average = [EMAWeightAveraging(decay=0.7)] if track == "average" else []
        return fit(
            *average, *more, module=lambda: ByHand("sgd"), root=tmp_path / root, data=batches(alike=True), **settings
        )

    plain = run(root="plain").lightning_module
    whole = TrajectoryCallback(track=track, schedule=EveryNSteps(1) | EveryNEpochs(1))
    observed = run(whole, root="whole").lightning_module
    for a, b in zip(plain.parameters(), observed.parameters(), strict=True):
        assert torch.equal(a, b)
    first = TrajectoryCallback(track=track, schedule=EveryNSteps(1) | EveryNEpochs(1))
    checkpoint = pl.callbacks.ModelCheckpoint(dirpath=tmp_path / "saved", filename="c")
    run(first, checkpoint, root="first", max_epochs=2)
    second = TrajectoryCallback(track=track, schedule=EveryNSteps(1) | EveryNEpochs(1))
    run(second, root="second", ckpt_path=tmp_path / "saved" / "c.ckpt")
    assert second.trajectory.steps.tolist() == whole.trajectory.steps.tolist()
    np.testing.assert_allclose(second.trajectory.gram("*"), whole.trajectory.gram("*"), rtol=1e-9)


def test_only_what_has_a_gradient(fit: Any) -> None:
    def half_frozen() -> Any:
        module = Module()
        module.net[0].requires_grad_(False)
        return module

    callback = TrajectoryCallback(track="gradient", schedule=EveryNSteps(1))
    fit(callback, module=half_frozen)
    assert [block.layer for block in callback.trajectory.blocks] == ["net.2", "net.2"]


class TakingTurns(Module):
    """Two optimizers: who steps in which batch, and what each step of theirs saw, did and left."""

    def __init__(self, turns: Any, toggled: bool = False) -> None:
        super().__init__(nn.ModuleList([mlp(), mlp()]))
        self.automatic_optimization = False
        self.turns, self.toggled = turns, toggled
        self.steps: list[dict[str, np.ndarray]] = []  # of both networks, after each step

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(net.parameters(), lr=0.01) for net in self.net]

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        for turn in self.turns(self.trainer.fit_loop.epoch_loop.total_batch_idx):
            optimizer, net = self.optimizers()[turn], self.net[turn]
            if self.toggled:
                self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            self.manual_backward(nn.functional.cross_entropy(net(x), y))
            before = self.flat(net.parameters())
            seen = {"gradient": self.flat(p.grad for p in net.parameters())}
            optimizer.step()
            seen["update"] = self.flat(net.parameters()) - before
            state = optimizer.optimizer.state
            seen["first_moment"] = self.flat(state[p]["exp_avg"] for p in net.parameters())
            seen["second_moment"] = self.flat(state[p]["exp_avg_sq"] for p in net.parameters())
            if self.toggled:
                self.untoggle_optimizer(optimizer)
            latest = self.steps[-1] if self.steps else {name: np.zeros((2, len(before))) for name in seen}
            now = {name: values.copy() for name, values in latest.items()}
            for name, values in seen.items():
                now[name][turn] = values
            self.steps.append(now)

    @staticmethod
    def flat(tensors: Any) -> np.ndarray:
        return torch.cat([tensor.detach().double().flatten() for tensor in tensors]).numpy().copy()


TURNS: dict[str, Any] = {
    "both in each batch": lambda batch: (0, 1),
    "the second comes later": lambda batch: (0, 1) if batch > 5 else (0,),
    "the second comes first": lambda batch: (1, 0),
    "one of them seldom": lambda batch: (0, 0, 1) if batch % 3 == 1 else (0,),
    "by turns": lambda batch: (batch % 2,),
}


@pytest.mark.parametrize(
    ("schedule", "toggled"),
    [(EveryNEpochs(1), False), (EveryNSteps(1), False), (EveryNSteps(5), True)],
)
@pytest.mark.parametrize("turns", TURNS)
def test_of_several_optimizers_each_has_its_latest_step(fit: Any, turns: str, schedule: Any, toggled: bool) -> None:
    callbacks = [TrajectoryCallback(track=track, schedule=schedule) for track in STEP_QUANTITIES]
    trainer = fit(*callbacks, module=lambda: TakingTurns(TURNS[turns], toggled))
    steps = trainer.lightning_module.steps
    for callback in callbacks:
        trajectory = callback.trajectory
        assert {block.layer.split(".")[1] for block in trajectory.blocks} == {"0", "1"}  # from the start
        assert trajectory.steps[0] == 1
        assert len(trajectory) > 2
        seen = np.stack([steps[step - 1][callback.track].flatten() for step in trajectory.steps])
        gram = seen @ seen.T
        np.testing.assert_allclose(trajectory.gram("*"), gram, rtol=1e-5, atol=1e-6 * np.abs(gram).max())


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")  # the second run writes no checkpoints
@pytest.mark.parametrize("track", STEP_QUANTITIES)
def test_several_optimizers_in_a_resumed_run(fit: Any, tmp_path: Any, track: str) -> None:
    def run(root: str, *more: Any, **settings: Any) -> Trajectory:
        callback = TrajectoryCallback(track=track, schedule=EveryNSteps(1))
        arguments = {"module": lambda: TakingTurns(TURNS["both in each batch"]), "data": batches(alike=True)}
        fit(callback, *more, root=tmp_path / root, **arguments, **settings)
        return callback.trajectory

    checkpoint = pl.callbacks.ModelCheckpoint(dirpath=tmp_path / "saved", filename="c")
    whole, _ = run("whole"), run("first", checkpoint, max_epochs=2)
    resumed = run("second", ckpt_path=tmp_path / "saved" / "c.ckpt")
    assert resumed.steps.tolist() == whole.steps.tolist()
    np.testing.assert_allclose(resumed.gram("*"), whole.gram("*"), rtol=1e-9)


class OddParameters(Module):
    """A complex parameter, and others that no quantity has: integers, booleans, none at all."""

    def __init__(self) -> None:
        super().__init__()
        self.phase = nn.Parameter(torch.tensor([1 + 2j, -0.5 + 0.3j]))
        self.counts = nn.Parameter(torch.arange(3), requires_grad=False)
        self.mask = nn.Parameter(torch.tensor([True, False]), requires_grad=False)
        self.empty = nn.Parameter(torch.zeros(0))
        self.steps: list[dict[str, np.ndarray]] = []

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.01)

    def loss(self, batch: Any) -> Tensor:
        return super().loss(batch) + (self.phase * (1 + 0.5j)).abs().square().sum() + self.empty.sum()

    def flat(self, of: Any) -> np.ndarray:
        own = [p for p in self.parameters() if p.dtype in (torch.float32, torch.complex64)]
        values = [of(p).detach() for p in own]
        real = [torch.view_as_real(value) if value.is_complex() else value for value in values]
        return torch.cat([value.double().flatten() for value in real]).numpy().copy()

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        before = self.flat(lambda p: p)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        state = optimizer.optimizer.state
        self.counts.data += 1  # moves, and yet is not recorded
        self.mask.data.logical_not_()
        self.steps.append(
            {
                "weights": self.flat(lambda p: p),
                "gradient": self.flat(lambda p: p.grad),
                "update": self.flat(lambda p: p) - before,
                "first_moment": self.flat(lambda p: state[p]["exp_avg"] if p.numel() else p),
                "second_moment": self.flat(lambda p: state[p]["exp_avg_sq"] if p.numel() else p),
            }
        )


@pytest.mark.parametrize("mode", ["sketch", "full"])
def test_complex_parameters_are_pairs_of_reals_and_integers_are_left_out(fit: Any, mode: Any) -> None:
    tracks = ("weights", *STEP_QUANTITIES)
    callbacks = [TrajectoryCallback(track=track, schedule=EveryNSteps(1), snapshot=mode) for track in tracks]
    trainer = fit(*callbacks, module=OddParameters, max_epochs=2)
    for callback in callbacks:
        trajectory = callback.trajectory
        numels = {block.name: block.numel for block in trajectory.blocks}
        assert numels.keys() == {"phase", "net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias"}
        assert numels["phase"] == 4
        seen = np.stack([step[callback.track] for step in trainer.lightning_module.steps])
        recorded = trajectory.gram("*")[-len(seen) :, -len(seen) :]  # of the weights without θ_0
        np.testing.assert_allclose(recorded, seen @ seen.T, rtol=1e-5, atol=1e-6 * np.abs(seen @ seen.T).max())


@pytest.mark.parametrize("track", ["gradient", "update"])
def test_a_step_without_a_parameters_gradient_has_none_of_it(fit: Any, track: str) -> None:
    class Thawing(ByHand):
        def on_train_epoch_start(self) -> None:
            self.net[0].requires_grad_(self.current_epoch != 1)

    callback = TrajectoryCallback(track=track, schedule=EveryNSteps(1))
    trainer = fit(callback, module=Thawing)
    zeros = {name: torch.zeros_like(p).double() for name, p in trainer.lightning_module.named_parameters()}
    check(callback.trajectory, [zeros | seen for seen in trainer.lightning_module.seen[track]])


def test_manual_optimisation_with_two_optimizers(fit: Any) -> None:
    class Two(Adversaries):
        turns = (0, 1)

    callback = TrajectoryCallback(track="update", schedule=EveryNSteps(1))
    fit(callback, module=Two)
    trajectory = callback.trajectory
    assert trajectory.steps.tolist() == list(range(1, 2 * 3 * BATCHES + 1))
    assert {block.layer.split(".")[1] for block in trajectory.blocks} == {"0", "1"}


def test_an_optimizer_that_evaluates_more_than_once_a_step(fit: Any) -> None:
    class Quasi(Module):
        def __init__(self) -> None:
            super().__init__()
            self.thetas: list[Tensor] = []

        def configure_optimizers(self) -> Any:
            return torch.optim.LBFGS(self.parameters(), lr=0.5, max_iter=4)

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            self.thetas.append(torch.cat([p.detach().double().flatten() for p in self.parameters()]))

        def on_train_end(self) -> None:
            self.thetas.append(torch.cat([p.detach().double().flatten() for p in self.parameters()]))

    callback = TrajectoryCallback(track="update", schedule=EveryNSteps(1))
    trainer = fit(callback, module=Quasi, max_epochs=2)
    updates = torch.stack(trainer.lightning_module.thetas).diff(dim=0).numpy()
    np.testing.assert_allclose(callback.trajectory.gram("*"), updates @ updates.T, rtol=1e-6)


class Adversaries(Module):
    """Three steps of one optimizer and one of the other in each batch, under manual optimisation."""

    turns = (0, 0, 0, 1)

    def __init__(self) -> None:
        super().__init__(nn.ModuleList([mlp(), mlp()]))
        self.automatic_optimization = False
        self.norms: list[float] = []

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(net.parameters(), lr=0.1) for net in self.net]

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        for turn in self.turns:
            optimizer, net = self.optimizers()[turn], self.net[turn]
            optimizer.zero_grad()
            self.manual_backward(nn.functional.cross_entropy(net(x), y))
            self.norms.append(float(sum(p.grad.double().square().sum() for p in net.parameters()) ** 0.5))
            optimizer.step()


def test_of_several_steps_in_a_batch_the_epoch_has_the_last_one(fit: Any) -> None:
    callback = TrajectoryCallback(track="gradient")
    fit(callback, module=Adversaries)
    assert callback.trajectory.steps.tolist() == [1, 4 * BATCHES, 8 * BATCHES, 12 * BATCHES]


def test_each_parameter_has_the_gradient_of_its_own_optimizers_latest_step(fit: Any) -> None:
    callback = TrajectoryCallback(track="gradient", schedule=EveryNSteps(1))
    trainer = fit(callback, module=Adversaries, max_epochs=1)
    latest, expected = [0.0, 0.0], []
    for step, norm in enumerate(trainer.lightning_module.norms):
        latest[Adversaries.turns[step % 4]] = norm
        expected.append(tuple(latest))
    for of, net in enumerate(("layer:net.0", "layer:net.1")):
        norms = np.sqrt(np.diagonal(callback.trajectory.gram(net)))
        np.testing.assert_allclose(norms, [pair[of] for pair in expected], rtol=1e-5)


def test_an_epoch_whose_last_batch_has_no_step_is_told(fit: Any) -> None:
    class Rarely(Module):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            loss = self.loss(batch)
            self.manual_backward(loss)
            if batch_idx == 1:
                self.optimizers().step()
                self.optimizers().zero_grad()

    with pytest.warns(UserWarning, match="traj_gradient: no gradient was recorded at the end of this epoch"):
        fit(TrajectoryCallback(track="gradient"), module=Rarely)


def test_the_first_step_that_has_a_value_is_recorded(fit: Any) -> None:
    class Late(Module):
        """Whose first step finds no gradients."""

        def on_after_backward(self) -> None:
            if not self.trainer.global_step:
                self.zero_grad()

    trainer = fit(TrajectoryCallback(track="gradient"), module=Late)
    steps = trainer.callbacks[0].trajectory.steps.tolist()
    batches = trainer.num_training_batches
    assert steps[:2] == [2, batches]


def test_an_optimizer_that_turns_out_to_lack_the_moment_is_told(fit: Any) -> None:
    class Unknown(torch.optim.SGD):
        """Takes betas, as optimizers with moments do, and keeps none."""

        def __init__(self, parameters: Any) -> None:
            super().__init__(parameters, lr=0.1)
            self.param_groups[0]["betas"] = (0.9, 0.99)

    class Trained(Module):
        def configure_optimizers(self) -> Any:
            return Unknown(self.parameters())

    with pytest.warns(UserWarning, match="nothing was recorded: no step came with a value for track='second_moment'"):
        fit(TrajectoryCallback(track="second_moment"), module=Trained)
