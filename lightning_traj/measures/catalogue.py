"""Catalogue of the measures that are logged: one entry a tag, with its formula, standard error, meaning and places.

To add a measure: write its formula in `direction`, `geometry`, `spectrum` or `windows`, add an entry here, and a test.
Summaries, logs, charts, tables, heatmaps and the README's table of tags are made from this catalogue.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from lightning_traj.measures import errors
from lightning_traj.measures.arrays import Array
from lightning_traj.measures.basis import (
    DISPLACEMENT,
    PREVIOUS_UPDATE,
    THETA,
    UPDATE,
    displacement_gram,
    snapshot_gram,
)
from lightning_traj.measures.direction import (
    DRIFT_WINDOW,
    direction_drift,
    mean_directional_similarity,
    running_drift,
    running_similarity,
    saturation,
)
from lightning_traj.measures.errors import Gradient
from lightning_traj.measures.geometry import angle_from_difference, cone_angle
from lightning_traj.measures.spectrum import effective_rank, participation_ratio, top1_share
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


@dataclass(frozen=True)
class Measure:
    """A scalar of the summary, under one tag. θ are snapshots, d displacements from θ_0, u updates.

    Attributes:
        group: Chart group in which TensorBoard shows it.
        formula: Definition, as documented.
        range: Smallest and largest value, as documented.
        unit: ``"degrees"``, or empty.
        meaning: What a value tells, in a few words.
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
    unit: str
    meaning: str
    latest: Callable[[SelectionState], float] | None = None
    series: Callable[[SelectionState], Array] | None = None
    error: StandardError | None = None
    looks_back: int = 1
    shown_in: frozenset[Place] = frozenset()
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


def shown_in(place: Place) -> list[str]:
    """Return the tags of the measures that are shown in a place, in the order of the catalogue."""
    return [name for name, measure in MEASURES.items() if place in measure.shown_in]


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


def _places(*places: Place) -> frozenset[Place]:
    return frozenset(places)


