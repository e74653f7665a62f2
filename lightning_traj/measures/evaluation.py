"""Values of the measures of the catalogue, and their standard errors, for a selection of blocks."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from lightning_traj.measures import errors
from lightning_traj.measures.arrays import Array
from lightning_traj.measures.basis import displacement_gram, snapshot_gram
from lightning_traj.measures.catalogue import MEASURES
from lightning_traj.measures.state import SelectionState


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
