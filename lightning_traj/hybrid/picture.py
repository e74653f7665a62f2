"""Which groups of parameters were frozen when: a picture of what HybridTraining did."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lightning_traj.hybrid.timeline import Timeline
from lightning_traj.plots import GREY, ORANGE, height_of, name_rows, own_style, room_for, shortened
from lightning_traj.plots import new_figure as titled_figure

_FROZEN, _TRAINED = "#56B4E9", "0.93"
_HEAD, _FOOT, _SPARE = 0.85, 0.5, 0.3  # inches around the cells


def intervals(timeline: Timeline, groups: Sequence[str]) -> dict[str, list[tuple[int, int]]]:
    """When each group was frozen: the epoch in which it was, and that in which it was thawed, or the end."""
    last = max((epoch + 1 for epoch, *_ in timeline.epochs), default=0)
    frozen: dict[str, list[tuple[int, int]]] = {group: [] for group in groups}
    since: dict[str, int] = {}
    for event in timeline.events:
        for group in event.groups:
            if event.what == "frozen":
                since[group] = event.epoch
            elif event.what == "thawed" and group in since:
                frozen[group].append((since.pop(group), event.epoch))
    for group, start in since.items():
        frozen[group].append((start, max(last, start)))
    return frozen


@own_style()
def frozen_groups(timeline: Timeline, groups: Sequence[str]) -> Figure:
    """Group x epoch: blue where it was frozen; marks where a line search moved it. 6 inches wide."""
    names, rows = shortened(groups), {group: row for row, group in enumerate(groups)}
    left, height, width = room_for(names), height_of(len(names)), 6.0
    epochs = max((epoch + 1 for epoch, *_ in timeline.epochs), default=1)
    frozen = intervals(timeline, groups)
    share = sum(end - start for spans in frozen.values() for start, end in spans) / (epochs * len(groups))
    said = f"{len(groups)} groups, {epochs} epochs; frozen {100 * share:.0f} % of the time, each group counted alike"
    figure = titled_figure(width, height + _HEAD + _FOOT, "frozen groups of parameters (blue)", said)
    whole = height + _HEAD + _FOOT
    axes = figure.add_axes(
        (left / width, _FOOT / whole, (width - left - _SPARE) / width, height / whole), facecolor=_TRAINED
    )
    for group, spans in frozen.items():
        lengths = [(start, end - start) for start, end in spans]
        axes.broken_barh(lengths, (rows[group] - 0.45, 0.9), facecolors=_FROZEN)
    moves = [
        (event.epoch, rows[g]) for event in timeline.events for g in event.groups if event.what == "moved" and g in rows
    ]
    if moves:
        times, places = np.array(moves).T
        axes.plot(times, places, linestyle="", marker="|", color=ORANGE, markersize=6)
        axes.text(
            1, 1 + 0.06 / height, "line search: moved", fontsize=8, color=GREY, ha="right", transform=axes.transAxes
        )
    axes.set_xlim(0, epochs)
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set_xlabel("epoch")
    name_rows(axes, names)
    return figure
