"""Rows of snapshots, and inner products of their differences, block by block: in float64, in few launches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCKS = 32  # taken at once: their sketches stay in a CPU's cache
# Rows and columns of a local Gram matrix [4, 4] that say all of it: those with u_{t−1} follow from the one before.
NEW = [0, 0, 0, 1, 1, 2, 2], [0, 1, 2, 1, 2, 2, 3]
CHUNK = 655_360  # entries: two float64 rows of it stay in a large cache, and the launches are few


@dataclass(frozen=True)
class Row:
    """Sketches of all blocks of one snapshot, which are not changed any more.

    Attributes:
        flat: Sketches of all blocks, one after the other: float64, 1-D.
        lengths: Length of each block's sketch.
    """

    flat: Tensor
    lengths: tuple[int, ...]

    @staticmethod
    def of(sketches: Sequence[Tensor]) -> Row:
        """Return a row of copies of 1-D tensors, one a block."""
        return Row(torch.cat(list(sketches)).double(), tuple(sketch.numel() for sketch in sketches))

    def blocks(self) -> tuple[Tensor, ...]:
        """Return the sketches of the blocks as views."""
        return torch.split(self.flat, list(self.lengths))


def local_grams(row: Row, base: Tensor, latest: Tensor, before: Tensor, displacement: Tensor | None = None) -> Tensor:
    """Return the Gram matrices of θ_t, d_t, u_t and u_{t−1} of each block, from sketches of snapshots.

    Many blocks at a time: few launches, in memory that stays in a CPU's cache.

    Args:
        row: Sketches of θ_t.
        base: Sketches of θ_0, flat.
        latest: Sketches of θ_{t−1}, flat.
        before: Sketches of θ_{t−2}, flat.
        displacement: Tensor that d_t is written to.

    Returns:
        float64 [blocks, 4, 4].
    """
    theta, grams, stop = row.flat, [], 0
    for first in range(0, len(row.lengths), BLOCKS):
        lengths = row.lengths[first : first + BLOCKS]
        at = slice(stop, stop := stop + sum(lengths))
        vectors = torch.empty(4, stop - at.start, dtype=torch.float64, device=theta.device)
        own, displaced, update, previous = vectors.unbind()  # in the order of THETA, DISPLACEMENT, …
        now, past = theta[at], latest[at]
        own.copy_(now)
        torch.sub(now, base[at], out=displaced)
        torch.sub(now, past, out=update)
        torch.sub(past, before[at], out=previous)
        if displacement is not None:
            displacement[at].copy_(displaced)
        by_block = _padded(vectors, lengths).transpose(0, 1)
        grams.append(by_block @ by_block.mT)
    return torch.cat(grams)


def _padded(vectors: Tensor, lengths: Sequence[int]) -> Tensor:
    """Return [4, entries] as [4, blocks, length of the longest block], with shorter blocks padded with zeros."""
    width = max(lengths)
    if min(lengths) < width:
        zeros = vectors.new_zeros(width)
        padding = [zeros[length:] for length in lengths]
        both = (zip(torch.split(vector, list(lengths)), padding, strict=True) for vector in vectors)
        vectors = torch.cat([piece for pairs in both for pair in pairs for piece in pair])
    return vectors.view(4, -1, width)


def exact_products(
    theta: Tensor, base: Tensor, latest: Tensor, before: Tensor, stored: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the new entries of a block's local Gram matrix [7], and ⟨θ_0, d_t⟩, ⟨d_1, d_t⟩, … [1 + stored].

    One pass over each tensor, chunk by chunk: converted into float64 rows that stay in the cache, so that the products
    are float64's while the traffic is float32's.
    """
    numel = theta.numel()
    size = max(1, -(-numel // max(1, -(-numel // CHUNK))))  # of equal size: a short last one would cost as much
    rows = torch.empty(6, size, dtype=torch.float64, device=theta.device)
    local = rows.new_zeros(len(NEW[0]))
    products = rows.new_zeros(1 + len(stored))
    for start in range(0, numel, size):
        chunk = slice(start, start + size)
        now, displacement, update, previous, past, other = vectors = rows[:, : numel - start].unbind()
        now.copy_(theta[chunk])
        torch.sub(now, past.copy_(latest[chunk]), out=update)
        torch.sub(past, other.copy_(before[chunk]), out=previous)
        origin = past.copy_(base[chunk])
        torch.sub(now, origin, out=displacement)
        # Dot products: on CPUs, a matrix product of a few long rows takes three times as long as these.
        local += torch.stack([vectors[i] @ vectors[j] for i, j in zip(*NEW, strict=True)])
        products += torch.stack(
            [origin @ displacement, *(other.copy_(theta_i[chunk]) @ displacement for theta_i in stored)]
        )
    products[1:] -= products[0].clone()  # ⟨d_i, d⟩ = ⟨θ_i, d⟩ − ⟨θ_0, d⟩
    return local, products
