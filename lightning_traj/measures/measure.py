"""What an entry of the catalogue of measures says, and how it is evaluated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from lightning_traj.measures.arrays import Array
from lightning_traj.measures.errors import Gradient
from lightning_traj.measures.state import SelectionState

Place = Literal["card", "comparison", "curve", "heatmap", "hyperparameters", "role", "table"]
"""Where a measure is shown besides the summary and the scalars, which have all of them.

card: large, on top of a report. comparison: a row of the table that compares runs. curve: a chart over time in reports.
heatmap: layer by time. hyperparameters: beside the hyperparameters in TensorBoard. role: curves by role in TensorBoard,
and the picture of layers by roles. table: a column of the table of layers or roles.
"""


class StandardError(NamedTuple):
    """How to compute the standard error of a sketched value.

    Attributes:
        basis: Vectors of the Gram matrix in which the measure is written: ``"snapshots"``, ``"displacements"``,
            ``"updates"`` or ``"local"``.
        gradient: Gradient of the measure at that Gram matrix.
    """

    basis: str
    gradient: Callable[[SelectionState], Gradient]


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A scalar of the summary, under one tag. θ are snapshots, d displacements from θ_0, u updates.

    Attributes:
        group: Chart group in which TensorBoard shows it.
        formula: Definition, as documented.
        range: Smallest and largest value, as documented.
        meaning: Interpretation of a value, in a few words.
        unit: ``"degrees"``, or empty.
        latest: Value at the newest snapshot, NaN where undefined; None: the last of `series`.
        series: Values at all n snapshots in one pass, [n]; None: `latest` of the first 1, 2, …, n snapshots.
        error: Standard error of a sketched value; None where no formula covers.
        looks_back: Number of snapshots before the newest on which it depends, for measures of recent snapshots only.
        shown_in: Places where it is shown besides the summary and the scalars.
        landmark: A value worth a line in charts, and what it stands for.
    """

    group: str
    formula: str
    range: str
    meaning: str
    unit: str = ""
    latest: Callable[[SelectionState], float] | None = None
    series: Callable[[SelectionState], Array] | None = None
    error: StandardError | None = None
    looks_back: int = 1
    shown_in: tuple[Place, ...] = ()
    landmark: tuple[float, str] | None = None

    def value(self, state: SelectionState) -> float:
        """Return the value at the newest snapshot; NaN where undefined."""
        if self.latest is not None:
            return float(self.latest(state))
        assert self.series is not None
        return float(self.series(state)[-1])

    def values(self, state: SelectionState, last: int | None = None) -> Array:
        """Return the values at the snapshots as they stood then, [n], or at the `last` of them; NaN where undefined."""
        first = 1 if last is None else max(1, len(state) + 1 - last)
        if self.series is not None:
            values = self.series(state)[first - 1 :].copy()
            if len(values):
                values[-1] = self.value(state)  # the same to the last bit, however each was summed
            return values
        return np.array([self.value(state.first(n)) for n in range(first, len(state) + 1)])
