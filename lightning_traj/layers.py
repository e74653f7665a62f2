"""A trajectory by layer, role and depth: which part of the network still turns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
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

Total = Callable[[tuple[int, ...]], Array]
"""Gram(θ_0, d_1, …, d_T) of blocks together, [n, n], by their indices; not to be written to."""

# Measures that are drawn over time: from a trajectory and indices of blocks to values [n], NaN where undefined.
PROGRESS: Mapping[str, Callable[[Trajectory, Sequence[int], Total], Array]] = {
    "mds": lambda _, blocks, total: measures.running_similarity(_map(total(tuple(blocks)))),
    "mds_relative": lambda _, blocks, total: _later(
        measures.running_similarity(measures.relative_trajectory_map(displacement_gram(total(tuple(blocks)))))
    ),
    "update_angle": lambda trajectory, blocks, _: update_angle(_last_updates(trajectory.local, blocks)),
    "direction_drift": lambda _, blocks, total: _later(measures.running_drift(displacement_gram(total(tuple(blocks))))),
    "oscillation_cosine": lambda trajectory, blocks, _: _oscillation_cosine(trajectory, blocks),
}

# The same at the newest snapshot alone, without what came before.
LATEST: Mapping[str, Callable[[Trajectory, Sequence[int]], float]] = {
    "mds": lambda trajectory, blocks: measures.mean_directional_similarity(map_of(trajectory, blocks)),
    "mds_relative": lambda trajectory, blocks: measures.mean_directional_similarity(
        measures.relative_trajectory_map(displacement_gram(total_of(trajectory, blocks)))
    ),
    "update_angle": lambda trajectory, blocks: float(update_angle(_last_updates(trajectory.local[-1], blocks))),
    "direction_drift": lambda trajectory, blocks: _drift(trajectory, blocks),
    "oscillation_cosine": lambda trajectory, blocks: _newest_cosine(trajectory, blocks),
}

UNTELLING = {"norm": "norms", "bias": "biases"}
"""Roles whose maps differ from others' by noise and scale (a bias of keys has no effect at all), and their plurals."""
COMPARED = 128  # snapshots of two maps, at most: as good as all of them to tell which differ most


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
    trajectory: Trajectory,
    measure: str,
    by: str | Groups = "depth",
    select: Select = None,
    total: Total | None = None,
) -> tuple[list[str], Array]:
    """A measure of each group of blocks, as it stood at each snapshot.

    Args:
        trajectory: Of which.
        measure: One of ``PROGRESS``.
        by: As for ``Trajectory.table``, or the groups themselves.
        select: As for ``Trajectory.table``.
        total: ``totals(trajectory)``, where several measures of the same groups are asked for.

    Returns:
        The groups' names, and float64 [groups, n].
    """
    groups = grouped(trajectory, by, select) if isinstance(by, str) else by
    total = total or partial(total_of, trajectory)
    return list(groups), np.stack([PROGRESS[measure](trajectory, blocks, total) for blocks in groups.values()])


def latest(trajectory: Trajectory, measure: str, by: str | Groups = "role", select: Select = None) -> dict[str, float]:
    """A measure of each group of blocks at the newest snapshot; NaN where undefined. As for ``progress``."""
    groups = grouped(trajectory, by, select) if isinstance(by, str) else by
    return {name: LATEST[measure](trajectory, blocks) for name, blocks in groups.items()}


def attention(trajectory: Trajectory, select: Select = None) -> dict[str, dict[str, float]]:
    """MDS of q, k and v of each attention module, and their heterogeneity: the largest less the smallest, in [0, 1].

    Returns:
        {module: {"q": ω, "k": ω, "v": ω, "heterogeneity": …}} in the order of the model; empty without attention.
    """
    chosen = trajectory.select(select)
    rows = {}
    for path, roles in attention_layers([trajectory.blocks[i] for i in chosen]).items():
        similarity = latest(trajectory, "mds", {role: [chosen[i] for i in members] for role, members in roles.items()})
        rows[path] = similarity | {"heterogeneity": measures.heterogeneity(list(similarity.values()))}
    return rows


