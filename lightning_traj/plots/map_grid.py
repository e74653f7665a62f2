"""Several maps side by side on one scale of colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from lightning_traj import measures
from lightning_traj.plots.canvas import (
    AGREEMENT,
    HEAD,
    Array,
    add_panel,
    angle_scale,
    draw_angle_bar,
    fix_labels,
    new_figure,
    own_style,
    say_undefined,
    similarity_in_words,
    time_ticks,
)
from lightning_traj.plots.heatmap import LETTER
from lightning_traj.plots.labels import apart, in_lines
from lightning_traj.trajectory import Times


@own_style()
def small_maps(
    title: str,
    counted: str,
    maps: Mapping[str, Array],
    times: Sequence[Times],
    *,
    across: int,
    side: float,
    label: str = "MDS",
) -> Figure:
    """Draw maps of angles on one scale of colours, each below its name and its mean directional similarity.

    Args:
        title: Title of the figure.
        counted: Description of the counted blocks.
        maps: Cosines of each map, [n, n], by its name.
        times: Times of the snapshots of each map, drawn beside each; or those of all maps in a list of one, drawn
            beside the last map of the first column.
        across: Largest number of maps in a row.
        side: Side of a map in inches.
        label: Name of the similarity.
    """
    across = min(across, len(maps))
    down = ceil(len(maps) / across)
    names = apart(list(maps), in_lines, int(side / LETTER))
    each = len(times) > 1
    left, gap, foot = 0.65, 0.65 if each else 0.15, 0.6
    lines = 0.14 * max(name.count("\n") + 1 for name in names)
    over = 0.3 + lines + (0.42 if each else 0.0)
    wide, high = across * (side + gap) - gap, down * (side + over) - over
    figure = new_figure(max(4.8, left + wide + 1.85), foot + high + 0.18 + lines + HEAD, title, counted)
    angles = [measures.angle_map(cosines) for cosines in maps.values()]
    scale = angle_scale(*angles)
    frame = add_panel(figure, left, foot, wide, high)  # shared by all maps; separate axes would take twice the time
    corners = []
    for place, (name, cosines) in enumerate(zip(names, maps.values(), strict=True)):
        row, column = divmod(place, across)
        x, y = column * (side + gap), (down - 1 - row) * (side + over)
        corners.append((left + x, foot + y))
        _draw_small_map(frame, x, y, side, angles[place], scale)
        frame.text(x, y + side + 0.06, f"{name}\n{similarity_in_words(label, cosines)}", fontsize=8)
    frame.set(xlim=(0, wide), ylim=(0, high))
    frame.set_axis_off()
    draw_angle_bar(frame, scale, "angle (cosine)\n")
    if any(np.isnan(some).any() for some in angles):
        say_undefined(frame)
    for (x, y), time in zip(corners if each else corners[(down - 1) * across :], times, strict=False):
        _draw_times(add_panel(figure, x, y, side, side), time)
    return figure


def _draw_small_map(frame: Axes, x: float, y: float, side: float, angles: Array, scale: PowerNorm) -> None:
    if np.isnan(angles).any():
        hatched = Rectangle((x, y), side, side, linewidth=0, facecolor="0.9", edgecolor="0.5", hatch="////")
        hatched.set_zorder(-1)  # behind the map
        frame.add_patch(hatched)
    extent = (x, x + side, y, y + side)
    frame.imshow(angles, cmap=AGREEMENT, norm=scale, interpolation="nearest", extent=extent, aspect="auto")
    frame.add_patch(Rectangle((x, y), side, side, fill=False, linewidth=0.6, clip_on=False))


def _draw_times(axes: Axes, times: Times) -> None:
    """Draw times on transparent axes that lie over a small map."""
    axes.patch.set_visible(False)
    n = len(times.values)
    axes.set(xlim=(-0.5, n - 0.5), ylim=(n - 0.5, -0.5))
    axes.set_xticks(*time_ticks(times, 4), fontsize=8)
    axes.set_yticks(*time_ticks(times, 4), fontsize=8)
    axes.set_xlabel(times.unit, fontsize=9)
    axes.set_ylabel(times.unit, fontsize=9)
    fix_labels(axes)
