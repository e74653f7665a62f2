"""Lightning's strategies on several processes: training is the same, and the trajectory is that of one device."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
import warnings
from functools import partial
from itertools import product
from math import ceil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    ParallelStrategy,
)
from lightning.pytorch.strategies.xla import XLAStrategy
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module
from torch.utils.data import DataLoader, TensorDataset

from conftest import ROOT
from launch import launch
from launched import by_itself
from layouts import LAYOUTS
from lightning_traj import EveryNSteps, FusedLayout, Trajectory, TrajectoryCallback
from lightning_traj.gram.exact_gram import ExactGram
from lightning_traj.gram.sketched_gram import SketchedGram
from lightning_traj.recording.quantities.step_quantities import Gradient
from lightning_traj.recording.recorder import Recorder
from lightning_traj.recording.settings import RecordingSettings
from lightning_traj.recording.snapshot_files import SnapshotFiles
from models import INPUTS, Training, fit
from slurm import slurm

FUSED = {"*.qkv.*": FusedLayout({"q": 1, "k": 1, "v": 1})}
ALWAYS = {"fused": FUSED, "sketch_dim": 16}
SAMPLES, BATCH = 32, 2


class Net(nn.Module):
    """With q, k and v in one tensor, tied weights, and a parameter that FSDP2 is told to leave alone."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(INPUTS, 10)
        self.qkv = nn.Linear(10, 12)
        self.norm = nn.LayerNorm(12)
        self.tied = nn.Linear(12, 12, bias=False)
        self.again = nn.Linear(12, 12)
        self.again.weight = self.tied.weight
        self.head = nn.Linear(12, 3)
        self.scale = nn.Parameter(torch.ones(3), requires_grad=False)
        self.still = nn.Parameter(torch.full((3,), 0.5), requires_grad=False)  # frozen, and it never moves

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.qkv(torch.tanh(self.inner(x))))
        return self.head(self.again(torch.tanh(self.tied(x)))) * self.scale + self.still


class Sharded(Training, pl.LightningModule):
    """Placed as ``layout`` says; plain under DDP."""

    def __init__(self, layout: str) -> None:
        super().__init__(Net())
        self.layout = layout

    def configure_model(self) -> None:
        net = self.net
        if "DDP" in self.layout or hasattr(net.inner.weight, "placements"):
            return
        if "tensor parallel" in self.layout:
            whole = {"input_layouts": Replicate(), "output_layouts": Replicate()}
            plan = {
                "inner": RowwiseParallel(**whole),
                "qkv": ColwiseParallel(**whole),
                "head": RowwiseParallel(**whole),
            }
            parallelize_module(net, self.device_mesh["tensor_parallel"], plan)
        if self.layout != "tensor parallel":
            mesh = self.device_mesh["data_parallel"]
            if self.layout == "HSDP":
                mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicas", "shards"))
            for module in (net.norm, net):
                fully_shard(module, mesh=mesh, ignored_params={net.scale})

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_end(outputs, batch, batch_idx)
        with torch.no_grad():
            self.net.scale.mul_(1.01)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.loss(batch)

    def val_dataloader(self) -> Any:
        return data()


def whole(tensors: dict[str, Any]) -> dict[str, Tensor]:
    """Copies, gathered where they are sharded, of those that there are."""
    there = {name: tensor.detach() for name, tensor in tensors.items() if tensor is not None}
    return {name: getattr(tensor, "full_tensor", lambda t=tensor: t)().clone() for name, tensor in there.items()}


class WholeWitness(pl.Callback):
    """Keeps the whole parameters, gathered, at the start and after each epoch."""

    def __init__(self) -> None:
        self.snapshots: list[dict[str, Tensor]] = []
        self.parameters: dict[str, Any] = {}

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        self.parameters = dict(module.named_parameters())

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        self.snapshots.append(whole(self.parameters))

    on_train_start = on_train_epoch_end


