"""Figures of several runs: which ones make sense for them, and the data that each shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from lightning_traj import measures
from lightning_traj.compare.divergence import PARTED, Parting
from lightning_traj.compare.joint import Joint
from lightning_traj.compare.runs import Run
from lightning_traj.plots import comparison, series_figures
from lightning_traj.trajectory import Times, grouped, latest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BY_LAYER = ("mds", "mds_relative")  # measures in the picture of layers by runs


def comparison_figures(
    runs: Sequence[Run], joints: Sequence[tuple[Joint, Sequence[Parting]]]
) -> dict[str, Callable[[], Figure]]:
    """Return a function that draws each figure that makes sense for these runs, by the name of the figure.

    Args:
        runs: Runs to compare.
        joints: Groups of runs that can be compared snapshot by snapshot, and where each two of them part, as
            ``joint_partings`` returns them. The figures of further groups are numbered: ``joint_map``,
            ``joint_map_2``, ….
    """
    trajectories = {run.name: run.trajectory for run in runs}
    charts = series_figures(trajectories, {run.name: run.series for run in runs})
    figures: dict[str, Callable[[], Figure]] = {f"series_{measure}": draw for measure, draw in charts.items()}
    figures["maps"] = partial(maps, runs)
    if any(len(run.trajectory) > 1 for run in runs):
        figures["relative_maps"] = partial(maps, runs, relative=True)
    if any(len(grouped(run.trajectory, "depth")) > 1 for run in runs):
        figures["layers_by_runs"] = partial(layers_by_runs, runs)
    for number, (joint, found) in enumerate(joints, start=1):
        nth = f"_{number}" if number > 1 else ""
        figures[f"joint_map{nth}"] = partial(joint_map, joint)
        figures[f"joint_path{nth}"] = partial(joint_path, joint, runs)
        if joint.same_origin and (joint.snapshot > 0).any():
            figures[f"joint_relative_map{nth}"] = partial(joint_map, joint, relative=True)
        if any(len(parting.steps) for parting in found):
            figures[f"partings{nth}"] = partial(parting_angles, joint, found, runs)
    return figures


def maps(runs: Sequence[Run], *, relative: bool = False) -> Figure:
    """Draw the maps of the runs, or their maps relative to θ_0, side by side on one scale of colours."""
    cosines = {run.name: run.trajectory.relative_map() if relative else run.trajectory.map() for run in runs}
    times = [Times(run.trajectory, first=int(relative)) for run in runs if len(run.trajectory) > int(relative)]
    cosines = {name: some for name, some in cosines.items() if len(some)}
    alike = all(time.unit == times[0].unit and np.array_equal(time.values, times[0].values) for time in times)
    title = "maps relative to θ₀, on one scale" if relative else "trajectory maps, on one scale"
    similarity = "relative MDS" if relative else "MDS"
    return comparison.maps(title, _counted(runs), cosines, times[:1] if alike else times, similarity)


def joint_map(joint: Joint, *, relative: bool = False) -> Figure:
    """Draw the angles between all snapshots of all runs, seen from the origin, or from the θ_0 of each run."""
    if relative:
        kept = np.flatnonzero(joint.snapshot > 0)  # θ_0 has no direction from itself
        cosines, title = joint.relative_map()[np.ix_(kept, kept)], "joint map relative to the common θ₀"
        title = title if joint.same_start else "joint map relative to each run's own θ₀"
    else:
        kept, cosines, title = np.arange(len(joint.owner)), joint.map(), "joint map"
    return comparison.joint_map(title, joint.counted, [run.name for run in joint.runs], joint.owner[kept], cosines)


def joint_path(joint: Joint, among: Sequence[Run] | None = None) -> Figure:
    """Draw all paths on the first two principal components of all their snapshots.

    Args:
        joint: Snapshots of the runs.
        among: All runs of the comparison, whose order decides the colours; None: those of `joint`.
    """
    coordinates, ratios = measures.pca(joint.relative)
    plane = np.zeros((len(joint.owner), 2))
    plane[:, : min(coordinates.shape[1], 2)] = coordinates[:, :2]
    paths = {run.name: plane[joint.rows_of(i)] for i, run in enumerate(joint.runs)}
    # Starts that are near each other are one point in this plane, and get one mark.
    starts = [origin not in joint.origins[:i] for i, origin in enumerate(joint.origins)]
    return comparison.joint_path(joint.counted, paths, ratios, list(_colours(joint, among).values()), starts)


def parting_angles(joint: Joint, found: Sequence[Parting], among: Sequence[Run] | None = None) -> Figure:
    """Draw the angles between displacements of each two runs at the same steps, and mark where they part.

    Args:
        joint: Snapshots of the runs.
        found: Angles of each two runs that can be compared.
        among: As for ``joint_path``.
    """
    title = f"where runs part: angles at the same steps, from {'θ₀' if joint.same_start else 'own θ₀'}"
    pairs = [comparison.PairAngles(p.names, p.steps, p.angles, p.errors, p.parted) for p in found]
    first_step = int(joint.runs[0].trajectory.steps[0])
    return comparison.pair_angles(title, joint.counted, pairs, _colours(joint, among), first_step, PARTED)


def layers_by_runs(runs: Sequence[Run]) -> Figure:
    """Draw MDS and relative MDS of each unit of depth at the newest snapshot, one column a run."""
    units = [grouped(run.trajectory, "depth") for run in runs]
    found = [
        {run.known_as(f"{unit}.")[:-1]: blocks for unit, blocks in groups.items()}
        for run, groups in zip(runs, units, strict=True)
    ]
    called: dict[str, set[str]] = {}
    for run, groups in zip(runs, units, strict=True):
        for unit in groups:
            called.setdefault(run.known_as(f"{unit}.")[:-1], set()).add(run.renamed(unit))
    # The names of the reports of single runs are used if all runs agree on them.
    alike = all(len(names) == 1 for names in called.values())
    rows = list(called)
    values = {measure: np.full((len(rows), len(runs)), np.nan) for measure in BY_LAYER}
    absent = np.ones((len(rows), len(runs)), dtype=bool)
    for column, (run, groups) in enumerate(zip(runs, found, strict=True)):
        absent[[rows.index(unit) for unit in groups], column] = False
        for measure, matrix in values.items():
            for unit, value in latest(run.trajectory, measure, groups).items():
                matrix[rows.index(unit), column] = value
    layers = [min(called[unit]) if alike else unit for unit in rows]
    return comparison.layers_by_runs(_counted(runs), layers, [run.name for run in runs], values, absent)


def _colours(joint: Joint, among: Sequence[Run] | None) -> dict[str, int]:
    """Return the place of each run of `joint` among all runs, by its name."""
    order = list(joint.runs if among is None else among)
    return {run.name: order.index(run) for run in joint.runs}


def _counted(runs: Sequence[Run]) -> str:
    """Return a description of the blocks that are counted in all runs."""
    counted = list(dict.fromkeys(run.trajectory.counted() for run in runs))
    return counted[0] if len(counted) == 1 else "runs count different blocks: see the table"
