"""The record of a run, and the questions that it answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_traj.lazy import lazy_exports

if TYPE_CHECKING:
    from lightning_traj.trajectory.by_layer import attention as attention
    from lightning_traj.trajectory.by_layer import grouped as grouped
    from lightning_traj.trajectory.by_layer import latest as latest
    from lightning_traj.trajectory.by_layer import progress as progress
    from lightning_traj.trajectory.storage import TRAJECTORY as TRAJECTORY
    from lightning_traj.trajectory.storage import is_trajectory as is_trajectory
    from lightning_traj.trajectory.times import Times as Times
    from lightning_traj.trajectory.trajectory import Trajectory as Trajectory
    from lightning_traj.trajectory.trajectory import Windows as Windows

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "by_layer": ("attention", "grouped", "latest", "progress"),
        "storage": ("TRAJECTORY", "is_trajectory"),
        "times": ("Times",),
        "trajectory": ("Trajectory", "Windows"),
    },
)
