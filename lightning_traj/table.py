"""The table of tags: every scalar with its formula, its error, and what it means.

To add a measure: its formula in measures.py, a row here, a test. The summary, the logs, the layout of TensorBoard
and the table of the README are made from this one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_traj import measures, uncertainty
from lightning_traj.gram import displacement_gram, snapshot_gram
from lightning_traj.rows import DISPLACEMENT, PREVIOUS_UPDATE, THETA, UPDATE
from lightning_traj.uncertainty import Gradient

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Counted:
    """What a selection of blocks adds up to, over the first n snapshots.

    Attributes:
        steps: Optimizer steps, [n].
        gram: Gram matrix of the snapshots, [n, n].
        relative: The same about θ_0, as accurate as differences can be had, [n, n].
        local: Gram matrix of θ_T, d_T, u_T and u_{T−1}, updates being those between scheduled snapshots, [4, 4].
        path: Path length up to θ_T.
        window: ‖u_i‖², ⟨u_i, u_{i−1}⟩ and ‖u_1 + … + u_i‖² of the steps of the newest window of consecutive optimizer
            steps, [3, L]; L is 0 where there is none yet.
    """

    steps: NDArray[np.int64]
    gram: Array
    relative: Array
    local: Array
    path: float
    window: Array

    @cached_property
    def map(self) -> Array:
        """Trajectory map, [n, n]."""
        return measures.trajectory_map(self.gram)

    @cached_property
    def spectrum_gradients(self) -> uncertainty.SpectrumGradients:
        """Gradients of the measures of the map's spectrum, from one decomposition."""
        return uncertainty.spectrum_gradients(self.gram)

    @cached_property
    def updates(self) -> Array:
        """Gram matrix of the updates between the snapshots kept, [T, T]."""
        return measures.update_gram(self.relative)

    @cached_property
    def oscillation(self) -> measures.Oscillation:
        """How the steps of the window follow each other."""
        return oscillation(self.window)

    @property
    def has_updates(self) -> bool:
        """Whether there is more than one snapshot."""
        return len(self.steps) > 1

    def norm(self, vector: int) -> float:
        """Norm of a vector of the local Gram matrix."""
        return float(np.sqrt(self.local[vector, vector]))

    def angle(self, vector: int, difference: int) -> float:
        """Angle between a vector of the local Gram matrix and what it was before this difference was added."""
        local = self.local
        return float(
            measures.angle_from_difference(
                local[vector, vector], local[vector, difference], local[difference, difference]
            )
        )


class Error(NamedTuple):
    """How the standard error of a sketched value is had: a gradient, and the Gram matrices that it refers to."""

    basis: str
    gradient: Callable[[Counted], Gradient]


@dataclass(frozen=True)
class Measure:
    """A scalar of the summary: one tag.

    Attributes:
        value: Its value at the newest snapshot; NaN where undefined.
        group: The chart group it is shown in.
        formula, range, unit, meaning: As documented; θ are snapshots, d displacements from θ_0, u updates.
        error: How its standard error is had; None where no formula covers.
        looks_back: On how many snapshots before the newest, where it is on the latest ones only.
    """

    value: Callable[[Counted], float]
    group: str
    formula: str
    range: str
    unit: str
    meaning: str
    error: Error | None = None
    looks_back: int = 1


def _local_norm(vector: int) -> Error:
    return Error("local", lambda counted: uncertainty.norm_gradient(counted.local, vector))


def _local_angle(vector: int, difference: int) -> Error:
    return Error("local", lambda counted: uncertainty.difference_angle_gradient(counted.local, vector, difference))


def oscillation(window: Array) -> measures.Oscillation:
    """How the steps of a window follow each other, from its sums [3, L] (see ``Counted``)."""
    squares, products, totals = window
    return measures.oscillation(squares, products[1:], float(totals[-1]) if len(totals) else 0.0)


