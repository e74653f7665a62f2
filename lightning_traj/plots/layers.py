"""Figures of a trajectory by layer and role: which part of the network still turns.

Their number doesn't grow with the number of layers, and neither do their sizes beyond a page's: past ``MOST_ROWS``,
neighbouring layers are drawn as one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import ceil, floor, isfinite, log10
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lightning_traj.blocks import ATTENTION, Select, attention_layers
from lightning_traj.measures import shown_in
from lightning_traj.plots.canvas import (
    BLUE,
    GREEN,
    GREY,
    HEAD,
    ORANGE,
    add_panel,
    counted_in_words,
    new_figure,
    own_style,
    size_in_inches,
    time_ticks,
)
from lightning_traj.plots.heatmap import COLOURS, LETTER, draw_heatmap, height_of, name_columns, name_rows, room_for
from lightning_traj.plots.labels import shortened, stacks_of
from lightning_traj.plots.map_grid import small_maps
from lightning_traj.trajectory import Times
from lightning_traj.trajectory import by_layer as layers

if TYPE_CHECKING:
    from lightning_traj.trajectory import Trajectory

MOST_ROWS = 96
_MOST_STACKS = 8  # of attention modules, whose names have room below an axis
_FOOT, _BAR, _LINE = 0.52, 1.4, 0.16  # inches: below panels, to their right; a line of text


def layer_figures(trajectory: Trajectory, select: Select = None) -> dict[str, Callable[[], Figure]]:
    """The figures that make sense for this trajectory, by name, each to be drawn when it is called."""
    if len(trajectory) < 2:
        return {}
    states = layers.kept_states(trajectory)  # what several figures ask for is added up once, and dropped with them
    several_updates = len(trajectory) > 2  # what is measured between them is undefined before
    several_layers = len(layers.grouped(trajectory, "depth", select)) > 1
    several_roles = len(layers.grouped(trajectory, "role", select)) > 1
    figures: dict[str, Callable[[], Figure]] = {}
    if several_layers:
        names = shown_in("heatmap") if several_updates else ["mds"]
        if not trajectory.windows.steps and several_updates:
            names.remove("oscillation_cosine")
        figures |= {name: partial(progress, trajectory, name, select, states) for name in names}
    if several_layers and several_roles and several_updates:
        figures["roles"] = partial(layers_by_roles, trajectory, select)
    if attention_layers([trajectory.blocks[i] for i in trajectory.select(select)]):
        figures["heterogeneity"] = partial(heterogeneity, trajectory, select)
    if several_layers or several_roles:
        figures["different"] = partial(most_different, trajectory, select, states)
    if several_roles:
        figures["role_maps"] = partial(role_maps, trajectory, select, states)
    return figures


@own_style()
def progress(
    trajectory: Trajectory, measure: str, select: Select = None, states: layers.States | None = None
) -> Figure:
    """Heatmap, layer x time, of a measure that the catalogue shows in heatmaps: each cell as it stood at that snapshot.

    6 inch wide, or as wide as long names need, and as high as its rows need. ``states`` as for ``layers.progress``.
    """
    groups, merged = layers.at_most(layers.grouped(trajectory, "depth", select), MOST_ROWS)
    labels, values = layers.progress(trajectory, measure, groups, states=states)
    defined = np.flatnonzero(~np.isnan(values).all(axis=0))
    first = int(defined[0]) if len(defined) else 0  # an update angle needs three snapshots, …
    colours, names = COLOURS[measure], shortened(labels)
    left, height = room_for(names), height_of(len(names))
    title = f"{colours.title} by layer{colours.remark}"
    width = max(6, left + 2.5 + _BAR)
    figure = new_figure(width, height + HEAD + _FOOT, title, _said(trajectory, select, merged))
    axes = add_panel(figure, left, _FOOT, width - left - _BAR, height)
    times = Times(trajectory, first)
    draw_heatmap(axes, colours.amount(values[:, first:]), colours)
    name_rows(axes, names)
    axes.set_xticks(*time_ticks(times), fontsize=9)
    _label_below(axes, times.label)
    return figure


@own_style()
def layers_by_roles(trajectory: Trajectory, select: Select = None) -> Figure:
    """MDS and direction drift of each layer's roles at the newest snapshot; cells without blocks stay white."""
    groups, merged = layers.at_most(layers.grouped(trajectory, "depth", select), MOST_ROWS)
    roles = layers.present_roles(trajectory.blocks[i] for i in trajectory.select(select))
    names = shortened(list(groups))
    left, width, height = room_for(names), max(1.6, 0.2 * len(roles)), height_of(len(names))
    foot, apart = 0.3 + LETTER * max(map(len, roles)), width + _BAR + 0.1
    figure = new_figure(
        left + apart + width + _BAR,
        height + HEAD + foot + 0.2,
        "layers by roles, newest snapshot",
        _said(trajectory, select, merged),
    )
    for panel, measure in enumerate(shown_in("role")):
        axes = add_panel(figure, left + panel * apart, foot, width, height)
        axes.text(0, 1 + 0.08 / height, COLOURS[measure].title, fontsize=10, transform=axes.transAxes)
        values = np.full((len(groups), len(roles)), np.nan)
        absent = np.ones(values.shape, dtype=bool)
        for row, blocks in enumerate(groups.values()):
            for role, value in layers.latest(trajectory, measure, layers.by_role(trajectory, blocks)).items():
                cell = row, roles.index(role)
                values[cell], absent[cell] = value, False
        draw_heatmap(axes, COLOURS[measure].amount(values), COLOURS[measure], absent)
        name_rows(axes, names if panel == 0 else [])
        name_columns(axes, roles)
    return figure


