"""A series of checkpoints -> its trajectory in full snapshots, block by block and exact."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from lightning_traj.blocks import Partition, block_groups
from lightning_traj.checkpoints.formats.checkpoint import Checkpoint
from lightning_traj.checkpoints.resumption import Resumption
from lightning_traj.checkpoints.series import Series, check_finite
from lightning_traj.checkpoints.streaming import Advance, UpdateGram, anchored_gram, local_grams, update_grams
from lightning_traj.measures import UPDATE
from lightning_traj.recording import Recorder
from lightning_traj.trajectory import Trajectory, Windows


def exact_trajectory(
    series: Series,
    recorder: Recorder,
    partition: Partition,
    reopen: Callable[[], Sequence[Checkpoint]],
    processes: int,
    resumption: Resumption,
    advance: Advance,
) -> tuple[Trajectory, list[int]]:
    """Return the trajectory of full snapshots, and the indices of the checkpoints in it.

    Args:
        series: The checkpoints in order.
        recorder: Recorder that has the settings; nothing is recorded.
        partition: Blocks of the parameters.
        reopen: Picklable function that opens the same checkpoints in another process.
        processes: Number of processes that work at once.
        resumption: File with the blocks that are done.
        advance: Function that is told the number of entries that have been taken in.
    """
    n = len(series.checkpoints)
    done = _restored(resumption.load(), len(partition.blocks), n)
    for b in done:
        advance(n * partition.blocks[b].numel)
    left = {b: partition.pieces[b] for b in range(len(partition.blocks)) if b not in done}
    if processes > 1:  # the largest first: they would keep one process busy when all others have finished
        left = dict(sorted(left.items(), key=lambda item: -partition.blocks[item[0]].numel))

    def state() -> dict[int, Any]:
        return {b: (list(r.having), list(r.bad), torch.from_numpy(r.gram)) for b, r in done.items()}

    try:
        for b, result in update_grams(left, series.checkpoints, reopen, processes, advance):
            done[b] = result
            resumption.save(state)
    finally:
        resumption.save(state, now=True)
    everywhere = sorted(set(range(n)).difference(*(result.bad for result in done.values())))
    check_finite(len(everywhere), n)
    grams = [done[b].over(everywhere) for b in range(len(partition.blocks))]
    local = np.stack([local_grams(gram) for gram in grams], axis=1)
    squares = np.maximum(local[:, :, UPDATE, UPDATE], 0.0)  # ‖u_t‖² of each block, [n, B]
    groups = block_groups(partition.blocks).values()
    trajectory = Trajectory(
        blocks=partition.blocks,
        steps=series.steps[everywhere],
        epochs=series.epochs[everywhere],
        anchored=np.stack([anchored_gram(gram) for gram in grams]),
        local=local,
        paths=np.stack([np.sqrt(squares[:, members].sum(axis=1)).cumsum() for members in groups], axis=1),
        windows=Windows(np.zeros((0, len(partition.blocks), 3, 0))),
        settings={**recorder.plain_settings, "root": partition.root},
    )
    return trajectory, everywhere


def _restored(kept: Any, blocks: int, n: int) -> dict[int, UpdateGram]:
    """Return the blocks that are done, as the resumption has them; none if it has something else."""
    try:
        done = {b: UpdateGram(tuple(having), tuple(bad), gram.numpy()) for b, (having, bad, gram) in kept.items()}
        for b, result in done.items():
            m = len(result.having)
            if (
                b not in range(blocks)
                or result.gram.shape != (m, m)
                or not {*result.having, *result.bad} <= {*range(n)}
            ):
                return {}
    except Exception:
        return {}
    return done
