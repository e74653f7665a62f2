"""Linear maps R^d -> R^k that preserve inner products: a CountSketch in two stages.

Charikar, Chen, Farach-Colton, "Finding frequent items in data streams" (2002), made structured so that a
block of any size is sketched in one pass over it, with no stored index of its size:

    stage one, d -> m   the flat block is cut into rows of length m; row r is multiplied by one sign vector
                        t [m] and one sign s_r, shifted cyclically by o_r, and added up
    stage two, m -> k   a random permutation, random signs, and a sum over the m/k entries of each group

Blocks of at most m entries are one row (without a shift and signs of their own, the errors of blocks with like
contents would be alike, and would not average out); blocks of at most k are kept whole. Every random number
is a function of (seed, block name, index in the block): the same on every device, platform and version, and
for whichever part of a block a process happens to hold. Stage two is a gather, not a scatter, and stage one adds
rows in order: repeated sketches of the same values are bit-identical, on GPUs too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

MIN_ROW_LENGTH = 65_536
SCRATCH_ROWS = 4  # converted at once: fewer launches, and they still stay in a CPU's cache
MIN_GROUP = 16  # entries of a stage-two group: with m = k the two stages cost 1.4 of the standard error


def _random_words(seed: int, purpose: str, count: int) -> np.ndarray:
    """Counter-based random 64-bit words: word i depends on (seed, purpose, i) alone."""
    digest = hashlib.blake2b(purpose.encode(), key=str(seed).encode(), digest_size=16).digest()
    return np.random.Philox(key=int.from_bytes(digest, "little")).random_raw(count)


def _random_signs(seed: int, purpose: str, count: int) -> np.ndarray:
    return 1.0 - 2.0 * (_random_words(seed, purpose, count) & np.uint64(1)).astype(np.float64)


class CountSketch:
    """A seeded linear sketch with ⟨Sa, Sb⟩ an unbiased estimate of ⟨a, b⟩.

    Its standard error is about √((‖a‖²‖b‖² + ⟨a, b⟩²) / dim) for one block (measures.md's "error of sketched
    values"); a block of at most ``dim`` entries is kept whole and has none.

    Args:
        dim: Length k of a sketch, at least 1.
        seed: Sketches can be compared with each other if their seed and dim are the same.

    Raises:
        TypeError, ValueError: dim or seed is not an integer, or dim is below 1.

    Example:
        >>> import torch
        >>> sketch = CountSketch(dim=256, seed=0)
        >>> weight = torch.ones(1000, 100)
        >>> sketch(weight, "fc.weight").shape
        torch.Size([256])
        >>> halves = sketch(weight[:500], "fc.weight", 0, 100_000) + sketch(weight[500:], "fc.weight", 50_000, 100_000)
        >>> torch.allclose(halves, sketch(weight, "fc.weight"))
        True
    """

    def __init__(self, dim: int, seed: int = 0) -> None:
        for argument, value in (("dim", dim), ("seed", seed)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{argument}={value!r} is no integer: pass an int, such as {argument}=2048.")
        if dim < 1:
            raise ValueError(f"dim={dim}: a sketch needs at least one entry; pass a positive integer.")
        self.dim = dim
        self.seed = seed
        # The row length is a multiple of dim, so that all groups of stage two are of one size.
        self.row_length = dim * max(MIN_GROUP, -(-MIN_ROW_LENGTH // dim))
        self._shared: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = {}
        self._scratch: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self._shifts: dict[str, tuple[list[int], list[float]]] = {}

    def __call__(
        self, tensor: Tensor, name: str, start: int = 0, numel: int | None = None, *, index: Tensor | None = None
    ) -> Tensor:
        """Sketch the block ``name``, or the part of it that is given.

        Args:
            tensor: Real entries, any shape, dtype and layout; taken in C order.
            name: The block's name: it selects the random numbers.
            start: Position in the block of the first entry given.
            numel: Entries of the whole block; default: the tensor's own.
            index: int64, as many entries as the tensor: their positions in the block, where they are not
                contiguous. Used instead of ``start``; repeated positions add up.

        Returns:
            float64 [min(dim, numel)], on the tensor's device. Sketches of the disjoint parts of a block add up to
            the sketch of the block.
        """
        numel = tensor.numel() if numel is None else numel
        if tensor.is_complex():
            raise TypeError(f"block {name!r} is complex: sketch torch.view_as_real(tensor) instead.")
        if index is not None and index.numel() != tensor.numel():
            raise ValueError(
                f"index has {index.numel()} entries for {tensor.numel()} of block {name!r}: pass one for each."
            )
        if index is None and (start < 0 or start + tensor.numel() > numel):
            raise ValueError(
                f"start={start} with {tensor.numel()} entries does not fit block {name!r} of {numel}: "
                "pass numel=, the number of entries of the whole block."
            )
        return self._sketch([(tensor, start, index)], name, numel, tensor.device)

    def of_pieces(self, tensors: Sequence[Tensor], name: str) -> Tensor:
        """Sketch the block ``name`` that consists of these tensors, one after the other, each in C order.

        Returns:
            float64 [min(dim, entries in all)], on the first tensor's device: as of their concatenation, never made.
        """
        pieces, start = [], 0
        for tensor in tensors:
            pieces.append((tensor, start, None))
            start += tensor.numel()
        return self._sketch(pieces, name, start, tensors[0].device)

    def of_stretches(
        self, stretches: Iterable[tuple[Tensor, int, Tensor | None]], name: str, numel: int, device: torch.device
    ) -> Tensor:
        """Sketch those entries of the block ``name`` that these are, none maybe.

        Args:
            stretches: Real entries, each time with the position of the first of them or with an index of them all.
            name: The block's name.
            numel: Entries of the whole block.
            device: Of the entries.

        Returns:
            float64 [min(dim, numel)], on the device.
        """
        return self._sketch(stretches, name, numel, device)

    def _sketch(
        self,
        pieces: Iterable[tuple[Tensor, int, Tensor | None]],
        name: str,
        numel: int,
        device: torch.device,
    ) -> Tensor:
        """Sketch of a block of which these tensors are given, each with its start or with its index."""
        whole, m = numel <= self.dim, self.row_length
        if whole and isinstance(pieces, list) and pieces[0][2] is None and pieces[0][0].numel() == numel:
            only: Tensor = pieces[0][0]
            return only.detach().reshape(-1).to(torch.float64, copy=True)
        if whole:
            buffer = torch.zeros(numel, dtype=torch.float64, device=device)
        else:
            _, permutation, signs = self._shared_on(device)
            buffer, scratch = self._scratch_on(device)
            buffer = buffer[: m + min(numel, m)].zero_()
        for tensor, start, index in pieces:
            if index is not None:
                self._add_indexed(buffer, tensor.detach().reshape(-1), index.reshape(-1), name, numel)
                continue
            for flat, first in _flat_pieces(tensor.detach(), start, m):
                if whole:
                    buffer[first : first + flat.numel()].add_(flat)
                else:
                    self._add_rows(buffer, flat, first, name, numel)
        if whole:
            return buffer
        # The shifts of stage one are cyclic: fold what went past the end.
        buffer[: len(buffer) - m].add_(buffer[m:])
        gathered = torch.index_select(buffer[:m], 0, permutation, out=scratch[:m])
        return gathered.mul_(signs).view(-1, self.dim).sum(0)

    def _add_rows(self, buffer: Tensor, flat: Tensor, first: int, name: str, numel: int) -> None:
        """Stage one for contiguous entries, added into a buffer [m + one row]."""
        m = self.row_length
        shifts, signs = self._rows(name, numel)
        row_signs, _, _ = self._shared_on(buffer.device)
        _, scratch = self._scratch_on(buffer.device)
        position = first
        for piece in torch.split(flat, len(scratch)):
            # A copy into a small scratch is a cheaper conversion than mixed-type arithmetic, which makes one too.
            entries = scratch[: piece.numel()].copy_(piece)
            while len(entries):
                row, column = divmod(position, m)
                part = entries[: m - column]
                count = len(part)
                shift = shifts[row] + column
                buffer[shift : shift + count].addcmul_(row_signs[column : column + count], part, value=signs[row])
                entries = entries[count:]
                position += count

    def _add_indexed(self, buffer: Tensor, flat: Tensor, index: Tensor, name: str, numel: int) -> None:
        """Stage one for entries anywhere in the block (a shard along an inner dimension, for instance)."""
        m = self.row_length
        for entries, positions in zip(torch.split(flat, m), torch.split(index, m), strict=True):
            values = entries.to(torch.float64)
            if numel > self.dim:
                shifts, signs = (torch.tensor(x, device=flat.device) for x in self._rows(name, numel))
                row_signs, _, _ = self._shared_on(flat.device)
                row, column = positions // m, positions % m
                values = values * row_signs[column] * signs[row]
                positions = shifts[row] + column
            buffer.index_add_(0, positions, values)

    def _rows(self, name: str, numel: int) -> tuple[list[int], list[float]]:
        """Shift o_r and sign s_r of each row of a block."""
        rows = -(-numel // self.row_length)
        if name not in self._shifts or len(self._shifts[name][0]) < rows:
            words = _random_words(self.seed, f"rows:{name}", rows)
            shifts = ((words >> np.uint64(1)) % np.uint64(self.row_length)).astype(np.int64)
            signs = 1.0 - 2.0 * (words & np.uint64(1)).astype(np.float64)
            self._shifts[name] = (shifts.tolist(), signs.tolist())
        return self._shifts[name]

    def _scratch_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Memory that all sketches use in turn: buffers of their own would leave holes between what is kept."""
        if device not in self._scratch:
            sizes = (2 * self.row_length, SCRATCH_ROWS * self.row_length)
            buffer, scratch = (torch.empty(size, dtype=torch.float64, device=device) for size in sizes)
            self._scratch[device] = buffer, scratch
        return self._scratch[device]

    def _shared_on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Sign vector t of stage one, permutation and signs of stage two: each [m], shared by all blocks."""
        if device not in self._shared:
            order = np.argsort(_random_words(self.seed, "permutation", self.row_length), kind="stable")
            self._shared[device] = (
                torch.from_numpy(_random_signs(self.seed, "entries", self.row_length)).to(device),
                torch.from_numpy(order).to(device),
                torch.from_numpy(_random_signs(self.seed, "groups", self.row_length)).to(device),
            )
        return self._shared[device]


def _flat_pieces(tensor: Tensor, start: int, limit: int) -> Iterator[tuple[Tensor, int]]:
    """The tensor in C order as flat pieces with their positions, copying at most ``limit`` entries at once."""
    if tensor.is_contiguous():
        yield tensor.view(-1), start
    elif tensor.numel() <= limit:
        yield tensor.reshape(-1), start
    else:
        inner = tensor[0].numel()
        step = max(1, limit // inner)
        for first in range(0, tensor.shape[0], step):
            yield from _flat_pieces(tensor[first : first + step] if inner <= limit else tensor[first], start, limit)
            start += inner * min(step, tensor.shape[0] - first)
