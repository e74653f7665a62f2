"""What the picture of HybridTraining shows: which groups of parameters were frozen when."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning_traj import plots
from lightning_traj.hybrid.timeline import Timeline

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def intervals(timeline: Timeline, groups: Sequence[str]) -> dict[str, list[tuple[int, int]]]:
    """Return the epochs in which each group was frozen, as half-open intervals, by group.

    An interval begins with the epoch in which the group was frozen, and ends with that in which it was thawed, or with
    the end of training.
    """
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


def frozen_groups(timeline: Timeline, groups: Sequence[str]) -> Figure:
    """Draw when each of the groups was frozen, and when a line search moved it."""
    epochs = max((epoch + 1 for epoch, *_ in timeline.epochs), default=1)
    moved = [
        (event.epoch, group)
        for event in timeline.events
        if event.what == "moved"
        for group in event.groups
        if group in groups
    ]
    return plots.frozen_groups(epochs, intervals(timeline, groups), moved)
