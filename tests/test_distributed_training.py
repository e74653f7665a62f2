"""Lightning's strategies on several processes: training is the same, and the trajectory is that of one device."""

from __future__ import annotations

from math import ceil
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils.data import DataLoader, TensorDataset

from launch import launch
from lightning_traj import FusedLayout, Trajectory, TrajectoryCallback
from lightning_traj.recorder import Recorder
from models import INPUTS, Training, fit

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

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.qkv(torch.tanh(self.inner(x))))
        return self.head(self.again(torch.tanh(self.tied(x)))) * self.scale


class Sharded(Training, pl.LightningModule):
    """Placed as ``layout`` says; plain under DDP."""

    def __init__(self, layout: str) -> None:
        super().__init__(Net())
        self.layout = layout

    def configure_model(self) -> None:
        net = self.net
        if self.layout == "DDP" or hasattr(net.inner.weight, "placements"):
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


class WholeWitness(pl.Callback):
    """Keeps the whole parameters, gathered, at the start and after each epoch."""

    def __init__(self) -> None:
        self.snapshots: list[dict[str, Tensor]] = []
        self.parameters: dict[str, Any] = {}

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        self.parameters = dict(module.named_parameters())

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        whole = {
            name: (p.full_tensor() if hasattr(p, "placements") else p).detach() for name, p in self.parameters.items()
        }
        self.snapshots.append({name: tensor.clone() for name, tensor in whole.items()})

    on_train_start = on_train_epoch_end


def data() -> Any:
    """Batches of which each process gets its share: at least four an epoch."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(SAMPLES, INPUTS, generator=generator)
    return DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=BATCH)


def strategy(layout: str, world_size: int, **arguments: Any) -> Any:
    if layout == "DDP":
        return DDPStrategy(process_group_backend="gloo")
    tensors = 2 if "tensor parallel" in layout else 1
    return ModelParallelStrategy(
        data_parallel_size=world_size // tensors,
        tensor_parallel_size=tensors,
        process_group_backend="gloo",
        **arguments,
    )


def train(layout: str, *callbacks: Any, root: Path, checkpoints: dict[str, Any] | None = None, **arguments: Any) -> Any:
    """Train on as many processes as there are; the Trainer and the witness."""
    witness = WholeWitness()
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
    recorder = Recorder(folder=root / "reference", window=0, **ALWAYS, **settings)
    for epoch, (step, snapshot) in enumerate(zip(steps, snapshots, strict=True)):
        recorder.record(snapshot, step, float(epoch))
    return recorder.collect()[0]


def gram(snapshots: list[dict[str, Tensor]]) -> np.ndarray:
    theta = torch.stack([torch.cat([p.double().flatten() for p in snapshot.values()]) for snapshot in snapshots])
    return (theta @ theta.T).numpy()


def observed(layout: str, root: Path) -> dict[str, Any]:
    """On one rank: train with two callbacks and with none, under all that could disturb them."""
    options = {"accumulate_grad_batches": 2, "max_epochs": 3}
    if "tensor parallel" not in layout:  # torch clips tensors of one placement only
        options["gradient_clip_val"] = 0.5
    sketched, full = TrajectoryCallback(window=2, **ALWAYS), TrajectoryCallback(name="full", snapshot="full", **ALWAYS)
    stop, best = EarlyStopping("traj/mds", patience=100), ModelCheckpoint(root / "best", monitor="full/displacement")
    callbacks = (sketched, full, stop, best) if layout in ("DDP", "FSDP2") else (sketched, full)
    trainer, snapshots = train(layout, *callbacks, root=root, **options)
    _, alone = train(layout, root=root, **options)
    for ours, theirs in zip(snapshots, alone, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    steps = sketched.trajectory.steps.tolist()
    whole = reference(snapshots, steps, root / str(trainer.global_rank), snapshot="full")
    for callback, expected in (
        (full, whole),
        (sketched, reference(snapshots, steps, root, snapshot="sketch")),
    ):
        scale = np.sqrt(expected.gram().diagonal())
        np.testing.assert_array_less(
            np.abs(callback.trajectory.gram() - expected.gram()), 1e-10 * np.outer(scale, scale)
        )
        assert callback.trajectory.blocks == expected.blocks
    np.testing.assert_allclose(full.trajectory.gram(), gram(snapshots), rtol=1e-10)
    assert not np.allclose(full.trajectory.gram()[0], full.trajectory.gram()[-1], rtol=1e-3)  # it moved
    assert len(sketched.trajectory.windows.steps) == 3
    return {
        "steps": steps,
        "arrays": [getattr(c.trajectory, a) for c in (sketched, full) for a in ("anchored", "local", "paths")],
        "blocks": [block.name for block in full.trajectory.blocks],
        "placements": {name: str(getattr(p, "placements", None)) for name, p in trainer.model.named_parameters()},
        "monitors": [float(stop.best_score or 0), float(best.best_model_score or 0)],
    }


DATA_PARALLEL = {"DDP": 2, "FSDP2": 3, "tensor parallel": 1, "FSDP2 x tensor parallel": 2, "HSDP": 4}
LAYOUTS = {"DDP": 2, "FSDP2": 3, "tensor parallel": 2, "FSDP2 x tensor parallel": 4, "HSDP": 4}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_training_and_trajectory_are_those_of_one_device(layout: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("lightning_traj.tensorboard.log_figures", lambda *_: None)
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
