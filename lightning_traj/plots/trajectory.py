"""Figures of a trajectory as a whole: its maps, its path, and an overview."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from lightning_traj import measures
from lightning_traj.blocks import Select
from lightning_traj.plots.canvas import (
    BLUE,
    ORANGE,
    Box,
    counted_in_words,
    draw_bar,
    draw_map,
    fix_labels,
    new_figure,
    own_style,
    similarity_in_words,
)
from lightning_traj.trajectory import Times

if TYPE_CHECKING:
    from lightning_traj.trajectory import Trajectory

_TIME = "viridis"

Errors = Mapping[str, float] | None
"""Standard errors by measure, for the titles; None: they are computed, which takes longer than drawing the figure."""


# Figures ----------------------------------------------------------------------------------------------------


@own_style()
def trajectory_map(trajectory: Trajectory, select: Select = None, errors: Errors = None) -> Figure:
    """Draw the trajectory map: angles ∠(θ_i, θ_j) between all snapshots, in degrees. 5 x 4 inches.

    The title shows the MDS. The colour bar shows cosines too, which are what the paper draws (arXiv:2403.07379).
    """
    errors = trajectory.standard_errors(select) if errors is None else errors
    cosines = trajectory.map(select)
    title = "trajectory map   " + similarity_in_words("MDS", cosines, errors.get("mds"))
    figure = new_figure(5, 4, title, counted_in_words(trajectory, select))
    draw_map(figure, (0.14, 0.135, 0.53, 0.6625), cosines, Times(trajectory))
    return figure


@own_style()
def relative_map(trajectory: Trajectory, select: Select = None, errors: Errors = None) -> Figure:
    """Draw the relative map: angles ∠(θ_i − θ_0, θ_j − θ_0), in degrees, with the relative MDS. 5 x 4 inches."""
    errors = trajectory.standard_errors(select) if errors is None else errors
    cosines = trajectory.relative_map(select)
    title = "map relative to θ₀   " + similarity_in_words("relative MDS", cosines, errors.get("mds_relative"))
    figure = new_figure(5, 4, title, counted_in_words(trajectory, select))
    draw_map(figure, (0.14, 0.135, 0.53, 0.6625), cosines, Times(trajectory, first=1))
    return figure


@own_style()
def path(trajectory: Trajectory, select: Select = None) -> Figure:
    """Draw the path on its first two principal components, coloured by time, with start and end. 5 x 4 inches."""
    figure = new_figure(5, 4, "path on its principal components", counted_in_words(trajectory, select))
    _draw_path(figure, (0.16, 0.135, 0.65, 0.6625), trajectory, select)
    return figure


@own_style()
def path_angles(trajectory: Trajectory, select: Select = None) -> Figure:
    """Draw the turn since initialisation and the angle between successive updates over time. 5 x 4 inches."""
    figure = new_figure(5, 4, "angles along the path", counted_in_words(trajectory, select))
    _draw_angles(figure, (0.13, 0.135, 0.83, 0.6625), trajectory, select)
    return figure


@own_style()
def overview(trajectory: Trajectory, select: Select = None, errors: Errors = None) -> Figure:
    """Draw both maps, the path, and its angles over time on one page of 10 x 8 inches."""
    errors = trajectory.standard_errors(select) if errors is None else errors
    whole, relative = trajectory.map(select), trajectory.relative_map(select)
    figure = new_figure(10, 8, "Optimization trajectory", counted_in_words(trajectory, select))
    left, right, low, high, width, height = 0.075, 0.575, 0.075, 0.53, 0.265, 0.33125
    mds = similarity_in_words("MDS", whole, errors.get("mds"))
    mds_relative = similarity_in_words("relative MDS", relative, errors.get("mds_relative"))
    for x, y, title in (
        (left, high, f"trajectory map   {mds}"),
        (right, high, f"map relative to θ₀   {mds_relative}"),
        (left, low, "path on its principal components"),
        (right, low, "angles along the path"),
    ):
        figure.text(x, y + height + 0.012, title, fontsize=11)
    draw_map(figure, (left, high, width, height), whole, Times(trajectory))
    draw_map(figure, (right, high, width, height), relative, Times(trajectory, first=1))
    _draw_path(figure, (left, low, width + 0.06, height), trajectory, select)
    _draw_angles(figure, (right, low, width + 0.11, height), trajectory, select)
    return figure


# Parts ------------------------------------------------------------------------------------------------------


def _draw_path(figure: Figure, box: Box, trajectory: Trajectory, select: Select) -> None:
    axes = figure.add_axes(box)
    coordinates, ratios = trajectory.pca(select)
    n, d = coordinates.shape
    plane = np.zeros((n, 2))  # one or two snapshots, or a straight line, span less than a plane
    plane[:, : min(d, 2)] = coordinates[:, :2]
    labels = [f"PC{i + 1} ({ratios[i] if i < d else 0:.1%} of variance)" for i in range(2)]
    if n > 2:
        labels[0] += f"; in a random walk {measures.random_walk_first_ratio(n):.0%}"
    axes.set(xlabel=labels[0], ylabel=labels[1])
    times = Times(trajectory)
    axes.plot(*plane.T, color="0.6", linewidth=0.8, zorder=1)
    axes.scatter(plane[:, 0], plane[:, 1], c=times.values, cmap=_TIME, s=12, zorder=2)
    for snapshot, marker, name, side in ((0, "o", "start", "bottom"), (-1, "s", "end", "top")):
        x, y = plane[snapshot]
        axes.plot(x, y, marker, ms=9, mfc="none", mec=ORANGE, mew=1.5)
        axes.text(x, y, f"   {name}", fontsize=9, color=ORANGE, va=side)
    axes.margins(0.18, 0.15)  # room for "start" and "end"
    axes.locator_params(nbins=5)
    fix_labels(axes)
    shares = np.linspace(0, 1, 3 if n > 1 else 1)
    ticks = [(share, times.say(times.values[0] + share * np.ptp(times.values))) for share in shares.tolist()]
    draw_bar(axes, _TIME, ticks, times.unit, room=0.45)


def _draw_angles(figure: Figure, box: Box, trajectory: Trajectory, select: Select) -> None:
    axes = figure.add_axes(box)
    times = Times(trajectory)
    axes.plot(
        times.values,
        measures.turn(trajectory.gram(select)),
        color=BLUE,
        label="turn since initialisation, ∠(θ₀, θₜ)",
    )
    between = measures.update_angle(trajectory.displacement_gram(select))
    axes.plot(times.values[2:], between, color=ORANGE, label="between successive updates, ∠(uₜ₋₁, uₜ)")
    axes.axhline(90, color="0.6", linewidth=0.8, linestyle="--", label="updates of a random walk")
    axes.set(xlabel=times.unit, ylabel="degrees", ylim=(0, 180), yticks=range(0, 181, 30))
    axes.legend(fontsize=8, framealpha=0.7, edgecolor="none")
