"""A trajectory by layer, role and depth, which shows the parts of the network that still turn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from lightning_traj import measures
from lightning_traj.blocks import ROLES, Block, Select, attention_layers, group_blocks
from lightning_traj.measures import MEASURES, SelectionState, snapshot_gram
from lightning_traj.trajectory.trajectory import Trajectory

Array = NDArray[np.float64]
Groups = dict[str, list[int]]
"""Indices of a trajectory's blocks, by the name of their group."""

States = Callable[[tuple[int, ...]], SelectionState]
"""From indices of blocks to their sums: ``Trajectory.state_of``, or a function that keeps what it has returned."""

UNINFORMATIVE = {"norm": "norms", "bias": "biases"}
"""Roles whose maps differ from others' by noise and scale (a bias of keys has no effect at all), and their plurals."""
COMPARED = 128  # snapshots of two maps, at most: as good as all of them to tell which differ most


def grouped(trajectory: Trajectory, by: str, select: Select = None) -> Groups:
    """Return the indices of the blocks that are counted, by group, as in ``Trajectory.table``."""
    return group_blocks(trajectory.blocks, by, trajectory.select(select))


def at_most(groups: Groups, most: int) -> tuple[Groups, int]:
    """Merge neighbouring groups if there are more than ``most``; return them, and how many make up one.

    A merged group has the name of its first one, and an ellipsis.
    """
    size = max(1, -(-len(groups) // most))
    merged = {}
    for start in range(0, len(groups), size):
        labels = list(groups)[start : start + size]
        merged[labels[0] + " …" * (len(labels) > 1)] = [i for label in labels for i in groups[label]]
    return merged, size


def by_role(trajectory: Trajectory, blocks: Sequence[int]) -> Groups:
    """Return these blocks by role, in the order of ``ROLES``."""
    groups: Groups = {role: [] for role in present_roles(trajectory.blocks[i] for i in blocks)}
    for i in blocks:
        groups[trajectory.blocks[i].role].append(i)
    return groups


def present_roles(blocks: Iterable[Block]) -> list[str]:
    """Return the roles of these blocks, in the order of ``ROLES``, and then any others."""
    roles = {block.role for block in blocks}
    return [*(role for role in ROLES if role in roles), *sorted(roles.difference(ROLES))]


def progress(
    trajectory: Trajectory,
    measure: str,
    by: str | Groups = "depth",
    select: Select = None,
    states: States | None = None,
) -> tuple[list[str], Array]:
    """Return a measure of each group of blocks, as it stood at each snapshot.

    Args:
        trajectory: Trajectory of n snapshots.
        measure: Tag of the measure, one of the catalogue.
        by: How blocks are grouped, as for ``Trajectory.table``, or the groups themselves.
        select: Blocks to group, as for ``Trajectory.table``.
        states: ``kept_states(trajectory)``, where several measures of the same groups are asked for.

    Returns:
        The groups' names, and float64 [groups, n].
    """
    groups = grouped(trajectory, by, select) if isinstance(by, str) else by
    state_of = states or trajectory.state_of
    return list(groups), np.stack([MEASURES[measure].values(state_of(tuple(blocks))) for blocks in groups.values()])


def latest(
    trajectory: Trajectory,
    measure: str,
    by: str | Groups = "role",
    select: Select = None,
    states: States | None = None,
) -> dict[str, float]:
    """Return a measure of each group of blocks at the newest snapshot; arguments are those of ``progress``."""
    groups = grouped(trajectory, by, select) if isinstance(by, str) else by
    state_of = states or trajectory.state_of
    return {name: MEASURES[measure].value(state_of(tuple(blocks))) for name, blocks in groups.items()}


def attention(trajectory: Trajectory, select: Select = None) -> dict[str, dict[str, float]]:
    """Return the MDS of q, k and v of each attention module, and their heterogeneity: the largest less the smallest.

    Returns:
        {module: {"q": ω, "k": ω, "v": ω, "heterogeneity": …}} in the order of the model; empty without attention.
    """
    chosen = trajectory.select(select)
    rows = {}
    for path, roles in attention_layers([trajectory.blocks[i] for i in chosen]).items():
        similarity = latest(trajectory, "mds", {role: [chosen[i] for i in members] for role, members in roles.items()})
        rows[path] = similarity | {"heterogeneity": measures.heterogeneity(list(similarity.values()))}
    return rows


def informative(trajectory: Trajectory, select: Select = None) -> list[int]:
    """Return the indices of the blocks that are counted, without biases and norms unless there is nothing else."""
    counted = trajectory.select(select)
    return [i for i in counted if trajectory.blocks[i].role not in UNINFORMATIVE] or counted


def most_different(
    trajectory: Trajectory, count: int, select: Select = None, states: States | None = None
) -> list[str]:
    """Return the names of the blocks whose maps differ most from the map of everything counted, in that order.

    By the root mean square difference of their angles, among the ``informative`` blocks: one for each role, unless all
    have the same role. At most ``COMPARED`` snapshots are compared, evenly spread. ``states`` as for ``progress``.
    """
    n = len(trajectory)
    compared = np.unique(np.linspace(0, n - 1, min(n, COMPARED)).round().astype(np.int64))
    some = np.ix_(compared, compared)  # with θ_0 first

    def angles(anchored: Array) -> Array:
        thinned = anchored[some] if len(compared) < n else anchored
        return measures.angle_map(measures.trajectory_map(snapshot_gram(thinned)))

    whole = angles((states or trajectory.state_of)(tuple(trajectory.select(select))).anchored)
    candidates = informative(trajectory, select)
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


def kept_states(trajectory: Trajectory) -> States:
    """Return ``trajectory.state_of`` as a function that adds up each group once, and keeps its sums."""
    kept = cache(trajectory.state_of)
    # A fresh state each time: the maps that it derives take several times the memory of the sums.
    return lambda blocks: replace(kept(blocks))
