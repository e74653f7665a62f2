"""Trajectories without some of their blocks, such as those that could not be read to the end of a run."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np

from lightning_traj import measures
from lightning_traj.blocks import block_groups
from lightning_traj.measures import displacement_gram
from lightning_traj.trajectory import Trajectory


def without_blocks(trajectory: Trajectory, left_out: Collection[int]) -> Trajectory:
    """Return the trajectory without some blocks, as if they had never been recorded.

    Path lengths accumulate over all snapshots, also those that were dropped later. For groups that had one of these
    blocks, they are measured anew between the kept snapshots.

    Args:
        trajectory: Trajectory that holds no rows of sketches.
        left_out: Indices of the blocks to leave out. At least one block has to stay.
    """
    if not left_out:
        return trajectory
    kept = [b for b in range(len(trajectory.blocks)) if b not in left_out]
    blocks = tuple(trajectory.blocks[b] for b in kept)
    columns = {frozenset(members): i for i, members in enumerate(block_groups(trajectory.blocks).values())}
    paths = []
    for group in block_groups(blocks).values():
        members = [kept[b] for b in group]
        column = columns.get(frozenset(members))
        if column is not None:
            paths.append(trajectory.paths[:, column])
        else:
            relative = displacement_gram(trajectory.anchored[members].sum(axis=0))
            lengths = [measures.path_length(relative[:n, :n]) for n in range(1, len(trajectory) + 1)]
            paths.append(np.array(lengths, dtype=np.float64))
    windows = replace(trajectory.windows, sums=trajectory.windows.sums[:, kept])
    return replace(
        trajectory,
        blocks=blocks,
        anchored=trajectory.anchored[kept],
        local=trajectory.local[:, kept],
        paths=np.stack(paths, axis=1),
        windows=windows,
    )
