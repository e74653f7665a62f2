"""Buckets of CountSketch on one device, in which blocks are summed one after the other."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lightning_traj.sketch.hashing import SIGNS, BlockHash, random_signs, random_words


class Buckets:
    """Buckets of one block at a time, with the sign vector and the permutation that all blocks share.

    Blocks use the same memory in turn: memory of their own would leave holes between the tensors that are kept.

    Args:
        seed: Seed of the sketch.
        dim: Length of the sketch.
        chunk: Largest size of a chunk, in entries.
        device: Device of the entries.

    Attributes:
        is_empty: Whether nothing has been added yet, so that the buckets still hold the sums of an earlier block.
        signs: The sign vector, int8, 1 or -1.
    """

    def __init__(self, seed: int, dim: int, chunk: int, device: torch.device) -> None:
        self.is_empty = True
        self.signs = torch.from_numpy(random_signs(seed, "entries", SIGNS * chunk)).to(device)
        order = np.argsort(random_words(seed, "permutation", dim), kind="stable")
        self._permutation = torch.from_numpy(order).to(device)
        self._sums = torch.empty(2 * dim, dtype=torch.float64, device=device)
        self._first, self._second = self._sums.view(2, dim)
        self._rows = torch.empty(chunk, dtype=torch.float64, device=device)
        self._by_dtype: dict[torch.dtype, tuple[Tensor, Tensor]] = {}  # signs, scratch

    def started(self) -> Tensor:
        """Return the buckets to add to, set to zero if nothing has been added."""
        if self.is_empty:
            self._sums.zero_()
            self.is_empty = False
        return self._sums

    def add(self, entries: Tensor, offset: int, hashed: BlockHash, chunk: int) -> None:
        """Add 1-D entries of a chunk.

        Args:
            entries: Consecutive entries.
            offset: Position in the chunk of the first entry.
            hashed: Random numbers of the block.
            chunk: Index of the chunk.
        """
        m, sign = hashed.m, hashed.signs[chunk]
        # Signs are applied before the conversion to float64: that halves the memory traffic of signs.
        rows = self._as_rows(self._signed(entries, hashed.begin(chunk) + offset), offset % m, m)
        if not self.is_empty:
            self._sums[:m].add_(rows.sum(0), alpha=sign)
            return
        # The first chunk overwrites the buckets instead of adding to zeros, since most blocks have only one.
        torch.sum(rows, 0, out=self._sums[:m])
        if sign < 0:
            self._sums[:m].neg_()
        self._sums[m:].zero_()
        self.is_empty = False

    def fold(self, out: Tensor) -> None:
        """Add the two halves of the buckets, one of them permuted: stage two."""
        self.started()  # a process may hold no entry of a block
        torch.index_select(self._second, 0, self._permutation, out=out)
        out += self._first

    def _signed(self, entries: Tensor, begin: int) -> Tensor:
        """Multiply entries by the signs from position `begin` on, in a floating-point dtype that holds them exactly."""
        if not entries.is_floating_point() or entries.element_size() == 1:
            entries = entries.to(torch.float64)
        if entries.dtype not in self._by_dtype:
            signs = self.signs.to(entries.dtype)
            self._by_dtype[entries.dtype] = signs, signs.new_empty(len(self._rows))
        signs, scratch = self._by_dtype[entries.dtype]
        count = entries.numel()
        return torch.mul(entries, signs[begin : begin + count], out=scratch[:count])

    def _as_rows(self, entries: Tensor, begin: int, m: int) -> Tensor:
        """Arrange entries as float64 rows of length m, the first one at place `begin` of row 0; pad with zeros."""
        end = begin + entries.numel()
        count = -(-end // m)
        self._rows[begin:end].copy_(entries)
        if begin:
            self._rows[:begin].zero_()
        if end < count * m:
            self._rows[end : count * m].zero_()
        return self._rows.as_strided((count, m), (m, 1))