@own_style()
def heterogeneity(trajectory: Trajectory, select: Select = None) -> Figure:
    """MDS of q, k and v of each attention module, over depth, and below how far apart they are. 6 inch wide.

    Modules whose names differ in numbers alone are one line; there is a gap between different kinds of attention.
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


@own_style()
def most_different(trajectory: Trajectory, select: Select = None, states: layers.States | None = None) -> Figure:
    """Maps of the five blocks that differ most from the map of everything counted, beside that one.

    Which blocks are asked: as for ``layers.most_different``; the figure says so.
    """
    counted = trajectory.select(select)
    panels = {"everything counted": counted}
    blocks = {block.name: i for i, block in enumerate(trajectory.blocks)}
    for name in layers.most_different(trajectory, 5, select, states):
        panels[name] = [blocks[name]]
    candidates = layers.informative(trajectory, select)
    said = [counted_in_words(trajectory, select)]
    if left_out := {trajectory.blocks[i].role for i in counted} - {trajectory.blocks[i].role for i in candidates}:
        said.append(f"{' and '.join(sorted(layers.UNINFORMATIVE[role] for role in left_out))} left out")
    if 1 < len({trajectory.blocks[i].role for i in candidates}) < len(candidates):
        said.append("one a role")
    title = "blocks whose maps differ most"
    return _maps_of(trajectory, title, "; ".join(said), panels, across=3, side=1.75, states=states)


@own_style()
def role_maps(trajectory: Trajectory, select: Select = None, states: layers.States | None = None) -> Figure:
    """Maps by role, of eight roles at most: q, k and v first."""
    groups = layers.by_role(trajectory, trajectory.select(select))
    counted, roles = counted_in_words(trajectory, select), list(groups)
    if len(roles) > 8:
        counted += f"; not shown: {', '.join(roles[8:])}"
    panels = {role: groups[role] for role in roles[:8]}
    return _maps_of(trajectory, "maps by role", counted, panels, across=4, side=1.45, states=states)


# Parts ------------------------------------------------------------------------------------------------------


def _maps_of(
    trajectory: Trajectory,
    title: str,
    counted: str,
    panels: Mapping[str, Sequence[int]],
    across: int,
    side: float,
    states: layers.States | None,
) -> Figure:
    """Maps of several groups of blocks."""
    state_of = states or trajectory.state_of
    maps = {name: state_of(tuple(blocks)).map for name, blocks in panels.items()}
    return small_maps(title, counted, maps, [Times(trajectory)], across=across, side=side)


def _said(trajectory: Trajectory, select: Select, merged: int) -> str:
    """What was counted, and how many layers a row stands for if not for one."""
    counted = counted_in_words(trajectory, select)
    return counted if merged == 1 else f"{counted}; a row is {merged} neighbouring layers"


# Places and names -------------------------------------------------------------------------------------------


class _Stacks(NamedTuple):
    """Where modules stand along an axis, one stack after the other with a gap between them.

    Attributes:
        order: Indices of the modules, in the order of their places.
        places: Of each in turn, from 0.
        cells: Places in all, gaps included.
        borders: Places between stacks.
        ticks: Numbers of modules, or names, by place.
        rotation: Of these, in degrees.
        names: Name of a stack, its middle in inches, and which line below the ticks has room for it.
        foot: Inches below the axis.
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
    """Places for modules on an axis that is so many inches wide."""
    stacks = stacks_of(modules)
    named = len(stacks) > _MOST_STACKS  # too many names of stacks: each module has its own
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
    ends: list[float] = []  # of what each line has so far, in inches
    names = []
    for label, middle in zip(labels, middles, strict=True):
        half = LETTER * len(label) / 2  # and within the figure:
        centre = min(max((middle + 0.6) * width / (cells + 0.2), half - 0.85), width + 0.1 - half)
        line = next((k for k, end in enumerate(ends) if end < centre - half), len(ends))
        ends[line : line + 1] = [centre + half + 0.15]
        names.append((label, centre, line))
    return _Stacks(order, places, cells, borders, ticks, 0, names, 0.36 + _LINE * len(ends))


def _label_below(axes: Axes, label: str) -> None:
    axes.set_xlabel(label)
    axes.xaxis.set_label_coords(0.5, -0.28 / size_in_inches(axes)[1])


def _set_values(axes: Axes, low: float, high: float) -> None:
    """Range and ticks of a vertical axis, with as many decimals as tell ticks apart."""
    ticks = MaxNLocator(4, steps=[1, 2, 5, 10]).tick_values(low, high)
    decimals = max(0, -floor(log10(ticks[1] - ticks[0]) + 1e-9))
    axes.set_ylim(low, high)
    inside = [tick for tick in ticks if low <= tick <= high]
    axes.set_yticks(inside, [f"{tick:.{decimals}f}" for tick in inside], fontsize=8)


def _span(values: Sequence[float], least: float = 1e-6) -> tuple[float, float]:
    """A range around these values; below ``least`` are roundings."""
    defined = [value for value in values if isfinite(value)] or [0.0, 1.0]
    low, high = min(defined), max(defined)
    spare = max(0.06 * (high - low), (least - (high - low)) / 2)
    return low - spare, high + spare
