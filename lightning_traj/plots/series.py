"""Measures over time: one chart a measure, one line a trajectory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lightning_traj import measures
from lightning_traj.measures import MEASURES, shown_in
from lightning_traj.plots.canvas import GREY, Array, add_panel, new_figure, own_style
from lightning_traj.plots.lines import LINE, draw_line, finish_axes, label_ends, reveal_markers, run_labels, width_of
from lightning_traj.trajectory import Times

if TYPE_CHECKING:
    from lightning_traj.trajectory import Trajectory

_LEFT, _FOOT, _HIGH, _WIDE, _HEAD = 0.72, 0.5, 1.9, 3.1, 0.8  # inches


class Timeline:
    """Measures of a trajectory at every snapshot, and the times of the snapshots.

    Args:
        trajectory: Trajectory of n snapshots.
        values: ``trajectory.series()``, if it has been computed already.

    Attributes:
        epochs: Completed epochs at each snapshot, [n]; None where they don't tell snapshots apart (see ``Times``).
        steps: Optimizer steps at each snapshot, [n].
        values: Values of each measure, [n], by tag.
        saturated: First snapshot from which on the direction stays close to its final one; None where undefined.
    """

    def __init__(self, trajectory: Trajectory, values: Mapping[str, Array] | None = None) -> None:
        times = Times(trajectory)
        self.epochs = times.values if times.unit == "epoch" else None
        self.steps: NDArray[np.int64] = trajectory.steps
        self.values: Mapping[str, Array] = trajectory.series() if values is None else values
        self.saturated = measures.saturation_index(trajectory.displacement_gram())


def series_figures(
    trajectories: Mapping[str, Trajectory], values: Mapping[str, Mapping[str, Array]] | None = None
) -> dict[str, Callable[[], Figure]]:
    """Return a function that draws a chart for each measure that is defined at two snapshots or more, by tag.

    Args:
        trajectories: Trajectories by the names that label their lines; the name of a single one is not shown.
        values: ``series()`` of each trajectory, by the same names, if they have been computed already.
    """
    timelines = {
        name: Timeline(trajectory, values[name] if values is not None else None)
        for name, trajectory in trajectories.items()
    }
    defined = [
        name
        for name in shown_in("curve")
        if any(np.isfinite(timeline.values[name]).sum() > 1 for timeline in timelines.values())
    ]
    return {name: partial(series, timelines, name) for name in defined}


@own_style()
def series(timelines: Mapping[str, Timeline], measure: str) -> Figure:
    """Draw one measure over time, one line a run, labelled at its end, with a marker where its direction saturated.

    Time is in epochs, or in steps if the epochs of any run don't tell its snapshots apart.
    """
    several = len(timelines) > 1
    labels = run_labels(list(timelines)) if several else [""]
    room = 0.3 + width_of(labels) if several else 0.15
    high = max(_HIGH, LINE * 1.1 * len(labels))
    about = MEASURES[measure]
    width, height = _LEFT + _WIDE + room, _FOOT + high + _HEAD
    figure = new_figure(width, height, measure)
    figure.text(
        0.1 / width, 1 - 0.38 / height, fill(about.meaning, int(width / 0.068)), fontsize=8.5, color=GREY, va="top"
    )
    axes = add_panel(figure, _LEFT, _FOOT, _WIDE, high)
    by_epoch = all(timeline.epochs is not None for timeline in timelines.values())
    starts, ends = [], []
    for i, timeline in enumerate(timelines.values()):
        times = np.asarray(timeline.epochs if by_epoch else timeline.steps, dtype=np.float64)
        values = timeline.values[measure]
        colour = draw_line(axes, i, times, values, timeline.saturated)
        finite = np.flatnonzero(np.isfinite(values))
        starts.append(float(times[0]))
        if len(finite):
            ends.append((labels[i], colour, float(times[finite[-1]]), float(values[finite[-1]])))
    unit = "degrees" if about.unit == "degrees" else ""
    finish_axes(axes, "epoch" if by_epoch else "step", unit, first=min(starts))
    _draw_reference(axes, measure)
    reveal_markers(axes)
    if several:
        label_ends(axes, ends)
    return figure


def _draw_reference(axes: Axes, measure: str) -> None:
    """Draw the measure's landmark as a line, unless it is far from the values."""
    landmark, (low, high) = MEASURES[measure].landmark, axes.dataLim.intervaly
    if landmark is None:
        return
    reference, meaning = landmark
    if not low - 0.5 * (high - low) <= reference <= high + 0.5 * (high - low):
        return
    axes.axhline(reference, color="0.6", linewidth=0.8, linestyle="--", zorder=0)
    bottom, top = axes.get_ylim()
    share = (reference - bottom) / (top - bottom)
    side = "top" if share > 0.5 else "bottom"
    axes.text(0.02, share, meaning, fontsize=8, color="0.45", va=side, transform=axes.transAxes)