def data() -> Any:
    """Batches of which each process gets its share: at least four an epoch."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(SAMPLES, INPUTS, generator=generator)
    return DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=BATCH)


def alike() -> Any:
    """The same sample again and again: it does not matter which process gets which."""
    x, y = DATA().dataset[:1]
    return DataLoader(TensorDataset(x.repeat(SAMPLES, 1), y.repeat(SAMPLES)), batch_size=BATCH)


SHARED_OUT = {"DDP": False, "DDP, shared out": True}  # whether ranks sketch a part each of so small a model


def share_out(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if SHARED_OUT.get(layout):
        monkeypatch.setattr("lightning_traj.recording.sketch_store.DIVIDED", (0, 0))


DATA = data  # which a test replaces by the other one


def strategy(layout: str, world_size: int, **arguments: Any) -> Any:
    if "DDP" in layout:
        return DDPStrategy(process_group_backend="gloo")
    tensors = 2 if "tensor parallel" in layout else 1
    return ModelParallelStrategy(
        data_parallel_size=world_size // tensors,
        tensor_parallel_size=tensors,
        process_group_backend="gloo",
        **arguments,
    )


def train(
    layout: str,
    *callbacks: Any,
    root: Path,
    checkpoints: dict[str, Any] | None = None,
    witness: WholeWitness | None = None,
    **arguments: Any,
) -> Any:
    """Train on as many processes as there are; the Trainer and what the witness has seen."""
    witness = witness or WholeWitness()
    world_size = torch.distributed.get_world_size()
    trainer = fit(
        witness,
        *callbacks,
        root=root,
        module=lambda: Sharded(layout),
        data=data(),
        strategy=strategy(layout, world_size, **checkpoints or {}),
        devices=world_size,
        **arguments,
    )
    return trainer, witness.snapshots


def reference(snapshots: list[dict[str, Tensor]], steps: list[int], root: Path, **settings: Any) -> Trajectory:
    """What the recorder makes of the gathered parameters on one device, and, in full, what their definition says."""
    recorder = Recorder(RecordingSettings(window=0, **ALWAYS, **settings), folder=root / "reference")
    for epoch, (step, snapshot) in enumerate(zip(steps, snapshots, strict=True)):
        recorder.record(snapshot, step, float(epoch))
    return recorder.collect()[0]


def gram(snapshots: list[dict[str, Tensor]]) -> np.ndarray:
    """Of all that has moved."""
    moved = [name for name, p in snapshots[0].items() if not torch.equal(p, snapshots[-1][name])]
    theta = torch.stack([torch.cat([snapshot[name].double().flatten() for name in moved]) for snapshot in snapshots])
    return (theta @ theta.T).numpy()


def observed(layout: str, root: Path) -> dict[str, Any]:
    """On one rank: train with two callbacks and with none, under all that could disturb them."""
    options = {"accumulate_grad_batches": 2, "max_epochs": 3}
    if "tensor parallel" not in layout:  # torch clips tensors of one placement only
        options["gradient_clip_val"] = 0.5
    sketched, full = TrajectoryCallback(window=2, **ALWAYS), TrajectoryCallback(name="full", snapshot="full", **ALWAYS)
    stop, best = EarlyStopping("traj/mds", patience=100), ModelCheckpoint(root / "best", monitor="full/displacement")
    callbacks = (sketched, full, stop, best) if layout in (*SHARED_OUT, "FSDP2") else (sketched, full)
    trainer, snapshots = train(layout, *callbacks, root=root, **options)
    _, alone = train(layout, root=root, **options)
    for ours, theirs in zip(snapshots, alone, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    steps = sketched.trajectory.steps.tolist()
    for callback, expected in (
        (full, reference(snapshots, steps, root / str(trainer.global_rank), snapshot="full")),
        (sketched, reference(snapshots, steps, root, snapshot="sketch")),
    ):
        scale = np.sqrt(expected.gram().diagonal())
        np.testing.assert_array_less(
            np.abs(callback.trajectory.gram() - expected.gram()), 1e-10 * np.outer(scale, scale)
        )
        anchored = expected.anchored  # also of what never moves, which is not counted in the other
        np.testing.assert_allclose(callback.trajectory.anchored, anchored, rtol=0, atol=1e-10 * np.abs(anchored).max())
        assert callback.trajectory.blocks == expected.blocks
        assert callback.trajectory.steps.tolist() == steps
    np.testing.assert_allclose(full.trajectory.gram(), gram(snapshots), rtol=1e-10)
    assert not np.allclose(full.trajectory.gram()[0], full.trajectory.gram()[-1], rtol=1e-3)  # it moved
    assert len(sketched.trajectory.windows.steps) == 3
    assert sketched._recorder.process.ownership.is_shared == SHARED_OUT.get(layout, True)
    return {
        "steps": steps,
        "arrays": [getattr(c.trajectory, a) for c in (sketched, full) for a in ("anchored", "local", "paths")],
        "blocks": [block.name for block in full.trajectory.blocks],
        "placements": {name: str(getattr(p, "placements", None)) for name, p in trainer.model.named_parameters()},
        "monitors": [float(stop.best_score or 0), float(best.best_model_score or 0)],
    }


DATA_PARALLEL = {
    "DDP": 2,
    "DDP, shared out": 2,
    "FSDP2": 3,
    "tensor parallel": 1,
    "FSDP2 x tensor parallel": 2,
    "HSDP": 4,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_training_and_trajectory_are_those_of_one_device(layout: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("lightning_traj.loggers.trajectory.log_figures", lambda *_: None)
    share_out(layout, monkeypatch)
    first, *others = launch(observed, LAYOUTS[layout], layout, tmp_path)
    batches = ceil(ceil(SAMPLES / DATA_PARALLEL[layout]) / BATCH)
    assert first["steps"] == [epoch * ceil(batches / 2) for epoch in range(4)]
    assert "net.qkv.weight:k" in first["blocks"]
    assert "net.again.weight" not in first["blocks"]  # tied
    for other in others:
        assert other["monitors"] == first["monitors"]
        for ours, theirs in zip(other["arrays"], first["arrays"], strict=True):
            np.testing.assert_array_equal(ours, theirs)
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert files == ["full.safetensors", "trajectory.safetensors"]
    assert len(list((tmp_path / "full-snapshots").iterdir())) == len(first["steps"]) * LAYOUTS[layout]


# Resume on another world size ------------------------------------------------------------------------------------


def resumable() -> tuple[TrajectoryCallback, TrajectoryCallback]:
    return TrajectoryCallback(window=2, **ALWAYS), TrajectoryCallback(name="full", snapshot="full", **ALWAYS)


def first_half(layout: str, root: Path, checkpoints: dict[str, Any]) -> None:
    trainer, snapshots = train(layout, *resumable(), root=root, checkpoints=checkpoints, max_epochs=2)
    trainer.save_checkpoint(root / "saved.ckpt")
    if trainer.is_global_zero:
        torch.save(snapshots, root / "snapshots.pt")


def second_half(layout: str, root: Path, checkpoints: dict[str, Any]) -> list[np.ndarray]:
    sketched, full = resumable()
    path = root / "saved.ckpt"
    trainer, later = train(layout, sketched, full, root=root, checkpoints=checkpoints, max_epochs=4, ckpt_path=path)
    snapshots = torch.load(root / "snapshots.pt", weights_only=True)
    torch.testing.assert_close(later[0], snapshots[-1], rtol=0, atol=0)  # it goes on where it was
    snapshots += later[1:]
    folder = root / str(trainer.global_rank)
    for callback in (sketched, full):
        steps = callback.trajectory.steps.tolist()
        expected = reference(snapshots, steps, folder, snapshot=callback.trajectory.settings["snapshot"])
        np.testing.assert_allclose(callback.trajectory.gram(), expected.gram(), rtol=1e-10)
    np.testing.assert_allclose(full.trajectory.gram(), gram(snapshots), rtol=1e-10)
    if torch.distributed.get_world_size() > 1:
        assert sketched._recorder.process.ownership.is_shared == SHARED_OUT.get(layout, True)
    return [callback.trajectory.anchored for callback in (sketched, full)]


SHARDED, CONSOLIDATED = {"save_distributed_checkpoint": True}, {"save_distributed_checkpoint": False}


@pytest.mark.parametrize(
    ("before", "after", "layouts", "checkpoints"),
    [
        (1, 2, ("DDP", "DDP"), {}),
        (3, 2, ("DDP, shared out", "DDP, shared out"), {}),
        (4, 3, ("FSDP2 x tensor parallel", "FSDP2"), SHARDED),
        (2, 1, ("FSDP2", "FSDP2"), CONSOLIDATED),
    ],
    ids=["1 to 2, DDP", "3 to 2, DDP, shared out", "4 to 3, sharded checkpoint", "2 to 1, consolidated checkpoint"],
)
def test_a_run_goes_on_with_another_number_of_processes(
    tmp_path: Path, before: int, after: int, layouts: tuple[str, str], checkpoints: dict[str, Any], monkeypatch: Any
) -> None:
    monkeypatch.setattr("lightning_traj.loggers.trajectory.log_figures", lambda *_: None)
    share_out(layouts[0], monkeypatch)
    launch(first_half, before, layouts[0], tmp_path, checkpoints)
    results = launch(second_half, after, layouts[1], tmp_path, checkpoints)
    for other in results[1:]:
        for ours, theirs in zip(other, results[0], strict=True):
            np.testing.assert_array_equal(ours, theirs)


class Killed(pl.Callback):
    """The last rank, within the third epoch; what was until then is kept."""

    def __init__(self, root: Path, witness: list[dict[str, Tensor]]) -> None:
        self.root, self.witness = root, witness

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == 2 and batch_idx == 1:
            if trainer.is_global_zero:
                torch.save(self.witness, self.root / "snapshots.pt")
            torch.distributed.barrier()
            if trainer.global_rank == trainer.world_size - 1:
                os.kill(os.getpid(), signal.SIGKILL)


def killed(layout: str, root: Path) -> None:
    saving = ModelCheckpoint(root, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    witness = WholeWitness()
    train(layout, *resumable(), saving, Killed(root, witness.snapshots), root=root, witness=witness, max_epochs=4)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create the checkpoint")
def test_a_rank_that_is_killed(tmp_path: Path, monkeypatch: Any) -> None:
    """The others end too; the run goes on without it from the last checkpoint."""
    monkeypatch.setattr("lightning_traj.loggers.trajectory.log_figures", lambda *_: None)
    with pytest.raises(AssertionError, match="rank 2 of 3:\nit died without a word"):
        launch(killed, 3, "FSDP2", tmp_path)
    (tmp_path / "epoch=1.ckpt").rename(tmp_path / "saved.ckpt")
    launch(second_half, 2, "FSDP2", tmp_path, SHARDED)


def dying_between_files(layout: str, root: Path, step: int) -> None:
    """The last rank is killed before it writes its file of a snapshot, when the first one has written its own.

    And that one too, before it can take its file away again.
    """
    write = SnapshotFiles.write

    def dying(self: SnapshotFiles, name: str, *args: Any) -> Any:
        if f"step{step:09d}" in name and self.rank == self.size - 1:
            while not (self.folder / name).exists():
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        return write(self, name, *args)

    SnapshotFiles.write = dying  # type: ignore[method-assign]
    SnapshotFiles.discard = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment,method-assign]
    saving = ModelCheckpoint(root, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    train(layout, *resumable(), saving, root=root, max_epochs=4)


def whole_run(layout: str, root: Path, **arguments: Any) -> list[np.ndarray]:
    callbacks = resumable()
    train(layout, *callbacks, root=root, max_epochs=4, **arguments)
    return [getattr(c.trajectory, a) for c in callbacks for a in ("steps", "anchored", "local", "paths")]


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create the checkpoint")
def test_a_rank_that_is_killed_between_the_files_of_two(tmp_path: Path, monkeypatch: Any) -> None:
    """A part of a snapshot is none: the run goes on from the last checkpoint to what it would have been."""
    monkeypatch.setattr("lightning_traj.loggers.trajectory.log_figures", lambda *_: None)
    whole = launch(whole_run, 2, "FSDP2", tmp_path / "whole")[0]
    step, root = int(whole[0][3]), tmp_path / "job"
    with pytest.raises(AssertionError, match="rank 1 of 2:\nit died without a word"):
        launch(dying_between_files, 2, "FSDP2", root, step)
    (part,) = (root / "full-snapshots").glob(f"*step{step:09d}*")
    for result in launch(partial(whole_run, ckpt_path=root / "epoch=1.ckpt"), 2, "FSDP2", root):
        for ours, theirs in zip(result, whole, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-13 * np.abs(theirs).max())
    assert part.exists()  # nobody took it for one of theirs
    assert len([*(root / "full-snapshots").glob(f"*step{step:09d}*")]) == 3


class Requeued(Sharded):
    """Is told by SLURM to go, once, each rank within its sixth step."""

    def __init__(self, layout: str, root: Path) -> None:
        super().__init__(layout)
        self.root = root

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        marker = self.root / f"asked-{self.trainer.global_rank}"
        if self.trainer.global_step == 5 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGTERM)
        return super().training_step(batch, batch_idx)


def on_slurm(layout: str, root: Path, asked: bool) -> list[np.ndarray]:
    """What was recorded, and how many steps were taken."""
    rank, callbacks = torch.distributed.get_rank(), resumable()
    plugins = [slurm(root, rank, tasks=2)] if asked else []
    try:
        trainer = fit(
            *callbacks,
            root=root,
            module=lambda: Requeued(layout, root) if asked else Sharded(layout),
            data=alike(),
            strategy=strategy(layout, 2),
            devices=2,
            plugins=plugins,
        )
    except SIGTERMException:  # Lightning ends the run
        return []
    arrays = [getattr(c.trajectory, a) for c in callbacks for a in ("steps", "anchored", "local", "paths")]
    return [*arrays, np.array(len(trainer.lightning_module.losses))]


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_a_job_of_two_processes_that_slurm_requeues(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("lightning_traj.loggers.trajectory.log_figures", lambda *_: None)
    *whole, steps = launch(on_slurm, 2, "FSDP2", tmp_path / "whole", False)[0]
    (tmp_path / "job").mkdir()
    assert launch(on_slurm, 2, "FSDP2", tmp_path / "job", True) == [[], []]
    assert (tmp_path / "job" / "scontrol").read_text() == "requeue 42\n"
    for result in launch(on_slurm, 2, "FSDP2", tmp_path / "job", True):
        *arrays, taken = result
        assert taken == steps - 5  # it went on where it was told to go
        for ours, theirs in zip(arrays, whole, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-13 * np.abs(theirs).max())


# Other quantities, and what is refused -----------------------------------------------------------------------------


TRACKS = ("gradient", "update", "first_moment", "second_moment")


class StepWitness(pl.Callback):
    """Keeps the whole gradient, update and moments of each optimizer step, gathered."""

    def __init__(self) -> None:
        self.parameters: dict[str, Any] = {}
        self.before: dict[str, Tensor] = {}
        self.snapshots: dict[str, list[dict[str, Tensor]]] = {track: [] for track in TRACKS}

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        self.parameters = dict(module.named_parameters())

    def on_train_start(self, trainer: Any, module: Any) -> None:
        trainer.optimizers[0].register_step_post_hook(self.after_step)

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        self.before = whole(self.parameters)
        self.snapshots["gradient"].append(whole({name: p.grad for name, p in self.parameters.items()}))

    def after_step(self, optimizer: Any, *_: Any) -> None:
        update = {name: p.double() - self.before[name].double() for name, p in whole(self.parameters).items()}
        self.snapshots["update"].append(update)
        for track, state in (("first_moment", "exp_avg"), ("second_moment", "exp_avg_sq")):
            moments = {name: optimizer.state.get(p, {}).get(state) for name, p in self.parameters.items()}
            self.snapshots[track].append(whole(moments))


def quantities(layout: str, root: Path) -> None:
    witness, callbacks = StepWitness(), []
    for track, mode in product(TRACKS, ("sketch", "full")):
        settings = {"track": track, "snapshot": mode, "schedule": EveryNSteps(2)}
        callbacks.append(TrajectoryCallback(name=f"{track}_{mode}", **settings, **ALWAYS))
    trainer, _ = train(layout, TrajectoryCallback(**ALWAYS), *callbacks, witness, root=root, max_epochs=2)
    for callback, (track, mode) in zip(callbacks, product(TRACKS, ("sketch", "full")), strict=True):
        steps = callback.trajectory.steps.tolist()
        assert len(steps) > 4
        seen = [witness.snapshots[track][step - 1] for step in steps]
        folder = root / str(trainer.global_rank) / callback.name
        expected = reference(seen, steps, folder, snapshot=mode, track=track).anchored
        ours = callback.trajectory.anchored
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-10 * np.abs(expected).max(), err_msg=callback.name)


@pytest.mark.parametrize("layout", ["DDP, shared out", "FSDP2", "HSDP", "FSDP2 x tensor parallel"])
def test_quantities_of_a_step_under_sharding(layout: str, tmp_path: Path, monkeypatch: Any) -> None:
    """They are those of the whole tensors, gathered at each step."""
    monkeypatch.setattr("lightning_traj.loggers.trajectory.log_figures", lambda *_: None)
    monkeypatch.setattr(Sharded, "configure_optimizers", lambda self: torch.optim.Adam(self.parameters()))
    share_out(layout, monkeypatch)
    launch(quantities, LAYOUTS[layout], layout, tmp_path)


class SequenceParallelNet(Training, pl.LightningModule):
    """Whose norm sees a part of each batch on each process: its gradients are partial sums."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Linear(INPUTS, 8), nn.LayerNorm(8), nn.Linear(8, 3)))

    def configure_model(self) -> None:
        plan = {
            "0": ColwiseParallel(output_layouts=Shard(0)),
            "1": SequenceParallel(sequence_dim=0),
            "2": ColwiseParallel(input_layouts=Shard(0), output_layouts=Replicate()),
        }
        parallelize_module(self.net, self.device_mesh["tensor_parallel"], plan)


