"""Figures of several runs: their maps on one scale of colours, and all their snapshots in one map, plane and chart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import ceil

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_traj import measures
from lightning_traj.compare.divergence import PARTED, Parting
from lightning_traj.compare.joint import Joint
from lightning_traj.compare.runs import Run
from lightning_traj.plots import (
    COLOURS,
    GREY,
    HEAD,
    LETTER,
    Array,
    Timeline,
    add_panel,
    angle_scale,
    draw_angle_bar,
    draw_heatmap,
    draw_line,
    finish_axes,
    fix_labels,
    height_of,
    label_ends,
    name_columns,
    name_rows,
    new_figure,
    own_style,
    paint,
    reveal_markers,
    room_for,
    run_labels,
    say_undefined,
    series_figures,
    shortened,
    small_maps,
    width_of,
)
from lightning_traj.trajectory import Times
from lightning_traj.trajectory import by_layer as layers


def comparison_figures(
    runs: Sequence[Run], joints: Sequence[tuple[Joint, Sequence[Parting]]]
) -> dict[str, Callable[[], Figure]]:
    """The figures that make sense for these runs, by name, each to be drawn when it is called.

    Args:
        runs: What is compared.
        joints: Of those that can be compared snapshot by snapshot, with where they part (``parting.joint_partings``).
            Where there are several groups of them, their figures are numbered: ``joint_map``, ``joint_map_2``, ….
    """
    timelines = {run.name: Timeline(run.trajectory, run.series) for run in runs}
    figures: dict[str, Callable[[], Figure]] = {
        f"series_{measure}": draw for measure, draw in series_figures(timelines).items()
    }
    figures["maps"] = partial(maps, runs)
    if any(len(run.trajectory) > 1 for run in runs):
        figures["relative_maps"] = partial(maps, runs, relative=True)
    if any(len(layers.grouped(run.trajectory, "depth")) > 1 for run in runs):
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
    """The runs' maps, or those relative to θ_0, side by side on one scale of colours."""
    cosines = {run.name: run.trajectory.relative_map() if relative else run.trajectory.map() for run in runs}
    times = [Times(run.trajectory, first=int(relative)) for run in runs if len(run.trajectory) > int(relative)]
    cosines = {name: some for name, some in cosines.items() if len(some)}
    alike = all(time.unit == times[0].unit and np.array_equal(time.values, times[0].values) for time in times)
    title = "maps relative to θ₀, on one scale" if relative else "trajectory maps, on one scale"
    across = 2 if len(cosines) in (2, 4) else 3
    label = "relative MDS" if relative else "MDS"
    return small_maps(
        title, _counted(runs), cosines, times[:1] if alike else times, across=across, side=2.4, label=label
    )


@own_style()
def joint_map(joint: Joint, *, relative: bool = False) -> Figure:
    """Angles between all snapshots of all runs, seen from the origin, or from the θ_0 of each run."""
    if relative:
        kept = np.flatnonzero(joint.snapshot > 0)  # θ_0 has no direction from itself
        cosines, title = joint.relative_map()[np.ix_(kept, kept)], "joint map relative to the common θ₀"
        title = title if joint.same_start else "joint map relative to each run's own θ₀"
    else:
        kept, cosines, title = np.arange(len(joint.owner)), joint.map(), "joint map"
    labels = run_labels([run.name for run in joint.runs])
    left, side, foot = 0.3 + width_of(labels), 4.6, 0.35
    figure = new_figure(left + side + 1.75, foot + side + HEAD, title, joint.counted)
    axes = add_panel(figure, left, foot, side, side)
    angles = measures.angle_map(cosines)
    scale = angle_scale(angles)
    paint(axes, angles, scale)
    axes.set(xticks=[], yticks=[])
    owner = joint.owner[kept]
    short = width_of(labels) < side / len(labels)
    for run, label in enumerate(labels):
        places = np.flatnonzero(owner == run)
        middle = (places.mean() + 0.5) / len(owner)
        axes.text(-0.08 / side, 1 - middle, label, fontsize=8.5, ha="right", va="center", transform=axes.transAxes)
        if short:
            axes.text(middle, -0.07 / side, label, fontsize=8.5, ha="center", va="top", transform=axes.transAxes)
        if run:
            for line in (axes.axhline, axes.axvline):
                line(places[0] - 0.5, color="white", linewidth=1.2)
    if np.isnan(angles).any():
        say_undefined(axes)
    draw_angle_bar(axes, scale)
    return figure


