"""Parameters sharded over several processes: the recorder gives what it gives for whole parameters on one device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.placement_types import _StridedShard

from conftest import Snapshots
from launch import launch
from lightning_traj import FusedLayout, Trajectory
from lightning_traj.ranks import Ranks
from lightning_traj.recorder import Recorder

SHAPES: dict[str, tuple[int, ...]] = {
    "embed.weight": (10, 6),
    "h.0.attn.qkv.weight": (24, 8),
    "h.0.attn.qkv.bias": (24,),
    "h.0.heads.weight": (6, 24),
    "h.0.norm.weight": (5,),
    "h.0.kernel.weight": (3, 4, 2, 2),
    "scale": (),
    "few": (2, 3),
}
FUSED = {
    "*.qkv.*": FusedLayout({"q": 1, "k": 1, "v": 1}),
    "*.heads.weight": FusedLayout({"q": 1, "k": 1, "v": 1}, groups=4, axis=-1),
}
TYPES = {"few": torch.complex64, "h.0.kernel.weight": torch.bfloat16}
STEPS = 6

Place = Callable[[str, Tensor], Tensor]


def layouts() -> dict[str, Place]:
    """Ways to place parameters on four ranks; "scale" is always plain, as parameters are that FSDP2 ignores."""
    line = init_device_mesh("cpu", (4,))
    square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))

    def sharded(mesh: DeviceMesh, *placements: Any, but: dict[str, tuple[Any, ...] | None] | None = None) -> Place:
        def place(name: str, tensor: Tensor) -> Tensor:
            chosen = (but or {}).get(name, placements)
            small = any(getattr(p, "dim", 0) >= tensor.ndim for p in chosen or ())
            return tensor if chosen is None or small else distribute_tensor(tensor, mesh, chosen)

        return place

    def two_dimensional(name: str, tensor: Tensor) -> Tensor:
        """As FSDP2 leaves what tensor parallelism has sharded: along its rows, its columns, or not at all."""
        if tensor.ndim < 1:
            return tensor
        along = {"h.0.attn.qkv.weight": 0, "h.0.attn.qkv.bias": 0, "embed.weight": 1, "h.0.heads.weight": 1}
        inner = Shard(along[name]) if name in along else Replicate()
        outer = _StridedShard(0, split_factor=2) if along.get(name) == 0 else Shard(0)
        return distribute_tensor(tensor, square, (outer, inner))

    return {
        "plain": lambda name, tensor: tensor,
        "FSDP2, uneven and empty": sharded(line, Shard(0)),
        "tensor parallel": sharded(line, Shard(1), but={"h.0.attn.qkv.weight": (Shard(0),), "embed.weight": None}),
        "FSDP2 x tensor parallel": two_dimensional,
        "HSDP": sharded(square, Replicate(), Shard(0)),
        "both dimensions at once": sharded(square, Shard(0), Shard(1)),
        "replicas of tensor parallel": sharded(square["tensor"], Shard(0)),
        "the same dimension twice": sharded(square, Shard(0), Shard(0)),
    }


def walk() -> Snapshots:
    generator = torch.Generator().manual_seed(0)
    types = {name: TYPES.get(name, torch.float32) for name in SHAPES}
    return [
        {
            name: (1 + 0.1 * t) * torch.randn(shape, generator=generator, dtype=types[name])
            for name, shape in SHAPES.items()
        }
        for t in range(STEPS)
    ]


def recording(folder: Path, snapshots: Snapshots, place: Place, ranks: Ranks, **settings: Any) -> Recorder:
    """A recorder that has taken these snapshots, one a step, and windows end to end."""
    recorder = Recorder(folder=folder, fused=FUSED, sketch_dim=16, window=2, max_snapshots=5, **settings)
    recorder.ranks = ranks
    for step, snapshot in enumerate(snapshots):
        # Late and gone: a parameter that comes with the third snapshot, one that leaves before the last one.
        names = [
            name for name in SHAPES if not (name == "few" and step < 2) and not (name == "h.0.norm.weight" and step > 4)
        ]
        parameters = {name: place(name, snapshot[name]) for name in names}
        if not step:
            recorder.check(parameters)
            recorder.prepare(parameters)
        assert recorder.record(parameters, step, step / 10)
        recorder.add_to_window(parameters, step)
        recorder.begin_window(parameters, step)
    return recorder


def same(ours: Trajectory, theirs: Trajectory, tolerance: float) -> None:
    assert ours.blocks == theirs.blocks
    assert ours.steps.tolist() == theirs.steps.tolist()
    norms = np.sqrt(theirs.anchored.diagonal(axis1=1, axis2=2).max(axis=1))[:, None, None] + 1e-300
    for array in ("anchored", "local", "paths"):
        a, b = getattr(ours, array), getattr(theirs, array)
        scale = norms**2 if array == "anchored" else np.abs(b).max()
        assert (np.abs(a - b) / scale).max() <= tolerance, array
    np.testing.assert_allclose(
        ours.windows.sums, theirs.windows.sums, rtol=0, atol=1e-10 * np.abs(theirs.windows.sums).max()
    )
