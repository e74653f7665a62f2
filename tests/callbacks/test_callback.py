"""The callback in running Trainers: it changes nothing, it sees everything, and it counts as documented."""

from __future__ import annotations

import itertools
import math
import random
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import pytorch_lightning
import torch
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint, WeightAveraging
from torch import nn
from torch.utils.data import DataLoader

from lightning_traj import (
    After,
    AtEpochs,
    AtSteps,
    EveryNEpochs,
    EveryNSteps,
    HybridTraining,
    LogSpaced,
    Trajectory,
    TrajectoryCallback,
)
from lightning_traj.callbacks.trainer import epochs_may_not_end
from models import (
    CLASSES,
    INPUTS,
    Module,
    Stream,
    Training,
    TwoOptimizers,
    Validated,
    Witness,
    batches,
    both_schedules,
    mlp,
)

# It changes nothing ---------------------------------------------------------------------------------------------


class Random(Validated):
    """Draws random numbers, and has buffers: whatever disturbs it is seen in its losses."""

    def __init__(self) -> None:
        super().__init__(mlp(nn.BatchNorm1d(8), nn.Dropout(0.3)))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        noise = random.random() + np.random.rand()  # noqa: NPY002 - the global state is what is tested
        return (1 + noise) * super().training_step(batch, batch_idx)


def outcome(trainer: Any) -> dict[str, Any]:
    module = trainer.lightning_module
    return {
        "weights": module.state_dict(),
        "optimizer": [optimizer.state_dict() for optimizer in trainer.optimizers],
        "losses": module.losses,
        "modes": [part.training for part in module.modules()],
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1],  # noqa: NPY002
        "python": random.getstate(),
    }


@pytest.mark.parametrize("schedule", [EveryNEpochs(1), EveryNSteps(1)])
@pytest.mark.parametrize("snapshot", ["sketch", "full"])
def test_training_is_the_same_to_the_last_bit(fit: Any, schedule: Any, snapshot: Any) -> None:
    callback = TrajectoryCallback(schedule=schedule, snapshot=snapshot, sketch_dim=16)
    arguments = {"module": Random, "val_check_interval": 0.5, "log_every_n_steps": 2}
    observed = outcome(fit(callback, EarlyStopping("traj/mds"), data=batches(shuffle=True), **arguments))
    alone = outcome(fit(data=batches(shuffle=True), **arguments))
    torch.testing.assert_close(observed, alone, rtol=0, atol=0)
    assert len(callback.trajectory) > 3


# It counts as documented ----------------------------------------------------------------------------------------


class Skipping(Module):
    """Takes every second step only, as a GradScaler may."""

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        if batch_idx % 2:
            optimizer_closure()
        else:
            optimizer.step(closure=optimizer_closure)


class NoLoss(Module):
    """Has nothing to learn from every second batch: Lightning then steps without gradients."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return None if batch_idx % 2 else super().training_step(batch, batch_idx)


class Impatient(Module):
    """Leaves its second epoch after a batch."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> Any:
        return -1 if self.current_epoch == 1 and batch_idx == 1 else None


