"""q, k and v of attention modules over depth."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor, isfinite, log10
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lightning_traj.blocks import ATTENTION, Select
from lightning_traj.plots.canvas import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    add_panel,
    counted_in_words,
    new_figure,
    own_style,
    size_in_inches,
)
from lightning_traj.plots.heatmap import LETTER
from lightning_traj.plots.labels import shortened, stacks_of
from lightning_traj.trajectory import by_layer as layers

if TYPE_CHECKING:
    from lightning_traj.trajectory import Trajectory

_MOST_STACKS = 8  # stacks of attention modules whose names have room below an axis
_LINE = 0.16  # inches: a line of text


@own_style()
def heterogeneity(trajectory: Trajectory, select: Select = None) -> Figure:
    """Draw the MDS of q, k and v of each attention module over depth, and their spread below. 6 inches wide.

    Modules whose names differ only in numbers share a line, with a gap between different kinds of attention.
    """
    modules = layers.attention(trajectory, select)
    names, rows, left, width = list(modules), list(modules.values()), 0.95, 4.9
    stacks = _side_by_side(names, width)
    foot = stacks.foot
    figure = new_figure(6, 4.15 + foot, "q, k and v over depth", counted_in_words(trajectory, select))
    above, below = add_panel(figure, left, foot + 1.3, width, 1.95), add_panel(figure, left, foot, width, 1.1)
    for role, colour, marker in zip(ATTENTION, (BLUE, ORANGE, GREEN), "os^", strict=True):
        values = np.full(stacks.cells, np.nan)  # NaN breaks the line
        values[stacks.places] = [rows[i][role] for i in stacks.order]
        size = 3.5 if len(names) <= 60 else 1.5
        above.plot(values, marker=marker, markersize=size, linewidth=1, color=colour, label=role)
    spread = np.array([rows[i]["heterogeneity"] for i in stacks.order])
    below.vlines(stacks.places, 0, spread, color=GREY, linewidth=min(12, 150 / stacks.cells))
    above.legend(ncols=3, fontsize=9, frameon=False, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.1)
    for axes, label in ((above, "MDS ω"), (below, "max − min ω")):
        axes.set_xlim(-0.6, stacks.cells - 0.4)
        axes.set_ylabel(label, fontsize=9)
        axes.yaxis.set_label_coords(-0.78 / width, 0.5)
        for border in stacks.borders:
            axes.axvline(border, color="0.8", linewidth=0.8)
    _set_values(above, *_span([module[role] for module in rows for role in ATTENTION]))
    _set_values(below, 0.0, max(float(np.nanmax(spread, initial=0.0)) * 1.08, 1e-6))
    above.set_xticks([*stacks.ticks], [])
    below.set_xticks([*stacks.ticks], [*stacks.ticks.values()], rotation=stacks.rotation, fontsize=8)
    for name, centre, line in stacks.names:
        place = centre / width, -(0.24 + _LINE * line) / size_in_inches(below)[1]
        below.text(*place, name, fontsize=8, ha="center", va="top", transform=below.transAxes)
    return figure


class _Stacks(NamedTuple):
    """Places of modules along an axis, one stack after the other with a gap between them.

    Attributes:
        order: Indices of the modules, in the order of their places.
        places: Place of each module in that order, from 0.
        cells: Number of places, gaps included.
        borders: Places of the lines between stacks.
        ticks: Labels of ticks, which are numbers or names of modules, by place.
        rotation: Rotation of the labels in degrees.
        names: Name of each stack, its centre in inches, and the line below the ticks that has room for it.
        foot: Height in inches that all labels need below the axis.
    """

    order: list[int]
    places: list[int]
    cells: int
    borders: list[float]
    ticks: dict[int, str]
    rotation: int
    names: list[tuple[str, float, int]]
    foot: float


def _side_by_side(modules: Sequence[str], width: float) -> _Stacks:
    """Return the places of modules on an axis of this width in inches."""
    stacks = stacks_of(modules)
    named = len(stacks) > _MOST_STACKS  # too many stacks: name each module instead
    own = shortened(modules) if named else list(modules)
    texts = [own[i] if named else numbers for stack in stacks.values() for numbers, i in stack.items()]
    longest = LETTER * max(map(len, texts))
    room = width / (0.16 if named else 0.1 + longest)
    step = ceil(len(modules) / max(room - len(stacks) + 1, 1.0))
    order: list[int] = []
    places: list[int] = []
    borders: list[float] = []
    middles: list[float] = []
    ticks: dict[int, str] = {}
    start = 0
    for stack in stacks.values():
        if start:
            borders.append(start - (step + 1) / 2)
        order += stack.values()
        places += range(start, start + len(stack))
        middles.append(start + (len(stack) - 1) / 2)
        ticks |= {
            start + k: text for k, text in enumerate(texts[len(places) - len(stack) : len(places)]) if k % step == 0
        }
        start += len(stack) + step
    cells = start - step
    if named:
        return _Stacks(order, places, cells, borders, ticks, 90, [], 0.3 + longest)
    labels = shortened(list(stacks), 40)
    if len(stacks) == 1 and ticks[0]:
        labels = [f"attention module, {labels[0]}"]
    ends: list[float] = []  # right end of the text in each line, in inches
    names = []
    for label, middle in zip(labels, middles, strict=True):
        half = LETTER * len(label) / 2
        # The name must stay within the figure.
        centre = min(max((middle + 0.6) * width / (cells + 0.2), half - 0.85), width + 0.1 - half)
        line = next((k for k, end in enumerate(ends) if end < centre - half), len(ends))
        ends[line : line + 1] = [centre + half + 0.15]
        names.append((label, centre, line))
    return _Stacks(order, places, cells, borders, ticks, 0, names, 0.36 + _LINE * len(ends))


def _set_values(axes: Axes, low: float, high: float) -> None:
    """Set range and ticks of a vertical axis, with enough decimals to tell the ticks apart."""
    ticks = MaxNLocator(4, steps=[1, 2, 5, 10]).tick_values(low, high)
    decimals = max(0, -floor(log10(ticks[1] - ticks[0]) + 1e-9))
    axes.set_ylim(low, high)
    inside = [tick for tick in ticks if low <= tick <= high]
    axes.set_yticks(inside, [f"{tick:.{decimals}f}" for tick in inside], fontsize=8)


def _span(values: Sequence[float], least: float = 1e-6) -> tuple[float, float]:
    """Return a range around these values, at least `least` wide; smaller differences are rounding noise."""
    defined = [value for value in values if isfinite(value)] or [0.0, 1.0]
    low, high = min(defined), max(defined)
    spare = max(0.06 * (high - low), (least - (high - low)) / 2)
    return low - spare, high + spare
