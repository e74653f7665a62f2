"""Figures of a trajectory: its maps, its path, and an overview. The only file that imports matplotlib.

Every figure is a ``matplotlib.figure.Figure`` without pyplot, which is never imported: the user's figures and
choice of a backend are left alone, and styles that the user has set don't reach these figures.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import ceil, floor, isfinite, log10
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from lightning_traj import measures
from lightning_traj.blocks import Select
from lightning_traj.files import replace_atomically

if TYPE_CHECKING:
    from lightning_traj.trajectory import Trajectory

Array = NDArray[np.float64]
Box = tuple[float, float, float, float]  # left, bottom, width, height, as shares of the figure

# Perceptually uniform, and the same with and without colour vision; lines are of Okabe and Ito's colours.
_ANGLES = "viridis_r"  # bright where snapshots agree
_TIME = "viridis"
_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "0.35"
_STYLE: dict[Any, Any] = {"font.size": 10.5, "axes.linewidth": 0.6, "hatch.linewidth": 0.5}
_STYLE |= {f"{axis}tick.major.{name}": size for axis in "xy" for name, size in (("size", 2.5), ("pad", 2))}

Errors = Mapping[str, float] | None
"""Standard errors by measure, for the titles; None: the trajectory is asked, which takes longer than a figure."""


@contextmanager
def _own_style() -> Iterator[None]:
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


# Figures ----------------------------------------------------------------------------------------------------


@_own_style()
def trajectory_map(trajectory: Trajectory, select: Select = None, errors: Errors = None) -> Figure:
    """Trajectory map: angles ∠(θ_i, θ_j) between all snapshots, in degrees; MDS in the title. 5 x 4 inch.

    The colour bar gives their cosines too, which are what the paper draws (arXiv:2403.07379).
    """
    errors = trajectory.standard_errors(select) if errors is None else errors
    cosines = trajectory.map(select)
    title = "trajectory map   " + _similarity("MDS", cosines, errors.get("mds"))
    figure = _figure(5, 4, title, _counted(trajectory, select))
    _draw_map(figure, (0.14, 0.135, 0.53, 0.6625), cosines, _Times(trajectory))
    return figure


@_own_style()
def relative_map(trajectory: Trajectory, select: Select = None, errors: Errors = None) -> Figure:
    """Relative map: angles ∠(θ_i − θ_0, θ_j − θ_0), in degrees; relative MDS in the title. 5 x 4 inch."""
    errors = trajectory.standard_errors(select) if errors is None else errors
    cosines = trajectory.relative_map(select)
    title = "map relative to θ₀   " + _similarity("relative MDS", cosines, errors.get("mds_relative"))
    figure = _figure(5, 4, title, _counted(trajectory, select))
    _draw_map(figure, (0.14, 0.135, 0.53, 0.6625), cosines, _Times(trajectory, first=1))
    return figure


@_own_style()
def path(trajectory: Trajectory, select: Select = None) -> Figure:
    """The path on its first two principal components, coloured by time, start and end marked. 5 x 4 inch."""
    figure = _figure(5, 4, "path on its principal components", _counted(trajectory, select))
    _draw_path(figure, (0.16, 0.135, 0.65, 0.6625), trajectory, select)
    return figure


@_own_style()
def overview(trajectory: Trajectory, select: Select = None, errors: Errors = None) -> Figure:
    """Both maps, the path, and its angles over time, on one page of 10 x 8 inch."""
    errors = trajectory.standard_errors(select) if errors is None else errors
    whole, relative = trajectory.map(select), trajectory.relative_map(select)
    figure = _figure(10, 8, "Optimization trajectory", _counted(trajectory, select))
    left, right, low, high, width, height = 0.075, 0.575, 0.075, 0.53, 0.265, 0.33125
    mds = _similarity("MDS", whole, errors.get("mds"))
    mds_relative = _similarity("relative MDS", relative, errors.get("mds_relative"))
    for x, y, title in (
        (left, high, f"trajectory map   {mds}"),
        (right, high, f"map relative to θ₀   {mds_relative}"),
        (left, low, "path on its principal components"),
        (right, low, "angles along the path"),
    ):
        figure.text(x, y + height + 0.012, title, fontsize=11)
    _draw_map(figure, (left, high, width, height), whole, _Times(trajectory))
    _draw_map(figure, (right, high, width, height), relative, _Times(trajectory, first=1))
    _draw_path(figure, (left, low, width + 0.06, height), trajectory, select)
    _draw_angles(figure, (right, low, width + 0.11, height), trajectory, select)
    return figure


# What becomes of them ---------------------------------------------------------------------------------------


@_own_style()
def to_rgb(figure: Figure) -> NDArray[np.uint8]:
    """The figure's pixels, uint8 [height, width, 3]."""
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])


