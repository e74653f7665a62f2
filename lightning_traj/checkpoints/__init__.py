"""Checkpoint files of a finished run as a Trajectory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_traj import lazy_exports

if TYPE_CHECKING:
    from lightning_traj.checkpoints.analysis import from_checkpoints as from_checkpoints
    from lightning_traj.checkpoints.grouping import SeveralSeries as SeveralSeries
    from lightning_traj.checkpoints.hyperparameters import hyperparameters_beside as hyperparameters_beside
    from lightning_traj.checkpoints.hyperparameters import labelled as labelled
    from lightning_traj.checkpoints.hyperparameters import split_hyperparameters as split_hyperparameters
    from lightning_traj.checkpoints.paths import find as find
    from lightning_traj.checkpoints.series import series_in as series_in

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "analysis": ("from_checkpoints",),
        "grouping": ("SeveralSeries",),
        "hyperparameters": ("hyperparameters_beside", "labelled", "split_hyperparameters"),
        "paths": ("find",),
        "series": ("series_in",),
    },
)
