"""Times of snapshots in epochs or steps, a choice that is made here for charts, tables and sentences."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lightning_traj.trajectory.trajectory import Trajectory


class Times:
    """Times of the snapshots of a trajectory, from one of them on.

    They are completed epochs where these tell the snapshots apart and the first epoch is over, and otherwise optimizer
    steps: data without a length have no epochs to count by, and a step schedule takes several snapshots in an epoch.

    Args:
        trajectory: Trajectory of n snapshots.
        first: Index of the first snapshot that counts.

    Attributes:
        unit: ``"epoch"`` or ``"step"``.
        values: Time of each snapshot, float64 [n - first].
    """

    def __init__(self, trajectory: Trajectory, first: int = 0) -> None:
        epochs = np.asarray(trajectory.epochs, dtype=np.float64)
        by_epoch = bool((np.diff(epochs) > 0).all()) and epochs[-1] >= 1
        self.unit = "epoch" if by_epoch else "step"
        self.values: NDArray[np.float64] = (epochs if by_epoch else np.asarray(trajectory.steps, dtype=np.float64))[
            first:
        ]

    @property
    def label(self) -> str:
        """Label of an axis, with a remark where snapshots are unevenly spaced along it."""
        return self.unit + " (unevenly spaced)" * self.uneven()

    def say(self, value: float) -> str:
        """Return a time in few letters, such as ``"20k"``."""
        for size, letter in ((1e6, "M"), (1e3, "k")):
            if value >= max(size, 1e4):
                return f"{value / size:.3g}{letter}"
        return f"{value:.4g}"

    def uneven(self) -> bool:
        """Return whether cells of equal size would put a snapshot more than a cell off."""
        n = len(self.values)
        even = np.linspace(self.values[0], self.values[-1], n)
        return bool(np.abs(np.interp(even, self.values, np.arange(n)) - np.arange(n)).max() > 1)
