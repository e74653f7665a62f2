"""Figures of several runs: maps on one scale of colours, and all their snapshots in one map, plane and chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lightning_traj import measures
from lightning_traj.plots.canvas import (
    GREY,
    HEAD,
    Array,
    add_panel,
    angle_scale,
    draw_angle_bar,
    fix_labels,
    new_figure,
    own_style,
    paint,
    say_undefined,
)
from lightning_traj.plots.heatmap import Cells, draw_cells
from lightning_traj.plots.labels import shortened
from lightning_traj.plots.lines import draw_line, finish_axes, label_ends, reveal_markers, run_labels, width_of
from lightning_traj.plots.map_grid import small_maps
from lightning_traj.trajectory import Times


class PairAngles(NamedTuple):
    """Angles between the displacements of two runs at the same steps.

    Attributes:
        names: Names of the two runs.
        steps: Steps, int64 [T].
        angles: Angles in degrees, [T]; NaN where undefined.
        errors: Standard errors of the angles in degrees, [T].
        marked: Step that gets a marker; None: there is no marker.
    """

    names: tuple[str, str]
    steps: NDArray[np.int64]
    angles: Array
    errors: Array
    marked: int | None


def maps(title: str, counted: str, cosines: Mapping[str, Array], times: Sequence[Times], similarity: str) -> Figure:
    """Draw the maps of runs side by side on one scale of colours.

    Args:
        title: Title of the figure.
        counted: Description of the counted blocks.
        cosines: Map of each run, by its name.
        times: Times of the snapshots of each map, or those of all maps in a list of one.
        similarity: Name of the mean directional similarity of these maps.
    """
    across = 2 if len(cosines) in (2, 4) else 3
    return small_maps(title, counted, cosines, times, across=across, side=2.4, label=similarity)


@own_style()
def joint_map(title: str, counted: str, names: Sequence[str], owner: NDArray[np.int64], cosines: Array) -> Figure:
    """Draw the angles between all snapshots of all runs in one map.

    Args:
        title: Title of the figure.
        counted: Description of the counted blocks.
        names: Names of the runs.
        owner: Number of the run that each snapshot belongs to, [N], ascending.
        cosines: Cosines between all pairs of snapshots, [N, N].
    """
    labels = run_labels(names)
    left, side, foot = 0.3 + width_of(labels), 4.6, 0.35
    figure = new_figure(left + side + 1.75, foot + side + HEAD, title, counted)
    axes = add_panel(figure, left, foot, side, side)
    angles = measures.angle_map(cosines)
    scale = angle_scale(angles)
    paint(axes, angles, scale)
    axes.set(xticks=[], yticks=[])
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
def joint_path(
    counted: str,
    paths: Mapping[str, Array],
    ratios: Array,
    colours: Sequence[int],
    starts: Sequence[bool],
) -> Figure:
    """Draw the paths of runs in one plane, with their ends labelled.

    Args:
        counted: Description of the counted blocks.
        paths: Coordinates of the snapshots of each run, [n, 2], by its name.
        ratios: Share of the variance along each principal component.
        colours: Number of the colour and marker of each run.
        starts: Whether the start of each run is marked.
    """
    labels = run_labels(list(paths))
    left, wide, high = 0.75, 4.6, 3.6
    room = 0.7 + width_of(labels)
    figure = new_figure(left + wide + room, high + HEAD + 0.55, "paths in one plane", counted)
    axes = add_panel(figure, left, 0.55, wide, high)
    for path, label, colour, start in zip(paths.values(), labels, colours, starts, strict=True):
        x, y = path.T
        draw_line(axes, colour, x, y, len(x) - 1, label)
        if start:
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
def pair_angles(
    title: str,
    counted: str,
    pairs: Sequence[PairAngles],
    colours: Mapping[str, int],
    first_step: int,
    threshold: float,
) -> Figure:
    """Draw angles between the displacements of two runs: one panel a run, one line for each of the other runs.

    The band around a line is two standard errors wide on each side.

    Args:
        title: Title of the figure.
        counted: Description of the counted blocks.
        pairs: Angles of each two runs.
        colours: Number of the colour and marker of each run, by its name.
        first_step: Step at which the horizontal axes begin.
        threshold: Angle in degrees at which a dashed line is drawn.
    """
    names = list(colours)
    labels = dict(zip(names, run_labels(names), strict=True))
    panels = names if len(names) > 2 else names[:1]
    across = min(2, len(panels))
    down = ceil(len(panels) / across)
    wide, high, left, foot = 3.0, 1.9, 0.75, 0.5
    room = 0.3 + width_of([*labels.values()])
    cell = left + wide + room
    figure = new_figure(max(across * cell, 6.4), down * (high + 0.8) + 0.62, title, counted)
    top = max((float(np.nanmax(pair.angles, initial=0.0)) for pair in pairs), default=0.0)
    for place, name in enumerate(panels):
        row, column = divmod(place, across)
        axes = add_panel(figure, column * cell + left, (down - 1 - row) * (high + 0.8) + foot, wide, high)
        axes.text(0, 1 + 0.07 / high, f"{labels[name]} and …", fontsize=9.5, transform=axes.transAxes)
        ends = []
        for pair in pairs:
            if name not in pair.names or not len(pair.steps):
                continue
            other = pair.names[pair.names[0] == name]
            ends += _draw_pair(axes, colours[other], labels[other], pair)
        axes.axhline(threshold, color="0.6", linewidth=0.8, linestyle="--", zorder=0)
        finish_axes(axes, "step", "degrees", first=float(first_step))
        axes.set_ylim(0, max(1.05 * top, 1.3 * threshold))
        reveal_markers(axes)
        label_ends(axes, ends)
    return figure


@own_style()
def layers_by_runs(
    counted: str, layers: Sequence[str], runs: Sequence[str], values: Mapping[str, Array], absent: NDArray[np.bool_]
) -> Figure:
    """Draw heatmaps of measures, layers x runs, at the newest snapshot.

    Args:
        counted: Description of the counted blocks.
        layers: Names of the layers.
        runs: Names of the runs.
        values: Values of each measure, [layers, runs], by tag.
        absent: Cells that stay white because a run has no such layer, bool [layers, runs].
    """
    cells = Cells(shortened(layers), run_labels(runs), values, absent)
    return draw_cells("layers by runs, newest snapshot", counted, cells, column=0.3)


def _draw_pair(axes: Axes, run: int, label: str, pair: PairAngles) -> list[tuple[str, str, float, float]]:
    """Draw the angles of a pair, and return name, colour, x and y of the end of the line, if it has one."""
    steps: Array = pair.steps.astype(np.float64)
    at = None if pair.marked is None else int(np.flatnonzero(pair.steps == pair.marked)[0])
    colour = draw_line(axes, run, steps, pair.angles, at)
    low, high = (pair.angles + side * 2 * pair.errors for side in (-1, 1))
    axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
    defined = np.flatnonzero(~np.isnan(pair.angles))
    if not len(defined):
        return []
    return [(label, colour, float(steps[defined[-1]]), float(pair.angles[defined[-1]]))]
