"""Agreement among ranks before a snapshot that brings new parameters, or parameters in new places."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_traj.blocks import Partition
from lightning_traj.recording.process import Read, failing
from lightning_traj.recording.record_state import RecordState
from lightning_traj.recording.sketch_store import Sketcher
from lightning_traj.recording.store import SnapshotStore
from lightning_traj.recording.unreadable import agreed


class Agreement(NamedTuple):
    """Blocks that all ranks are going to record, and how this rank reads them.

    Attributes:
        partition: Blocks of the snapshot.
        read: Returns their parameters, or raises why this rank cannot read them.
        summed: Sum over ranks for the snapshot, if they have met already.
    """

    partition: Partition
    read: Read
    summed: Tensor | None = None


def agree(
    state: RecordState, store: SnapshotStore, sketcher: Sketcher, read: Read, model: nn.Module | None
) -> Agreement:
    """Find out which blocks the next snapshot has. All ranks have to call it.

    Args:
        state: Recording so far.
        store: Store of the snapshots.
        sketcher: Divides the entries among the processes.
        read: Returns the parameters on this rank, or raises why they cannot be read.
        model: Module that has them.

    Raises:
        Exception: They cannot be read, and there are no blocks yet: on all ranks if it fails on one.
    """
    before, ranks = state.partition, sketcher.process.ranks
    try:
        parameters = read()
        partition = before.extended(parameters, model)
        recorded = partition.recorded(parameters)
    except Exception as error:  # other ranks count on this one
        failed = failing(error)
        if not state.blocks:
            ranks.all_do(failed)
        return Agreement(before, failed)
    if not state.blocks:  # what ranks sum depends on what they have read
        ranks.all_do(lambda: None)
    grown = len(partition.blocks) > len(before.blocks) or len(partition.unreadable) > len(before.unreadable)
    if grown or (ranks.size > 1 and sketcher.process.ownership.lacks(recorded)):
        if state.blocks and (summed := _sum_for_a_failed_rank(state, store, sketcher)) is not None:
            return Agreement(before, lambda: recorded, summed)
        if grown and ranks.size > 1:
            partition = agreed(ranks, before, partition, parameters, model)
            recorded = partition.recorded(parameters)
        sketcher.divide(partition, recorded)
    return Agreement(partition, lambda: recorded)


def _sum_for_a_failed_rank(state: RecordState, store: SnapshotStore, sketcher: Sketcher) -> Tensor | None:
    """Check that no rank failed before summing tensors of a new shape: a failed rank would send the old one.

    Returns:
        The sum for a snapshot of the old blocks if a rank has failed, which all ranks then take; otherwise None.
    """
    process = sketcher.process
    if process.ranks.size == 1:
        return None
    with process.ranks.alone():
        # Infinity and not zeros: a rank that knows of nothing new has come for the sum of a snapshot, and must not take
        # its own part alone for one.
        summed = process.ranks.sum(process.filled(store.sent(state.gram, state.blocks), torch.inf))
        return summed if torch.isnan(summed).any() else None
