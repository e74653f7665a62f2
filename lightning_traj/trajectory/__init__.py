"""The record of a run, and the questions that it answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_traj import lazy_exports

if TYPE_CHECKING:
    from lightning_traj.trajectory.by_layer import attention as attention
    from lightning_traj.trajectory.by_layer import grouped as grouped
    from lightning_traj.trajectory.by_layer import latest as latest
    from lightning_traj.trajectory.by_layer import progress as progress
    from lightning_traj.trajectory.provenance import CheckpointSource as CheckpointSource
    from lightning_traj.trajectory.provenance import Finding as Finding
    from lightning_traj.trajectory.provenance import FindingKind as FindingKind
    from lightning_traj.trajectory.snapshot_grams import Windows as Windows
    from lightning_traj.trajectory.storage import TRAJECTORY as TRAJECTORY
    from lightning_traj.trajectory.storage import is_trajectory as is_trajectory
    from lightning_traj.trajectory.times import Times as Times
    from lightning_traj.trajectory.trajectory import Trajectory as Trajectory

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "by_layer": ("attention", "grouped", "latest", "progress"),
        "provenance": ("CheckpointSource", "Finding", "FindingKind"),
        "snapshot_grams": ("Windows",),
        "storage": ("TRAJECTORY", "is_trajectory"),
        "times": ("Times",),
        "trajectory": ("Trajectory",),
    },
)
