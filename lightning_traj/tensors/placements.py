"""Placements of sharded tensors: which entries of a DTensor are on this process. Nothing here communicates."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from lightning_traj.tensors.regions import IndexRegion, Interval, joined, slice_of, whole


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor: each process has a part or a copy of it."""
    return hasattr(tensor, "placements")


def local_tensor(tensor: Any) -> Tensor:
    """Return the local part of a DTensor, and any other tensor as it is."""
    if not is_sharded(tensor):
        whole_tensor: Tensor = tensor
        return whole_tensor
    with torch.no_grad():
        local: Tensor = tensor.to_local()
    return local


def held_share(name: str, tensor: Any) -> IndexRegion:
    """Return the region of a tensor that is on this process: all of a plain tensor, a part of a DTensor.

    Args:
        name: Name of the parameter, for messages.
        tensor: The parameter.

    Raises:
        ValueError: The DTensor has a placement that is not supported, such as partial sums.
    """
    if not is_sharded(tensor):
        return whole(tensor.shape)
    runs = list(whole(tensor.shape).runs)
    coordinates = tensor.device_mesh.get_coordinate()
    if coordinates is None:  # this process is not part of the mesh
        return IndexRegion(tuple(tensor.shape), ((), *runs[1:]))
    for i in _order(tensor.placements):
        placement = tensor.placements[i]
        if placement.is_replicate():
            continue
        if not (placement.is_shard() or _is_strided(placement)):
            raise ValueError(f"parameter {name!r} is placed as {placement}: only shards and replicas can be recorded.")
        runs[placement.dim] = _chunk(runs[placement.dim], tensor.device_mesh.shape[i], coordinates[i])
    share = IndexRegion(tuple(tensor.shape), tuple(joined(_packed(found)) for found in runs))
    if (sizes := tuple(local_tensor(tensor).shape)) != share.sizes:
        raise ValueError(
            f"parameter {name!r} of shape {share.shape}, placed as {tensor.placements}, has a shard of shape {sizes} "
            f"here where {share.sizes} was expected: this placement is not supported."
        )
    return share


def _is_strided(placement: Any) -> bool:
    """Whether a placement shards a dimension that placements to its right have sharded: FSDP2 over tensor parallel."""
    return hasattr(placement, "split_factor")


def _order(placements: Sequence[Any]) -> list[int]:
    """Return the mesh dimensions in the order in which they cut: from left to right, then strided ones from the right.

    By the definition of strided shards the order is the reverse, which makes a difference for uneven sizes only.
    """
    strided = [i for i, placement in enumerate(placements) if _is_strided(placement)]
    return [*(i for i in range(len(placements)) if i not in strided), *reversed(strided)]


def _chunk(runs: Sequence[Interval], count: int, at: int) -> tuple[Interval, ...]:
    """Return chunk number `at` of `count` chunks, as ``torch.chunk`` cuts them."""
    size = -(-sum(length for _, _, length in runs) // count)
    return slice_of(runs, at * size, (at + 1) * size)


def _packed(runs: Sequence[Interval]) -> list[Interval]:
    """Renumber the local indices of intervals, for a local tensor that holds nothing but their entries, in order."""
    begins = accumulate((length for _, _, length in runs), initial=0)
    return [(begin, start, length) for begin, (_, start, length) in zip(begins, runs, strict=False)]
