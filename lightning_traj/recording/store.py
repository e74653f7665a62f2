"""Interface between a recorder and its store of snapshots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from lightning_traj.blocks import Block, Partition
from lightning_traj.distributed import Ranks
from lightning_traj.gram import ExactGram, Row, SketchedGram
from lightning_traj.recording.process import Read
from lightning_traj.recording.record_state import RecordState


class Taken(NamedTuple):
    """A snapshot that was taken, or left out.

    Attributes:
        gram: Gram matrix with the snapshot as its last row; None if it is left out, on all ranks.
        failure: Why it is left out, or why this rank has added nothing to it, so that it is not finite.
        name: Name of a full snapshot.
    """

    gram: SketchedGram | ExactGram | None
    failure: Exception | None = None
    name: str | None = None


class SnapshotStore(Protocol):
    """Keeps snapshots, and their Gram matrix, in one way. Implemented by ``SketchStore`` and ``FullStore``."""

    def empty_gram(self) -> SketchedGram | ExactGram:
        """Return the Gram matrix of no snapshots."""

    def sent(self, gram: Any, blocks: Sequence[Block]) -> int:
        """Return the number of numbers that ranks sum for a snapshot of these blocks."""

    def last_row(self, state: RecordState) -> Row | None:
        """Return the sketches of the last snapshot, if there are some."""

    def take(
        self, state: RecordState, partition: Partition, read: Read, step: int, summed: Tensor | None = None
    ) -> Taken:
        """Take a snapshot. All ranks call it; one that raises has failed alone, and nothing is changed.

        Args:
            state: Recording so far.
            partition: Blocks of the snapshot; new ones come last.
            read: Returns their parameters.
            step: Optimizer steps taken.
            summed: Sum over ranks, if they have met already.
        """


def left_out(step: int, ranks: Ranks, names: Sequence[str] = ()) -> FloatingPointError:
    """Return the error of a snapshot that is left out on all ranks.

    Args:
        step: Optimizer steps taken.
        ranks: The processes.
        names: Blocks with non-finite entries, if that is known.
    """
    elsewhere = ", or failed on another process" if ranks.size > 1 else ""
    where = f" in {', '.join(names)}" if names else ""
    return FloatingPointError(f"the snapshot at step {step} has non-finite entries{where}{elsewhere}: it is left out.")
