"""All ranks issue the same collectives in the same order, whoever reads logged metrics on one of them first."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, RichProgressBar, TQDMProgressBar
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from lightning.pytorch.trainer.connectors.logger_connector.fx_validator import _FxValidator
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, SequenceParallel, parallelize_module
from torchmetrics import MeanMetric

from collectives import Collective, Collectives
from launch import launch
from lightning_traj import EveryNSteps, HybridTraining, LineSearch, Plateau, Threshold, TrajectoryCallback
from models import INPUTS, Reported, Validated, fit

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch has no torch.distributed")

Hook = tuple[str, int | None]
STEP, EPOCH, BOTH = (True, False), (False, True), (True, True)
HOOKS = [name for name in dir(pl.Callback) if name.startswith("on_")]


class Net(Validated):
    """Logs in training_step: a tensor that is reduced, or a Metric, ``value`` says which; for each of ``times``."""

    group: Any = None

    def __init__(self, net: nn.Module | None = None, value: str = "", times: Any = ()) -> None:
        super().__init__(net)
        self.value, self.times = value, times
        self.has_been_read = False
        self.metrics = nn.ModuleDict()
        self.outputs: list[Tensor] = []

    def log_value(self, name: str, value: Tensor, on_step: bool, on_epoch: bool, logger: Any = None) -> None:
        logged: Any = value.detach()
        if self.value == "Metric":
            if name not in self.metrics:
                self.metrics[name] = MeanMetric()
                self._metric_attributes = None  # Lightning looks for Metrics once
            logged = self.metrics[name]
            logged(value.detach())
        (logger or self).log(name, logged, on_step=on_step, on_epoch=on_epoch, prog_bar=True, sync_dist=True)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        for on_step, on_epoch in self.times:
            self.log_value(f"train-{on_step}-{on_epoch}", loss, on_step, on_epoch)
        if self.times:
            self.log("in a group", loss, on_epoch=True, sync_dist=True, sync_dist_group=self.group)
            if not torch.distributed.get_rank():
                self.log("on rank 0", loss, on_epoch=True, sync_dist=True, rank_zero_only=True)
        self.outputs.append(loss.detach())
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self.loss(batch), sync_dist=True, prog_bar=True)

    def on_train_epoch_end(self) -> None:
        self.outputs_mean = self.trainer.strategy.reduce(torch.stack(self.outputs)).mean()  # the user's own collective
        self.outputs.clear()


class Unusual(Net):
    """Takes an optimizer step in on_train_epoch_end too, and has a parameter more from the second epoch on."""

    automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.optimizers().zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        self.optimizers().step()

    def on_train_epoch_end(self) -> None:
        super().on_train_epoch_end()
        if self.times:
            self.log_value("at the end", self.outputs_mean, *EPOCH)
            assert self.trainer.global_rank or self.trainer.progress_bar_metrics  # a reader right before the step
        self.has_been_read = True  # on rank 0 alone: what would be logged now, Lightning itself could not reduce
        self.optimizers().step()
        self.has_been_read = False

    def come(self, *_: Any) -> None:
        self.late = nn.Parameter(torch.ones(2), requires_grad=False)

    on_load_checkpoint = come

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1:
            self.come()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.net.parameters(), lr=0.1)


class Sharded(Net):
    def configure_model(self) -> None:
        if not hasattr(self.net[0].weight, "placements"):
            fully_shard(self.net)


class SequenceParallelNet(Net):
    """Whose gradients of the norm are partial sums."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(nn.Sequential(nn.Linear(INPUTS, 8), nn.LayerNorm(8), nn.Linear(8, 3)), **arguments)

    def configure_model(self) -> None:
        plan = {
            "0": ColwiseParallel(output_layouts=Shard(0)),
            "1": SequenceParallel(sequence_dim=0),
            "2": ColwiseParallel(input_layouts=Shard(0), output_layouts=Replicate()),
        }
        if not hasattr(self.net[0].weight, "placements"):
            parallelize_module(self.net, self.device_mesh["tensor_parallel"], plan)


def ddp(unused: bool = False) -> DDPStrategy:
    return DDPStrategy(process_group_backend="gloo", find_unused_parameters=unused)


