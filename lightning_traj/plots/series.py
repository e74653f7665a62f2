"""Measures over time, of one trajectory or of several in one chart each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from lightning_traj import measures
from lightning_traj.measures import MEASURES, shown_in
from lightning_traj.plots.canvas import BLUE, GREEN, GREY, ORANGE, Array, add_panel, new_figure, own_style
from lightning_traj.plots.labels import shortened
from lightning_traj.trajectory import Times

if TYPE_CHECKING:
    from lightning_traj.trajectory import Trajectory

# Told apart with and without colour vision, from white and from each other: Okabe and Ito's, less yellow and black.
COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", GREY, "#7F3C8D")
MARKERS = "os^Dv<ph"
STYLES = ("-", "--", ":")  # past eight runs

_LEFT, _FOOT, _HIGH, _WIDE, _HEAD = 0.72, 0.5, 1.9, 3.1, 0.8  # inches
_LINE = 0.16  # inches: of a label of 8.5 points
_MARKER = 6.5  # points
_LONGEST = 30  # letters of a run's label


class Timeline:
    """The measures of a trajectory at every snapshot: ``trajectory.series()``, unless it is at hand.

    Attributes:
        epochs: By ``Times``, in epochs; None where they don't tell snapshots apart.
        steps: Optimizer steps, [n].
        values: Of each measure, [n].
        saturated: The snapshot from which on the direction keeps close to its final one; None where undefined.
    """

    def __init__(self, trajectory: Trajectory, values: Mapping[str, Array] | None = None) -> None:
        times = Times(trajectory)
        self.epochs = times.values if times.unit == "epoch" else None
        self.steps: NDArray[np.int64] = trajectory.steps
        self.values: Mapping[str, Array] = trajectory.series() if values is None else values
        self.saturated = measures.saturation_index(trajectory.displacement_gram())


def series_figures(timelines: Mapping[str, Timeline]) -> dict[str, Callable[[], Figure]]:
    """A chart for each measure that is defined somewhere, by its name, each to be drawn when it is called.

    Args:
        timelines: By the name of the run, which its line is labelled with; of a single one the name is not shown.
    """
    defined = [
        name
        for name in shown_in("curve")
        if any(np.isfinite(timeline.values[name]).sum() > 1 for timeline in timelines.values())
    ]
    return {name: partial(series, timelines, name) for name in defined}


@own_style()
def series(timelines: Mapping[str, Timeline], measure: str) -> Figure:
    """One measure over time, a line a run, labelled at its end; a marker where its direction saturated.

    In epochs, or in steps where a run has no epochs to count by.
    """
    several = len(timelines) > 1
    labels = run_labels(list(timelines)) if several else [""]
    room = 0.3 + width_of(labels) if several else 0.15
    high = max(_HIGH, _LINE * 1.1 * len(labels))
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


# Parts, for other charts of lines too -----------------------------------------------------------------------


def run_labels(names: Sequence[str]) -> list[str]:
    """Names of runs, short enough for charts."""
    return shortened(names, _LONGEST)


def width_of(labels: Sequence[str]) -> float:
    """Of the longest label of 8.5 points, in inches."""
    return 0.072 * max(map(len, labels))


def draw_line(
    axes: Axes, run: int, times: Array, values: Array, marked: int | None = None, label: str | None = None
) -> str:
    """Draw a run's line, with its marker at one snapshot, which is what a legend shows; its colour."""
    colour = COLOURS[run % len(COLOURS)]
    style = STYLES[run // len(COLOURS) % len(STYLES)]
    few = len(values) < 3  # a line of one point is not seen
    axes.plot(times, values, color=colour, linestyle=style, linewidth=1.4, marker="." if few else "", zorder=2)
    if marked is not None:
        axes.plot(
            times[marked : marked + 1],
            values[marked : marked + 1],
            MARKERS[run % len(MARKERS)],
            color=colour,
            markersize=_MARKER,
            markeredgecolor="white",
            markeredgewidth=0.8,
            zorder=3,
            label=label,
        )
    return colour


def reveal_markers(axes: Axes) -> None:
    """Draw markers of runs that lie on earlier ones as rings around them, once the axes have their limits."""
    seen: list[Array] = []
    for line in axes.lines:
        if line.get_linestyle() != "None" or line.get_markerfacecolor() == "none":
            continue
        x, y = (np.asarray(values, dtype=np.float64) for values in line.get_data())
        place = axes.transData.transform(np.column_stack([x, y]))[0] * 72 / axes.figure.dpi  # points
        covered = sum(bool(np.hypot(*(place - other)) < _MARKER) for other in seen)
        seen.append(place)
        if covered:
            line.set(markersize=_MARKER + 4 * covered, markerfacecolor="none", markeredgewidth=1.3)
            line.set_markeredgecolor(line.get_color())


def finish_axes(axes: Axes, unit: str, label: str, first: float) -> None:
    """Ticks, grid and labels of a chart of lines, whose time begins at ``first``."""
    axes.autoscale_view()
    low, high = first, max(first, float(axes.dataLim.intervalx[1]))
    if high > low:
        axes.set_xlim(low - 0.02 * (high - low), high + 0.02 * (high - low))
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=high - low >= 4))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.tick_params(labelsize=8.5)
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.grid(color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    inches = axes.bbox.height / axes.figure.dpi
    axes.set_xlabel(unit, fontsize=9)
    axes.xaxis.set_label_coords(0.5, -0.27 / inches)
    axes.set_ylabel(label, fontsize=9)
    axes.yaxis.set_label_coords(-0.55 / (axes.bbox.width / axes.figure.dpi), 0.5)


def label_ends(axes: Axes, ends: Sequence[tuple[str, str, float, float]]) -> None:
    """Names beside the axes, each as near the end of its line as the others leave room: name, colour, x, y."""
    height, width = (size / axes.figure.dpi for size in (axes.bbox.height, axes.bbox.width))
    gap = _LINE / height
    low, high = axes.get_ylim()
    order = sorted(ends, key=lambda end: end[3])
    places = _spread([(end[3] - low) / (high - low) for end in order], gap)
    for (name, colour, x, y), place in zip(order, places, strict=True):
        side = (1 + 0.16 / width, place)
        axes.text(*side, name, fontsize=8.5, color=colour, va="center", transform=axes.transAxes)
        if x < axes.get_xlim()[1] - 0.05 * np.ptp(axes.get_xlim()):
            continue  # a line over half of the chart would be taken for the run's
        line: dict[str, Any] = {
            "arrowstyle": "-",
            "color": colour,
            "linewidth": 0.5,
            "shrinkA": 1,
            "shrinkB": 1,
            "alpha": 0.6,
        }
        axes.annotate("", (x, y), side, textcoords="axes fraction", annotation_clip=False, arrowprops=line)


def _spread(places: Sequence[float], gap: float) -> list[float]:
    """Rising places moved as little as it takes to be at least ``gap`` apart, within 0 and 1 where there is room."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + gap) if moved else max(place, 0.0))
    over = 1.0
    for i in range(len(moved) - 1, -1, -1):
        moved[i] = min(moved[i], over)
        over = moved[i] - gap
    return moved
