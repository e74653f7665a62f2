"""Oscillation over a window of snapshots at consecutive optimizer steps."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from lightning_traj.measures.arrays import Array, as_vector, mean_of_defined
from lightning_traj.measures.geometry import displacement
from lightning_traj.measures.maps import update_gram


class Oscillation(NamedTuple):
    """How consecutive optimizer steps u_1, …, u_L follow each other; NaN where undefined.

    Attributes:
        cosine: Mean cos(u_t, u_{t+1}), in [-1, 1]; negative where steps undo each other.
        reversals: Share of these cosines that are negative, in [0, 1].
        linearity: |sum of u| / sum of |u|, in [0, 1]; 1 where all steps go one way.
        step_length: Mean |u|, >= 0, in the unit of the parameters.
    """

    cosine: float
    reversals: float
    linearity: float
    step_length: float


def oscillation(squares: ArrayLike, products: ArrayLike, total: float) -> Oscillation:
    """Oscillation from inner products of the steps, which add up over blocks.

    Args:
        squares: <u_t, u_t>, shape [L].
        products: <u_t, u_{t+1}>, shape [L - 1].
        total: |u_1 + ... + u_L|^2.
    """
    lengths = np.sqrt(np.maximum(as_vector(squares, "squares"), 0.0))
    products = as_vector(products, "products")
    if len(products) != max(0, len(lengths) - 1):
        raise ValueError(f"products must hold one entry less than squares, got {len(products)} for {len(lengths)}.")
    scale = lengths[1:] * lengths[:-1]
    cosines = np.divide(products, scale, out=np.full(len(products), np.nan), where=scale > 0)
    cosines = np.clip(cosines, -1.0, 1.0)
    walked = float(lengths.sum())
    return Oscillation(
        cosine=mean_of_defined(cosines),
        reversals=mean_of_defined(np.where(np.isnan(cosines), np.nan, cosines < 0)),
        linearity=min(1.0, float(np.sqrt(max(total, 0.0))) / walked) if walked > 0 else float("nan"),
        step_length=mean_of_defined(lengths),
    )


def oscillation_of_window(sums: Array) -> Oscillation:
    """Oscillation from a recorded window: ‖u_i‖², ⟨u_i, u_{i−1}⟩ and ‖u_1 + … + u_i‖² of its L steps, [3, L]."""
    squares, products, totals = sums
    return oscillation(squares, products[1:], float(totals[-1]) if len(totals) else 0.0)


def oscillation_cosine(gram: ArrayLike) -> float:
    """Mean cos(u_t, u_{t+1}) of snapshots at consecutive steps, in [-1, 1]; negative where steps undo each other."""
    return _oscillation_of(gram).cosine


def oscillation_reversals(gram: ArrayLike) -> float:
    """Share of the defined cos(u_t, u_{t+1}) that are negative, in [0, 1]."""
    return _oscillation_of(gram).reversals


def oscillation_linearity(gram: ArrayLike) -> float:
    """|sum of u| / sum of |u|, in [0, 1]; 1 where all steps go one way."""
    return _oscillation_of(gram).linearity


def oscillation_step_length(gram: ArrayLike) -> float:
    """Mean |u|, >= 0, in the unit of the parameters."""
    return _oscillation_of(gram).step_length


def _oscillation_of(gram: ArrayLike) -> Oscillation:
    updates = update_gram(gram)
    end = displacement(gram)
    return oscillation(np.diagonal(updates), np.diagonal(updates, 1), float(end[-1] ** 2) if len(end) else 0.0)