def sharding(ways: int) -> ModelParallelStrategy:
    return ModelParallelStrategy(data_parallel_size=ways, tensor_parallel_size=2 // ways, process_group_backend="gloo")


def recording(name: str = "traj", **arguments: Any) -> TrajectoryCallback:
    return TrajectoryCallback(name=name, figures=False, sketch_dim=16, **arguments)


def each_step(name: str = "steps", **arguments: Any) -> TrajectoryCallback:
    return recording(name, schedule=EveryNSteps(1), **arguments)


def hybrid(**arguments: Any) -> HybridTraining:
    return HybridTraining(train="bias", **arguments)


# What communicates: callbacks, module and strategy.
WAYS: dict[str, tuple[Callable[[], list[Any]], Callable[..., Any], Callable[[], Any]]] = {
    "DDP": (
        lambda: [
            recording(),
            each_step(window=2, window_schedule=EveryNSteps(2)),
            each_step("full", snapshot="full"),
            EMAWeightAveraging(decay=0.5),
            each_step("average", track="average"),
            each_step("gradient", track="gradient"),
            recording("moment", track="first_moment"),
        ],
        Net,
        ddp,
    ),
    "Plateau and line search": (
        lambda: [recording(), hybrid(when=Plateau("val/loss", patience=1), line_search=LineSearch(batches=1))],
        Net,
        lambda: ddp(unused=True),
    ),
    "Threshold": (
        lambda: [recording(), recording("second"), hybrid(when=Threshold("mds", above=-2))],
        Net,
        lambda: ddp(unused=True),
    ),
    "unusual": (lambda: [each_step(), recording("second"), each_step("update", track="update")], Unusual, ddp),
    "FSDP2": (lambda: [each_step(), recording("second", snapshot="full")], Sharded, lambda: sharding(2)),
    "partial sums": (
        lambda: [each_step(track="gradient"), each_step("second", track="update")],
        SequenceParallelNet,
        lambda: sharding(1),
    ),
}


class Logs(pl.Callback):
    """Logs new values in each of these hooks where Lightning allows it."""

    def __init__(self, hooks: set[str], name: str) -> None:
        for hook in sorted(hooks & set(HOOKS)):
            if _FxValidator.functions[hook] is not None:
                setattr(self, hook, self.logging(hook, name))

    def logging(self, hook: str, name: str) -> Callable[..., None]:
        allowed = _FxValidator.functions[hook]["allowed_on_step"]  # type: ignore[index]

        def log(trainer: Any, module: Any, *_: Any) -> None:
            if module.has_been_read:
                return
            for on_step, on_epoch in module.times:
                on_step, on_epoch = (on_step, on_epoch) if on_step in allowed else EPOCH
                label = f"{name}-{hook}-{on_step}-{on_epoch}"
                module.log_value(label, torch.tensor(1.0 + trainer.global_rank), on_step, on_epoch, self)

        return log


class Reader(pl.Callback):
    """Reads logged metrics on rank 0 alone, in each of these hooks, as progress bars do."""

    def __init__(self, hooks: set[str]) -> None:
        self.hooks = hooks & set(HOOKS)
        self.read: set[str] = set()
        for hook in self.hooks:
            setattr(self, hook, self.reading(hook))

    def reading(self, hook: str) -> Callable[..., None]:
        def read(trainer: Any, *_: Any) -> None:
            self.read.add(hook)
            if trainer.is_global_zero:
                assert isinstance(trainer.progress_bar_metrics, dict)

        return read


def arranged(ours: list[Any], hooks: list[Hook], reader: str) -> list[Any]:
    """Callbacks with a reader before, between or after ours, and values that are logged right before it."""
    every = {name for name, _ in hooks}
    if reader == "between":  # elsewhere it would be Lightning itself that comes apart
        later = {name for name, at in hooks if at}
        return [Logs(every, "before"), ours[0], Logs(later, "between"), Reader(later), *ours[1:]]
    return [
        Logs(every, "before"),
        *[Reader(every)] * (reader == "before"),
        *ours,
        *[Reader(every)] * (reader == "after"),
    ]


def train(way: str, root: Path, epochs: int, value: str = "", hooks: Any = (), reader: str = "") -> list[Collective]:
    """Train, or go on from the checkpoint of a run before; the collectives of it."""
    made, module, strategy = WAYS[way]
    ours = made()
    callbacks = arranged(ours, hooks, reader) if reader else ours
    folder = root / way
    with Collectives() as collectives:
        fit(
            *callbacks,
            *[] if reader else [ModelCheckpoint(folder / "saved", "{epoch}", save_top_k=-1)],
            root=folder,
            module=lambda: module(value=value, times=[STEP, EPOCH, BOTH] if value else []),
            strategy=strategy(),
            devices=2,
            max_epochs=epochs,
            num_sanity_val_steps=0,
            ckpt_path=folder / "saved" / "epoch=1.ckpt" if reader else None,
        )
    for callback in callbacks:
        assert not isinstance(callback, Reader) or callback.read == callback.hooks
    return collectives.record


def train_all(
    root: Path, epochs: int, value: str = "", hooks: dict[str, list[Hook]] | None = None, reader: str = ""
) -> dict[str, list[Collective]]:
    warnings.filterwarnings("ignore", "Be aware that when using `ckpt_path`, callbacks used to create the checkpoint")
    Net.group = torch.distributed.new_group()
    return {way: train(way, root, epochs, value, hooks[way] if hooks else [], reader) for way in WAYS}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[Hook]]]:
    """A folder with checkpoints of runs without readers, and the hooks in which callbacks of ours communicated."""
    root = tmp_path_factory.mktemp("trained")
    one, other = launch(train_all, 2, root, 2)
    assert one.keys() == other.keys()
    for way in one:
        assert [collective.match() for collective in one[way]] == [collective.match() for collective in other[way]]
    hooks = {way: {c.hook for c in record if c.issuer == "ours"} for way, record in one.items()}
    return root, {way: sorted(found, key=str) for way, found in hooks.items()}


