"""Parameters to rows to Gram matrices to a Trajectory. Knows no Lightning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_traj.lazy import lazy_exports

if TYPE_CHECKING:
    from lightning_traj.recording.arguments import check_arguments as check_arguments
    from lightning_traj.recording.quantities import Parameters as Parameters
    from lightning_traj.recording.recorder import Recorder as Recorder
    from lightning_traj.recording.steps import StepCounter as StepCounter
    from lightning_traj.recording.steps import with_inner as with_inner
    from lightning_traj.recording.tracker import Tracker as Tracker
    from lightning_traj.recording.trackers import new_tracker as new_tracker
    from lightning_traj.recording.triggers import Triggers as Triggers

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "arguments": ("check_arguments",),
        "quantities": ("Parameters",),
        "recorder": ("Recorder",),
        "steps": ("StepCounter", "with_inner"),
        "tracker": ("Tracker",),
        "trackers": ("new_tracker",),
        "triggers": ("Triggers",),
    },
)