@own_style()
def joint_path(joint: Joint, among: Sequence[Run] | None = None) -> Figure:
    """All paths on the first two principal components of all their snapshots, their ends labelled.

    Runs have their colours and markers by their place ``among`` others, as in charts of all of these.
    """
    places = _places(joint, among)
    labels = run_labels([run.name for run in joint.runs])
    left, wide, high = 0.75, 4.6, 3.6
    room = 0.7 + width_of(labels)
    figure = new_figure(left + wide + room, high + HEAD + 0.55, "paths in one plane", joint.counted)
    axes = add_panel(figure, left, 0.55, wide, high)
    coordinates, ratios = measures.pca(joint.relative)
    plane = np.zeros((len(joint.owner), 2))
    plane[:, : min(coordinates.shape[1], 2)] = coordinates[:, :2]
    for run, label in enumerate(labels):
        x, y = plane[joint.rows_of(run)].T
        draw_line(axes, places[run], x, y, len(x) - 1, label)
        if joint.origins[run] not in joint.origins[:run]:  # starts that are near each other are one point here
            axes.plot(x[0], y[0], "o", ms=9, mfc="none", mec=GREY, mew=1.4, zorder=3)
            axes.annotate("start", (x[0], y[0]), (7, -11), textcoords="offset points", fontsize=8.5, color=GREY)
    axes.margins(0.07)
    shares = [f"PC{i + 1} ({ratios[i] if i < len(ratios) else 0:.1%} of variance)" for i in range(2)]
    axes.set(xlabel=shares[0], ylabel=shares[1])
    axes.tick_params(labelsize=8.5)
    axes.locator_params(nbins=6)
    axes.set_aspect("equal", adjustable="datalim")  # distances are what a plane shows
    axes.apply_aspect()
    reveal_markers(axes)
    axes.grid(color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(fontsize=8.5, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2)
    fix_labels(axes)
    return figure


@own_style()
def parting_angles(joint: Joint, found: Sequence[Parting], among: Sequence[Run] | None = None) -> Figure:
    """Angles between displacements of two runs at the same steps: a panel a run, a line for each of the others.

    A mark stands where they part (``Parting.parted``). The band of a line is two standard errors wide to each side.
    """
    names, places = [run.name for run in joint.runs], _places(joint, among)
    labels = dict(zip(names, run_labels(names), strict=True))
    panels = names if len(names) > 2 else names[:1]
    across = min(2, len(panels))
    down = ceil(len(panels) / across)
    wide, high, left, foot = 3.0, 1.9, 0.75, 0.5
    room = 0.3 + width_of([*labels.values()])
    cell = left + wide + room
    title = f"where runs part: angles at the same steps, from {'θ₀' if joint.same_start else 'own θ₀'}"
    figure = new_figure(max(across * cell, 6.4), down * (high + 0.8) + 0.62, title, joint.counted)
    top = max((float(np.nanmax(p.angles, initial=0.0)) for p in found), default=0.0)
    for place, name in enumerate(panels):
        row, column = divmod(place, across)
        axes = add_panel(figure, column * cell + left, (down - 1 - row) * (high + 0.8) + foot, wide, high)
        axes.text(0, 1 + 0.07 / high, f"{labels[name]} and …", fontsize=9.5, transform=axes.transAxes)
        ends = []
        for parting in found:
            if name not in parting.names or not len(parting.steps):
                continue
            other = parting.names[parting.names[0] == name]
            ends += _draw_parting(axes, places[names.index(other)], labels[other], parting)
        axes.axhline(PARTED, color="0.6", linewidth=0.8, linestyle="--", zorder=0)
        finish_axes(axes, "step", "degrees", first=float(joint.runs[0].trajectory.steps[0]))
        axes.set_ylim(0, max(1.05 * top, 1.3 * PARTED))
        reveal_markers(axes)
        label_ends(axes, ends)
    return figure


@own_style()
def layers_by_runs(runs: Sequence[Run]) -> Figure:
    """MDS and relative MDS of each unit of depth at the newest snapshot, a column a run; white where a run has none."""
    found = [
        {run.known_as(f"{unit}.")[:-1]: blocks for unit, blocks in layers.grouped(run.trajectory, "depth").items()}
        for run in runs
    ]
    units = list(dict.fromkeys(unit for groups in found for unit in groups))
    called: dict[str, set[str]] = {}
    for run in runs:
        for unit in layers.grouped(run.trajectory, "depth"):
            called.setdefault(run.known_as(f"{unit}.")[:-1], set()).add(run.renamed(unit))
    # As in the report of each run, where all call them the same.
    alike = all(len(names) == 1 for names in called.values())
    names = shortened([min(called[unit]) if alike else unit for unit in units])
    labels = run_labels([run.name for run in runs])
    left, wide, high = room_for(names), max(1.6, 0.3 * len(runs)), height_of(len(names))
    foot, step = 0.3 + LETTER * max(map(len, labels)), wide + 1.5
    figure = new_figure(left + 2 * step, high + HEAD + foot + 0.2, "layers by runs, newest snapshot", _counted(runs))
    for place, measure in enumerate(("mds", "mds_relative")):
        axes = add_panel(figure, left + place * step, foot, wide, high)
        axes.text(0, 1 + 0.08 / high, COLOURS[measure].title, fontsize=10, transform=axes.transAxes)
        values = np.full((len(units), len(runs)), np.nan)
        absent = np.ones(values.shape, dtype=bool)
        for column, (run, groups) in enumerate(zip(runs, found, strict=True)):
            for unit, value in layers.latest(run.trajectory, measure, groups).items():
                cell = units.index(unit), column
                values[cell], absent[cell] = value, False
        draw_heatmap(axes, COLOURS[measure].amount(values), COLOURS[measure], absent)
        name_rows(axes, names if place == 0 else [])
        name_columns(axes, labels)
    return figure


# Inside -----------------------------------------------------------------------------------------------------


def _places(joint: Joint, among: Sequence[Run] | None) -> list[int]:
    order = list(joint.runs if among is None else among)
    return [order.index(run) for run in joint.runs]


def _draw_parting(axes: Axes, run: int, label: str, parting: Parting) -> list[tuple[str, str, float, float]]:
    steps: Array = parting.steps.astype(np.float64)
    at = None if parting.parted is None else int(np.flatnonzero(parting.steps == parting.parted)[0])
    colour = draw_line(axes, run, steps, parting.angles, at)
    low, high = (parting.angles + side * 2 * parting.errors for side in (-1, 1))
    axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
    defined = np.flatnonzero(~np.isnan(parting.angles))
    if not len(defined):
        return []
    return [(label, colour, float(steps[defined[-1]]), float(parting.angles[defined[-1]]))]


def _counted(runs: Sequence[Run]) -> str:
    counted = list(dict.fromkeys(run.trajectory.counted() for run in runs))
    return counted[0] if len(counted) == 1 else "what is counted differs: see the table"
