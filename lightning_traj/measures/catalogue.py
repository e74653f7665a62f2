"""Catalogue of the measures that are logged: one entry a tag, with its formula, standard error, meaning and places.

To add a measure: write its formula in `direction`, `geometry`, `spectrum` or `windows`, add an entry here, and a test.
Summaries, logs, charts, tables, heatmaps and the README's table of tags are made from this catalogue.
"""

from __future__ import annotations

import numpy as np

from lightning_traj.measures import errors
from lightning_traj.measures.arrays import Array
from lightning_traj.measures.basis import DISPLACEMENT, PREVIOUS_UPDATE, THETA, UPDATE
from lightning_traj.measures.direction import (
    DRIFT_WINDOW,
    direction_drift,
    mean_directional_similarity,
    running_drift,
    running_similarity,
    saturation,
)
from lightning_traj.measures.geometry import angle_from_difference, cone_angle
from lightning_traj.measures.measure import Measure, Place, StandardError
from lightning_traj.measures.spectrum import effective_rank, participation_ratio, top1_share
from lightning_traj.measures.state import SelectionState


def _local_norm(vector: int) -> StandardError:
    return StandardError("local", lambda state: errors.norm_gradient(state.local[-1], vector))


def _local_angle(vector: int, difference: int) -> StandardError:
    return StandardError("local", lambda state: errors.difference_angle_gradient(state.local[-1], vector, difference))


def _from_second(values: Array) -> Array:
    """Return the values with NaN in front, for θ_0, at which the measure is undefined."""
    return np.concatenate([[np.nan], values])


def _without_first(values: Array) -> Array:
    """Return the values with NaN in place of the first, for θ_0, at which the measure is undefined."""
    return np.concatenate([[np.nan], values[1:]])


def _update_angles(state: SelectionState) -> Array:
    uu, uv, vv = (
        state.local[:, UPDATE, UPDATE],
        state.local[:, UPDATE, PREVIOUS_UPDATE],
        state.local[:, PREVIOUS_UPDATE, PREVIOUS_UPDATE],
    )
    return angle_from_difference(uu, uu - uv, uu - 2 * uv + vv)


def _tortuosities(state: SelectionState) -> Array:
    lengths = state.norms(DISPLACEMENT)
    ratios: Array = np.divide(state.path, lengths, out=np.full(len(lengths), np.nan), where=lengths > 0)
    return ratios


