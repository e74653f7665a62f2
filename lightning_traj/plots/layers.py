"""Figures of a trajectory by layer and role: which part of the network still turns.

The number of figures doesn't grow with the number of layers, and their sizes don't grow beyond a page: past
``MOST_ROWS``, neighbouring layers are drawn as one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from lightning_traj.blocks import Select, attention_layers
from lightning_traj.measures import MEASURES, shown_in
from lightning_traj.plots.attention import heterogeneity
from lightning_traj.plots.canvas import (
    HEAD,
    add_panel,
    counted_in_words,
    new_figure,
    own_style,
    size_in_inches,
    time_ticks,
)
from lightning_traj.plots.heatmap import (
    BAR,
    Cells,
    colours_of,
    draw_cells,
    draw_heatmap,
    height_of,
    name_rows,
    room_for,
)
from lightning_traj.plots.labels import shortened
from lightning_traj.plots.map_grid import small_maps
from lightning_traj.trajectory import Times
from lightning_traj.trajectory import by_layer as layers

if TYPE_CHECKING:
    from lightning_traj.trajectory import Trajectory

MOST_ROWS = 96
_FOOT = 0.52  # inches below panels
_MOST_ROLES = 8  # of which maps are drawn


def layer_figures(trajectory: Trajectory, select: Select = None) -> dict[str, Callable[[], Figure]]:
    """Return a function that draws each figure that makes sense for this trajectory, by the name of the figure."""
    if len(trajectory) < 2:
        return {}
    states = layers.kept_states(trajectory)  # what several figures ask for is added up once, and dropped with them
    several_updates = len(trajectory) > 2  # other measures than MDS need two updates to mean anything
    several_layers = len(layers.grouped(trajectory, "depth", select)) > 1
    several_roles = len(layers.grouped(trajectory, "role", select)) > 1
    figures: dict[str, Callable[[], Figure]] = {}
    if several_layers:
        names = shown_in("heatmap") if several_updates else ["mds"]
        if not trajectory.windows.steps:
            names = [name for name in names if MEASURES[name].group != "Oscillation"]
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
    """Draw a heatmap, layer x time, of a measure as it stood at each snapshot.

    The figure is 6 inches wide, or as wide as long names need, and as high as its rows need.

    Args:
        trajectory: Trajectory of n snapshots.
        measure: Tag of a measure of the catalogue.
        select: Selection of the blocks that count.
        states: ``kept_states(trajectory)``, if several figures of one trajectory are drawn.
    """
    groups, merged = layers.at_most(layers.grouped(trajectory, "depth", select), MOST_ROWS)
    labels, values = layers.progress(trajectory, measure, groups, states=states)
    defined = np.flatnonzero(~np.isnan(values).all(axis=0))
    first = int(defined[0]) if len(defined) else 0  # an update angle needs three snapshots, …
    colours, names = colours_of(measure), shortened(labels)
    left, height = room_for(names), height_of(len(names))
    title = f"{colours.title} by layer{colours.remark}"
    width = max(6, left + 2.5 + BAR)
    figure = new_figure(width, height + HEAD + _FOOT, title, _counted(trajectory, select, merged))
    axes = add_panel(figure, left, _FOOT, width - left - BAR, height)
    times = Times(trajectory, first)
    draw_heatmap(axes, colours.amount(values[:, first:]), colours)
    name_rows(axes, names)
    axes.set_xticks(*time_ticks(times), fontsize=9)
    axes.set_xlabel(times.label)
    axes.xaxis.set_label_coords(0.5, -0.28 / size_in_inches(axes)[1])
    return figure


@own_style()
def layers_by_roles(trajectory: Trajectory, select: Select = None) -> Figure:
    """Draw heatmaps, layers x roles, at the newest snapshot, of the measures that the catalogue shows by role.

    Cells without blocks stay white.
    """
    groups, merged = layers.at_most(layers.grouped(trajectory, "depth", select), MOST_ROWS)
    roles = layers.present_roles(trajectory.blocks[i] for i in trajectory.select(select))
    shape = len(groups), len(roles)
    values = {measure: np.full(shape, np.nan) for measure in shown_in("role")}
    absent = np.ones(shape, dtype=bool)
    for row, blocks in enumerate(groups.values()):
        by_role = layers.by_role(trajectory, blocks)
        absent[row, [roles.index(role) for role in by_role]] = False
        for measure, matrix in values.items():
            for role, value in layers.latest(trajectory, measure, by_role).items():
                matrix[row, roles.index(role)] = value
    cells = Cells(shortened(list(groups)), roles, values, absent)
    return draw_cells("layers by roles, newest snapshot", _counted(trajectory, select, merged), cells, column=0.2)


@own_style()
def most_different(trajectory: Trajectory, select: Select = None, states: layers.States | None = None) -> Figure:
    """Draw the map of everything counted, and maps of the five blocks that differ most from it.

    ``by_layer.most_different`` chooses the blocks; the figure says which ones it leaves out.
    """
    counted = trajectory.select(select)
    panels = {"everything counted": counted}
    blocks = {block.name: i for i, block in enumerate(trajectory.blocks)}
    for name in layers.most_different(trajectory, 5, select, states):
        panels[name] = [blocks[name]]
    candidates = layers.informative(trajectory, select)
    notes = [counted_in_words(trajectory, select)]
    if left_out := {trajectory.blocks[i].role for i in counted} - {trajectory.blocks[i].role for i in candidates}:
        notes.append(f"{' and '.join(sorted(layers.UNINFORMATIVE[role] for role in left_out))} left out")
    if 1 < len({trajectory.blocks[i].role for i in candidates}) < len(candidates):
        notes.append("one a role")
    title = "blocks whose maps differ most"
    return _maps_of(trajectory, title, "; ".join(notes), panels, across=3, side=1.75, states=states)


@own_style()
def role_maps(trajectory: Trajectory, select: Select = None, states: layers.States | None = None) -> Figure:
    """Draw maps of the roles, of at most eight of them, with q, k and v first."""
    groups = layers.by_role(trajectory, trajectory.select(select))
    counted, roles = counted_in_words(trajectory, select), list(groups)
    if len(roles) > _MOST_ROLES:
        counted += f"; not shown: {', '.join(roles[_MOST_ROLES:])}"
    panels = {role: groups[role] for role in roles[:_MOST_ROLES]}
    return _maps_of(trajectory, "maps by role", counted, panels, across=4, side=1.45, states=states)


def _maps_of(
    trajectory: Trajectory,
    title: str,
    counted: str,
    panels: Mapping[str, Sequence[int]],
    across: int,
    side: float,
    states: layers.States | None,
) -> Figure:
    """Draw maps of several groups of blocks side by side.

    Args:
        trajectory: Trajectory of n snapshots.
        title: Title of the figure.
        counted: Description of the counted blocks.
        panels: Indices of the blocks of each group, by its name.
        across: Largest number of maps in a row.
        side: Side of a map in inches.
        states: As for ``progress``.
    """
    state_of = states or trajectory.state_of
    maps = {name: state_of(tuple(blocks)).map for name, blocks in panels.items()}
    return small_maps(title, counted, maps, [Times(trajectory)], across=across, side=side)


def _counted(trajectory: Trajectory, select: Select, merged: int) -> str:
    """Return a description of the counted blocks, and how many layers a row stands for if it is more than one."""
    counted = counted_in_words(trajectory, select)
    return counted if merged == 1 else f"{counted}; a row is {merged} neighbouring layers"