class GradientWitness(WholeWitness):
    """Keeps the whole gradients of each step."""

    placements: str = ""

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        gradients: dict[str, Any] = {name: p.grad for name, p in module.named_parameters()}
        self.placements = str([gradient.placements for gradient in gradients.values()])
        self.snapshots.append(whole(gradients))

    on_train_start = on_train_epoch_end = None


def partial_gradients(root: Path) -> str:
    settings = {"track": "gradient", "schedule": EveryNSteps(1), "sketch_dim": 16}
    callbacks = [TrajectoryCallback(name=mode, snapshot=mode, **settings) for mode in ("sketch", "full")]
    losses = []
    for own in (callbacks, []):
        witness = GradientWitness()
        arguments = {"strategy": strategy("tensor parallel", 2), "devices": 2, "max_epochs": 1}
        trainer = fit(*own, witness, root=root, module=SequenceParallelNet, data=data(), **arguments)
        losses.append(trainer.lightning_module.losses)
        if own:
            steps = [*range(1, 1 + len(witness.snapshots))]
            for callback in callbacks:
                folder = root / str(trainer.global_rank)
                expected = reference(witness.snapshots, steps, folder, snapshot=callback.name, track="gradient")
                assert callback.trajectory.steps.tolist() == steps
                np.testing.assert_allclose(callback.trajectory.gram(), expected.gram(), rtol=1e-10, atol=1e-12)
    assert losses[0] == losses[1]
    return witness.placements


