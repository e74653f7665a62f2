"""Comparing trajectories."""

from __future__ import annotations

import numpy as np

from lightning_traj.trajectory.trajectory import Trajectory


def assert_same(ours: Trajectory, theirs: Trajectory) -> None:
    assert ours.steps.tolist() == theirs.steps.tolist()
    assert ours.epochs.tolist() == theirs.epochs.tolist()
    assert ours.blocks == theirs.blocks
    assert ours.settings == theirs.settings
    for array in ("anchored", "local", "paths"):
        # Of sketches, inner products are taken for several new rows at once: how many decides how they are rounded.
        rounding = 1e-14 if array == "anchored" and ours.settings["snapshot"] == "sketch" else 0
        np.testing.assert_allclose(getattr(ours, array), getattr(theirs, array), rtol=rounding, atol=rounding)