def test_where_we_communicate_is_found(trained: Any) -> None:
    """The tests below look there: at least these have to be among them."""
    found = {name for hooks in trained[1].values() for name, _ in hooks}
    assert found >= {"on_train_start", "on_train_epoch_start", "on_train_epoch_end", "optimizer_step"}
    assert found >= {"on_before_optimizer_step", "on_train_batch_end"}


@pytest.mark.parametrize("value", ["tensor", "Metric"])
@pytest.mark.parametrize("reader", ["before", "between", "after"])
def test_a_reader_on_one_rank_changes_no_order(trained: Any, reader: str, value: str) -> None:
    root, hooks = trained
    one, other = launch(train_all, 2, root, 4, value, hooks, reader)
    for way in WAYS:
        assert [collective.match() for collective in one[way]] == [collective.match() for collective in other[way]]
        assert any(collective.issuer == "metrics" for collective in one[way])


# The example that was reported ---------------------------------------------------------------------------------------


def with_progress_bars(root: Path) -> list[list[float]]:
    losses = []
    for bar in (RichProgressBar, TQDMProgressBar):
        for callbacks in ([bar(), recording()], [recording(), bar()], [bar()]):
            arguments = {"strategy": ddp(), "devices": 2, "max_epochs": 2, "enable_progress_bar": True}
            trainer = fit(*callbacks, root=root, module=Reported, **arguments)
            losses.append([*trainer.lightning_module.losses, float(trainer.callback_metrics["train_loss"])])
    return losses


def test_a_progress_bar_before_us(tmp_path: Path) -> None:
    for losses in launch(with_progress_bars, 2, tmp_path):
        assert all(loss == losses[0] for loss in losses)


# What the user logs --------------------------------------------------------------------------------------------------


class Twice(pl.Callback):
    """Logs a value under a name under which others log another one."""

    def __init__(self, value: float) -> None:
        self.value = value

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        number = 1 + trainer.global_rank
        self.log("twice", self.value * number, sync_dist=True, batch_size=number)


class Saves(pl.Callback):
    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        trainer.save_checkpoint(Path(trainer.default_root_dir) / "own.ckpt")


class Metrics(Validated):
    """Logs Metrics in training_step: one takes another value at the end of the epoch, and one is reset there."""

    def __init__(self, resets: bool) -> None:
        super().__init__()
        self.updated, self.reset, self.resets = MeanMetric(), MeanMetric(), resets

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        for name, metric in (("updated", self.updated), ("reset", self.reset)):
            metric.update(1.0)
            self.log(name, metric, on_epoch=True, on_step=False, prog_bar=True)
        return super().training_step(batch, batch_idx)

    def on_train_epoch_end(self) -> None:
        if self.resets:
            self.reset.reset()
        else:
            self.updated.update(100.0)


