"""Figures: the only sub-package that imports matplotlib. Others take whole figures from it, and no parts of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_traj import lazy_exports

if TYPE_CHECKING:
    from lightning_traj.plots import comparison as comparison
    from lightning_traj.plots import trajectory as trajectory
    from lightning_traj.plots.freezing import frozen_groups as frozen_groups
    from lightning_traj.plots.images import save_png as save_png
    from lightning_traj.plots.images import to_png as to_png
    from lightning_traj.plots.images import to_rgb as to_rgb
    from lightning_traj.plots.layers import layer_figures as layer_figures
    from lightning_traj.plots.series import series_figures as series_figures

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "freezing": ("frozen_groups",),
        "images": ("save_png", "to_png", "to_rgb"),
        "layers": ("layer_figures",),
        "series": ("series_figures",),
    },
    modules=("comparison", "trajectory"),
)