MEASURES: dict[str, Measure] = {
    "mds": Measure(
        group="Direction",
        formula="mean of C_ij = cos(θ_i, θ_j)",
        range="[0, 1]",
        meaning="mean directional similarity ω: near 1, the path hardly turns as seen from the origin",
        latest=lambda state: mean_directional_similarity(state.map),
        series=lambda state: running_similarity(state.map),
        error=StandardError("snapshots", lambda state: errors.mean_cosine_gradient(state.gram)),
        shown_in=("card", "comparison", "curve", "heatmap", "hyperparameters", "role", "table"),
    ),
    "mds_relative": Measure(
        group="Direction",
        formula="mean of cos(d_i, d_j)",
        range="[0, 1]",
        meaning="the same as seen from θ_0: 1 for a straight path",
        latest=lambda state: mean_directional_similarity(state.relative_map),
        series=lambda state: _from_second(running_similarity(state.relative_map)),
        error=StandardError("displacements", lambda state: errors.mean_cosine_gradient(state.relative[1:, 1:])),
        shown_in=("card", "comparison", "curve", "heatmap", "hyperparameters", "table"),
    ),
    "param_norm": Measure(
        group="Length",
        formula="‖θ_T‖",
        range="≥ 0",
        meaning="norm of the parameters",
        series=lambda state: state.norms(THETA),
        error=_local_norm(THETA),
        shown_in=("hyperparameters",),
    ),
    "displacement": Measure(
        group="Length",
        formula="‖d_T‖",
        range="≥ 0",
        meaning="distance from θ_0",
        series=lambda state: state.norms(DISPLACEMENT),
        error=_local_norm(DISPLACEMENT),
        shown_in=("comparison", "curve", "hyperparameters", "table"),
    ),
    "update_length": Measure(
        group="Length",
        formula="‖u_T‖",
        range="≥ 0",
        meaning="distance from the snapshot before",
        series=lambda state: _without_first(state.norms(UPDATE)),
        error=_local_norm(UPDATE),
        shown_in=("hyperparameters",),
    ),
    "path_length": Measure(
        group="Length",
        formula="L = Σ ‖u_t‖",
        range="≥ displacement",
        meaning="length of the path through all scheduled snapshots",
        series=lambda state: state.path,
        error=StandardError("updates", lambda state: errors.path_length_gradient(state.updates)),
        shown_in=("comparison", "curve", "hyperparameters"),
    ),
    "tortuosity": Measure(
        group="Direction",
        formula="L / ‖d_T‖",
        range="≥ 1",
        meaning="1 for a straight path; large where the path winds",
        series=_tortuosities,
        error=StandardError("updates", lambda state: errors.tortuosity_gradient(state.updates, float(state.path[-1]))),
        shown_in=("card", "comparison", "curve", "hyperparameters"),
    ),
    "update_angle": Measure(
        group="Angle",
        formula="∠(u_{T−1}, u_T)",
        range="[0, 180]",
        meaning="0: straight on; 90: as a random walk; 180: back again",
        unit="degrees",
        series=_update_angles,
        error=StandardError("local", lambda state: errors.angle_gradient(state.local[-1], UPDATE, PREVIOUS_UPDATE)),
        shown_in=("curve", "heatmap", "hyperparameters", "table"),
        landmark=(90.0, "random walk"),
    ),
    "origin_angle": Measure(
        group="Angle",
        formula="∠(θ_{T−1}, θ_T)",
        range="[0, 180]",
        meaning="turn since the snapshot before, seen from the origin",
        unit="degrees",
        series=lambda state: _without_first(state.angles(THETA, UPDATE)),
        error=_local_angle(THETA, UPDATE),
        shown_in=("hyperparameters",),
    ),
    "turn": Measure(
        group="Angle",
        formula="∠(θ_0, θ_T)",
        range="[0, 180]",
        meaning="turn since initialisation, seen from the origin",
        unit="degrees",
        series=lambda state: state.angles(THETA, DISPLACEMENT),
        error=_local_angle(THETA, DISPLACEMENT),
        shown_in=("curve", "hyperparameters"),
    ),
    "apex_angle": Measure(
        group="Angle",
        formula="∠(d_{T−1}, d_T)",
        range="[0, 180]",
        meaning="turn since the snapshot before, seen from θ_0",
        unit="degrees",
        series=lambda state: state.angles(DISPLACEMENT, UPDATE),
        error=_local_angle(DISPLACEMENT, UPDATE),
        shown_in=("hyperparameters",),
    ),
    "cone_angle": Measure(
        group="Angle",
        formula="max ∠(d_i, d_j)",
        range="[0, 180]",
        meaning="opening of the cone with its apex at θ_0 that the path spans",
        unit="degrees",
        latest=lambda state: cone_angle(state.relative),
        shown_in=("hyperparameters",),
    ),
    "effective_rank": Measure(
        group="Spectrum",
        formula="exp(entropy of λ/Σλ), λ of C",
        range="[1, n]",
        meaning="number of directions that the snapshots take up",
        latest=lambda state: effective_rank(state.map),
        error=StandardError("snapshots", lambda state: state.spectrum_gradients.effective_rank),
        shown_in=("card", "comparison", "curve", "hyperparameters"),
    ),
    "participation_ratio": Measure(
        group="Spectrum",
        formula="(Σλ)² / Σλ²",
        range="[1, n]",
        meaning="the same, less sensitive to small directions",
        latest=lambda state: participation_ratio(state.map),
        error=StandardError("snapshots", lambda state: state.spectrum_gradients.participation_ratio),
        shown_in=("hyperparameters",),
    ),
    "top1_share": Measure(
        group="Spectrum",
        formula="λ_1 / Σλ",
        range="[1/n, 1]",
        meaning="share of the direction that the snapshots have most in common",
        latest=lambda state: top1_share(state.map),
        error=StandardError("snapshots", lambda state: state.spectrum_gradients.top1_share),
        shown_in=("hyperparameters",),
    ),
    "saturation": Measure(
        group="Redundancy",
        formula="first (s_t − s_0) / (s_T − s_0) with cos(d_t, d_T) ≥ 0.9 from t on",
        range="[0, 1]",
        meaning="small: the final direction was found early, and the rest of the run is redundant",
        latest=lambda state: saturation(state.relative, state.steps),
        shown_in=("card", "comparison", "hyperparameters"),
    ),
    "direction_drift": Measure(
        group="Redundancy",
        formula="1 − mean cos(d_T, d_j), last 5 j",
        range="[0, 2]",
        meaning="small: the direction no longer changes",
        latest=lambda state: direction_drift(state.recent),
        series=lambda state: _from_second(running_drift(state.relative)),
        error=StandardError("displacements", lambda state: errors.direction_drift_gradient(state.relative[1:, 1:])),
        looks_back=DRIFT_WINDOW,
        shown_in=("card", "comparison", "curve", "heatmap", "hyperparameters", "role", "table"),
    ),
    "oscillation_cosine": Measure(
        group="Oscillation",
        formula="mean cos(u_t, u_{t+1}) over a window of steps",
        range="[−1, 1]",
        meaning="below 0: steps undo each other; u are consecutive optimizer steps",
        latest=lambda state: state.oscillation.cosine,
        shown_in=("comparison", "curve", "heatmap", "table"),
        landmark=(0.0, "neither on nor back"),
    ),
    "oscillation_reversals": Measure(
        group="Oscillation",
        formula="share of these cosines below 0",
        range="[0, 1]",
        meaning="1: every step turns back",
        latest=lambda state: state.oscillation.reversals,
    ),
    "oscillation_linearity": Measure(
        group="Oscillation",
        formula="‖Σu‖ / Σ‖u‖ of these steps",
        range="[0, 1]",
        meaning="1: straight on; near 0: on the spot",
        latest=lambda state: state.oscillation.linearity,
    ),
    "oscillation_step_length": Measure(
        group="Oscillation",
        formula="mean ‖u_t‖ of these steps",
        range="≥ 0",
        meaning="length of a single step",
        latest=lambda state: state.oscillation.step_length,
    ),
}


def shown_in(place: Place) -> list[str]:
    """Return the tags of the measures that are shown in a place, in the order of the catalogue."""
    return [name for name, measure in MEASURES.items() if place in measure.shown_in]
