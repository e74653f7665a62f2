"""Linear maps R^d -> R^k that preserve inner products: a CountSketch in two stages.

Charikar, Chen, Farach-Colton, "Finding frequent items in data streams" (2002), made structured so that a
block of any size is sketched in one pass over it, with no stored index of its size:

    stage one, d -> 2k  entry i goes to bucket i mod m, times a random sign: chunk by chunk, the flat block is
                        multiplied by a stretch of one sign vector, viewed as rows of length m, and added up
    stage two, 2k -> k  the first half of the buckets, plus a random permutation of the other half

Blocks of at most k entries are kept whole.

The prime m is drawn for each block from the primes between 13/8 k and 31/16 k. Entries at a fixed stride, such as the
columns of a matrix, therefore spread over the buckets, even if the stride is near a multiple of k/2, as the widths of
layers often are. Two entries collide with probability 1.02/k to 1.09/k: 1/m in stage one, the rest in stage two. In a
block of a few k entries the probability is lower, since entries of one row never collide in stage one.

Each chunk reads the sign vector from its own position and has one more sign of its own. Among m consecutive chunks, no
two positions are congruent modulo m, since rows at congruent positions would have the same signs. Entries that collide
therefore have independent signs. Blocks with similar contents would have errors that add up if they were hashed alike;
with their own primes and signs the errors average out, provided that k is in the hundreds and there are many primes.

Every random number is a function of (seed, block name, index in the block). It is the same on every device, platform
and version, and for whichever part of a block a process holds. Sums are in a fixed order, so repeated sketches of the
same values are bit-identical; the exception are entries that are given by index on a GPU. The working memory is 8 MiB
per device, for float32 entries in one stretch and dimensions up to 2048.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_traj.checks import check_int
from lightning_traj.files import Picklable
from lightning_traj.sketch.buckets import Buckets
from lightning_traj.sketch.hashing import BlockHash, block_hash, primes_between
from lightning_traj.sketch.protocol import SketchInput
from lightning_traj.tensors import flat_range

# Length of a sketch where the user chooses none; benchmarks/sketch_dim.py has the reasons.
DEFAULT_DIM = 512
# Entries that are handled at once. Longer chunks take fewer launches, but have to fit into a CPU's cache.
CHUNK = 262_144


class CountSketch(Picklable, transient={"_buckets": dict, "_hashes": dict, "_chunk_signs": dict}):
    """A seeded linear sketch with ⟨Sa, Sb⟩ an unbiased estimate of ⟨a, b⟩.

    The standard error is about √((‖a‖²‖b‖² + ⟨a, b⟩²) / dim) for one block. It is smaller for a block of a few ``dim``
    entries (half as large at 1.2 ``dim``). A block of at most ``dim`` entries is kept whole and has no error.

    Args:
        dim: Length k of a sketch, at least 1.
        seed: Seed of the random numbers. Sketches are comparable only if they share seed and dim.

    Raises:
        TypeError: ``dim`` or ``seed`` is not an int.
        ValueError: ``dim`` is below 1.

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
        check_int("dim", dim, least=1, example=DEFAULT_DIM)
        check_int("seed", seed)
        self.dim = dim
        self.seed = seed
        self.chunk = max(CHUNK, 8 * dim)  # four rows at least
        self._primes = primes_between(13 * dim // 8, 31 * dim // 16)
        self._buckets: dict[torch.device, Buckets] = {}
        self._hashes: dict[str, BlockHash] = {}
        self._chunk_signs: dict[tuple[str, torch.device], Tensor] = {}

    def __call__(
        self, tensor: Tensor, name: str, start: int = 0, numel: int | None = None, *, index: Tensor | None = None
    ) -> Tensor:
        """Sketch a block, or a part of it.

        Args:
            tensor: Real entries of any shape, dtype and layout, taken in C order.
            name: Name of the block, which selects the random numbers.
            start: Position in the block of the first entry of ``tensor``.
            numel: Number of entries of the whole block. Default: that of ``tensor``.
            index: Positions in the block of all entries of ``tensor``, int64, for entries that are not contiguous in
                the block. ``start`` is then ignored. Entries at the same position add up.

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
        """Return the sketch length for a block of `numel` entries."""
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
        """Add the given entries of a block that is kept whole."""
        for tensor, start, index in block.stretches:
            flat = tensor.reshape(-1).to(torch.float64)
            if index is None:
                entries[start : start + flat.numel()].add_(flat)
            else:
                entries.index_add_(0, index.reshape(-1), flat)

    def _fill(self, buckets: Buckets, block: SketchInput) -> None:
        """Sum the entries of a block in the buckets: stage one."""
        buckets.is_empty = True
        hashed = self._hash(block.name, block.numel)
        for tensor, start, index in block.stretches:
            n = tensor.numel()
            if index is not None:
                self._add_indexed(buckets, tensor.reshape(-1), index.reshape(-1), hashed)
            elif tensor.is_contiguous():
                self._add_flat(buckets, tensor.view(-1), start, hashed)
            else:  # entries in another order are copied, one chunk at a time
                for first in range(0, n, hashed.size):
                    flat = flat_range(tensor, first, min(first + hashed.size, n))
                    self._add_flat(buckets, flat, start + first, hashed)

    def _add_flat(self, buckets: Buckets, flat: Tensor, start: int, hashed: BlockHash) -> None:
        """Add contiguous entries of the block, the first one at position `start`."""
        done, count = 0, flat.numel()
        while done < count:
            chunk, offset = divmod(start + done, hashed.size)
            some = min(hashed.size - offset, count - done)
            part = flat if some == count else flat[done : done + some]
            buckets.add(part, offset, hashed, chunk)
            done += some

    def _add_indexed(self, buckets: Buckets, flat: Tensor, index: Tensor, hashed: BlockHash) -> None:
        """Add entries from anywhere in the block, such as a shard along an inner dimension."""
        chunk_signs, sums = self._chunk_signs_on(flat.device, hashed), buckets.started()
        for entries, positions in zip(torch.split(flat, self.chunk), torch.split(index, self.chunk), strict=True):
            chunk = positions // hashed.size
            values = entries.to(torch.float64) * buckets.signs[hashed.begin(chunk) + positions % hashed.size]
            sums.index_add_(0, positions % hashed.m, values.mul_(chunk_signs[chunk]))

    def _hash(self, name: str, numel: int) -> BlockHash:
        chunks = -(-numel // (self.chunk - 2 * self.dim))  # an upper bound: chunks are cut to whole rows
        found = self._hashes.get(name)
        if found is None or len(found.signs) < chunks:
            found = self._hashes[name] = block_hash(self.seed, name, self._primes, self.chunk, chunks)
        return found

    def _chunk_signs_on(self, device: torch.device, hashed: BlockHash) -> Tensor:
        """Return the signs of a block's chunks on a device; copied there only once, since the copy waits for it."""
        kept = self._chunk_signs.get((hashed.name, device))
        if kept is None or len(kept) < len(hashed.signs):
            kept = torch.tensor(hashed.signs, dtype=torch.float64, device=device)
            self._chunk_signs[hashed.name, device] = kept
        return kept

    def _buckets_on(self, device: torch.device) -> Buckets:
        if device not in self._buckets:
            self._buckets[device] = Buckets(self.seed, self.dim, self.chunk, device)
        return self._buckets[device]