MEASURES: dict[str, Measure] = {
    "mds": Measure(
        "Direction",
        "mean of C_ij = cos(θ_i, θ_j)",
        "[0, 1]",
        "",
        "mean directional similarity ω: near 1, the path hardly turns as seen from the origin",
        latest=lambda state: mean_directional_similarity(state.map),
        series=lambda state: running_similarity(state.map),
        error=StandardError("snapshots", lambda state: errors.mean_cosine_gradient(state.gram)),
        shown_in=_places("card", "comparison", "curve", "heatmap", "hyperparameters", "role", "table"),
    ),
    "mds_relative": Measure(
        "Direction",
        "mean of cos(d_i, d_j)",
        "[0, 1]",
        "",
        "the same as seen from θ_0: 1 for a straight path",
        latest=lambda state: mean_directional_similarity(state.relative_map),
        series=lambda state: _from_second(running_similarity(state.relative_map)),
        error=StandardError("displacements", lambda state: errors.mean_cosine_gradient(state.relative[1:, 1:])),
        shown_in=_places("card", "comparison", "curve", "heatmap", "hyperparameters", "table"),
    ),
    "param_norm": Measure(
        "Length",
        "‖θ_T‖",
        "≥ 0",
        "",
        "norm of the parameters",
        series=lambda state: state.norms(THETA),
        error=_local_norm(THETA),
        shown_in=_places("hyperparameters"),
    ),
    "displacement": Measure(
        "Length",
        "‖d_T‖",
        "≥ 0",
        "",
        "distance from θ_0",
        series=lambda state: state.norms(DISPLACEMENT),
        error=_local_norm(DISPLACEMENT),
        shown_in=_places("comparison", "curve", "hyperparameters", "table"),
    ),
    "update_length": Measure(
        "Length",
        "‖u_T‖",
        "≥ 0",
        "",
        "distance from the snapshot before",
        series=lambda state: _without_first(state.norms(UPDATE)),
        error=_local_norm(UPDATE),
        shown_in=_places("hyperparameters"),
    ),
    "path_length": Measure(
        "Length",
        "L = Σ ‖u_t‖",
        "≥ displacement",
        "",
        "length of the path through all scheduled snapshots",
        series=lambda state: state.path,
        error=StandardError("updates", lambda state: errors.path_length_gradient(state.updates)),
        shown_in=_places("comparison", "curve", "hyperparameters"),
    ),
    "tortuosity": Measure(
        "Direction",
        "L / ‖d_T‖",
        "≥ 1",
        "",
        "1 for a straight path; large where the path winds",
        series=_tortuosities,
        error=StandardError("updates", lambda state: errors.tortuosity_gradient(state.updates, float(state.path[-1]))),
        shown_in=_places("card", "comparison", "curve", "hyperparameters"),
    ),
    "update_angle": Measure(
        "Angle",
        "∠(u_{T−1}, u_T)",
        "[0, 180]",
        "degrees",
        "0: straight on; 90: as a random walk; 180: back again",
        series=_update_angles,
        error=StandardError("local", lambda state: errors.angle_gradient(state.local[-1], UPDATE, PREVIOUS_UPDATE)),
        shown_in=_places("curve", "heatmap", "hyperparameters", "table"),
        landmark=(90.0, "random walk"),
    ),
    "origin_angle": Measure(
        "Angle",
        "∠(θ_{T−1}, θ_T)",
        "[0, 180]",
        "degrees",
        "turn since the snapshot before, seen from the origin",
        series=lambda state: _without_first(state.angles(THETA, UPDATE)),
        error=_local_angle(THETA, UPDATE),
        shown_in=_places("hyperparameters"),
    ),
    "turn": Measure(
        "Angle",
        "∠(θ_0, θ_T)",
        "[0, 180]",
        "degrees",
        "turn since initialisation, seen from the origin",
        series=lambda state: state.angles(THETA, DISPLACEMENT),
        error=_local_angle(THETA, DISPLACEMENT),
        shown_in=_places("curve", "hyperparameters"),
    ),
    "apex_angle": Measure(
        "Angle",
        "∠(d_{T−1}, d_T)",
        "[0, 180]",
        "degrees",
        "turn since the snapshot before, seen from θ_0",
        series=lambda state: state.angles(DISPLACEMENT, UPDATE),
        error=_local_angle(DISPLACEMENT, UPDATE),
        shown_in=_places("hyperparameters"),
    ),
    "cone_angle": Measure(
        "Angle",
        "max ∠(d_i, d_j)",
        "[0, 180]",
        "degrees",
        "opening of the cone with its apex at θ_0 that the path spans",
        latest=lambda state: cone_angle(state.relative),
        shown_in=_places("hyperparameters"),
    ),
    "effective_rank": Measure(
        "Spectrum",
        "exp(entropy of λ/Σλ), λ of C",
        "[1, n]",
        "",
        "number of directions that the snapshots take up",
        latest=lambda state: effective_rank(state.map),
        error=StandardError("snapshots", lambda state: state.spectrum_gradients.effective_rank),
        shown_in=_places("card", "comparison", "curve", "hyperparameters"),
    ),
    "participation_ratio": Measure(
        "Spectrum",
        "(Σλ)² / Σλ²",
        "[1, n]",
        "",
        "the same, less sensitive to small directions",
        latest=lambda state: participation_ratio(state.map),
        error=StandardError("snapshots", lambda state: state.spectrum_gradients.participation_ratio),
        shown_in=_places("hyperparameters"),
    ),
    "top1_share": Measure(
        "Spectrum",
        "λ_1 / Σλ",
        "[1/n, 1]",
        "",
        "share of the direction that the snapshots have most in common",
        latest=lambda state: top1_share(state.map),
        error=StandardError("snapshots", lambda state: state.spectrum_gradients.top1_share),
        shown_in=_places("hyperparameters"),
    ),
    "saturation": Measure(
        "Redundancy",
        "first (s_t − s_0) / (s_T − s_0) with cos(d_t, d_T) ≥ 0.9 from t on",
        "[0, 1]",
        "",
        "small: the final direction was found early, and the rest of the run is redundant",
        latest=lambda state: saturation(state.relative, state.steps),
        shown_in=_places("card", "comparison", "hyperparameters"),
    ),
    "direction_drift": Measure(
        "Redundancy",
        "1 − mean cos(d_T, d_j), last 5 j",
        "[0, 2]",
        "",
        "small: the direction no longer changes",
        latest=lambda state: direction_drift(state.recent),
        series=lambda state: _from_second(running_drift(state.relative)),
        error=StandardError("displacements", lambda state: errors.direction_drift_gradient(state.relative[1:, 1:])),
        looks_back=DRIFT_WINDOW,
        shown_in=_places("card", "comparison", "curve", "heatmap", "hyperparameters", "role", "table"),
    ),
    "oscillation_cosine": Measure(
        "Oscillation",
        "mean cos(u_t, u_{t+1}) over a window of steps",
        "[−1, 1]",
        "",
        "below 0: steps undo each other; u are consecutive optimizer steps",
        latest=lambda state: state.oscillation.cosine,
        shown_in=_places("comparison", "curve", "heatmap", "table"),
        landmark=(0.0, "neither on nor back"),
    ),
    "oscillation_reversals": Measure(
        "Oscillation",
        "share of these cosines below 0",
        "[0, 1]",
        "",
        "1: every step turns back",
        latest=lambda state: state.oscillation.reversals,
    ),
    "oscillation_linearity": Measure(
        "Oscillation",
        "‖Σu‖ / Σ‖u‖ of these steps",
        "[0, 1]",
        "",
        "1: straight on; near 0: on the spot",
        latest=lambda state: state.oscillation.linearity,
    ),
    "oscillation_step_length": Measure(
        "Oscillation",
        "mean ‖u_t‖ of these steps",
        "≥ 0",
        "",
        "length of a single step",
        latest=lambda state: state.oscillation.step_length,
    ),
}


def evaluate(state: SelectionState, names: Iterable[str] = MEASURES) -> dict[str, float]:
    """Return measures of a selection at the newest snapshot, by tag; NaN where undefined."""
    return {name: MEASURES[name].value(state) for name in names}


def standard_errors(state: SelectionState, anchored: Array, local: Array, dim: int) -> dict[str, float]:
    """Return the standard errors of a selection's values at the newest snapshot.

    Args:
        state: Sums over all blocks of the selection.
        anchored: Gram(θ_0, d_1, …, d_T) of each sketched block, [blocks, n, n].
        local: Local Gram matrix of each sketched block at the newest snapshot, [blocks, 4, 4].
        dim: Sketch length of a block.

    Returns:
        Standard errors in the measures' units, by tag, of the measures that have one and are defined.
    """
    relative = displacement_gram(anchored)[:, 1:, 1:]
    # Updates are d_t − d_{t−1} with d_0 = 0: prepend it, and take differences along both axes.
    bases = {
        "snapshots": snapshot_gram(anchored),
        "displacements": relative,
        "updates": np.diff(np.diff(relative, axis=1, prepend=0.0), axis=2, prepend=0.0),
        "local": local,
    }
    found = {
        name: errors.standard_error(measure.error.gradient(state), bases[measure.error.basis], dim)
        for name, measure in MEASURES.items()
        if measure.error is not None and not np.isnan(measure.value(state))
    }
    return {name: error for name, error in found.items() if not np.isnan(error)}