def telling(trajectory: Trajectory, select: Select = None) -> list[int]:
    """Indices of the blocks that are counted, without biases and norms unless there is nothing else."""
    counted = trajectory.select(select)
    return [i for i in counted if trajectory.blocks[i].role not in UNTELLING] or counted


def most_different(trajectory: Trajectory, count: int, select: Select = None, total: Total | None = None) -> list[str]:
    """Names of the blocks whose maps differ most from the map of everything counted, the most different first.

    By the root mean square difference of their angles, among the ``telling`` blocks: one a role, unless all have the
    same. Of more than ``COMPARED`` snapshots, as many are compared, evenly spread. ``total`` as for ``progress``.
    """
    n = len(trajectory)
    compared = np.unique(np.linspace(0, n - 1, min(n, COMPARED)).round().astype(np.int64))
    some = np.ix_(compared, compared)  # with θ_0 first

    def angles(anchored: Array) -> Array:
        return measures.angle_map(_map(anchored[some] if len(compared) < n else anchored))

    whole = angles((total or partial(total_of, trajectory))(tuple(trajectory.select(select))))
    candidates = telling(trajectory, select)
    several = len({trajectory.blocks[i].role for i in candidates}) > 1
    farthest: dict[str, tuple[float, str]] = {}
    for i in candidates:
        difference = angles(trajectory.anchored[i]) - whole
        if (defined := ~np.isnan(difference)).any():
            distance = float(np.sqrt(np.mean(np.square(difference, where=defined, out=difference), where=defined)))
            name, role = trajectory.blocks[i].name, trajectory.blocks[i].role
            place = role if several else name
            farthest[place] = max(farthest.get(place, (-1.0, name)), (distance, name), key=itemgetter(0))
    return [name for _, name in sorted(farthest.values(), key=itemgetter(0), reverse=True)[:count]]


def map_of(trajectory: Trajectory, blocks: Sequence[int], total: Total | None = None) -> Array:
    """Trajectory map of these blocks together, [n, n]. ``total`` as for ``progress``."""
    return _map((total or partial(total_of, trajectory))(tuple(blocks)))


def totals(trajectory: Trajectory) -> Total:
    """``total_of``, each group added up once, and kept as long as what is returned here."""
    return cache(partial(total_of, trajectory))


def total_of(trajectory: Trajectory, blocks: Sequence[int]) -> Array:
    """Gram(θ_0, d_1, …, d_T) of these blocks together, [n, n]; of a single one, a view."""
    first, *others = blocks
    total: Array = trajectory.anchored[first]
    if others:
        total = total.copy()
    for i in others:  # indexing by a list would copy them all
        total += trajectory.anchored[i]
    return total


def _map(anchored: Array) -> Array:
    return measures.trajectory_map(snapshot_gram(anchored))


def _drift(trajectory: Trajectory, blocks: Sequence[int]) -> float:
    """Of the newest snapshot, from θ_0 and those few snapshots that it looks back on."""
    near = [0, *range(max(1, len(trajectory) - measures.DRIFT_WINDOW - 1), len(trajectory))]
    anchored = trajectory.anchored[np.ix_(np.array(blocks), np.array(near), np.array(near))].sum(axis=0)
    return measures.direction_drift(displacement_gram(anchored))


def _last_updates(local: Array, blocks: Sequence[int]) -> Array:
    """Local Gram matrices of these blocks together, [..., 4, 4]."""
    added: Array = local[..., blocks, :, :].sum(axis=-3)
    return added


def _oscillation_cosine(trajectory: Trajectory, blocks: Sequence[int]) -> Array:
    """Of the newest window that had ended at each snapshot, [n]."""
    windows = trajectory.windows
    cosines = [oscillation(windows.of(blocks, i)).cosine for i in range(len(windows.steps))]
    return np.array([np.nan, *cosines])[np.searchsorted(windows.steps, trajectory.steps, side="right")]


def _newest_cosine(trajectory: Trajectory, blocks: Sequence[int]) -> float:
    ended = int(np.searchsorted(trajectory.windows.steps, trajectory.steps[-1], side="right"))
    return oscillation(trajectory.windows.of(blocks, ended - 1)).cosine if ended else float("nan")


def _later(values: Array) -> Array:
    """Values of the snapshots after θ_0, with NaN for θ_0 itself."""
    return np.concatenate([[np.nan], values])
