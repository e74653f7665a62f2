"""Charts of lines, one a run: colours and markers, axes, and names at the ends of the lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from lightning_traj.plots.canvas import BLUE, GREEN, GREY, ORANGE, Array
from lightning_traj.plots.labels import shortened

# Okabe and Ito's colours without yellow and black: distinct from white and from each other, also for the colour-blind.
COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", GREY, "#7F3C8D")
MARKERS = "os^Dv<ph"
STYLES = ("-", "--", ":")  # past eight runs

LINE = 0.16  # inches: height of a label of 8.5 points
_MARKER = 6.5  # points
_LONGEST = 30  # letters of a run's label


def run_labels(names: Sequence[str]) -> list[str]:
    """Return names of runs that are short enough for charts."""
    return shortened(names, _LONGEST)


def width_of(labels: Sequence[str]) -> float:
    """Return the width of the longest label in inches, in letters of 8.5 points."""
    return 0.072 * max(map(len, labels))


def draw_line(
    axes: Axes, run: int, times: Array, values: Array, marked: int | None = None, label: str | None = None
) -> str:
    """Draw the line of a run, and its marker at one snapshot; return its colour.

    Args:
        axes: Axes to draw on.
        run: Number of the run, which decides colour, style and marker.
        times: Horizontal positions of the snapshots, [n].
        values: Vertical positions of the snapshots, [n].
        marked: Snapshot at which the marker stands; None: there is no marker.
        label: Name of the marker in a legend.
    """
    colour = COLOURS[run % len(COLOURS)]
    style = STYLES[run // len(COLOURS) % len(STYLES)]
    few = len(values) < 3  # a line of one or two points would be hard to see
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
    """Redraw markers that cover earlier ones as rings around these; the axes must have their final limits."""
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
    """Set ticks, grid and labels of a chart of lines.

    Args:
        axes: Axes with all their lines.
        unit: Label of the horizontal axis.
        label: Label of the vertical axis.
        first: Time at which the horizontal axis begins.
    """
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
    """Write names beside the axes, each as close to the end of its line as the other names allow.

    Args:
        axes: Axes with their final limits.
        ends: Name, colour, x and y of the end of each line.
    """
    height, width = (size / axes.figure.dpi for size in (axes.bbox.height, axes.bbox.width))
    gap = LINE / height
    low, high = axes.get_ylim()
    order = sorted(ends, key=lambda end: end[3])
    places = _spread([(end[3] - low) / (high - low) for end in order], gap)
    for (name, colour, x, y), place in zip(order, places, strict=True):
        side = (1 + 0.16 / width, place)
        axes.text(*side, name, fontsize=8.5, color=colour, va="center", transform=axes.transAxes)
        if x < axes.get_xlim()[1] - 0.05 * np.ptp(axes.get_xlim()):
            continue  # a long connecting line would look like part of the run
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
    """Move ascending places until they are at least `gap` apart, and keep them within 0 and 1 if there is room."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + gap) if moved else max(place, 0.0))
    over = 1.0
    for i in range(len(moved) - 1, -1, -1):
        moved[i] = min(moved[i], over)
        over = moved[i] - gap
    return moved