def test_gradients_that_are_partial_sums(tmp_path: Path, monkeypatch: Any) -> None:
    """Under sequence parallelism those of norms: they are added up, and training is as it was."""
    monkeypatch.setattr("lightning_traj.loggers.trajectory.log_figures", lambda *_: None)
    for placements in launch(partial_gradients, 2, tmp_path):
        assert "Partial" in placements


def failing_once(root: Path, what: str) -> list[list[float]]:
    """The second rank fails at the first snapshot, or has no finite one; losses with the callback and without."""
    callback, losses = TrajectoryCallback(track="gradient", sketch_dim=16), []
    trouble = [MemoryError("out of memory")] * torch.distributed.get_rank()
    owner, name = (SketchedGram, "with_row") if what == "after the sum" else (Gradient, "read")
    own = getattr(owner, name)

    def failing(*args: Any) -> Any:
        if not trouble:
            return own(*args)
        error = trouble.pop()
        if what != "not finite":
            raise error
        return {name: gradient * torch.nan for name, gradient in own(*args).items()}

    for callbacks in ([callback], []):
        arguments = {"strategy": strategy("tensor parallel", 2), "devices": 2, "max_epochs": 1}
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
            patch.setattr(owner, name, failing)
            warnings.filterwarnings("ignore", message=".*recording failed with")
            trainer = fit(*callbacks, root=root, module=SequenceParallelNet, data=data(), **arguments)
        losses.append([float(loss) for loss in trainer.lightning_module.losses])
    assert not trouble
    # Where all have left the first one out, the next is that of the epoch's last step.
    steps = [len(losses[0])] if what != "after the sum" else [] if torch.distributed.get_rank() else [1]
    assert list(callback._recorder.state.history.steps) == steps
    return losses