def logged(root: Path, ours: list[Any], first: list[Any], *, resets: bool) -> dict[str, float]:
    size = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    callbacks = [*first, Twice(1.0), *ours, Saves(), Twice(10.0)]
    arguments = {"strategy": ddp(unused=True), "devices": size} if size > 1 else {}
    trainer = fit(*callbacks, root=root, module=lambda: Metrics(resets), max_epochs=2, **arguments)
    return {name: float(trainer.callback_metrics[name]) for name in ("twice", "updated", "reset")}


def what_is_logged(root: Path) -> list[dict[str, float]]:
    alone, found = not torch.distributed.is_initialized(), []
    for ours in ([recording(), hybrid(when=Plateau("updated", patience=1)), recording("second")], []):
        found.append(logged(root, ours, [], resets=False))
        reader = [Reader({"on_train_epoch_end"})]
        if ours or alone:  # with several processes, and without us, it would hang where the checkpoint is saved
            assert logged(root, ours, reader, resets=True)["reset"] == 1.0  # read before it was reset
        if alone:
            assert logged(root, ours, reader, resets=False)["updated"] == 1.0
    return found


def test_what_is_logged_is_as_without_us(tmp_path: Path) -> None:
    """Nothing is computed for good too early, and nothing is counted twice.

    "twice" is the mean of 1 and 10, weighted on the second process by batches twice as large. Four batches in all have
    the value 1, to which each process adds 100 at the end.
    """
    one = {"twice": (1 + 10) / 2, "updated": (4 * 1 + 100) / 5, "reset": 1.0}
    two = {"twice": (1 + 10 + 2 * (2 + 20)) / 6, "updated": (4 * 1 + 200) / 6, "reset": 1.0}
    assert what_is_logged(tmp_path) == [pytest.approx(one)] * 2
    for found in launch(what_is_logged, 2, tmp_path):
        assert found == [pytest.approx(two)] * 2


# What fails ----------------------------------------------------------------------------------------------------------


class FailingMetric(MeanMetric):
    def compute(self) -> Tensor:
        raise ValueError(f"no value of {self.weight:g}")


class Failing(Validated):
    def __init__(self) -> None:
        super().__init__()
        self.metric = FailingMetric()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.metric.update(1.0)
        self.log("metric", self.metric, on_epoch=True, on_step=False)
        return super().training_step(batch, batch_idx)


class Reached(pl.Callback):
    reached = False

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        self.reached = True


def failures(root: Path) -> list[str]:
    said = []
    for ours in ([recording(), recording("second")], []):
        reached = Reached()
        with pytest.raises(ValueError, match="no value") as error:
            fit(*ours, reached, root=root, module=Failing, strategy=ddp(), devices=2, max_epochs=2)
        assert reached.reached
        said.append(str(error.value))
    return said


def test_a_metric_that_fails_does_so_where_lightning_reads_it(tmp_path: Path) -> None:
    for said in launch(failures, 2, tmp_path):
        assert said == ["no value of 4"] * 2


def failing_rank(root: Path) -> list[Collective]:
    callback = recording()
    record = callback._recorder.record

    def failing(parameters: Any, step: int, epoch: float) -> bool:
        if epoch == 1 and torch.distributed.get_rank() == 1:
            callback._recorder.process.ranks.leave()
            raise OSError("on this rank alone")
        return record(parameters, step, epoch)

    callback._recorder.record = failing  # type: ignore[method-assign]
    hooks = {"on_train_epoch_end"}
    warnings.filterwarnings("ignore", "traj: recording failed")
    with Collectives() as collectives:
        fit(
            *[Logs(hooks, "before"), Reader(hooks), callback],
            root=root,
            module=lambda: Net(value="Metric", times=[STEP, EPOCH]),
            strategy=ddp(),
            devices=2,
            max_epochs=3,
        )
    assert callback.trajectory.steps.tolist() == [0]
    return [
        collective for collective in collectives.record if collective.group == torch.distributed.group.WORLD.group_name
    ]


def test_a_rank_that_no_longer_records_stays_in_step(tmp_path: Path) -> None:
    one, other = launch(failing_rank, 2, tmp_path)
    assert [collective.match() for collective in one] == [collective.match() for collective in other]
