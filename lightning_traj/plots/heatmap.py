"""Heatmaps of measures: bright where the path keeps its direction, with a colour bar in the measure's own values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from lightning_traj.measures import MEASURES
from lightning_traj.plots.canvas import (
    AGREEMENT,
    HEAD,
    Array,
    add_panel,
    draw_bar,
    new_figure,
    one_less,
    paint,
    round_levels,
    say_undefined,
    size_in_inches,
)

LETTER = 0.068  # inches: width of an ordinary letter of 8 points
BAR = 1.4  # inches to the right of a heatmap, for its colour bar


@dataclass(frozen=True, kw_only=True)
class Colours:
    """Scale of colours for values of a measure, linear from the smallest of them to the largest.

    Colours show amounts that grow as the direction changes: the values themselves, or 1 less the value of a similarity.

    Attributes:
        title: Name of the measure in titles.
        least: Smallest range of amounts that is shown; anything smaller is rounding noise.
        similarity: Whether the measure is a similarity, which is 1 where the direction is kept.
        remark: Remark for the title of a figure.
        unit: Unit that is written after a value.
    """

    title: str
    least: float = 1e-7
    similarity: bool = False
    remark: str = ""
    unit: str = ""

    def amount(self, values: Array) -> Array:
        """Return the amounts that are painted for these values."""
        return 1 - values if self.similarity else values

    def say(self, amount: float) -> str:
        """Return the value that is painted as this amount, in few letters."""
        return f"{1 - amount if self.similarity else amount:.3g}{self.unit}"

    def scale(self, amounts: Array) -> PowerNorm:
        """Return the scale of colours for these amounts."""
        defined = amounts[~np.isnan(amounts)]
        low, high = (float(defined.min()), float(defined.max())) if len(defined) else (0.0, 1.0)
        spare = max(self.least - (high - low), 0.0) / 2
        return PowerNorm(1.0, low - spare, high + spare)

    def levels(self, scale: PowerNorm) -> list[float]:
        """Return the amounts at which the colour bar has ticks."""
        low, high = float(scale.vmin or 0.0), float(scale.vmax or 0.0)
        ends = (1 - high, 1 - low) if self.similarity else (low, high)  # values are round, amounts need not be
        levels = MaxNLocator(5, steps=[1, 1.5, 2, 3, 5, 10]).tick_values(*ends)
        return [float(1 - level if self.similarity else level) for level in levels if ends[0] <= level <= ends[1]]

    def label(self, scale: PowerNorm) -> str:
        """Return the label of the colour bar: the measure and its range."""
        ends = [self.say(float(end or 0.0)) for end in (scale.vmin, scale.vmax)]
        low, high = reversed(ends) if self.similarity else ends
        return f"{self.title}\nrange {low} to {high}"


@dataclass(frozen=True, kw_only=True)
class _PowerColours(Colours):
    """Scale of colours for values that crowd near the best one, from which it starts.

    Attributes:
        power: Exponent of the scale. 1/2 turns amounts that grow as the square of an angle into angles.
    """

    power: float

    def say(self, amount: float) -> str:
        if not self.similarity:
            return f"{amount:.2g}".replace("e-0", "e-")
        text = one_less(amount)
        return text.rstrip("0").rstrip(".") if "." in text else text

    def scale(self, amounts: Array) -> PowerNorm:
        return PowerNorm(self.power, 0.0, max(float(np.nanmax(amounts, initial=0.0)), self.least))

    def levels(self, scale: PowerNorm) -> list[float]:
        return [0.0, *round_levels(float(scale.vmax or 0.0), self.power)]


# Measures whose values need another scale than the one that `colours_of` derives from the catalogue.
_COLOURS: Mapping[str, Colours] = {
    "mds": _PowerColours(title="MDS", power=0.5, similarity=True),
    "mds_relative": _PowerColours(title="relative MDS", power=0.5, similarity=True),
    "direction_drift": _PowerColours(title="direction drift", power=0.25),
    "oscillation_cosine": Colours(
        title="oscillation cosine", least=0.01, similarity=True, remark=" (below 0: back and forth)"
    ),
}


def colours_of(measure: str) -> Colours:
    """Return the scale of colours of a measure: its own, or a linear one with what the catalogue says of it."""
    if measure in _COLOURS:
        return _COLOURS[measure]
    about = MEASURES[measure]
    unit, least = ("°", 1.0) if about.unit == "degrees" else ("", 1e-7)
    remark = ""
    if about.landmark is not None:
        value, meaning = about.landmark
        remark = f" ({meaning}: {value:g}{unit})"
    return Colours(title=measure.replace("_", " "), least=least, remark=remark, unit=unit)


@dataclass(frozen=True, eq=False)
class Cells:
    """Values of measures in the cells of a table; NaN where undefined.

    Attributes:
        rows: Names of the rows.
        columns: Names of the columns.
        values: Values of each measure, [rows, columns], by tag.
        absent: Cells that stand for nothing, bool [rows, columns].
    """

    rows: Sequence[str]
    columns: Sequence[str]
    values: Mapping[str, Array]
    absent: NDArray[np.bool_]


def draw_cells(title: str, counted: str, cells: Cells, column: float) -> Figure:
    """Draw a heatmap of each measure, one beside the other.

    Args:
        title: Title of the figure.
        counted: Description of the counted blocks.
        cells: Values to draw; absent cells stay white.
        column: Width of a column in inches.
    """
    left, wide, high = room_for(cells.rows), max(1.6, column * len(cells.columns)), height_of(len(cells.rows))
    foot, step = 0.3 + LETTER * max(map(len, cells.columns)), wide + BAR + 0.1
    figure = new_figure(left + step * len(cells.values) - 0.1, high + HEAD + foot + 0.2, title, counted)
    for place, (measure, values) in enumerate(cells.values.items()):
        colours = colours_of(measure)
        axes = add_panel(figure, left + place * step, foot, wide, high)
        axes.text(0, 1 + 0.08 / high, colours.title, fontsize=10, transform=axes.transAxes)
        draw_heatmap(axes, colours.amount(values), colours, cells.absent)
        name_rows(axes, cells.rows if place == 0 else [])
        name_columns(axes, cells.columns)
    return figure


def draw_heatmap(axes: Axes, amounts: Array, colours: Colours, absent: NDArray[np.bool_] | None = None) -> None:
    """Paint amounts as a heatmap, with a colour bar in the measure's own values.

    Args:
        axes: Axes to draw on.
        amounts: Amounts as ``Colours.amount`` returns them, [rows, columns].
        colours: Scale of colours of the measure.
        absent: Cells that stand for nothing and stay white, bool [rows, columns]; None: there are none.
    """
    scale = colours.scale(amounts)
    paint(axes, amounts, scale, absent)
    if (np.isnan(amounts) if absent is None else np.isnan(amounts) & ~absent).any():
        say_undefined(axes)
    if np.isnan(amounts).all():
        return
    ticks = [(float(scale(level)), colours.say(level)) for level in colours.levels(scale)]
    room = 0.32 + LETTER * max(len(text) for _, text in ticks)
    draw_bar(axes, AGREEMENT, ticks, colours.label(scale), room)


def height_of(rows: int) -> float:
    """Return the height of a heatmap in inches: what its rows need, within the limits of a colour bar and a page."""
    return min(max(0.17 * rows, 1.7), 5.8)


def room_for(names: Sequence[str]) -> float:
    """Return the width in inches that the names of rows need to the left of a heatmap."""
    return 0.2 + LETTER * max(4, *map(len, names))


def evenly(count: int, room: float) -> NDArray[np.int64]:
    """Return evenly spaced indices from 0 to `count` - 1, as many as there is `room` for."""
    return np.arange(0, count, max(1, ceil(count / max(room, 1.0))))


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Write names beside the rows, or beside every second, third, … row if rows are too low for all names."""
    axes.set_yticks([])
    width, height = size_in_inches(axes)
    for row in evenly(len(names), height / 0.115):
        place = 1 - (row + 0.5) / len(names)
        size = 8 if height / len(names) >= 0.13 else 7
        axes.text(-0.06 / width, place, names[row], fontsize=size, ha="right", va="center", transform=axes.transAxes)


def name_columns(axes: Axes, names: Sequence[str]) -> None:
    """Write names below the columns."""
    axes.set_xticks([])
    height = size_in_inches(axes)[1]
    for column, name in enumerate(names):  # ticks would take five times as long
        place = (column + 0.5) / len(names)
        axes.text(place, -0.07 / height, name, fontsize=8, rotation=90, ha="center", va="top", transform=axes.transAxes)
