"""The tracker that goes with a quantity."""

from __future__ import annotations

from lightning_traj.recording.quantities.registry import quantity
from lightning_traj.recording.recorder import Recorder
from lightning_traj.recording.state_tracker import StateTracker
from lightning_traj.recording.step_tracker import StepTracker
from lightning_traj.recording.steps import StepCounter
from lightning_traj.recording.tracker import Guard, Tracker
from lightning_traj.recording.triggers import Triggers


def new_tracker(recorder: Recorder, triggers: Triggers, counter: StepCounter, guard: Guard) -> Tracker:
    """Return a tracker of the quantity that a recorder is for."""
    tracked = quantity(recorder.settings.track)
    if tracked.at_steps:
        return StepTracker(recorder, tracked, triggers, counter, guard)
    return StateTracker(recorder, tracked, triggers, counter, guard, updated_late=recorder.settings.track == "average")
