"""Every measure of an optimization trajectory, as a pure function of a Gram matrix. NumPy, float64.

Snapshots θ_0 ... θ_T, n = T + 1 of them; `gram` [n, n] holds G_ij = <θ_i, θ_j>, taken to be symmetric. d_t is the
displacement θ_t - θ_0, u_t the update θ_t - θ_{t-1}. `cosines` is one of the maps made here. Definitions: Singh, He,
Hofmann, Schölkopf, "The Directionality of Optimization Trajectories in Neural Networks", ICLR 2025 (arXiv:2403.07379).

*Translation.* Measures that depend only on differences of snapshots give the same result for G and for the Gram matrix
about any point, such as `relative_gram(G)`. The latter is more accurate, since late updates are as small as 1e-6 of θ.
These measures are `relative_gram`, `relative_trajectory_map`, `displacement`, `path_length`, `tortuosity`, `update_*`,
`apex_angle`, `cone_angle`, `pca`, `saturation`, `direction_drift` and `oscillation_*`. Measures seen from the origin
need G itself: `trajectory_map`, `parameter_norm`, `origin_angle` and `turn`.

*Undefined values.* A cosine or an angle with a zero vector is NaN in maps and series, and left out of means. A scalar
is NaN where nothing of it is defined. A difference counts as a zero vector where its square is below the rounding of
the Gram matrix (`arrays.RESOLUTION`).

*Errors.* Every function raises ValueError for arrays of a wrong shape and TypeError for values that are not real.

The modules: `maps`, `direction`, `geometry`, `spectrum` and `windows` hold the formulas; `errors` the standard
errors of sketched values; `basis` the changes of basis of the recorded Gram matrices; `catalogue` the measures that are
logged, by tag; `measure` what an entry of it says; `evaluation` their values and standard errors.
"""

from __future__ import annotations

# All at once, unlike the other sub-packages: nothing here is slow to import.
from lightning_traj.measures.arrays import Array
from lightning_traj.measures.basis import DISPLACEMENT, PREVIOUS_UPDATE, THETA, UPDATE, displacement_gram, snapshot_gram
from lightning_traj.measures.catalogue import MEASURES, shown_in
from lightning_traj.measures.direction import (
    DRIFT_WINDOW,
    SATURATED,
    direction_drift,
    heterogeneity,
    mean_directional_similarity,
    running_drift,
    running_similarity,
    saturation,
    saturation_index,
)
from lightning_traj.measures.errors import difference_angle_gradient, standard_error
from lightning_traj.measures.evaluation import evaluate, standard_errors
from lightning_traj.measures.geometry import (
    angle_from_difference,
    apex_angle,
    cone_angle,
    displacement,
    origin_angle,
    parameter_norm,
    path_length,
    tortuosity,
    turn,
    update_angle,
    update_length,
)
from lightning_traj.measures.maps import (
    angle_map,
    relative_gram,
    relative_trajectory_map,
    trajectory_map,
    update_gram,
    update_map,
)
from lightning_traj.measures.rounding import FLOAT32, rounding_errors
from lightning_traj.measures.spectrum import (
    effective_rank,
    participation_ratio,
    pca,
    random_walk_first_ratio,
    top1_share,
)
from lightning_traj.measures.state import SelectionState
from lightning_traj.measures.windows import (
    Oscillation,
    oscillation,
    oscillation_cosine,
    oscillation_linearity,
    oscillation_reversals,
    oscillation_step_length,
)

__all__ = [
    "DISPLACEMENT",
    "DRIFT_WINDOW",
    "FLOAT32",
    "MEASURES",
    "PREVIOUS_UPDATE",
    "SATURATED",
    "THETA",
    "UPDATE",
    "Array",
    "Oscillation",
    "SelectionState",
    "angle_from_difference",
    "angle_map",
    "apex_angle",
    "cone_angle",
    "difference_angle_gradient",
    "direction_drift",
    "displacement",
    "displacement_gram",
    "effective_rank",
    "evaluate",
    "heterogeneity",
    "mean_directional_similarity",
    "origin_angle",
    "oscillation",
    "oscillation_cosine",
    "oscillation_linearity",
    "oscillation_reversals",
    "oscillation_step_length",
    "parameter_norm",
    "participation_ratio",
    "path_length",
    "pca",
    "random_walk_first_ratio",
    "relative_gram",
    "relative_trajectory_map",
    "rounding_errors",
    "running_drift",
    "running_similarity",
    "saturation",
    "saturation_index",
    "shown_in",
    "snapshot_gram",
    "standard_error",
    "standard_errors",
    "top1_share",
    "tortuosity",
    "trajectory_map",
    "turn",
    "update_angle",
    "update_gram",
    "update_length",
    "update_map",
]
