"""A trajectory by layer, role and depth: which part of the network still turns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from lightning_traj import measures
from lightning_traj.blocks import Block, Select, attention_layers, group_blocks
from lightning_traj.gram import displacement_gram, snapshot_gram
from lightning_traj.roles import ROLES
from lightning_traj.table import oscillation, update_angle
from lightning_traj.trajectory import Trajectory

Array = NDArray[np.float64]
Groups = dict[str, list[int]]
"""Indices of a trajectory's blocks, by the name of what they make up."""

# Measures that are drawn over time: from a trajectory and indices of blocks to values [n], NaN where undefined.
PROGRESS: Mapping[str, Callable[[Trajectory, Sequence[int]], Array]] = {
    "mds": lambda trajectory, blocks: measures.running_similarity(map_of(trajectory, blocks)),
    "mds_relative": lambda trajectory, blocks: _later(
        measures.running_similarity(measures.relative_trajectory_map(_displacements(trajectory, blocks)))
    ),
    "update_angle": lambda trajectory, blocks: update_angle(trajectory.local[:, blocks].sum(axis=1)),
    "direction_drift": lambda trajectory, blocks: _later(measures.running_drift(_displacements(trajectory, blocks))),
    "oscillation_cosine": lambda trajectory, blocks: _oscillation_cosine(trajectory, blocks),
}


def grouped(trajectory: Trajectory, by: str, select: Select = None) -> Groups:
    """Indices of the blocks that are counted, group by group. As for ``Trajectory.table``."""
    return group_blocks(trajectory.blocks, by, trajectory.select(select))


def at_most(groups: Groups, most: int) -> tuple[Groups, int]:
    """The groups, neighbours merged where there are more than ``most``; and how many of them make up one.

    What is merged has the name of its first, and an ellipsis.
    """
    size = max(1, -(-len(groups) // most))
    merged = {}
    for start in range(0, len(groups), size):
        labels = list(groups)[start : start + size]
        merged[labels[0] + " …" * (len(labels) > 1)] = [i for label in labels for i in groups[label]]
    return merged, size


def by_role(trajectory: Trajectory, blocks: Sequence[int]) -> Groups:
    """These blocks by role, in the order of ``ROLES``."""
    groups: Groups = {role: [] for role in present_roles(trajectory.blocks[i] for i in blocks)}
    for i in blocks:
        groups[trajectory.blocks[i].role].append(i)
    return groups


def present_roles(blocks: Iterable[Block]) -> list[str]:
    """Roles of these blocks, in the order of ``ROLES``, and then any others."""
    roles = {block.role for block in blocks}
    return [*(role for role in ROLES if role in roles), *sorted(roles.difference(ROLES))]


def progress(
    trajectory: Trajectory, measure: str, by: str | Groups = "depth", select: Select = None
) -> tuple[list[str], Array]:
    """A measure of each group of blocks, as it stood at each snapshot.

    Args:
        trajectory: Of which.
        measure: One of ``PROGRESS``.
        by: As for ``Trajectory.table``, or the groups themselves.
        select: As for ``Trajectory.table``.

    Returns:
        The groups' names, and float64 [groups, n].
    """
    groups = grouped(trajectory, by, select) if isinstance(by, str) else by
    return list(groups), np.stack([PROGRESS[measure](trajectory, blocks) for blocks in groups.values()])


def latest(trajectory: Trajectory, measure: str, by: str | Groups = "role", select: Select = None) -> dict[str, float]:
    """A measure of each group of blocks at the newest snapshot; NaN where undefined. As for ``progress``."""
    names, values = progress(trajectory, measure, by, select)
    return dict(zip(names, values[:, -1].tolist(), strict=True))


def attention(trajectory: Trajectory, select: Select = None) -> dict[str, dict[str, float]]:
    """MDS of q, k and v of each attention module, and their heterogeneity: the largest less the smallest, in [0, 1].

    Returns:
        {module: {"q": ω, "k": ω, "v": ω, "heterogeneity": …}} in the order of the model; empty without attention.
    """
    chosen = trajectory.select(select)
    rows = {}
    for path, roles in attention_layers([trajectory.blocks[i] for i in chosen]).items():
        maps = {role: map_of(trajectory, [chosen[i] for i in members]) for role, members in roles.items()}
        similarity = {role: measures.mean_directional_similarity(cosines) for role, cosines in maps.items()}
        rows[path] = similarity | {"heterogeneity": measures.heterogeneity(list(similarity.values()))}
    return rows


def most_different(trajectory: Trajectory, count: int, select: Select = None) -> list[str]:
    """Names of the blocks whose maps differ most from the map of everything counted, the most different first.

    By the root mean square difference of their angles; one block a layer at most, so that no layer takes all places.
    """
    whole = measures.angle_map(trajectory.map(select))
    farthest: dict[str, tuple[float, str]] = {}
    for i in trajectory.select(select):
        difference = measures.angle_map(map_of(trajectory, [i])) - whole
        if (defined := ~np.isnan(difference)).any():
            distance = float(np.sqrt(np.mean(difference[defined] ** 2)))
            name, layer = trajectory.blocks[i].name, trajectory.blocks[i].layer
            farthest[layer] = max(farthest.get(layer, (-1.0, name)), (distance, name), key=itemgetter(0))
    return [name for _, name in sorted(farthest.values(), key=itemgetter(0), reverse=True)[:count]]


def map_of(trajectory: Trajectory, blocks: Sequence[int]) -> Array:
    """Trajectory map of these blocks together, [n, n]."""
    return measures.trajectory_map(snapshot_gram(trajectory.anchored[blocks].sum(axis=0)))


def _displacements(trajectory: Trajectory, blocks: Sequence[int]) -> Array:
    """Gram matrix about θ_0 of these blocks together, [n, n]."""
    return displacement_gram(trajectory.anchored[blocks].sum(axis=0))


def _oscillation_cosine(trajectory: Trajectory, blocks: Sequence[int]) -> Array:
    """Of the newest window that had ended at each snapshot, [n]."""
    windows = trajectory.windows
    cosines = [oscillation(windows.of(blocks, i)).cosine for i in range(len(windows.steps))]
    newest = np.searchsorted(windows.steps, trajectory.steps, side="right")
    return np.array([np.nan, *cosines])[newest]


def _later(values: Array) -> Array:
    """Values of the snapshots after θ_0, with NaN for θ_0 itself."""
    return np.concatenate([[np.nan], values])
