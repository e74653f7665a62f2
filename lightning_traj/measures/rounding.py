"""How far rounding of the parameters may have moved the values of measures, those of full snapshots too."""

from __future__ import annotations

import numpy as np

from lightning_traj.measures.catalogue import MEASURES
from lightning_traj.measures.state import SelectionState

FLOAT32 = 2.0**-24  # unit roundoff: the largest relative error of rounding to the nearest float32


def rounding_errors(state: SelectionState, stored: float) -> dict[str, float]:
    """Return how far rounding of the parameters may have moved a selection's values.

    Parameters are rounded to float32 at each optimizer step, which adds up as a random walk does, to √s roundings
    after s steps, and once more where they are stored in a lower precision. Each rounding is taken to point where it
    moves the measure most, and those of different snapshots to be independent.

    Args:
        state: Sums over the blocks of the selection.
        stored: Unit roundoff of the precision in which the snapshots were stored.

    Returns:
        For each measure that has a gradient and is defined, its error in the measure's unit.
    """
    n = len(state.steps)
    theta = np.eye(n)
    displacements = theta - theta[0]
    updates = np.diff(theta, axis=0, prepend=theta[:1])
    # The vectors of each basis as sums of snapshots, and their Gram matrix.
    bases = {
        "snapshots": (theta, state.gram),
        "displacements": (displacements[1:], state.relative[1:, 1:]),
        "updates": (updates[1:], state.updates),
        "local": (np.stack([theta[-1], displacements[-1], updates[-1], updates[max(n - 2, 0)]]), state.local[-1]),
    }
    norms = np.sqrt(state.gram.diagonal())
    trained = min(stored, FLOAT32) * np.sqrt(np.diff(state.steps, prepend=state.steps[:1])) * norms
    since = np.tril(np.ones((n, n)))  # a rounding in training is in all later snapshots
    errors = {}
    for name, measure in MEASURES.items():
        if measure.error is None or np.isnan(measure.value(state)):
            continue
        vectors, gram = bases[measure.error.basis]
        gradient = measure.error.gradient(state).dense() @ vectors  # [m, n]: df/dθ_t = 2 Σ_m gradient[m, t] v_m
        squares = 0.0
        for lengths, by in ((trained, gradient @ since), (stored * norms, gradient)):
            slopes = 4 * np.maximum(((gram @ by) * by).sum(axis=0), 0.0)  # ‖df/dθ_t‖²
            squares += float((slopes * lengths**2).sum())
        errors[name] = float(np.sqrt(squares))
    return {name: error for name, error in errors.items() if not np.isnan(error)}
