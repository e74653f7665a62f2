"""Linear maps R^d -> R^k that preserve inner products: a CountSketch in two stages.

Charikar, Chen, Farach-Colton, "Finding frequent items in data streams" (2002), made structured so that a
block of any size is sketched in one pass over it, with no stored index of its size:

    stage one, d -> m   entry i goes to bucket i mod m, times a random sign: chunk by chunk, the flat block is
                        multiplied by a stretch of one sign vector, viewed as rows of length m, and added up
    stage two, m -> k   a random permutation of the M ≥ m buckets, and a sum over the M/k of each group

The prime m is drawn for each block from between 3M/4 and M. Each chunk takes the sign vector from a position of its
own, no two congruent modulo m, and one more sign. So entries at a fixed stride, such as the columns of a matrix, spread
over the buckets; entries that meet have signs of their own; and the errors of blocks with like contents, which would
add up if the blocks were hashed alike, average out. Two entries meet with probability about 1/k: 1/m in stage one, the
rest in stage two, whose groups are of one size. Blocks of at most k entries are kept whole.

Every random number is a function of (seed, block name, index in the block): the same on every device, platform and
version, and for whichever part of a block a process happens to hold. Both stages are gathers and sums in a fixed
order: repeated sketches of the same values are bit-identical. Beside the sketches it takes 5.5 MiB on a device, for
float32 entries and dimensions up to 2048.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Sequence
from math import isqrt
from operator import attrgetter
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_traj.blocks import flat_range

MIN_BUCKETS = 8192
MIN_GROUP = 4  # buckets of a stage-two group
CHUNK = 262_144  # entries: fewer launches the longer it is, and it has to stay in a CPU's cache


def _random_words(seed: int, purpose: str, count: int) -> np.ndarray:
    """Counter-based random 64-bit words: word i depends on (seed, purpose, i) alone."""
    digest = hashlib.blake2b(purpose.encode(), key=str(seed).encode(), digest_size=16).digest()
    return np.random.Philox(key=int.from_bytes(digest, "little")).random_raw(count)


def _signs(words: np.ndarray) -> np.ndarray:
    return 1.0 - 2.0 * (words & np.uint64(1)).astype(np.float64)


def _primes(low: int, high: int) -> np.ndarray:
    """Primes p with low < p < high; low is at least isqrt(high)."""
    numbers = np.arange(low + 1, high)
    for divisor in range(2, isqrt(high) + 1):
        numbers = numbers[numbers % divisor > 0]
    return numbers


class Given(NamedTuple):
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
        # Buckets are a multiple of dim, so that all groups of stage two are of one size.
        self.buckets = dim * max(MIN_GROUP, -(-MIN_BUCKETS // dim))
        self.chunk = max(CHUNK, 4 * self.buckets)
        self._primes = _primes(3 * self.buckets // 4, self.buckets)
        self._shared: dict[torch.device, _Shared] = {}
        self._hashes: dict[str, tuple[int, int, list[float]]] = {}
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
        return self.of_blocks([Given(name, numel, tensor.device, [(tensor, start, index)])])

    def length(self, numel: int) -> int:
        """Of the sketch of a block of so many entries."""
        return min(numel, self.dim)

    @torch.no_grad()
    def of_blocks(self, blocks: Sequence[Given]) -> Tensor:
        """Sketch several blocks: as one by one, to the last bit, and in fewer launches.

        Returns:
            The sketches one after the other: float64 [Σ min(dim, numel)], on the device of the first block.
        """
        total = sum(self.length(block.numel) for block in blocks)
        sketches = torch.empty(total, dtype=torch.float64, device=blocks[0].device if blocks else None)
        stop = 0
        for device, run in itertools.groupby(blocks, key=attrgetter("device")):
            shared = self._shared_on(device)
            while some := list(itertools.islice(run, len(shared.sums))):
                at = slice(stop, stop := stop + sum(self.length(block.numel) for block in some))
                long = [block for block in some if block.numel > self.dim]
                groups = self._permuted(long, shared)
                if len(long) == len(some) and device == sketches.device:
                    torch.sum(groups, 1, out=sketches[at].view(-1, self.dim))
                    continue
                folded = iter(groups.sum(1).unbind())
                each = [next(folded) if block.numel > self.dim else self._whole(block) for block in some]
                torch.cat([sketch.to(sketches.device) for sketch in each], out=sketches[at])
        return sketches

    def _permuted(self, blocks: Sequence[Given], shared: _Shared) -> Tensor:
        """The buckets of blocks of more than dim entries, as many as there is memory for: [blocks, M / dim, dim].

        They are permuted, and wait for the sum over each group.
        """
        n = len(blocks)
        sums = shared.sums[:n].zero_()
        for block, buckets in zip(blocks, sums, strict=True):
            self._add(buckets, block)
        permuted = shared.permuted[:n]
        torch.gather(sums, 1, shared.permutation.expand(n, -1), out=permuted)
        return permuted.view(n, self.buckets // self.dim, self.dim)

    def _whole(self, block: Given) -> Tensor:
        """The entries of a block that is kept whole."""
        entries = torch.zeros(block.numel, dtype=torch.float64, device=block.device)
        self._add(entries, block)
        return entries

    def _add(self, buckets: Tensor, block: Given) -> None:
        """Add what is given of a block to its buckets; to itself, where it is kept whole."""
        for tensor, start, index in block.stretches:
            if index is not None:
                self._add_indexed(buckets, tensor.reshape(-1), index.reshape(-1), block.name, block.numel)
                continue
            # What has to be copied for being strided is copied a chunk at a time.
            n, is_flat = tensor.numel(), tensor.is_contiguous()
            for first in range(0, n, n if is_flat else self.chunk) if n else ():
                flat = tensor.view(-1) if is_flat else flat_range(tensor, first, min(first + self.chunk, n))
                if block.numel <= self.dim:
                    buckets[start + first : start + first + flat.numel()].add_(flat.to(torch.float64))
                else:
                    self._add_rows(buckets, flat, start + first, block)

    def _add_rows(self, buckets: Tensor, flat: Tensor, first: int, block: Given) -> None:
        """Stage one for contiguous entries."""
        m, step, chunk_signs = self._hash(block.name, block.numel)
        shared = self._shared_on(block.device)
        size = self.chunk // m * m  # of a chunk: whole rows
        position, last = first, first + flat.numel()
        while position < last:
            chunk, offset = divmod(position, size)
            count, before = min(size - offset, last - position), offset % m
            end = before + count
            rows = shared.rows[: -(-end // m) * m]
            if before:
                rows[:before].zero_()
            if end < rows.numel():
                rows[end:].zero_()
            part = flat[position - first : position - first + count]
            # Signs first: half the traffic of signs after the conversion.
            rows[before:end].copy_(shared.signed(part, (chunk + 1) * step % m + offset))
            buckets[:m].add_(rows.view(-1, m).sum(0), alpha=chunk_signs[chunk])
            position += count

    def _add_indexed(self, buckets: Tensor, flat: Tensor, index: Tensor, name: str, numel: int) -> None:
        """Stage one for entries anywhere in the block (a shard along an inner dimension, for instance)."""
        for entries, positions in zip(torch.split(flat, self.chunk), torch.split(index, self.chunk), strict=True):
            values = entries.to(torch.float64)
            if numel > self.dim:
                m, step, _ = self._hash(name, numel)
                size = self.chunk // m * m
                signs = self._shared_on(flat.device).signs
                chunk = positions // size
                values = values * signs[(chunk + 1) * step % m + positions % size]
                values *= self._chunk_signs_on(flat.device, name, numel)[chunk]
                positions = positions % m
            buckets.index_add_(0, positions, values)

    def _hash(self, name: str, numel: int) -> tuple[int, int, list[float]]:
        """Of a block: its row length m, the step by which the sign vector moves on, and a sign of each chunk."""
        chunks = -(-numel // (self.chunk - self.buckets))  # at least
        if name not in self._hashes or len(self._hashes[name][2]) < chunks:
            words = _random_words(self.seed, f"block:{name}", 2 + chunks)
            m = int(self._primes[int(words[0]) % len(self._primes)])
            self._hashes[name] = m, 1 + int(words[1]) % (m - 1), _signs(words[2:]).tolist()
        return self._hashes[name]

    def _chunk_signs_on(self, device: torch.device, name: str, numel: int) -> Tensor:
        """The sign of each chunk of a block: copied to a device once, since that has to wait for it."""
        signs, kept = self._hash(name, numel)[2], self._chunk_signs.get((name, device))
        if kept is None or len(kept) < len(signs):
            kept = self._chunk_signs[name, device] = torch.tensor(signs, dtype=torch.float64, device=device)
        return kept

    def _shared_on(self, device: torch.device) -> _Shared:
        if device not in self._shared:
            self._shared[device] = _Shared(self.seed, self.buckets, self.chunk, device)
        return self._shared[device]


class _Shared:
    """What all blocks on a device share: signs, a permutation, and memory that all sketches use in turn.

    Memory of their own would leave holes between what is kept.
    """

    def __init__(self, seed: int, buckets: int, chunk: int, device: torch.device) -> None:
        order = np.argsort(_random_words(seed, "permutation", buckets), kind="stable")
        self.permutation = torch.from_numpy(order).to(device)  # [M]
        signs = _signs(_random_words(seed, "entries", chunk + buckets))
        self.signs = torch.from_numpy(signs.astype(np.int8)).to(device)  # [chunk + M]
        self.rows = torch.empty(chunk, dtype=torch.float64, device=device)
        # Of several blocks, in half of the memory of a chunk: their buckets, and the same permuted.
        self.sums = torch.empty(chunk // (2 * buckets), buckets, dtype=torch.float64, device=device)
        self.permuted = self.rows[: self.sums.numel()].view_as(self.sums)
        self._by_dtype: dict[torch.dtype, tuple[Tensor, Tensor]] = {}  # signs, scratch

    def signed(self, entries: Tensor, at: int) -> Tensor:
        """The entries times the signs from a position on, in a floating-point dtype that holds them exactly."""
        if not entries.is_floating_point() or entries.element_size() == 1:
            entries = entries.to(torch.float64)
        if entries.dtype not in self._by_dtype:
            signs = self.signs.to(entries.dtype)
            self._by_dtype[entries.dtype] = signs, torch.empty_like(signs)
        signs, scratch = self._by_dtype[entries.dtype]
        count = entries.numel()
        return torch.mul(entries, signs[at : at + count], out=scratch[:count])
