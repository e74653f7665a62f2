"""Everything that a recorder has recorded, as one immutable value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from lightning_traj.blocks import Block, Partition
from lightning_traj.gram import ExactGram, SketchedGram
from lightning_traj.measures import UPDATE
from lightning_traj.recording.history import History
from lightning_traj.recording.path_lengths import PathLengths


@dataclass(frozen=True)
class SnapshotNames:
    """Names of full snapshots in their folder.

    Attributes:
        kept: The snapshots that are kept.
        recent: The last two scheduled ones, kept or not.
        base: For each block, the snapshot with its first value.
    """

    kept: tuple[str, ...] = ()
    recent: tuple[str, ...] = ()
    base: tuple[str, ...] = ()

    def with_snapshot(self, name: str, new_blocks: int) -> SnapshotNames:
        """Return the names with one more snapshot, which has ``new_blocks`` more blocks than the one before."""
        return SnapshotNames((*self.kept, name), (*self.recent[-1:], name), (*self.base, *[name] * new_blocks))

    def keep(self, indices: Sequence[int]) -> SnapshotNames:
        """Return the names without those of kept snapshots that are not among the indices."""
        return replace(self, kept=tuple(self.kept[i] for i in indices)) if self.kept else self


@dataclass(frozen=True, eq=False)
class RecordState:
    """Recording so far, which a recorder replaces in one assignment at the end of each snapshot.

    A reader at any moment, such as a signal handler that saves a checkpoint, therefore has a consistent one.

    Attributes:
        partition: Blocks of the parameters met so far, and the parameters that are left out.
        gram: Gram matrix of the kept snapshots.
        history: When they were taken.
        path_lengths: Path lengths up to each of them.
        names: Names of full snapshots; empty for sketches.
    """

    partition: Partition
    gram: SketchedGram | ExactGram
    history: History = field(default_factory=History)
    path_lengths: PathLengths = field(default_factory=PathLengths)
    names: SnapshotNames = field(default_factory=SnapshotNames)

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks so far."""
        return self.partition.blocks

    @property
    def is_lost(self) -> bool:
        """Whether there are blocks, and none of them can be read any more."""
        return bool(self.blocks) and len(self.partition.lost) == len(self.blocks)

    def with_snapshot(
        self,
        partition: Partition,
        gram: SketchedGram | ExactGram,
        key: tuple[int, float],
        limit: int,
        name: str | None = None,
    ) -> RecordState:
        """Return the state after one more snapshot, thinned to at most ``limit`` of them.

        Args:
            partition: Blocks of the snapshot; new ones come last.
            gram: Gram matrix with the snapshot as its last row.
            key: Step and epoch of the snapshot.
            limit: Largest number of snapshots that are kept.
            name: Name of a full snapshot.
        """
        local = gram.local[-1]
        new_blocks = len(partition.blocks) - len(self.blocks)
        path_lengths = self.path_lengths.regrouped(partition.blocks, local.device) if new_blocks else self.path_lengths
        squares = torch.where(gram.finite[-1].to(local.device), local[:, UPDATE, UPDATE].clamp_min(0), 0.0)
        history, keep = self.history.with_snapshot(*key, limit)
        grown = RecordState(
            partition,
            gram,
            history,
            path_lengths.with_updates(squares),
            self.names if name is None else self.names.with_snapshot(name, new_blocks),
        )
        return grown if len(keep) == len(gram) else grown._kept(keep, history)

    def keep(self, indices: Sequence[int]) -> RecordState:
        """Return the state with these of the kept snapshots alone, ascending and with 0 among them."""
        return self._kept(indices, self.history.keep(indices))

    def to(self, device: torch.device, storage: torch.device | None = None) -> RecordState:
        """Return the state on a device. Full snapshots and their Gram matrix are on the host in any case.

        Args:
            device: Device of Gram matrices and path lengths.
            storage: Device that keeps rows and H from now on, if it is another one.
        """
        gram = self.gram
        if isinstance(gram, SketchedGram):
            gram = replace(gram, storage=storage).to(device)
        return replace(self, gram=gram, path_lengths=self.path_lengths.to(device))

    def _kept(self, indices: Sequence[int], history: History) -> RecordState:
        return replace(
            self,
            history=history,
            gram=self.gram.keep(indices),
            path_lengths=self.path_lengths.keep(indices),
            names=self.names.keep(indices),
        )
