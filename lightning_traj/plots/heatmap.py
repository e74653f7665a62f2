"""Heatmaps of measures: colours bright where the direction is kept, a bar in the measure's values, rows with names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from lightning_traj.plots.canvas import (
    AGREEMENT,
    Array,
    draw_bar,
    one_less,
    paint,
    round_levels,
    say_undefined,
    size_in_inches,
)

LETTER = 0.068  # inches: width of an ordinary letter of 8 points


@dataclass(frozen=True)
class Colours:
    """How values of a measure become colours: bright where the direction is kept.

    Attributes:
        title: The measure's name.
        power: Of the scale that starts at the best value: 1/2 of something that goes as an angle's square gives angles.
        least: Smallest range that is shown: below are roundings.
        similarity: Whether 1 is best, and 1 less the value is what grows as the direction changes.
        remark: For the figure's title.
        unit: Of the values.
    """

    title: str
    power: float
    least: float
    similarity: bool = False
    remark: str = ""
    unit: str = ""

    def amount(self, values: Array) -> Array:
        """What is painted for these values."""
        return 1 - values if self.similarity else values

    def say(self, amount: float) -> str:
        """The value that is painted so, in few letters."""
        if not self.similarity:
            return f"{amount:.2g}".replace("e-0", "e-")
        text = one_less(amount)
        return text.rstrip("0").rstrip(".") if "." in text else text

    def scale(self, amounts: Array) -> PowerNorm:
        """From the best value to the worst of these."""
        return PowerNorm(self.power, 0.0, max(float(np.nanmax(amounts, initial=0.0)), self.least))

    def levels(self, scale: PowerNorm) -> list[float]:
        """Where the bar has ticks."""
        return [0.0, *round_levels(float(scale.vmax or 0.0), self.power)]

    def label(self, scale: PowerNorm) -> str:
        """The bar's label: measure and range."""
        ends = [self.say(float(end or 0.0)) for end in (scale.vmin, scale.vmax)]
        low, high = reversed(ends) if self.similarity else ends
        return f"{self.title}\nrange {low} to {high}"


class _Linear(Colours):
    """Of what lies between successive updates: no value is so frequent that others need room."""

    def say(self, amount: float) -> str:
        return f"{1 - amount if self.similarity else amount:.3g}{self.unit}"

    def scale(self, amounts: Array) -> PowerNorm:
        defined = amounts[~np.isnan(amounts)]
        low, high = (float(defined.min()), float(defined.max())) if len(defined) else (0.0, 1.0)
        spare = max(self.least - (high - low), 0.0) / 2
        return PowerNorm(1.0, low - spare, high + spare)

    def levels(self, scale: PowerNorm) -> list[float]:
        low, high = float(scale.vmin or 0.0), float(scale.vmax or 0.0)
        ends = (1 - high, 1 - low) if self.similarity else (low, high)  # round are the values, not what is painted
        levels = MaxNLocator(5, steps=[1, 1.5, 2, 3, 5, 10]).tick_values(*ends)
        return [float(1 - level if self.similarity else level) for level in levels if ends[0] <= level <= ends[1]]


COLOURS: Mapping[str, Colours] = {
    "mds": Colours("MDS", 0.5, 1e-7, similarity=True),
    "mds_relative": Colours("relative MDS", 0.5, 1e-7, similarity=True),
    "update_angle": _Linear("update angle", 1.0, 1.0, remark=" (random walk: 90°)", unit="°"),
    "direction_drift": Colours("direction drift", 0.25, 1e-7),
    "oscillation_cosine": _Linear(
        "oscillation cosine", 1.0, 0.01, similarity=True, remark=" (below 0: back and forth)"
    ),
}


def draw_heatmap(axes: Axes, amounts: Array, colours: Colours, absent: NDArray[np.bool_] | None = None) -> None:
    """Paint a matrix on the measure's scale, with its colour bar in the measure's own values."""
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
    """Inches of a heatmap: as many as its rows need, within what a page and a colour bar take."""
    return min(max(0.17 * rows, 1.7), 5.8)


def room_for(names: Sequence[str]) -> float:
    """Inches to the left of a heatmap, for the names of its rows."""
    return 0.2 + LETTER * max(4, *map(len, names))


def evenly(count: int, room: float) -> NDArray[np.int64]:
    """Evenly spaced ones of so many places, as many as there is room for."""
    return np.arange(0, count, max(1, ceil(count / max(room, 1.0))))


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Names beside the rows; of every second, third, … where rows are too low for all."""
    axes.set_yticks([])
    width, height = size_in_inches(axes)
    for row in evenly(len(names), height / 0.115):
        place = 1 - (row + 0.5) / len(names)
        size = 8 if height / len(names) >= 0.13 else 7
        axes.text(-0.06 / width, place, names[row], fontsize=size, ha="right", va="center", transform=axes.transAxes)


def name_columns(axes: Axes, names: Sequence[str]) -> None:
    """Names below the columns."""
    axes.set_xticks([])
    height = size_in_inches(axes)[1]
    for column, name in enumerate(names):  # not as ticks, which take five times as long
        place = (column + 0.5) / len(names)
        axes.text(place, -0.07 / height, name, fontsize=8, rotation=90, ha="center", va="top", transform=axes.transAxes)
