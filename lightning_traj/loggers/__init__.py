"""Logging of trajectories, with one adapter for each kind of logger."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_traj import lazy_exports

if TYPE_CHECKING:
    from lightning_traj.loggers.announcements import add_layout as add_layout
    from lightning_traj.loggers.announcements import hyperparameters as hyperparameters
    from lightning_traj.loggers.announcements import log_hyperparameters as log_hyperparameters
    from lightning_traj.loggers.folders import log_folder as log_folder
    from lightning_traj.loggers.layout import CROSS as CROSS
    from lightning_traj.loggers.trajectory import event_folders as event_folders
    from lightning_traj.loggers.trajectory import log_figures as log_figures
    from lightning_traj.loggers.trajectory import log_history as log_history
    from lightning_traj.loggers.trajectory import log_layers as log_layers
    from lightning_traj.loggers.trajectory import log_scalars as log_scalars
    from lightning_traj.loggers.trajectory import log_text as log_text
    from lightning_traj.loggers.trajectory import log_trajectory as log_trajectory

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "announcements": ("add_layout", "hyperparameters", "log_hyperparameters"),
        "folders": ("log_folder",),
        "layout": ("CROSS",),
        "trajectory": (
            "event_folders",
            "log_figures",
            "log_history",
            "log_layers",
            "log_scalars",
            "log_text",
            "log_trajectory",
        ),
    },
)