@pytest.mark.parametrize("what", ["reading", "not finite", "after the sum"])
def test_a_rank_that_no_longer_records_adds_up_no_gradients(what: str, tmp_path: Path, monkeypatch: Any) -> None:
    """They are added up in training's own group, where it would meet other sums of the others, and wait for ever."""
    monkeypatch.setattr("lightning_traj.loggers.trajectory.log_figures", lambda *_: None)
    for observed, alone in launch(failing_once, 2, tmp_path, what):
        assert observed == alone


def fitted_twice(root: Path, mode: str) -> tuple[list[int], list[int]]:
    """The second rank fails at the third snapshot of a first fit: the steps after it, and after a second one."""
    kind: Any = ExactGram if mode == "full" else SketchedGram
    with_row, trouble = kind.with_row, [MemoryError("out of memory")] * torch.distributed.get_rank()

    def failing(gram: Any, *args: Any) -> Any:
        if trouble and len(gram) == 2:
            raise trouble.pop()
        return with_row(gram, *args)

    callback, module = TrajectoryCallback(snapshot=mode, dirpath=root, **ALWAYS), Sharded("DDP")
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=strategy("DDP", 2),
        max_epochs=2,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(kind, "with_row", failing)
        trainer.fit(module, data())
        first = list(callback._recorder.state.history.steps)
        trainer.fit_loop.max_epochs = 5
        trainer.fit(module, data())
    return first, list(callback._recorder.state.history.steps)


