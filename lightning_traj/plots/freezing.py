"""Groups of parameters over epochs: when each of them was frozen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lightning_traj.plots.canvas import GREY, ORANGE, new_figure, own_style
from lightning_traj.plots.heatmap import height_of, name_rows, room_for
from lightning_traj.plots.labels import shortened

_FROZEN, _TRAINED = "#56B4E9", "0.93"
_HEAD, _FOOT, _SPARE = 0.85, 0.5, 0.3  # inches around the cells


@own_style()
def frozen_groups(
    epochs: int, frozen: Mapping[str, Sequence[tuple[int, int]]], moved: Sequence[tuple[int, str]] = ()
) -> Figure:
    """Draw groups of parameters over epochs, blue where they were frozen. 6 inches wide.

    Args:
        epochs: Number of epochs, at least one.
        frozen: Epochs in which each group was frozen, as half-open intervals, by the name of the group.
        moved: Epoch and group of each move by a line search; each gets a mark.
    """
    names, rows = shortened(list(frozen)), {group: row for row, group in enumerate(frozen)}
    left, height, width = room_for(names), height_of(len(names)), 6.0
    whole = height + _HEAD + _FOOT
    share = sum(end - start for spans in frozen.values() for start, end in spans) / (epochs * len(frozen))
    counted = f"{len(frozen)} groups, {epochs} epochs; frozen {100 * share:.0f} % of the time, each group counted alike"
    figure = new_figure(width, whole, "frozen groups of parameters (blue)", counted)
    axes = figure.add_axes(
        (left / width, _FOOT / whole, (width - left - _SPARE) / width, height / whole), facecolor=_TRAINED
    )
    for group, spans in frozen.items():
        lengths = [(start, end - start) for start, end in spans]
        axes.broken_barh(lengths, (rows[group] - 0.45, 0.9), facecolors=_FROZEN)
    if moved:
        times, places = np.array([(epoch, rows[group]) for epoch, group in moved]).T
        axes.plot(times, places, linestyle="", marker="|", color=ORANGE, markersize=6)
        axes.text(
            1, 1 + 0.06 / height, "line search: moved", fontsize=8, color=GREY, ha="right", transform=axes.transAxes
        )
    axes.set_xlim(0, epochs)
    axes.set_ylim(len(frozen) - 0.5, -0.5)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set_xlabel("epoch")
    name_rows(axes, names)
    return figure
