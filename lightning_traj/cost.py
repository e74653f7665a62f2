"""What recording will cost, said before it begins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from lightning_traj.blocks import block_groups, clean_name
from lightning_traj.partition import Partition
from lightning_traj.sketch import CountSketch


class Cost(NamedTuple):
    """Of a recording with as many snapshots as are kept at most; memory in bytes.

    Attributes:
        blocks, numel: How many blocks and parameters there are.
        snapshot: Of a single one.
        rows: Of the sketches that are kept.
        grams: Of Gram matrices, local ones, path lengths, windows.
    """

    blocks: int
    numel: int
    snapshot: int
    rows: int
    grams: int

    def said(self, snapshot: str, where: str) -> str:
        """In one line: of snapshots of this kind, which are kept there."""
        what = f"recording {self.blocks} blocks, {self.numel:,} parameters as {snapshot} snapshots"
        # The host has a copy of the Gram matrices.
        total = f"{in_bytes(self.rows + self.grams)} at most in each checkpoint, {in_bytes(self.rows + 2 * self.grams)}"
        return f"{what}: {in_bytes(self.snapshot)} a snapshot {where}; {total} in memory"


def cost_of(
    partition: Partition, parameters: Mapping[str, Tensor], snapshot: str, sketch: CountSketch, n: int, window: int
) -> Cost:
    """What it costs to record n snapshots of these blocks, and n windows of so many steps."""
    blocks = partition.blocks
    row = 8 * sum(sketch.length(block.numel) for block in blocks)
    # Gram matrices, local ones, path lengths; windows, and the three sketches of the running one.
    grams = n * (len(blocks) * (8 * n + 128 + 24 * window) + 8 * len(block_groups(blocks))) + 3 * row
    numel = sum(block.numel for block in blocks)
    if snapshot == "full":
        cleaned = {clean_name(name): parameter for name, parameter in parameters.items()}
        pieces = ((piece, cleaned.get(piece.parameter)) for pieces in partition.pieces for piece in pieces)
        sizes = ((piece.numel(p), p) for piece, p in pieces if p is not None)
        return Cost(len(blocks), numel, sum(k * p.element_size() // (1 + p.is_complex()) for k, p in sizes), 0, grams)
    # Of float32; and θ_0 and the last two in float64.
    return Cost(len(blocks), numel, row // 2, (n + 6) * row // 2, grams)


def in_bytes(count: float) -> str:
    """So many bytes, in the largest unit of which there is one."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.3g} {unit}"