@pytest.mark.parametrize("mode", ["sketch", "full"])
def test_ranks_that_came_apart_begin_anew_with_the_next_fit(mode: str, tmp_path: Path) -> None:
    (first, ours), (second, theirs) = launch(fitted_twice, 2, tmp_path, mode)
    assert (first, second) == ([0, 8, 16], [0, 8])
    assert ours == theirs == [0, 8, 16, 24]


def stopped_before_training(root: Path) -> str:
    """One rank alone cannot begin: what is said."""
    callback = TrajectoryCallback(dirpath=root, **ALWAYS)
    if torch.distributed.get_rank():
        callback._tracker.quantity.check = lambda *_: (_ for _ in ()).throw(ValueError("mine alone"))  # type: ignore[method-assign]
    with pytest.raises((ValueError, RuntimeError)) as caught:
        train("DDP", callback, root=root, max_epochs=1)
    torch.distributed.barrier()
    return str(caught.value).partition(",")[0]


def test_a_rank_that_cannot_begin_does_not_hang_the_others(tmp_path: Path) -> None:
    said = launch(stopped_before_training, 2, tmp_path)  # which ends before a collective that waits for a rank does
    assert said == ["processes no longer record together", "mine alone"]


class Own(EveryNSteps):
    """A schedule of the user's own, which knows of its rank and yet answers alike."""

    def __init__(self) -> None:
        super().__init__(4)
        object.__setattr__(self, "rank", torch.distributed.get_rank())

    __repr__ = object.__repr__