@_own_style()
def save_png(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write the figure as PNG, replacing ``path`` in one step: whoever looks at it never sees half a file."""
    with replace_atomically(path) as temporary:
        figure.savefig(temporary, format="png")


# Parts ------------------------------------------------------------------------------------------------------


class _Times:
    """When snapshots were taken, from the ``first`` on.

    In epochs that the run completed, or in steps where epochs don't tell snapshots apart or the first is not over.
    """

    def __init__(self, trajectory: Trajectory, first: int = 0) -> None:
        epochs = np.asarray(trajectory.epochs, dtype=np.float64)
        by_epoch = bool((np.diff(epochs) > 0).all()) and epochs[-1] >= 1
        self.unit = "epoch" if by_epoch else "step"
        self.values = (epochs if by_epoch else np.asarray(trajectory.steps, dtype=np.float64))[first:]

    def say(self, value: float) -> str:
        for size, letter in ((1e6, "M"), (1e3, "k")):
            if value >= max(size, 1e4) and self.unit == "step":
                return f"{value / size:.3g}{letter}"
        return f"{value:.4g}"

    def uneven(self) -> bool:
        """Whether cells of equal size would put a snapshot more than a cell off."""
        n = len(self.values)
        even = np.linspace(self.values[0], self.values[-1], n)
        return bool(np.abs(np.interp(even, self.values, np.arange(n)) - np.arange(n)).max() > 1)

    def ticks(self) -> tuple[Array, list[str]]:
        """Places and labels of ticks along cells of equal size, one a snapshot.

        Cells in proportion to time would hide most snapshots of a log-spaced run; here ticks tell the time.
        """
        n = len(self.values)
        if n <= 6 or self.uneven():
            chosen = np.unique(np.linspace(0, n - 1, min(n, 6)).round().astype(np.int64))
            return chosen.astype(np.float64), [self.say(time) for time in self.values[chosen]]
        times = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(self.values[0], self.values[-1])
        times = times[(times >= self.values[0]) & (times <= self.values[-1])]
        return np.interp(times, self.values, np.arange(n)), [self.say(time) for time in times]


def _draw_map(figure: Figure, box: Box, cosines: Array, times: _Times) -> None:
    axes = figure.add_axes(box)
    n = len(cosines)
    if n == 0:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "from the second snapshot on", ha="center", color=_GREY, transform=axes.transAxes)
        return
    angles = measures.angle_map(cosines)
    defined = ~np.isnan(angles)
    if not defined.all():
        axes.patch.set(facecolor="0.9", edgecolor="0.5", hatch="////")
        key = "hatched: undefined\n(zero vector)"
        axes.text(1.05, -0.08, key, fontsize=8, va="top", transform=axes.transAxes)
    # Late in training cosines crowd near 1, and half the map is one flat square on a linear scale of cosines.
    # Angles spread that end (1 - cos goes as their square), and a scale of their roots spreads it once more.
    # Of the scales tried on runs of MDS 0.85 to 0.9997 (linear cosine; linear, root, logarithmic angle) the
    # root alone shows both the blocks of early training and those after each drop of the learning rate.
    # Where no angle reaches 0.01 degrees the scale does: it would show rounding (1e-6 degrees) as structure.
    largest = max(float(np.max(angles, initial=0.0, where=defined)), 0.01)
    scale = PowerNorm(0.5, 0.0, largest)
    cells = (-0.5, n - 0.5, n - 0.5, -0.5)
    axes.imshow(angles, cmap=_ANGLES, norm=scale, interpolation="nearest", extent=cells, aspect="auto")
    axes.set(xlabel=times.unit + " (unevenly spaced)" * times.uneven(), ylabel=times.unit)
    axes.set_xticks(*times.ticks())
    axes.set_yticks(*times.ticks())
    _fix_labels(axes)
    levels = [0.0, *_round_angles(largest)]
    ticks = [(float(scale(level)), _angle_and_cosine(level)) for level in levels]
    _draw_bar(axes, _ANGLES, ticks, f"angle (cosine), range 0 to {largest:.3g}°", room=1.1)


def _draw_bar(axes: Axes, colours: str, ticks: Sequence[tuple[float, str]], label: str, room: float) -> None:
    """Colour bar to the right of the axes; ticks at shares of its height, ``room`` inches for their text.

    Part of the axes: axes of its own, such as ``Figure.colorbar`` makes, take a third of a figure's time.
    """
    inch = axes.figure.dpi / axes.bbox.width
    left, right = 1 + 0.15 * inch, 1 + 0.3 * inch
    bar = AxesImage(axes, cmap=colours, origin="lower", extent=(left, right, 0, 1))
    bar.set(data=np.linspace(0, 1, 256)[:, None], transform=axes.transAxes, clip_on=False)
    axes.add_artist(bar)
    for share, text in ticks:
        axes.text(right, share, f"– {text}", fontsize=8, va="center_baseline", transform=axes.transAxes)
    axes.text(right + room * inch, 0.5, label, fontsize=9, rotation=90, va="center", transform=axes.transAxes)


def _fix_labels(axes: Axes) -> None:
    """Put axis labels at fixed distances: placing them by the extents of ticks is a tenth of the time."""
    width, height = axes.bbox.width / axes.figure.dpi, axes.bbox.height / axes.figure.dpi
    axes.xaxis.set_label_coords(0.5, -0.28 / height)
    axes.yaxis.set_label_coords(-0.47 / width, 0.5)


def _round_angles(largest: float) -> list[float]:
    """Four round angles up to ``largest``, about evenly spread on the root scale."""
    targets = [largest * share**2 for share in (0.3, 0.55, 0.78, 1.0)]
    units = [10.0 ** floor(log10(target)) for target in targets]
    digits = (1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)
    return [
        unit * max((d for d in digits if d <= target / unit), default=1)
        for target, unit in zip(targets, units, strict=True)
    ]


def _angle_and_cosine(angle: float) -> str:
    short = float(2 * np.sin(np.radians(angle) / 2) ** 2)  # 1 - cos, without cancellation
    if short == 0:
        return "0° (1)"
    degrees = f"{angle:.3g}" if angle >= 1e-3 else f"{angle:.0e}".replace("e-0", "e-")
    if short < 1e-4:
        return f"{degrees}° (1−{short:.0e})".replace("e-0", "e-")
    return f"{degrees}° ({1 - short:.{max(2, 1 - floor(log10(short)))}f})"


def _draw_path(figure: Figure, box: Box, trajectory: Trajectory, select: Select) -> None:
    axes = figure.add_axes(box)
    coordinates, ratios = trajectory.pca(select)
    n, d = coordinates.shape
    plane = np.zeros((n, 2))  # one snapshot, two, or a straight line span less than a plane
    plane[:, : min(d, 2)] = coordinates[:, :2]
    labels = [f"PC{i + 1} ({ratios[i] if i < d else 0:.1%} of variance)" for i in range(2)]
    if n > 2:
        labels[0] += f"; in a random walk {measures.random_walk_first_ratio(n):.0%}"
    axes.set(xlabel=labels[0], ylabel=labels[1])
    times = _Times(trajectory)
    axes.plot(*plane.T, color="0.6", linewidth=0.8, zorder=1)
    axes.scatter(plane[:, 0], plane[:, 1], c=times.values, cmap=_TIME, s=12, zorder=2)
    for snapshot, marker, name, side in ((0, "o", "start", "bottom"), (-1, "s", "end", "top")):
        x, y = plane[snapshot]
        axes.plot(x, y, marker, ms=9, mfc="none", mec=_ORANGE, mew=1.5)
        axes.text(x, y, f"   {name}", fontsize=9, color=_ORANGE, va=side)
    axes.margins(0.18, 0.15)  # room for the words
    axes.locator_params(nbins=5)
    _fix_labels(axes)
    shares = np.linspace(0, 1, 3 if n > 1 else 1)
    ticks = [(share, times.say(times.values[0] + share * np.ptp(times.values))) for share in shares.tolist()]
    _draw_bar(axes, _TIME, ticks, times.unit, room=0.45)


def _draw_angles(figure: Figure, box: Box, trajectory: Trajectory, select: Select) -> None:
    axes = figure.add_axes(box)
    times = _Times(trajectory)
    axes.plot(
        times.values,
        measures.turn(trajectory.gram(select)),
        color=_BLUE,
        label="turn since initialisation, ∠(θ₀, θₜ)",
    )
    between = measures.update_angle(trajectory.displacement_gram(select))
    axes.plot(times.values[2:], between, color=_ORANGE, label="between successive updates, ∠(uₜ₋₁, uₜ)")
    axes.axhline(90, color="0.6", linewidth=0.8, linestyle="--", label="updates of a random walk")
    axes.set(xlabel=times.unit, ylabel="degrees", ylim=(0, 180), yticks=range(0, 181, 30))
    axes.legend(fontsize=8, framealpha=0.7, edgecolor="none")


def _figure(width: float, height: float, title: str, counted: str) -> Figure:
    figure = Figure(figsize=(width, height), dpi=100)
    figure.text(0.1 / width, 1 - 0.27 / height, title, fontsize=12, weight="bold")
    size = min(9.0, 130 * width / len(counted))  # letters are about half as wide as they are high
    figure.text(0.1 / width, 1 - 0.52 / height, counted, fontsize=size, color=_GREY)
    return figure


def _counted(trajectory: Trajectory, select: Select) -> str:
    """What was counted, and by which selection."""
    if select is None:
        return trajectory.counted()
    name = select if isinstance(select, str) else getattr(select, "__name__", "predicate")
    return f"{name}: {trajectory.counted(select)}"


def _similarity(label: str, cosines: Array, error: float | None) -> str:
    value = measures.mean_directional_similarity(cosines)
    if not isfinite(value):
        return f"{label} undefined"
    if error is not None and 1e-7 < error < 1:
        decimals = max(3, ceil(-log10(error)))
        return f"{label} = {value:.{decimals}f} ± {error:.{decimals}f}"
    # As many decimals as it takes to tell the value from 1.
    return f"{label} = {value:.{max(3, ceil(1 - log10(max(1 - value, 1e-6))))}f}"