def update_angle(local: Array) -> Array:
    """Angle between the last two scheduled updates, in degrees, from local Gram matrices [..., 4, 4]."""
    uu, uv, vv = (
        local[..., UPDATE, UPDATE],
        local[..., UPDATE, PREVIOUS_UPDATE],
        local[..., PREVIOUS_UPDATE, PREVIOUS_UPDATE],
    )
    return measures.angle_from_difference(uu, uu - uv, uu - 2 * uv + vv)


def _tortuosity(counted: Counted) -> float:
    displacement = counted.norm(DISPLACEMENT)
    return counted.path / displacement if displacement > 0 else float("nan")


MEASURES: dict[str, Measure] = {
    "mds": Measure(
        lambda c: measures.mean_directional_similarity(c.map),
        "Direction",
        "mean of C_ij = cos(θ_i, θ_j)",
        "[0, 1]",
        "",
        "mean directional similarity ω: near 1, the path hardly turns as seen from the origin",
        Error("snapshots", lambda c: uncertainty.mean_cosine_gradient(c.gram)),
    ),
    "mds_relative": Measure(
        lambda c: measures.mean_directional_similarity(measures.relative_trajectory_map(c.relative)),
        "Direction",
        "mean of cos(d_i, d_j)",
        "[0, 1]",
        "",
        "the same as seen from θ_0: 1 for a straight path",
        Error("displacements", lambda c: uncertainty.mean_cosine_gradient(c.relative[1:, 1:])),
    ),
    "param_norm": Measure(
        lambda c: c.norm(THETA), "Length", "‖θ_T‖", "≥ 0", "", "norm of the parameters", _local_norm(THETA)
    ),
    "displacement": Measure(
        lambda c: c.norm(DISPLACEMENT), "Length", "‖d_T‖", "≥ 0", "", "distance from θ_0", _local_norm(DISPLACEMENT)
    ),
    "update_length": Measure(
        lambda c: c.norm(UPDATE) if c.has_updates else float("nan"),
        "Length",
        "‖u_T‖",
        "≥ 0",
        "",
        "distance from the snapshot before",
        _local_norm(UPDATE),
    ),
    "path_length": Measure(
        lambda c: c.path,
        "Length",
        "L = Σ ‖u_t‖",
        "≥ displacement",
        "",
        "length of the path through all scheduled snapshots",
        Error("updates", lambda c: uncertainty.path_length_gradient(c.updates)),
    ),
    "tortuosity": Measure(
        _tortuosity,
        "Direction",
        "L / ‖d_T‖",
        "≥ 1",
        "",
        "1 for a straight path; large where the path winds",
        Error("updates", lambda c: uncertainty.tortuosity_gradient(c.updates, c.path)),
    ),
    "update_angle": Measure(
        lambda c: float(update_angle(c.local)),
        "Angle",
        "∠(u_{T−1}, u_T)",
        "[0, 180]",
        "degrees",
        "0: straight on; 90: as a random walk; 180: back again",
        Error("local", lambda c: uncertainty.angle_gradient(c.local, UPDATE, PREVIOUS_UPDATE)),
    ),
    "origin_angle": Measure(
        lambda c: c.angle(THETA, UPDATE) if c.has_updates else float("nan"),
        "Angle",
        "∠(θ_{T−1}, θ_T)",
        "[0, 180]",
        "degrees",
        "turn since the snapshot before, seen from the origin",
        _local_angle(THETA, UPDATE),
    ),
    "turn": Measure(
        lambda c: c.angle(THETA, DISPLACEMENT),
        "Angle",
        "∠(θ_0, θ_T)",
        "[0, 180]",
        "degrees",
        "turn since initialisation, seen from the origin",
        _local_angle(THETA, DISPLACEMENT),
    ),
    "apex_angle": Measure(
        lambda c: c.angle(DISPLACEMENT, UPDATE),
        "Angle",
        "∠(d_{T−1}, d_T)",
        "[0, 180]",
        "degrees",
        "turn since the snapshot before, seen from θ_0",
        _local_angle(DISPLACEMENT, UPDATE),
    ),
    "cone_angle": Measure(
        lambda c: measures.cone_angle(c.relative),
        "Angle",
        "max ∠(d_i, d_j)",
        "[0, 180]",
        "degrees",
        "opening of the cone with its apex at θ_0 that the path spans",
    ),
    "effective_rank": Measure(
        lambda c: measures.effective_rank(c.map),
        "Spectrum",
        "exp(entropy of λ/Σλ), λ of C",
        "[1, n]",
        "",
        "number of directions that the snapshots take up",
        Error("snapshots", lambda c: c.spectrum_gradients.effective_rank),
    ),
    "participation_ratio": Measure(
        lambda c: measures.participation_ratio(c.map),
        "Spectrum",
        "(Σλ)² / Σλ²",
        "[1, n]",
        "",
        "the same, less sensitive to small directions",
        Error("snapshots", lambda c: c.spectrum_gradients.participation_ratio),
    ),
    "top1_share": Measure(
        lambda c: measures.top1_share(c.map),
        "Spectrum",
        "λ_1 / Σλ",
        "[1/n, 1]",
        "",
        "share of the direction that the snapshots have most in common",
        Error("snapshots", lambda c: c.spectrum_gradients.top1_share),
    ),
    "saturation": Measure(
        lambda c: measures.saturation(c.relative, c.steps),
        "Redundancy",
        "first (s_t − s_0) / (s_T − s_0) with cos(d_t, d_T) ≥ 0.9 from t on",
        "[0, 1]",
        "",
        "small: the final direction was found early, and the rest of the run is redundant",
    ),
    "direction_drift": Measure(
        lambda c: measures.direction_drift(c.relative),
        "Redundancy",
        "1 − mean cos(d_T, d_j), last 5 j",
        "[0, 2]",
        "",
        "small: the direction no longer changes",
        Error("displacements", lambda c: uncertainty.direction_drift_gradient(c.relative[1:, 1:])),
        looks_back=measures.DRIFT_WINDOW,
    ),
    "oscillation_cosine": Measure(
        lambda c: c.oscillation.cosine,
        "Oscillation",
        "mean cos(u_t, u_{t+1}) over a window of steps",
        "[−1, 1]",
        "",
        "below 0: steps undo each other; u are consecutive optimizer steps",
    ),
    "oscillation_reversals": Measure(
        lambda c: c.oscillation.reversals,
        "Oscillation",
        "share of these cosines below 0",
        "[0, 1]",
        "",
        "1: every step turns back",
    ),
    "oscillation_linearity": Measure(
        lambda c: c.oscillation.linearity,
        "Oscillation",
        "‖Σu‖ / Σ‖u‖ of these steps",
        "[0, 1]",
        "",
        "1: straight on; near 0: on the spot",
    ),
    "oscillation_step_length": Measure(
        lambda c: c.oscillation.step_length,
        "Oscillation",
        "mean ‖u_t‖ of these steps",
        "≥ 0",
        "",
        "length of a single step",
    ),
}


def standard_errors(counted: Counted, anchored: Array, local: Array, dim: int) -> dict[str, float]:
    """Standard errors of a selection's values, from the Gram matrices of its sketched blocks.

    Args:
        counted: What the selection adds up to.
        anchored: Gram(θ_0, d_1, …, d_T) of each sketched block, [blocks, n, n].
        local: Local Gram matrix of each at the newest snapshot, [blocks, 4, 4].
        dim: Length of a sketch.

    Returns:
        For each measure that has one and is defined, its standard error in the measure's unit.
    """
    relative = displacement_gram(anchored)[:, 1:, 1:]
    # Updates are d_t − d_{t−1} with d_0 = 0: prepend it, and take differences along both axes.
    bases = {
        "snapshots": snapshot_gram(anchored),
        "displacements": relative,
        "updates": np.diff(np.diff(relative, axis=1, prepend=0.0), axis=2, prepend=0.0),
        "local": local,
    }
    errors = {
        name: uncertainty.standard_error(measure.error.gradient(counted), bases[measure.error.basis], dim)
        for name, measure in MEASURES.items()
        if measure.error is not None and not np.isnan(measure.value(counted))
    }
    return {name: error for name, error in errors.items() if not np.isnan(error)}