def of_its_own(root: Path) -> list[int]:
    callback = TrajectoryCallback(schedule=Own(), **ALWAYS)
    train("DDP", callback, root=root, max_epochs=1)
    return callback.trajectory.steps.tolist()


def test_a_schedule_of_its_own_may_know_its_rank(tmp_path: Path) -> None:
    assert launch(of_its_own, 2, tmp_path) == [[0, 4, 8]] * 2


def scheduled_apart(root: Path) -> str:
    callback = TrajectoryCallback(schedule=EveryNSteps(1 + torch.distributed.get_rank()), **ALWAYS)
    with pytest.raises(ValueError, match="is not what all others have") as caught:
        train("DDP", callback, root=root, max_epochs=1)
    return str(caught.value).partition(" is not")[0]


def test_schedules_that_differ_between_ranks_are_an_error_on_all(tmp_path: Path) -> None:
    said = [f"schedule=EveryNSteps(n={1 + rank}) on rank {rank} of 2" for rank in range(2)]
    assert launch(scheduled_apart, 2, tmp_path) == said


def refused_by(strategy: Any, world_size: int = 1) -> str:
    trainer = SimpleNamespace(strategy=strategy, world_size=world_size, callbacks=[])
    with pytest.raises(ValueError, match="is not supported by TrajectoryCallback") as caught:
        TrajectoryCallback().setup(trainer, None, "fit")  # type: ignore[arg-type]
    return str(caught.value)


