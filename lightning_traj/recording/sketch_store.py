"""Sketched snapshots: rows of sketches, summed over the processes, and their Gram matrix."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import NoneType

import torch
from torch import Tensor

from lightning_traj.blocks import Block, Partition
from lightning_traj.files import Picklable
from lightning_traj.gram import Row, SketchedGram
from lightning_traj.recording.process import NamedTensors, Process, Read
from lightning_traj.recording.record_state import RecordState
from lightning_traj.recording.sketches import sketch_blocks
from lightning_traj.recording.store import Taken, left_out
from lightning_traj.recording.unreadable import Unreadable
from lightning_traj.sketch import CountSketch

# Fewest entries for each number that is sent, and fewest entries in all, for which sharing out sketching pays: with
# gloo on one machine a number takes as long as 7 entries, and the call as half a million.
DIVIDED = 16, 2**20


class Sketcher(Picklable, transient={"_latest": NoneType}):
    """Sketches all blocks of the parameters, on all processes together.

    Args:
        sketch: Sketch that is taken of each block.
        process: This process.
        unreadable: Takes note of parameters that cannot be read.
        divided: Whether the entries are divided among processes in any case, as full snapshots need it.
    """

    def __init__(self, sketch: CountSketch, process: Process, unreadable: Unreadable, divided: bool) -> None:
        self.sketch, self.process, self.unreadable, self.divided = sketch, process, unreadable, divided
        self._latest: tuple[int, Row, Exception | None] | None = None

    def divide(self, partition: Partition, parameters: NamedTensors) -> None:
        """Decide which entries this process answers for: all of plain parameters, unless sharing them out pays.

        Args:
            partition: Blocks that are recorded.
            parameters: Their parameters.
        """
        sent, numel = sum(self.sizes(partition.blocks)), sum(block.numel for block in partition.blocks)
        per_number, least = DIVIDED
        pays = numel >= max(least, per_number * sent)
        self.process.ownership.follow(self.process.ranks, parameters, self.divided or pays)

    def row(
        self, partition: Partition, read: Read, last: Row | None, summed: Tensor | None = None
    ) -> tuple[Row, Exception | None]:
        """Return the sketches of all blocks, NaN on all ranks if one has failed, and the error of this rank.

        Ranks meet once: for the sum of the sketches if the entries are divided, otherwise for the sum of one number,
        which is 0, or NaN if a rank has failed or has entries that are not finite.

        Args:
            partition: The blocks.
            read: Returns their parameters.
            last: Earlier sketches. Blocks whose parameters have left the model keep theirs.
            summed: Sum over ranks, if they have met already.
        """
        own: list[Tensor] = []

        def make() -> Tensor:
            own.append(self._own(partition, read, last))  # for afterwards, unless it fails
            is_flag = ranks.size > 1 and not self._is_divided
            return (0 * own[0]).sum().view(1) if is_flag else own[0]  # 0, or NaN if an entry is not finite

        ranks, sizes, failure = self.process.ranks, self.sizes(partition.blocks), None
        if summed is None:
            summed, failure = ranks.sum_of(make, self.process.filled(self.sent(partition.blocks), torch.nan))
        if own and ranks.size > 1 and not self._is_divided:
            # A rank with entries that are not finite keeps them where they are: they tell the block.
            summed = torch.where(torch.isfinite(own[0]).all(), own[0] + summed, own[0])
        return Row(summed.expand(sum(sizes)), sizes), failure

    def row_after(self, step: int, partition: Partition) -> tuple[Row, Exception | None] | None:
        """Return the latest row, if it was made right after this step and has all blocks."""
        if self._latest is None:
            return None
        latest, row, failure = self._latest
        return (row, failure) if latest == step and len(row.lengths) == len(partition.blocks) else None

    def remember(self, step: int, row: Row, failure: Exception | None) -> None:
        """Keep a row that was made right after a step, for whoever needs one at the same step."""
        self._latest = step, row, failure

    def forget(self) -> None:
        """Forget the latest row."""
        self._latest = None

    def sent(self, blocks: Sequence[Block]) -> int:
        """Return the number of numbers that ranks sum for a row of these blocks."""
        return sum(self.sizes(blocks)) if self._is_divided else 1

    def sizes(self, blocks: Iterable[Block]) -> tuple[int, ...]:
        """Return the length of each block's sketch."""
        return tuple(self.sketch.length(block.numel) for block in blocks)

    @property
    def _is_divided(self) -> bool:
        return self.process.ownership.is_shared

    def _own(self, partition: Partition, read: Read, last: Row | None) -> Tensor:
        """Sketch the entries that this rank answers for."""

        def resting(b: int) -> Tensor:
            is_mine = self.process.ranks.rank == 0 or not self._is_divided
            if last is not None and b < len(last.lengths) and is_mine:
                return last.blocks()[b]
            return self.process.filled(self.sketch.length(partition.blocks[b].numel), 0.0)

        parameters, shares = read(), self.process.ownership.shares
        with self.unreadable.reading(partition, parameters):
            return sketch_blocks(self.sketch, partition, parameters, shares, resting, self.process.device)


class SketchStore:
    """Keeps snapshots as sketches.

    Args:
        sketcher: Makes their rows.
    """

    def __init__(self, sketcher: Sketcher) -> None:
        self.sketcher = sketcher

    def empty_gram(self) -> SketchedGram:
        """Return the Gram matrix of no snapshots."""
        return SketchedGram(storage=self.sketcher.process.storage)

    def sent(self, gram: SketchedGram, blocks: Sequence[Block]) -> int:
        """Return the number of numbers that ranks sum for a snapshot of these blocks."""
        return self.sketcher.sent(blocks)

    def last_row(self, state: RecordState) -> Row | None:
        """Return the sketches of the last snapshot; None before the first one."""
        gram = state.gram
        assert isinstance(gram, SketchedGram)
        return Row(gram.latest, gram.lengths) if len(gram) else None

    def take(
        self, state: RecordState, partition: Partition, read: Read, step: int, summed: Tensor | None = None
    ) -> Taken:
        """Take a snapshot; see ``SnapshotStore.take``."""
        gram = state.gram
        assert isinstance(gram, SketchedGram)
        row, failure = self.sketcher.row(partition, read, self.last_row(state), summed)
        # New blocks count from their first value on, and a rank may have failed: that is worth waiting for the device.
        # Not for θ_0 on one rank, without which everything begins anew.
        ranks, known = self.sketcher.process.ranks, len(state.blocks)
        if len(partition.blocks) > known and (known or ranks.size > 1):
            # With several ranks, only whether something is not finite is the same on all of them.
            first = known if ranks.size == 1 else 0
            sketches = row.blocks()[first:]
            if not torch.isfinite(torch.cat(sketches)).all():
                pairs = zip(partition.blocks[first:], sketches, strict=True)
                spoilt = [block.name for block, sketch in pairs if not torch.isfinite(sketch).all()]
                names = spoilt if len(spoilt) < len(partition.blocks) else []
                return Taken(None, failure or left_out(step, ranks, names))
        self.sketcher.remember(step, row, failure)
        return Taken(gram.with_row(row), failure)
