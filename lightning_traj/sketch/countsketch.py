"""Linear maps R^d -> R^k that preserve inner products: a CountSketch in two stages.

Charikar, Chen, Farach-Colton, "Finding frequent items in data streams" (2002), made structured so that a
block of any size is sketched in one pass over it, with no stored index of its size:

    stage one, d -> 2k  entry i goes to bucket i mod m, times a random sign: chunk by chunk, the flat block is
                        multiplied by a stretch of one sign vector, viewed as rows of length m, and added up
    stage two, 2k -> k  the first half of the buckets, plus a random permutation of the other half

The prime m is drawn for each block from those between 13/8 k and 31/16 k. So entries at a fixed stride, such as the
columns of a matrix, spread over the buckets, also where it is near a multiple of k/2, as widths of layers are. Two
entries meet with probability 1.02/k to 1.09/k: 1/m in stage one, the rest in stage two; in a block of a few k entries
with less, as those within a row never meet in stage one. Each chunk takes the sign vector from a position of its own,
no two of m consecutive chunks from positions congruent modulo m, at which their rows would have the same signs; and one
more sign. So entries that meet have signs of their own, and the errors of blocks with like contents, which would add up
if the blocks were hashed alike, average out, where k is some hundreds and there are many primes. Blocks of at most k
entries are kept whole.

Every random number is a function of (seed, block name, index in the block): the same on every device, platform and
version, and for whichever part of a block a process happens to hold. Sums are in a fixed order, but for entries by
index on a GPU: repeated sketches of the same values are bit-identical. Beside the sketches it takes 8 MiB on a device,
for float32 entries in one stretch and dimensions up to 2048.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from math import isqrt
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from lightning_traj.blocks import flat_range
from lightning_traj.files import Picklable

DEFAULT_DIM = 512  # of the callback, from_checkpoints and the command line: benchmarks/sketch_dim.py says why
CHUNK = 262_144  # entries: fewer launches the longer it is, and it has to stay in a CPU's cache
SIGNS = 4  # chunks: so long is the sign vector. Chunks that share signs make the errors of constant blocks larger


def _random_words(seed: int, purpose: str, count: int) -> np.ndarray:
    """Counter-based random 64-bit words: word i depends on (seed, purpose, i) alone."""
    digest = hashlib.blake2b(purpose.encode(), key=str(seed).encode(), digest_size=16).digest()
    return np.random.Philox(key=int.from_bytes(digest, "little")).random_raw(count)


def _random_signs(seed: int, purpose: str, count: int) -> np.ndarray:
    """The bits of the random words as 1 and -1, int8: sign i depends on (seed, purpose, i) alone."""
    words = _random_words(seed, purpose, -(-count // 64))
    return 1 - 2 * np.unpackbits(words.astype("<u8").view(np.uint8), count=count).view(np.int8)


def _primes(low: int, high: int) -> list[int]:
    """Primes p with low < p ≤ high; where there is none the largest one below, or 1."""
    primes: list[int] = []
    for n in range(high, 1, -1):
        if primes and n <= low:
            break
        if all(n % divisor for divisor in range(2, isqrt(n) + 1)):
            primes.append(n)
    return primes or [1]


class SketchInput(NamedTuple):
    """What is given of a block.

    Attributes:
        name: It selects the random numbers.
        numel: Entries of the whole block.
        device: Of the entries.
        stretches: Real entries, each time with the position in the block of the first of them or with an index of
            them all; none maybe.
    """

    name: str
    numel: int
    device: torch.device
    stretches: Iterable[tuple[Tensor, int, Tensor | None]]


class CountSketch(Picklable, transient={"_buckets": dict, "_hashes": dict, "_chunk_signs": dict}):
    """A seeded linear sketch with ⟨Sa, Sb⟩ an unbiased estimate of ⟨a, b⟩.

    Its standard error is about √((‖a‖²‖b‖² + ⟨a, b⟩²) / dim) for one block, less for one of a few ``dim`` entries
    (half as much at 1.2 ``dim``); a block of at most ``dim`` entries is kept whole and has none.

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
                raise TypeError(f"{argument}={value!r} is no integer: pass an int, such as {argument}=512.")
        if dim < 1:
            raise ValueError(f"dim={dim}: a sketch needs at least one entry; pass a positive integer.")
        self.dim = dim
        self.seed = seed
        self.chunk = max(CHUNK, 8 * dim)  # four rows at least
        self._primes = _primes(13 * dim // 8, 31 * dim // 16)
        self._buckets: dict[torch.device, _Buckets] = {}
        self._hashes: dict[str, _Hash] = {}
        self._chunk_signs: dict[tuple[str, torch.device], Tensor] = {}

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
        return self.of_blocks([SketchInput(name, numel, tensor.device, [(tensor, start, index)])])

    def length(self, numel: int) -> int:
        """Of the sketch of a block of so many entries."""
        return min(numel, self.dim)

    @torch.no_grad()
    def of_blocks(self, blocks: Sequence[SketchInput]) -> Tensor:
        """Sketch several blocks.

        Returns:
            The sketches one after the other: float64 [Σ min(dim, numel)], on the device of the first block.
        """
        lengths = [self.length(block.numel) for block in blocks]
        device = blocks[0].device if blocks else None
        sketches = torch.empty(sum(lengths), dtype=torch.float64, device=device)
        for block, sketch in zip(blocks, torch.split(sketches, lengths), strict=True):
            here = sketch if block.device == device else torch.empty_like(sketch, device=block.device)
            if block.numel <= self.dim:
                self._add_entries(here.zero_(), block)
            else:
                buckets = self._buckets_on(block.device)
                self._fill(buckets, block)
                buckets.fold(out=here)
            if here is not sketch:
                sketch.copy_(here)
        return sketches

    def _add_entries(self, entries: Tensor, block: SketchInput) -> None:
        """Of a block that is kept whole."""
        for tensor, start, index in block.stretches:
            flat = tensor.reshape(-1).to(torch.float64)
            if index is None:
                entries[start : start + flat.numel()].add_(flat)
            else:
                entries.index_add_(0, index.reshape(-1), flat)

    def _fill(self, buckets: _Buckets, block: SketchInput) -> None:
        """Stage one."""
        buckets.is_empty = True
        hashed = self._hash(block.name, block.numel)
        for tensor, start, index in block.stretches:
            n = tensor.numel()
            if index is not None:
                self._add_indexed(buckets, tensor.reshape(-1), index.reshape(-1), hashed)
            elif tensor.is_contiguous():
                self._add_flat(buckets, tensor.view(-1), start, hashed)
            else:  # it has to be copied: a chunk at a time
                for first in range(0, n, hashed.size):
                    flat = flat_range(tensor, first, min(first + hashed.size, n))
                    self._add_flat(buckets, flat, start + first, hashed)

    def _add_flat(self, buckets: _Buckets, flat: Tensor, start: int, hashed: _Hash) -> None:
        """Stage one for contiguous entries."""
        done, count = 0, flat.numel()
        while done < count:
            chunk, offset = divmod(start + done, hashed.size)
            some = min(hashed.size - offset, count - done)
            part = flat if some == count else flat[done : done + some]
            buckets.add(part, offset, hashed, chunk)
            done += some

    def _add_indexed(self, buckets: _Buckets, flat: Tensor, index: Tensor, hashed: _Hash) -> None:
        """Stage one for entries anywhere in the block (a shard along an inner dimension, for instance)."""
        chunk_signs, sums = self._chunk_signs_on(flat.device, hashed), buckets.started()
        for entries, positions in zip(torch.split(flat, self.chunk), torch.split(index, self.chunk), strict=True):
            chunk = positions // hashed.size
            values = entries.to(torch.float64) * buckets.signs[hashed.begin(chunk) + positions % hashed.size]
            sums.index_add_(0, positions % hashed.m, values.mul_(chunk_signs[chunk]))

    def _hash(self, name: str, numel: int) -> _Hash:
        chunks = -(-numel // (self.chunk - 2 * self.dim))  # at least
        found = self._hashes.get(name)
        if found is None or len(found.signs) < chunks:
            first, second = map(int, _random_words(self.seed, f"block:{name}", 2))
            m = self._primes[first % len(self._primes)]
            span = (SIGNS - 1) * self.chunk // m * m
            step = 1 + second % (span - 1)
            signs = _random_signs(self.seed, f"chunks:{name}", chunks)
            found = _Hash(name, m, self.chunk // m * m, step + (step % m == 0), span, signs.tolist())
            self._hashes[name] = found
        return found

    def _chunk_signs_on(self, device: torch.device, hashed: _Hash) -> Tensor:
        """The sign of each chunk of a block: copied to a device once, since that has to wait for it."""
        kept = self._chunk_signs.get((hashed.name, device))
        if kept is None or len(kept) < len(hashed.signs):
            kept = torch.tensor(hashed.signs, dtype=torch.float64, device=device)
            self._chunk_signs[hashed.name, device] = kept
        return kept

    def _buckets_on(self, device: torch.device) -> _Buckets:
        if device not in self._buckets:
            self._buckets[device] = _Buckets(self.seed, self.dim, self.chunk, device)
        return self._buckets[device]


Integers = TypeVar("Integers", int, Tensor)


class _Hash(NamedTuple):
    """Of a block.

    Attributes:
        name: Of the block.
        m: How many buckets there are, and the length of a row.
        size: Entries of a chunk: whole rows.
        step: By which the position in the sign vector moves on from chunk to chunk.
        span: Positions begin before it: a multiple of m, so that no two of m chunks are congruent modulo m.
        signs: One more of each chunk.
    """

    name: str
    m: int
    size: int
    step: int
    span: int
    signs: list[int]

    def begin(self, chunk: Integers) -> Integers:
        """Where in the sign vector the signs of a chunk begin."""
        return (chunk + 1) * self.step % self.span


class _Buckets:
    """The buckets of one block after the other, on a device, and what all blocks share: signs, and a permutation.

    Memory of their own would leave holes between what is kept.

    Attributes:
        is_empty: Nothing has been added yet, and what the buckets hold is of another block.
        signs: int8, 1 or -1.
    """

    def __init__(self, seed: int, dim: int, chunk: int, device: torch.device) -> None:
        self.is_empty = True
        self.signs = torch.from_numpy(_random_signs(seed, "entries", SIGNS * chunk)).to(device)
        order = np.argsort(_random_words(seed, "permutation", dim), kind="stable")
        self._permutation = torch.from_numpy(order).to(device)
        self._sums = torch.empty(2 * dim, dtype=torch.float64, device=device)
        self._first, self._second = self._sums.view(2, dim)
        self._rows = torch.empty(chunk, dtype=torch.float64, device=device)
        self._by_dtype: dict[torch.dtype, tuple[Tensor, Tensor]] = {}  # signs, scratch

    def started(self) -> Tensor:
        """The buckets, to add to: zeros, if nothing has been added."""
        if self.is_empty:
            self._sums.zero_()
            self.is_empty = False
        return self._sums

    def add(self, entries: Tensor, offset: int, hashed: _Hash, chunk: int) -> None:
        """Add 1-D entries of a chunk, from this offset in it on."""
        m, sign = hashed.m, hashed.signs[chunk]
        # Signs first: half the traffic of signs after the conversion.
        rows = self._as_rows(self._signed(entries, hashed.begin(chunk) + offset), offset % m, m)
        if not self.is_empty:
            self._sums[:m].add_(rows.sum(0), alpha=sign)
            return
        # Without zeros to begin with: most blocks are one chunk.
        torch.sum(rows, 0, out=self._sums[:m])
        if sign < 0:
            self._sums[:m].neg_()
        self._sums[m:].zero_()
        self.is_empty = False

    def fold(self, out: Tensor) -> None:
        """Stage two."""
        self.started()  # nothing of a block may be here
        torch.index_select(self._second, 0, self._permutation, out=out)
        out += self._first

    def _signed(self, entries: Tensor, at: int) -> Tensor:
        """The entries times the signs from a position on, in a floating-point dtype that holds them exactly."""
        if not entries.is_floating_point() or entries.element_size() == 1:
            entries = entries.to(torch.float64)
        if entries.dtype not in self._by_dtype:
            signs = self.signs.to(entries.dtype)
            self._by_dtype[entries.dtype] = signs, signs.new_empty(len(self._rows))
        signs, scratch = self._by_dtype[entries.dtype]
        count = entries.numel()
        return torch.mul(entries, signs[at : at + count], out=scratch[:count])

    def _as_rows(self, entries: Tensor, begin: int, m: int) -> Tensor:
        """Entries in float64, as rows of length m: the first one at this place of the first row, the rest is zeros."""
        end = begin + entries.numel()
        count = -(-end // m)
        self._rows[begin:end].copy_(entries)
        if begin:
            self._rows[:begin].zero_()
        if end < count * m:
            self._rows[end : count * m].zero_()
        return self._rows.as_strided((count, m), (m, 1))
