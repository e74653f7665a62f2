"""Parts that all figures share: one style, axes in time, maps, colour bars and labels.

Every figure is a ``matplotlib.figure.Figure``. Pyplot is never imported, so the user's figures and choice of a backend
are left alone, and styles that the user has set don't reach these figures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import ceil, floor, isfinite, log10
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from lightning_traj import measures
from lightning_traj.blocks import Select
from lightning_traj.trajectory import Times

if TYPE_CHECKING:
    from lightning_traj.trajectory import Trajectory

Array = NDArray[np.float64]
Box = tuple[float, float, float, float]  # left, bottom, width and height, as fractions of the figure

# Perceptually uniform, also for the colour-blind; lines have Okabe and Ito's colours.
AGREEMENT = "viridis_r"  # bright where snapshots agree
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "0.35"
HEAD = 0.72  # inches above panels, for the title of a figure and its subtitle
_STYLE: dict[Any, Any] = {"font.size": 10.5, "axes.linewidth": 0.6, "hatch.linewidth": 0.5}
_STYLE |= {f"{axis}tick.major.{name}": size for axis in "xy" for name, size in (("size", 2.5), ("pad", 2))}

# Late in training, cosines crowd near 1, and on a linear scale of cosines half of a map is one flat square. Angles
# spread that end, because 1 - cos grows as their square, and a scale of their square roots spreads it once more. Of the
# scales tried on runs with an MDS of 0.85 to 0.9997 (linear cosine; linear, root and logarithmic angle), only the root
# shows both the blocks of early training and those after each drop of the learning rate.
ANGLE_POWER = 0.5
# The scale reaches at least 0.01 degrees; a smaller one would show rounding (1e-6 degrees) as structure.
LEAST_ANGLE = 0.01


@contextmanager
def own_style() -> Iterator[None]:
    """Set matplotlib's defaults and the style of these figures while a figure is made or painted."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def new_figure(width: float, height: float, title: str, counted: str = "") -> Figure:
    """Return an empty figure with a title.

    Args:
        width: Width in inches.
        height: Height in inches.
        title: Title of the figure.
        counted: Subtitle, which says which blocks are counted; empty: there is none.
    """
    figure = Figure(figsize=(width, height), dpi=100)
    figure.text(0.1 / width, 1 - 0.27 / height, title, fontsize=12, weight="bold")
    if counted:
        size = min(9.0, 130 * width / len(counted))  # letters are about half as wide as they are high
        figure.text(0.1 / width, 1 - 0.52 / height, counted, fontsize=size, color=GREY)
    return figure


def counted_in_words(trajectory: Trajectory, select: Select) -> str:
    """Return a description of the counted blocks, and of the selection if there is one."""
    if select is None:
        return trajectory.counted()
    name = select if isinstance(select, str) else getattr(select, "__name__", "predicate")
    return f"{name}: {trajectory.counted(select)}"


def similarity_in_words(label: str, cosines: Array, error: float | None = None) -> str:
    """Return the mean directional similarity of a map as text, with as many digits as its standard error supports.

    Args:
        label: Name of the similarity.
        cosines: Map, [n, n].
        error: Standard error; if it is None, the number of digits is what it takes to distinguish the value from 1.
    """
    value = measures.mean_directional_similarity(cosines)
    if not isfinite(value):
        return f"{label} undefined"
    if error is not None and 1e-7 < error < 1:
        decimals = max(3, ceil(-log10(error)))
        return f"{label} = {value:.{decimals}f} ± {error:.{decimals}f}"
    return f"{label} = {value:.{max(3, ceil(1 - log10(max(1 - value, 1e-6))))}f}"


def time_ticks(times: Times, most: int = 6) -> tuple[Array, list[str]]:
    """Return places and labels of at most `most` ticks along cells of equal size, one cell a snapshot.

    Cells in proportion to time would hide most snapshots of a log-spaced run. Equal cells do not; ticks show the time.
    """
    n, values = len(times.values), times.values
    if n <= most or times.uneven():
        chosen = np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(np.int64))
        return chosen.astype(np.float64), [times.say(time) for time in values[chosen]]
    round_times = MaxNLocator(most - 1, steps=[1, 2, 2.5, 5, 10]).tick_values(values[0], values[-1])
    round_times = round_times[(round_times >= values[0]) & (round_times <= values[-1])]
    return np.interp(round_times, values, np.arange(n)), [times.say(time) for time in round_times]


# Maps -------------------------------------------------------------------------------------------------------


def draw_map(figure: Figure, box: Box, cosines: Array, times: Times) -> None:
    """Draw a map of angles with a colour bar, and with times along both sides."""
    axes = figure.add_axes(box)
    if len(cosines) == 0:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "from the second snapshot on", ha="center", color=GREY, transform=axes.transAxes)
        return
    angles = measures.angle_map(cosines)
    scale = angle_scale(angles)
    paint(axes, angles, scale)
    if np.isnan(angles).any():
        say_undefined(axes)
    axes.set(xlabel=times.label, ylabel=times.unit)
    axes.set_xticks(*time_ticks(times))
    axes.set_yticks(*time_ticks(times))
    fix_labels(axes)
    draw_angle_bar(axes, scale)