def test_what_is_not_supported_is_refused_before_training() -> None:
    assert "use ModelParallelStrategy" in refused_by(FSDPStrategy())
    assert "none of its stages has been tried: use DDP where" in refused_by(object.__new__(DeepSpeedStrategy))
    assert "TPUs have not been tried" in refused_by(object.__new__(XLAStrategy))

    homemade = type("Homemade", (ParallelStrategy,), dict.fromkeys(ParallelStrategy.__abstractmethods__))
    assert "it is not known how it shares parameters out" in refused_by(homemade(), world_size=2)


# Lightning's own launchers -----------------------------------------------------------------------------------------

SCRIPT = """
import sys
sys.path[:0] = {paths!r}
from launched import by_itself
by_itself(sys.argv[1], sys.argv[2])
"""


def test_launches(tmp_path: Path) -> None:
    """All at once, each in its own processes. The results are in the file: spawned processes keep the callback's."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(paths=[str(ROOT), str(ROOT / "tests")]))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    running: dict[str, Any] = {}
    for name in ("ddp", "ddp_spawn", "ddp_fork", "torchrun"):
        (tmp_path / name).mkdir()
        if name == "torchrun":
            with (tmp_path / name / "printed").open("w") as printed:
                command = [*torchrun, "ddp", str(tmp_path / name)]
                running[name] = subprocess.Popen(command, stdout=printed, stderr=subprocess.STDOUT)
        else:
            arguments = (name, str(tmp_path / name), str(script))
            running[name] = multiprocessing.get_context("fork").Process(target=by_itself, args=arguments)
            running[name].start()
    for name, process in running.items():
        wait = process.wait if name == "torchrun" else process.join
        wait(timeout=120)
        text = (tmp_path / name / "printed").read_text()
        assert (process.returncode if name == "torchrun" else process.exitcode) == 0, text
        assert text.count("snapshots, steps 0 to") == 1, text
        assert "sync_dist" not in text
        trajectory = Trajectory.load(tmp_path / name / "trajectory.safetensors")
        assert trajectory.steps.tolist() == [0, 2, 4]
        assert [path.name for path in (tmp_path / name).glob("*.safetensors")] == ["trajectory.safetensors"]
