"""Full snapshots: files with the entries that each process answers for, and their Gram matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_traj.blocks import Block, Partition
from lightning_traj.files import Picklable
from lightning_traj.gram import ExactGram, Row
from lightning_traj.recording.process import NamedTensors, Process, Read
from lightning_traj.recording.record_state import RecordState
from lightning_traj.recording.snapshot_files import SnapshotFiles
from lightning_traj.recording.store import Taken, left_out
from lightning_traj.recording.unreadable import Unreadable
from lightning_traj.tensors import Deferred, IndexRegion, LocalEntries

Held = Sequence[Sequence[LocalEntries | Deferred]]  # for each block, what is here of its pieces


class FullStore(Picklable):
    """Keeps snapshots as files, whose entries have to stay where they are: snapshots are compared entry by entry.

    Args:
        files: Folder of the snapshots.
        process: This process.
        unreadable: Takes note of parameters that cannot be read.
    """

    def __init__(self, files: SnapshotFiles, process: Process, unreadable: Unreadable) -> None:
        self.files, self.process, self.unreadable = files, process, unreadable
        self._regions: dict[str, list[IndexRegion]] = {}  # entries of each block that are kept here

    def empty_gram(self) -> ExactGram:
        """Return the Gram matrix of no snapshots."""
        return ExactGram()

    def sent(self, gram: ExactGram, blocks: Sequence[Block]) -> int:
        """Return the number of numbers that ranks sum for a snapshot of these blocks."""
        return gram.products_numel(len(blocks))

    def last_row(self, state: RecordState) -> Row | None:
        """Return None: there are no sketches."""
        return None

    def take(
        self, state: RecordState, partition: Partition, read: Read, step: int, summed: Tensor | None = None
    ) -> Taken:
        """Take a snapshot; see ``SnapshotStore.take``."""
        gram, process = state.gram, self.process
        assert isinstance(gram, ExactGram)
        name, row = self.files.next_name(step), list[Tensor]()

        def own() -> Tensor:
            parameters = read()
            with self.unreadable.reading(partition, parameters):
                held = partition.held(parameters, process.ownership.shares)
                row.extend(self._write(name, step, partition, held, gram.latest))
            return gram.products(row)

        failure, finite = None, False
        try:
            if summed is None:
                blank = process.filled(self.sent(gram, partition.blocks), torch.nan)
                summed, failure = process.ranks.sum_of(own, blank)
            finite = bool(torch.isfinite(summed).all())  # on all ranks
        finally:
            if not finite:
                self.files.discard(name)
        if not finite:
            return Taken(None, failure or left_out(step, process.ranks))
        return Taken(gram.with_row(row, summed), name=name)

    def mapped(self, state: RecordState, formerly: Path, parameters: NamedTensors) -> ExactGram:
        """Return the Gram matrix of a state that was saved, with the snapshots' files mapped into memory.

        Args:
            state: The state, whose Gram matrix lacks the snapshots themselves.
            formerly: Folder in which the snapshots were written.
            parameters: NamedTensors of the model, which tell what each rank holds; needed with several ranks.

        Raises:
            FileNotFoundError: A snapshot is missing.
        """
        gram, names = state.gram, state.names
        assert isinstance(gram, ExactGram)
        files = {*names.kept, *names.recent, *names.base}
        ranks, wanted = self.process.ranks, None
        if ranks.size > 1:
            held = state.partition.held(parameters, self.process.ownership.shares)
            wanted = self._regions = self._regions_of(state.partition, held)
        mapped = self.files.read(files, formerly, ranks.rank, wanted)
        blocks = [block.name for block in state.blocks]
        base = {block: mapped[file][block] for block, file in zip(blocks, names.base, strict=True)}
        # A snapshot that is older than a block has its first value.
        recent = [[mapped[file].get(block, base[block]) for block in blocks] for file in names.recent]
        return replace(
            gram,
            snapshots=tuple([mapped[file][block] for block in blocks if block in mapped[file]] for file in names.kept),
            base=list(base.values()),
            latest=recent[-1],
            before=recent[0],
            newest=gram.local[-1],
        )

    def _write(self, name: str, step: int, partition: Partition, held: Held, latest: Sequence[Tensor]) -> list[Tensor]:
        """Write a snapshot, and return its blocks as they lie in the file, 1-D each.

        Args:
            name: Name of the snapshot.
            step: Optimizer steps taken.
            partition: The blocks.
            held: Entries of each block that are here; none if it has left the model.
            latest: Blocks of the last snapshot, which those keep that have left the model.

        Raises:
            FloatingPointError: An entry is not finite.
            ValueError: A block is placed in another way than before.
            UnreadableError: A parameter cannot be read.
            OSError: The file could not be written.
        """
        read = [[each.now() for each in pieces] for pieces in held]
        spoilt = [
            block.name
            for block, pieces in zip(partition.blocks, read, strict=True)
            if not all(bool(torch.isfinite(view).all()) for each in pieces for view, _ in each.boxes())
        ]
        if spoilt:
            raise left_out(step, self.process.ranks, spoilt)
        regions = self._regions_of(partition, held)
        for block, before in self._regions.items():
            if regions[block] != before:
                raise ValueError(f"the parameters of {block!r} are placed in another way than before")
        self._regions = regions
        entries = {
            block.name: _joined([each.flat() for each in pieces]) if pieces else latest[b][:]
            for b, (block, pieces) in enumerate(zip(partition.blocks, read, strict=True))
        }
        written: Mapping[str, Any] = self.files.write(name, entries, regions)
        return [written[block.name] for block in partition.blocks]

    def _regions_of(self, partition: Partition, held: Held) -> dict[str, list[IndexRegion]]:
        """Return which entries of each block are kept here; those of a block that has left the model stay."""
        gone = [IndexRegion((0,), ((),))]
        return {
            block.name: [each.share for each in pieces] or self._regions.get(block.name, gone)
            for block, pieces in zip(partition.blocks, held, strict=True)
        }


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat([tensor.reshape(-1).cpu() for tensor in tensors])
