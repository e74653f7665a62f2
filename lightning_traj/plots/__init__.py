"""Figures of a trajectory, and what the figures of other sub-packages are drawn with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_traj.lazy import lazy_exports

if TYPE_CHECKING:
    from lightning_traj.plots.canvas import GREY as GREY
    from lightning_traj.plots.canvas import HEAD as HEAD
    from lightning_traj.plots.canvas import ORANGE as ORANGE
    from lightning_traj.plots.canvas import Array as Array
    from lightning_traj.plots.canvas import add_panel as add_panel
    from lightning_traj.plots.canvas import angle_scale as angle_scale
    from lightning_traj.plots.canvas import draw_angle_bar as draw_angle_bar
    from lightning_traj.plots.canvas import fix_labels as fix_labels
    from lightning_traj.plots.canvas import new_figure as new_figure
    from lightning_traj.plots.canvas import own_style as own_style
    from lightning_traj.plots.canvas import paint as paint
    from lightning_traj.plots.canvas import say_undefined as say_undefined
    from lightning_traj.plots.heatmap import COLOURS as COLOURS
    from lightning_traj.plots.heatmap import LETTER as LETTER
    from lightning_traj.plots.heatmap import draw_heatmap as draw_heatmap
    from lightning_traj.plots.heatmap import height_of as height_of
    from lightning_traj.plots.heatmap import name_columns as name_columns
    from lightning_traj.plots.heatmap import name_rows as name_rows
    from lightning_traj.plots.heatmap import room_for as room_for
    from lightning_traj.plots.labels import shortened as shortened
    from lightning_traj.plots.map_grid import small_maps as small_maps
    from lightning_traj.plots.series import Timeline as Timeline
    from lightning_traj.plots.series import draw_line as draw_line
    from lightning_traj.plots.series import finish_axes as finish_axes
    from lightning_traj.plots.series import label_ends as label_ends
    from lightning_traj.plots.series import reveal_markers as reveal_markers
    from lightning_traj.plots.series import run_labels as run_labels
    from lightning_traj.plots.series import series_figures as series_figures
    from lightning_traj.plots.series import width_of as width_of

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "canvas": (
            "Array",
            "GREY",
            "HEAD",
            "ORANGE",
            "add_panel",
            "angle_scale",
            "draw_angle_bar",
            "fix_labels",
            "new_figure",
            "own_style",
            "paint",
            "say_undefined",
        ),
        "heatmap": ("COLOURS", "LETTER", "draw_heatmap", "height_of", "name_columns", "name_rows", "room_for"),
        "labels": ("shortened",),
        "map_grid": ("small_maps",),
        "series": (
            "Timeline",
            "draw_line",
            "finish_axes",
            "label_ends",
            "reveal_markers",
            "run_labels",
            "series_figures",
            "width_of",
        ),
    },
)