def angle_scale(*angles: Array) -> PowerNorm:
    """Return a scale of colours for angles in degrees, from 0 to the largest of them."""
    largest = max(float(np.max(some, initial=0.0, where=~np.isnan(some))) for some in angles)
    return PowerNorm(ANGLE_POWER, 0.0, max(largest, LEAST_ANGLE))


def draw_angle_bar(axes: Axes, scale: PowerNorm, label: str = "angle (cosine), ") -> None:
    """Draw a colour bar of angles, with their cosines in brackets."""
    largest = float(scale.vmax or 0.0)
    levels = [0.0, *round_levels(largest, ANGLE_POWER)]
    ticks = [(float(scale(level)), _angle_and_cosine(level)) for level in levels]
    draw_bar(axes, AGREEMENT, ticks, f"{label}range 0 to {largest:.3g}°", room=1.1)


def paint(axes: Axes, values: Array, scale: PowerNorm, absent: NDArray[np.bool_] | None = None) -> None:
    """Paint a matrix, one cell an entry; NaN is hatched.

    Args:
        axes: Axes to paint on.
        values: Matrix, [rows, columns].
        scale: Scale of colours.
        absent: Cells that stand for nothing and stay white, bool [rows, columns]; None: there are none.
    """
    rows, columns = values.shape
    cells = (-0.5, columns - 0.5, rows - 0.5, -0.5)
    undefined = np.isnan(values) if absent is None else np.isnan(values) & ~absent
    if undefined.any():
        axes.patch.set(facecolor="0.9", edgecolor="0.5", hatch="////")
        if absent is not None:
            white = np.where(absent, 1.0, np.nan)
            axes.imshow(white, cmap="gray", vmin=0, vmax=1, interpolation="nearest", extent=cells, aspect="auto")
    axes.imshow(values, cmap=AGREEMENT, norm=scale, interpolation="nearest", extent=cells, aspect="auto")


def say_undefined(axes: Axes, why: str = "zero vector") -> None:
    """Write below the colour bar what hatched cells mean."""
    width, height = size_in_inches(axes)
    key = f"hatched: undefined\n({why})"
    axes.text(1 + 0.13 / width, -0.21 / height, key, fontsize=8, va="top", transform=axes.transAxes)


def draw_bar(axes: Axes, colours: str, ticks: Sequence[tuple[float, str]], label: str, room: float) -> None:
    """Draw a colour bar to the right of the axes.

    It is part of the axes, since axes of its own, as ``Figure.colorbar`` makes, take a third of the time of a figure.

    Args:
        axes: Axes to draw on.
        colours: Name of the colour map.
        ticks: Position of each tick, as a fraction of the height, and its text.
        label: Label of the colour bar.
        room: Width in inches that the texts of ticks need.
    """
    inch = axes.figure.dpi / axes.bbox.width
    left, right = 1 + 0.15 * inch, 1 + 0.3 * inch
    bar = AxesImage(axes, cmap=colours, origin="lower", extent=(left, right, 0, 1))
    bar.set(data=np.linspace(0, 1, 256)[:, None], transform=axes.transAxes, clip_on=False)
    axes.add_artist(bar)
    last = -1.0
    for share, text in sorted(ticks):
        if share - last >= 0.15 * axes.figure.dpi / axes.bbox.height:  # a closer one would overlap the one below
            axes.text(right, share, f"– {text}", fontsize=8, va="center_baseline", transform=axes.transAxes)
            last = share
    axes.text(right + room * inch, 0.5, label, fontsize=9, rotation=90, va="center", transform=axes.transAxes)


# Places and labels ------------------------------------------------------------------------------------------


def size_in_inches(axes: Axes) -> tuple[float, float]:
    """Return width and height of the axes in inches."""
    return axes.bbox.width / axes.figure.dpi, axes.bbox.height / axes.figure.dpi


def add_panel(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Add axes to a figure; their position and size are in inches."""
    whole, high = figure.get_size_inches()
    return figure.add_axes((left / whole, bottom / high, width / whole, height / high))


def fix_labels(axes: Axes) -> None:
    """Put axis labels at fixed distances; placing them by the extents of the ticks takes a tenth of a figure's time."""
    width, height = size_in_inches(axes)
    axes.xaxis.set_label_coords(0.5, -0.28 / height)
    axes.yaxis.set_label_coords(-0.47 / width, 0.5)


def round_levels(largest: float, power: float) -> list[float]:
    """Return four round values up to `largest`, spread about evenly on a scale with this exponent."""
    targets = [largest * share ** (1 / power) for share in (0.3, 0.55, 0.78, 1.0)]
    units = [10.0 ** floor(log10(target)) for target in targets]
    digits = (1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)
    return [
        unit * max((d for d in digits if d <= target / unit), default=1)
        for target, unit in zip(targets, units, strict=True)
    ]


def one_less(short: float) -> str:
    """Return 1 − short as text, with enough digits to distinguish it from 1."""
    if short == 0:
        return "1"
    if short < 1e-4:
        return f"1−{short:.0e}".replace("e-0", "e-")
    return f"{1 - short:.{max(2, 1 - floor(log10(short)))}f}"


def _angle_and_cosine(angle: float) -> str:
    short = float(2 * np.sin(np.radians(angle) / 2) ** 2)  # 1 - cos, without cancellation
    degrees = f"{angle:.3g}" if angle == 0 or angle >= 1e-3 else f"{angle:.0e}".replace("e-0", "e-")
    return f"{degrees}° ({one_less(short)})"
