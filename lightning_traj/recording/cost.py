"""Cost of a recording, which is stated before it begins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from lightning_traj.blocks import Partition, block_groups, clean_name
from lightning_traj.recording.settings import RecordingSettings
from lightning_traj.sketch import CountSketch

# Bytes that a checkpoint takes beside the numbers: in all, for each snapshot, and for each block beside its names.
OVERHEAD = 6000, 400, 200


class Cost(NamedTuple):
    """Cost of a recording with as many snapshots and windows as are kept at most; memory in bytes.

    Attributes:
        blocks, numel: Number of blocks, and of parameters.
        snapshot: Size of a single snapshot.
        rows: Memory of the sketches that are kept.
        grams: Memory of Gram matrices, local ones, path lengths and windows. The host has a copy of them.
        checkpoint: Bytes that are added to a checkpoint.
    """

    blocks: int
    numel: int
    snapshot: int
    rows: int
    grams: int
    checkpoint: int

    def describe(self, snapshot: str, where: str) -> str:
        """Describe the cost of snapshots of this kind, which are kept there, in one line."""
        what = f"recording {self.blocks} blocks, {self.numel:,} parameters as {snapshot} snapshots"
        total = f"{in_bytes(self.checkpoint)} at most in each checkpoint, {in_bytes(self.rows + 2 * self.grams)}"
        return f"{what}: {in_bytes(self.snapshot)} a snapshot {where}; {total} in memory"


def cost_of(
    partition: Partition, parameters: Mapping[str, Tensor], settings: RecordingSettings, sketch: CountSketch
) -> Cost:
    """Return the cost of recording as many snapshots and windows of these blocks as the settings allow."""
    n, window = settings.max_snapshots, settings.window_steps
    count, numel = len(partition.blocks), sum(block.numel for block in partition.blocks)
    row = sum(sketch.length(block.numel) for block in partition.blocks)
    paths = 8 * (n + 1) * len(block_groups(partition.blocks))
    three_rows = 3 * 8 * row  # in float64: θ_0 and the last two snapshots, or those of the running window
    # Gram matrices, local ones, path lengths, windows.
    grams = n * count * (8 * n + 128 + 24 * window) + paths + three_rows
    # Of local Gram matrices 10 entries of 16 are saved, and windows in float32, but for the running one.
    saved = count * (80 * n + 12 * window * (n + 2)) + paths + three_rows * (window > 0) + _overhead(partition, n)
    if settings.is_full:
        size = _full_size(partition, parameters)
        return Cost(count, numel, size, 0, grams, saved + 4 * n * (n + 1) * count)  # half a Gram matrix says all of it
    rows = 4 * n * row + three_rows
    return Cost(count, numel, 4 * row, rows, grams, saved + rows)


def _overhead(partition: Partition, n: int) -> int:
    """Return the bytes of names, of plain values, and of a file's entries about each tensor."""
    once, snapshot, block = OVERHEAD
    names = [text for b in partition.blocks for text in (b.name, b.layer, b.role)]
    names += [piece.parameter for pieces in partition.pieces for piece in pieces]
    pieces = sum(map(len, partition.pieces))
    return once + n * snapshot + pieces * block + sum(len(name.encode()) for name in names)


def _full_size(partition: Partition, parameters: Mapping[str, Tensor]) -> int:
    """Return the bytes of a full snapshot."""
    cleaned = {clean_name(name): parameter for name, parameter in parameters.items()}
    pieces = ((piece, cleaned.get(piece.parameter)) for pieces in partition.pieces for piece in pieces)
    sizes = ((piece.numel(p), p) for piece, p in pieces if p is not None)
    return sum(numel * p.element_size() // (1 + p.is_complex()) for numel, p in sizes)


def in_bytes(count: float) -> str:
    """Return a number of bytes as text, in the largest unit that gives at least one."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.3g} {unit}"
