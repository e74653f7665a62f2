"""Parameters to rows to Gram matrices to a Trajectory. Knows no Lightning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_traj import lazy_exports

if TYPE_CHECKING:
    from lightning_traj.recording.parameters import Parameters as Parameters
    from lightning_traj.recording.quantities.quantity import Training as Training
    from lightning_traj.recording.recorder import Recorder as Recorder
    from lightning_traj.recording.settings import RecordingSettings as RecordingSettings
    from lightning_traj.recording.settings import check_output as check_output
    from lightning_traj.recording.settings import check_schedules as check_schedules
    from lightning_traj.recording.step_hooks import with_inner as with_inner
    from lightning_traj.recording.steps import Look as Look
    from lightning_traj.recording.steps import StepCounter as StepCounter
    from lightning_traj.recording.tracker import Tracker as Tracker
    from lightning_traj.recording.tracker import training_of as training_of
    from lightning_traj.recording.trackers import new_tracker as new_tracker
    from lightning_traj.recording.triggers import Triggers as Triggers

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "parameters": ("Parameters",),
        "quantities.quantity": ("Training",),
        "recorder": ("Recorder",),
        "settings": ("RecordingSettings", "check_output", "check_schedules"),
        "step_hooks": ("with_inner",),
        "steps": ("Look", "StepCounter"),
        "tracker": ("Tracker", "training_of"),
        "trackers": ("new_tracker",),
        "triggers": ("Triggers",),
    },
)
