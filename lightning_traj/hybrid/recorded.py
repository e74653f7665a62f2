"""The trajectory that conditions look at."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from lightning_traj.callbacks import TrajectoryCallback
from lightning_traj.hybrid.groups import Group
from lightning_traj.measures import MEASURES
from lightning_traj.trajectory import Trajectory


def find_recording(trainer: Any) -> TrajectoryCallback | None:
    """Return the callback whose trajectory conditions look at: the first one of the weights."""
    callbacks = (callback for callback in trainer.callbacks if isinstance(callback, TrajectoryCallback))
    return next((callback for callback in callbacks if callback.track == "weights"), None)


def recorded_trajectory(trainer: Any, groups: Mapping[str, Group], measures: Collection[str]) -> Trajectory:
    """Return the trajectory so far.

    Args:
        trainer: Trainer of the fit, one of whose callbacks records the weights.
        groups: Groups of parameters, each of which is judged by its own blocks.
        measures: Names of the measures that conditions look at.

    Raises:
        ValueError: The trajectory lacks blocks of a group of parameters, or the windows that a measure needs.
    """
    recording = find_recording(trainer)
    assert recording is not None
    trajectory, name = recording.trajectory, recording.name
    recorded = {block.name for block in trajectory.blocks}
    for label, group in groups.items():
        if missing := sorted(group.blocks - recorded):
            raise ValueError(
                f"of the group {label!r}, {missing[0]!r} is not recorded by the TrajectoryCallback {name!r}, on which "
                "a condition looks: give that one blocks='tensor' and no include= or exclude= that leaves it out."
            )
    for measure in measures:
        if MEASURES[measure].group == "Oscillation" and not trajectory.settings["window"]:
            raise ValueError(
                f"a condition looks at {measure!r}, which the TrajectoryCallback {name!r} does not record: give that "
                "one window=8, or use another measure."
            )
    return trajectory
