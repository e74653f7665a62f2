"""Full snapshots of this process: what is here of each block, written to files and found there again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_traj.blocks import Partition
from lightning_traj.recording.snapshot_files import SnapshotFiles
from lightning_traj.tensors import Deferred, IndexRegion, LocalEntries


class FullRows:
    """Writes the entries of one recording, which have to stay where they are: rows are compared entry by entry."""

    def __init__(self, files: SnapshotFiles) -> None:
        self.files = files
        self._shares: dict[str, list[IndexRegion]] = {}  # by block

    def write(
        self,
        name: str,
        step: int,
        partition: Partition,
        held: Sequence[Sequence[LocalEntries | Deferred]],
        latest: Sequence[Tensor],
    ) -> list[Tensor]:
        """Write a snapshot.

        Args:
            name: Of the snapshot.
            step: When it was taken.
            partition: The blocks.
            held: What is here of each; nothing of those that are gone from the model.
            latest: The snapshot before, by block: what is gone moves no more.

        Returns:
            The blocks as they lie in the file, 1-D each.

        Raises:
            FloatingPointError: an entry is not finite.
            ValueError: a block is placed in another way than before.
            UnreadableError: a parameter cannot be read.
            OSError: it could not be written.
        """
        read = [[each.now() for each in pieces] for pieces in held]
        boxes = (view for pieces in read for each in pieces for view, _ in each.boxes())
        if not all(bool(torch.isfinite(view).all()) for view in boxes):
            raise FloatingPointError(f"the snapshot at step {step} has non-finite entries: it is left out.")
        shares = self._shares_of(partition, held)
        for block, before in self._shares.items():
            if shares[block] != before:
                raise ValueError(f"the parameters of {block!r} are placed in another way than before")
        self._shares = shares
        entries = {
            block.name: _joined([each.flat() for each in pieces]) if pieces else latest[b][:]
            for b, (block, pieces) in enumerate(zip(partition.blocks, read, strict=True))
        }
        written = self.files.write(name, entries, shares)
        return [written[block.name] for block in partition.blocks]

    def read(
        self,
        names: Iterable[str],
        formerly: Path,
        partition: Partition,
        held: Sequence[Sequence[LocalEntries | Deferred]] | None,
        rank: int,
    ) -> dict[str, dict[str, Any]]:
        """Snapshots by name, their blocks by name.

        Args:
            names: Of the snapshots.
            formerly: Where they were written.
            partition: The blocks.
            held: What is here of each; None where one process has everything.
            rank: Of this process.

        Raises:
            FileNotFoundError: one is missing.
        """
        wanted = None
        if held is not None:
            wanted = self._shares = self._shares_of(partition, held)
        return self.files.read(names, formerly, rank, wanted)

    def _shares_of(
        self, partition: Partition, held: Sequence[Sequence[LocalEntries | Deferred]]
    ) -> dict[str, list[IndexRegion]]:
        """Which entries of each block are kept here; one that is gone from the model stays where it was."""
        gone = [IndexRegion((0,), ((),))]
        return {
            block.name: [each.share for each in pieces] or self._shares.get(block.name, gone)
            for block, pieces in zip(partition.blocks, held, strict=True)
        }


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat([tensor.reshape(-1).cpu() for tensor in tensors])