QUARTERS = [i / 4 for i in range(13)]
PLAIN = ([0, 4, 8, 12], [0, 1, 2, 3], list(range(13)), QUARTERS)
COUNTS: dict[str, tuple[dict[str, Any], tuple[Any, ...]]] = {
    "plain": ({}, PLAIN),
    "validation four times an epoch": ({"module": Validated, "val_check_interval": 0.25}, PLAIN),
    "accumulation": ({"accumulate_grad_batches": 3}, ([0, 2, 4, 6], [0, 1, 2, 3], 7, [0, 0.75, 1, 1.75, 2, 2.75, 3])),
    "two optimizers": ({"module": TwoOptimizers}, ([0, 8, 16, 24], [0, 1, 2, 3], 25, [0, *np.repeat(QUARTERS[1:], 2)])),
    "skipped steps": ({"module": Skipping}, ([0, 2, 4, 6], [0, 1, 2, 3], 7, [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75])),
    "steps without gradients": ({"module": NoLoss}, PLAIN),
    "limit_train_batches": ({"limit_train_batches": 2}, ([0, 2, 4, 6], [0, 1, 2, 3], 7, np.arange(7) / 2)),
    "overfit_batches": ({"overfit_batches": 1}, ([0, 1, 2, 3], [0, 1, 2, 3], 4, [0, 1, 2, 3])),
    "max_steps within an epoch": ({"max_steps": 6}, ([0, 4, 6], [0, 1, 1.5], 7, QUARTERS[:7])),
    "an epoch that is left early": (
        {"module": Impatient},
        ([0, 4, 5, 9], [0, 1, 1.5, 3], 10, [*QUARTERS[:6], *QUARTERS[9:]]),
    ),
    "data without a length": ({"data": DataLoader(Stream(), batch_size=8)}, (*PLAIN[:3], np.arange(13) // 4)),
    "fast_dev_run": ({"fast_dev_run": 2}, ([0, 2], [0, 1], 3, [0, 0.5, 1])),
    "barebones": ({"barebones": True}, PLAIN),
    "one step": ({"max_steps": 1}, ([0, 1], [0, 0.25], 2, [0, 0.25])),
}


@pytest.mark.filterwarnings(
    "ignore:`training_step` returned `None`",
    "ignore:You requested to overfit",
    "ignore:`max_epochs` was not set",
)
@pytest.mark.parametrize("case", COUNTS)
def test_steps_and_epochs(fit: Any, case: str) -> None:
    arguments, (epoch_steps, epochs, steps, step_epochs) = COUNTS[case]
    by_epoch, by_step = both_schedules()
    fit(by_epoch, by_step, **arguments)
    assert by_epoch.trajectory.steps.tolist() == epoch_steps
    assert by_epoch.trajectory.epochs.tolist() == list(epochs)
    assert by_step.trajectory.steps.tolist() == (list(range(steps)) if isinstance(steps, int) else steps)
    assert by_step.trajectory.epochs.tolist() == list(step_epochs)


def test_schedules_with_intervals(fit: Any) -> None:
    by_epoch = TrajectoryCallback(schedule=EveryNEpochs(2), name="a")
    by_step = TrajectoryCallback(schedule=EveryNSteps(5), name="b")
    fit(by_epoch, by_step)
    assert by_epoch.trajectory.steps.tolist() == [0, 8]  # no extra one at the end
    assert by_step.trajectory.steps.tolist() == [0, 5, 10]
    assert by_step.trajectory.epochs.tolist() == [0, 1.25, 2.5]


# It sees everything ---------------------------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(INPUTS, INPUTS), nn.Linear(INPUTS, INPUTS)
        self.outer.weight = self.inner.weight

    def forward(self, x: Any) -> Any:
        return self.outer(self.inner(x).tanh())


class Odd(nn.Module):
    """Parameters of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(INPUTS, CLASSES)
        self.complex = nn.Parameter(torch.randn(CLASSES, dtype=torch.complex64))
        self.scalar = nn.Parameter(torch.tensor(2.0))
        self.brief = nn.Parameter(torch.randn(CLASSES, dtype=torch.bfloat16))
        self.empty = nn.Parameter(torch.zeros(0))
        self.integer = nn.Parameter(torch.arange(3), requires_grad=False)

    def forward(self, x: Any) -> Any:
        return self.scalar * self.linear(x) + (self.complex * (1 + 2j)).abs() + self.brief.float()


class One(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.1))

    def forward(self, x: Any) -> Any:
        return self.scale * x[:, :CLASSES]


class Thawing(Module):
    """The first layer is trained in the second epoch only."""

    def on_train_epoch_start(self) -> None:
        self.net[0].requires_grad_(self.current_epoch == 1)
        self.net[0].zero_grad()


class Growing(Module):
    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1:
            self.net.append(nn.Linear(CLASSES, CLASSES))
            self.optimizers().add_param_group({"params": self.net[-1].parameters()})


class Shrinking(Module):
    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1:
            del self.net[0].bias
            self.net[0].register_parameter("bias", None)


class Lazy(Module):
    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.LazyLinear(8), nn.Tanh(), nn.LazyLinear(CLASSES)))


class LazyValidated(Lazy, Validated):
    pass


def compiled_part() -> Module:
    module = Module(mlp(nn.Linear(8, 8)))
    module.net[2] = torch.compile(module.net[2], backend="eager")
    return module


MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "plain": (Module, {}),
    "tied": (lambda: Module(Tied()), {}),
    "all kinds of parameters": (lambda: Module(Odd()), {}),
    "one parameter": (lambda: Module(One()), {}),
    "frozen and thawed": (Thawing, {}),
    "growing": (Growing, {}),
    "lazy, with sanity validation": (LazyValidated, {}),
    "compiled": (lambda: torch.compile(Module(), backend="eager"), {}),
    "a part compiled": (compiled_part, {}),
    "bf16-true": (Module, {"precision": "bf16-true"}),
    "bf16-mixed": (Module, {"precision": "bf16-mixed"}),
    "64-true": (Module, {"precision": "64-true"}),
    "weight averaging": (Validated, {"also": WeightAveraging}),
    "exponential weight averaging": (Validated, {"also": EMAWeightAveraging}),
}


def check_against(witness: Witness, sketch: Trajectory, full: Trajectory) -> None:
    """Blocks shorter than the sketch are kept whole: both modes have to give the Gram matrix of the parameters."""
    expected = witness.gram()
    np.testing.assert_allclose(full.gram(), expected, rtol=1e-10)
    np.testing.assert_allclose(sketch.gram(), expected, rtol=1e-6)
    assert full.blocks == sketch.blocks
    assert {block.name: block.numel for block in full.blocks} == {
        name: len(entries) for snapshot in witness.snapshots for name, entries in snapshot.items()
    }
    updates = np.diag(expected)[1:] + np.diag(expected)[:-1] - 2 * np.diag(expected, 1)
    np.testing.assert_allclose(full.summary()["path_length"], np.sqrt(updates.clip(0)).sum(), rtol=1e-6)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch.compile asks for it
@pytest.mark.parametrize("case", MODELS)
def test_gram_matrix_of_every_model(fit: Any, case: str) -> None:
    module, arguments = MODELS[case]
    arguments = dict(arguments)
    also = [arguments.pop("also")()] if "also" in arguments else []
    witness, sketch, full = Witness(), TrajectoryCallback(name="s"), TrajectoryCallback(name="f", snapshot="full")
    fit(*also, sketch, full, witness, module=module, **arguments)
    check_against(witness, sketch.trajectory, full.trajectory)
    assert not any("_orig_mod" in block.name or "_orig_mod" in block.layer for block in full.trajectory.blocks)
    assert sketch.trajectory.steps.tolist() == full.trajectory.steps.tolist() == [0, 4, 8, 12]


def test_lazy_parameters_are_recorded_before_the_first_step(fit: Any) -> None:
    class Initial(Lazy):
        initial = None

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            if self.initial is None:
                self.initial = [parameter.detach().clone() for parameter in self.parameters()]

    callback, full = TrajectoryCallback(), TrajectoryCallback(name="f", snapshot="full")
    trainer = fit(callback, full, EarlyStopping("traj/mds"), module=Initial)
    expected = sum(float((parameter.double() ** 2).sum()) for parameter in trainer.lightning_module.initial)
    for trajectory in (callback.trajectory, full.trajectory):
        assert trajectory.steps.tolist() == [0, 4, 8, 12]
        assert trajectory.epochs[0] <= 0.25
        assert trajectory.gram()[0, 0] == pytest.approx(expected, rel=1e-6)


def test_parameters_that_go_stay_where_they_were(fit: Any) -> None:
    witness, sketch, full = Witness(), TrajectoryCallback(name="s"), TrajectoryCallback(name="f", snapshot="full")
    fit(sketch, full, witness, module=Shrinking)
    for before, after in itertools.pairwise(witness.snapshots):
        after.setdefault("net.0.bias", before["net.0.bias"])
    check_against(witness, sketch.trajectory, full.trajectory)


def test_include_and_exclude(fit: Any) -> None:
    callback = TrajectoryCallback(include="net.*", exclude=["*.bias"])
    fit(callback)
    assert [block.name for block in callback.trajectory.blocks] == ["net.0.weight", "net.2.weight"]


class OtherPackage(Training, pytorch_lightning.LightningModule):
    pass


@pytest.mark.parametrize("package", [pl, pytorch_lightning])
def test_both_packages(fit: Any, package: Any) -> None:
    module = Module if package is pl else OtherPackage
    callback, other = TrajectoryCallback(), TrajectoryCallback()
    stop = package.callbacks.EarlyStopping("traj/mds")
    best = package.callbacks.ModelCheckpoint(monitor="traj/mds")
    trainer = fit(stop, best, callback, trainer_type=package.Trainer, module=module)
    fit(other)
    assert float(best.best_model_score) == pytest.approx(min(callback.trajectory.series()["mds"][1:]), rel=1e-6)
    assert trainer.global_step == 12
    np.testing.assert_array_equal(callback.trajectory.gram(), other.trajectory.gram())


def test_both_compile_and_no_compile_share_names(fit: Any) -> None:
    plain, compiled = TrajectoryCallback(), TrajectoryCallback()
    fit(plain)
    fit(compiled, module=lambda: torch.compile(Module(), backend="eager"))
    assert plain.trajectory.blocks == compiled.trajectory.blocks
    np.testing.assert_array_equal(plain.trajectory.gram(), compiled.trajectory.gram())


# Its values can be monitored ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "arguments"),
    [
        *((order, {}) for order in itertools.permutations(range(3))),
        ((0, 1, 2), {"val_check_interval": 0.25}),
        ((2, 1, 0), {"val_check_interval": 0.25}),
        ((2, 1, 0), {"check_val_every_n_epoch": 2}),
    ],
    ids=str,
)
def test_monitors_work_with_their_defaults(fit: Any, order: Any, arguments: dict[str, Any]) -> None:
    callback, stop = TrajectoryCallback(), EarlyStopping(monitor="traj/mds", patience=1, mode="max")
    best = ModelCheckpoint(monitor="traj/mds", save_top_k=-1)
    callbacks = [callback, stop, best]
    trainer = fit(*(callbacks[i] for i in order), module=Validated, max_epochs=4, **arguments)
    series = callback.trajectory.series()["mds"]
    assert trainer.should_stop  # it falls at once, from 1
    assert any(float(stop.best_score) == pytest.approx(value, rel=1e-6) for value in series[:2])
    assert {float(score) for score in best.best_k_models.values()} <= {float(np.float32(value)) for value in series}
    assert float(trainer.callback_metrics["traj/mds"]) == pytest.approx(series[-1], rel=1e-6)


@pytest.mark.parametrize("key", ["mds", "param_norm", "displacement", "path_length"])
def test_promised_monitors_are_there_from_the_first_batch_on(fit: Any, key: str) -> None:
    stop = EarlyStopping(monitor=f"mine/{key}", patience=100)
    fit(TrajectoryCallback(name="mine"), stop, module=Validated, val_check_interval=0.25, max_epochs=1)
    assert np.isfinite(float(stop.best_score))


class Plateau(Module):
    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=1e9, mode="max")
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "traj/mds"}}


class PlateauBySteps(Plateau):
    def configure_optimizers(self) -> Any:
        configuration = super().configure_optimizers()
        configuration["lr_scheduler"]["interval"] = "step"
        return configuration


@pytest.mark.parametrize("module", [Plateau, PlateauBySteps])
def test_learning_rate_falls_on_a_plateau(fit: Any, module: Any) -> None:
    trainer = fit(TrajectoryCallback(), module=module)
    assert trainer.optimizers[0].param_groups[0]["lr"] < 0.1


# It serves several fits -----------------------------------------------------------------------------------------


def test_a_trainer_that_is_fit_again_goes_on(fit: Any) -> None:
    callback, once, at_once = TrajectoryCallback(), Witness(), TrajectoryCallback()
    trainer = fit(callback, once, max_epochs=2)
    trainer.fit_loop.max_epochs = 4
    trainer.fit(trainer.lightning_module, batches())
    assert callback.trajectory.steps.tolist() == [0, 4, 8, 12, 16]
    assert callback.trajectory.epochs.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(callback.trajectory.gram(), once.gram(), rtol=1e-6)
    fit(at_once, max_epochs=2)
    np.testing.assert_array_equal(callback.trajectory.gram()[:3, :3], at_once.trajectory.gram())


def test_another_trainer_begins_anew(fit: Any) -> None:
    callback, alone = TrajectoryCallback(), TrajectoryCallback()
    fit(callback)
    fit(callback, module=lambda: Module(Tied()), max_epochs=2)
    fit(alone, module=lambda: Module(Tied()), max_epochs=2)
    assert callback.trajectory.steps.tolist() == [0, 4, 8]
    assert callback.trajectory.blocks == alone.trajectory.blocks
    np.testing.assert_array_equal(callback.trajectory.gram(), alone.trajectory.gram())


def test_another_model_begins_anew(fit: Any) -> None:
    callback = TrajectoryCallback()
    trainer = fit(callback, max_epochs=2)
    trainer.fit_loop.max_epochs = 4
    trainer.fit(Module(Tied()), batches())
    assert callback.trajectory.steps.tolist() == [0, 4, 8]
    assert callback.trajectory.epochs.tolist() == [2, 3, 4]
    assert {block.layer for block in callback.trajectory.blocks} == {"net.inner", "net.outer"}


def test_evaluation_records_nothing(fit: Any) -> None:
    callback = TrajectoryCallback()
    trainer = fit(callback, module=Validated)
    before = callback.trajectory.gram()
    trainer.validate(trainer.lightning_module, verbose=False)
    np.testing.assert_array_equal(callback.trajectory.gram(), before)


# It leaves files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("snapshot", ["sketch", "full"])
def test_fast_dev_run_leaves_no_files(fit: Any, tmp_path: Any, snapshot: Any) -> None:
    callback = TrajectoryCallback(snapshot=snapshot, dirpath=tmp_path / "named")
    fit(callback, fast_dev_run=True)
    assert callback.trajectory.steps.tolist() == [0, 1]
    assert not list(tmp_path.rglob("*"))


def test_file_is_kept_current(fit: Any, tmp_path: Any) -> None:
    class Reader(pl.Callback):
        lengths: list[int] = []  # noqa: RUF012 - one test, one instance

        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            self.lengths.append(len(Trajectory.load(tmp_path / "trajectory.safetensors")))

    callback, reader = TrajectoryCallback(), Reader()
    fit(callback, TrajectoryCallback(name="other"), reader)
    assert reader.lengths == [2, 3, 4]
    loaded = Trajectory.load(tmp_path / "trajectory.safetensors")
    np.testing.assert_array_equal(loaded.gram(), callback.trajectory.gram())
    assert loaded.sketches is not None  # at the end of training
    assert (tmp_path / "other.safetensors").is_file()


def test_dirpath_and_earlier_files(fit: Any, tmp_path: Any) -> None:
    for epochs in (1, 2, 3):
        fit(TrajectoryCallback(dirpath=tmp_path / "there", snapshot="full"), max_epochs=epochs)
    lengths = {path.name: len(Trajectory.load(path)) for path in (tmp_path / "there").glob("*.safetensors")}
    assert lengths == {
        "trajectory-v1.safetensors": 2,
        "trajectory-v2.safetensors": 3,
        "trajectory.safetensors": 4,
    }
    assert len(list((tmp_path / "there" / "traj-snapshots").iterdir())) == 2 + 3 + 4
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_files_lie_beside_the_logs(fit: Any, tmp_path: Any) -> None:
    logger = pl.loggers.CSVLogger(tmp_path, name="runs")
    fit(TrajectoryCallback(), logger=logger, log_every_n_steps=1)
    assert (tmp_path / "runs" / "version_0" / "trajectory.safetensors").is_file()


def test_cost_is_said_and_summary_printed(fit: Any, capsys: Any, caplog: Any) -> None:
    with caplog.at_level("INFO"):
        fit(TrajectoryCallback())
    assert caplog.text.count("traj: recording 4 blocks, 83 parameters as sketch snapshots: 332 B a snapshot") == 1
    printed = capsys.readouterr().out
    assert printed.count("mds_relative") == 1
    assert "trajectory.safetensors" in printed


class Endless(Stream):
    """The same data over and over."""

    def __iter__(self) -> Any:
        return itertools.cycle(super().__iter__())


HINT = "the training data have no length, and schedule="
STREAMS: dict[str, tuple[Any, dict[str, Any], bool]] = {
    "an endless stream": (Endless, {"max_steps": 6}, True),
    "by time": (Endless, {"max_steps": 6, "max_time": "00:01:00:00"}, True),
    "steps in epochs of unknown length": (Stream, {"max_steps": 6}, True),
    "so many epochs": (Stream, {"max_epochs": 2}, False),
    "a limit": (Endless, {"max_steps": 6, "limit_train_batches": 3}, False),
    "fast_dev_run": (Endless, {"fast_dev_run": True}, False),
}


@pytest.mark.filterwarnings("ignore:`max_epochs` was not set")
@pytest.mark.parametrize("case", STREAMS)
def test_a_hint_where_epochs_may_never_end(fit: Any, caplog: Any, case: str) -> None:
    stream, arguments, hinted = STREAMS[case]
    schedules = {
        EveryNEpochs(1): hinted,
        AtEpochs([1]) | EveryNEpochs(2): hinted,
        EveryNEpochs(1) | EveryNSteps(2): False,
        LogSpaced(): False,
    }
    for schedule, expected in schedules.items():
        caplog.clear()
        with caplog.at_level("INFO"):
            data = DataLoader(stream(), batch_size=8)
            fit(TrajectoryCallback(schedule=schedule), data=data, **{"max_epochs": -1, **arguments})
        assert caplog.text.count(HINT) == expected
        assert caplog.text.count("pass schedule=EveryNSteps(n) or LogSpaced()") == expected


def test_a_trainer_without_limits_may_be_given_endless_data() -> None:
    limits = {"max_steps": -1, "num_training_batches": math.inf, "fast_dev_run": False}
    assert epochs_may_not_end(SimpleNamespace(max_epochs=1000, **limits))  # which Lightning chooses then
    assert not epochs_may_not_end(SimpleNamespace(max_epochs=999, **limits))


@pytest.mark.parametrize(
    ("when", "hinted"), [(1, True), (After(1), True), (AtEpochs([1]), True), (AtSteps([2]), False)]
)
def test_a_hint_where_conditions_may_never_be_asked(fit: Any, caplog: Any, when: Any, hinted: bool) -> None:
    for arguments, expected in (({"max_epochs": -1, "max_steps": 6}, hinted), ({"max_epochs": 3}, False)):
        caplog.clear()
        with caplog.at_level("INFO"):
            data = DataLoader(Stream(), batch_size=8)
            fit(HybridTraining(train="bias", when=when), data=data, **arguments)
        assert caplog.text.count("is asked at the starts of epochs only: if they never end, pass") == expected


# Bad input ------------------------------------------------------------------------------------------------------

WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"schedule": 5}, TypeError, "schedule=5 is not a schedule: pass one such as EveryNEpochs(1) or EveryNSteps(100)."),
    ({"schedule": EveryNEpochs}, TypeError, "is not a schedule: pass one such as EveryNEpochs(1) or EveryNSteps(100)."),
    ({"schedule": "epoch"}, TypeError, "schedule='epoch' is not a schedule: pass one such as EveryNEpochs(1)"),
    ({"snapshot": "half"}, ValueError, "snapshot='half': pass one of 'sketch', 'full'."),
    ({"snapshot": None}, ValueError, "snapshot=None: pass one of 'sketch', 'full'."),
    ({"snapshot": ["full"]}, ValueError, "snapshot=['full']: pass one of 'sketch', 'full'."),
    ({"sketch_dim": 0}, ValueError, "sketch_dim=0: pass a positive int."),
    ({"sketch_dim": -3}, ValueError, "sketch_dim=-3: pass a positive int."),
    ({"sketch_dim": 2.5}, TypeError, "sketch_dim=2.5: pass a positive int."),
    ({"sketch_dim": True}, TypeError, "sketch_dim=True: pass a positive int."),
    ({"sketch_dim": "2048"}, TypeError, "sketch_dim='2048': pass a positive int."),
    ({"blocks": "layers"}, ValueError, "blocks='layers': pass 'tensor', 'layer', 'role', 'model', or a function"),
    ({"fused": ["*.qkv"]}, TypeError, "fused=['*.qkv']: pass a dict from glob patterns over parameter names"),
    ({"fused": {"*.qkv": "thirds"}}, TypeError, "fused['*.qkv']='thirds' is not a layout: pass a FusedLayout."),
    ({"include": 3}, TypeError, 'include=3: pass a glob pattern such as "*.weight", a list of them, or None.'),
    ({"include": [3]}, TypeError, "include=[3]: pass a glob pattern"),
    ({"include": [None]}, TypeError, "include=[None]: pass a glob pattern"),
    ({"exclude": {"a": 1}}, TypeError, "exclude={'a': 1}: pass a glob pattern"),
    ({"exclude": b"x"}, TypeError, "exclude=b'x': pass a glob pattern"),
    ({"max_snapshots": 3}, ValueError, "max_snapshots=3: pass an int of at least 4."),
    ({"max_snapshots": 0}, ValueError, "max_snapshots=0: pass an int of at least 4."),
    ({"max_snapshots": None}, TypeError, "max_snapshots=None: pass an int of at least 4."),
    ({"seed": "0"}, TypeError, "seed='0': pass an int."),
    ({"figures": 1}, TypeError, "figures=1: pass True or False."),
    ({"dirpath": 5}, TypeError, "dirpath=5 is not a path: pass a str or a Path, or None for the folder of the logs."),
    ({"name": 5}, TypeError, 'name=5 is not a string: pass one such as "traj".'),
    ({"name": ""}, ValueError, "name='': pass letters, digits, '.', '_' and '-'"),
    ({"name": "a/b"}, ValueError, "name='a/b': pass letters, digits, '.', '_' and '-'"),
    ({"name": ".."}, ValueError, "name='..': pass letters, digits, '.', '_' and '-'"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), WRONG, ids=[str(case[0]) for case in WRONG])
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        TrajectoryCallback(**arguments)
    assert message in str(caught.value)


@pytest.mark.parametrize("schedule", [EveryNEpochs, EveryNSteps])
@pytest.mark.parametrize(
    ("n", "error", "message"),
    [
        (0, ValueError, "(n=0): pass a positive int"),
        (-2, ValueError, "(n=-2): pass a positive int"),
        (1.5, TypeError, "(n=1.5): pass a positive int"),
        ("2", TypeError, "(n='2'): pass a positive int"),
        (True, TypeError, "(n=True): pass a positive int"),
    ],
)
def test_wrong_intervals(schedule: Any, n: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        schedule(n)
    assert schedule.__name__ + message in str(caught.value)


def test_same_name_twice(fit: Any) -> None:
    with pytest.raises(RuntimeError, match="Found more than one stateful callback of type `TrajectoryCallback`"):
        fit(TrajectoryCallback(), TrajectoryCallback(sketch_dim=8))  # Lightning says so itself

    class Late(Module):
        def configure_callbacks(self) -> Any:
            return [TrajectoryCallback(name="a"), TrajectoryCallback(name="a")]

    with pytest.raises(
        ValueError, match=r"name='a': two TrajectoryCallbacks in one Trainer would write a.safetensors; give each"
    ):
        fit(module=Late)
    with pytest.raises(ValueError, match=r"name='traj(ectory)?': two .* would write trajectory.safetensors"):
        fit(TrajectoryCallback(), TrajectoryCallback(name="trajectory"))


class Whole(Module):
    def __init__(self) -> None:
        super().__init__(nn.Identity())
        self.integers = nn.Parameter(torch.arange(3), requires_grad=False)

    def configure_optimizers(self) -> None:
        return None


PATTERNS: list[tuple[dict[str, Any], Any, str]] = [
    ({}, Whole, "none of the 1 parameters of the model is floating-point and non-empty"),
    (
        {"include": "encoder.*"},
        Module,
        "include='encoder.*': 'encoder.*' matches none of the parameters; names: 'net.0",
    ),
    ({"include": ["net.*", "x"]}, Module, "include=['net.*', 'x']: 'x' matches none of the parameters; names: 'net.0"),
    ({"exclude": "head"}, Module, "exclude='head': 'head' matches none of the parameters; names: 'net.0.weight'"),
    ({"include": []}, Module, "include=[], exclude=None leave none of 4 parameters: record at least one"),
    ({"exclude": "*"}, Module, "include=None, exclude='*' leave none of 4 parameters: record at least one"),
]


@pytest.mark.filterwarnings("ignore:`LightningModule.configure_optimizers` returned `None`")
@pytest.mark.parametrize(("arguments", "module", "message"), PATTERNS, ids=[case[2][:40] for case in PATTERNS])
def test_models_that_do_not_go_with_the_arguments(fit: Any, arguments: Any, module: Any, message: str) -> None:
    modules: list[Any] = []

    def build() -> Any:
        modules.append(module())
        return modules[0]

    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is compared below
        fit(TrajectoryCallback(**arguments), module=build)
    assert message in str(caught.value)
    assert not modules[0].losses  # before training


def test_nothing_recorded_yet() -> None:
    with pytest.raises(RuntimeError, match=r"name='mine'.*has recorded nothing yet: it begins with fit"):
        TrajectoryCallback(name="mine").trajectory  # noqa: B018
