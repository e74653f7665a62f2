"""Many small tensors as one: a checkpoint spends half a kilobyte on every tensor, and a device a copy of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def pack(tensors: Sequence[Tensor]) -> dict[str, Any]:
    """Join tensors that differ in their first dimension only, without waiting for the device.

    Returns:
        The joined ``"values"``, and ``"lengths"``, the first dimension of each tensor.
    """
    values = torch.cat(list(tensors)) if tensors else torch.zeros(0)
    return {"values": values, "lengths": [len(tensor) for tensor in tensors]}


def unpack(packed: Mapping[str, Any]) -> list[Tensor]:
    """Return the tensors that ``pack`` joined, each in memory of its own."""
    return [part.clone() for part in torch.split(packed["values"], packed["lengths"])] if packed["lengths"] else []


def upper_triangle(matrices: Tensor) -> Tensor:
    """Return the entries on and above the diagonal, row by row: [..., n, n] to [..., n (n + 1) / 2].

    By slices: an index tensor would be a copy to the device, and a wait.
    """
    n = matrices.shape[-1]
    return torch.cat([matrices[..., i, i:] for i in range(n)], -1) if n else matrices.flatten(-2)


def symmetric_matrices(entries: Tensor, n: int) -> Tensor:
    """Return the symmetric matrices [..., n, n] with these entries on and above the diagonal."""
    matrices = entries.new_empty(*entries.shape[:-1], n, n)
    for i, row in enumerate(torch.split(entries, list(range(n, 0, -1)), -1)):
        matrices[..., i, i:] = matrices[..., i:, i] = row
    return matrices
