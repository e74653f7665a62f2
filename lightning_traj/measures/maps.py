"""Trajectory maps: cosines between all pairs of snapshots, displacements or updates, and their Gram matrices."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from lightning_traj.measures.arrays import Array, as_index, as_square, cosines_of, difference_gram


def trajectory_map(gram: ArrayLike) -> Array:
    """Trajectory map C_ij = cos(θ_i, θ_j), shape [n, n], in [-1, 1]."""
    return cosines_of(as_square(gram))


def relative_gram(gram: ArrayLike, tau: int = 0) -> Array:
    """Gram matrix about snapshot tau, <θ_i - θ_τ, θ_j - θ_τ>, shape [n, n].

    Row and column tau are exactly zero; applied again with the same tau, it returns its input bit for bit. A
    negative tau counts from the end; ValueError where there is no snapshot tau.
    """
    gram = as_square(gram)
    n, tau = len(gram), as_index(tau, "tau")
    if n == 0:
        return gram.copy()
    if not -n <= tau < n:
        raise ValueError(f"tau must be one of the {n} snapshots, from {-n} to {n - 1}, got {tau}.")
    square = np.diagonal(gram)
    # Subtracting neighbours first is exact where they are close; other orders of the same sum would cancel.
    relative = (gram - gram[:, tau, None]) - (gram[tau] - square[tau])
    return difference_gram(relative, np.maximum(square, square[tau]))


def relative_trajectory_map(gram: ArrayLike, tau: int = 0) -> Array:
    """Relative trajectory map cos(θ_i - θ_τ, θ_j - θ_τ), shape [T, T], in [-1, 1].

    Row and column tau, undefined by definition, are not in it.
    """
    relative = relative_gram(gram, tau)
    if len(relative) == 0:
        return relative
    return cosines_of(np.delete(np.delete(relative, tau, axis=0), tau, axis=1))


def update_gram(gram: ArrayLike) -> Array:
    """Gram matrix of the updates, U_ij = <u_{i+1}, u_{j+1}>, shape [T, T]."""
    gram = as_square(gram)
    square = np.diagonal(gram)
    return difference_gram(np.diff(np.diff(gram, axis=0), axis=1), np.maximum(square[:-1], square[1:]))


def update_map(gram: ArrayLike) -> Array:
    """Update map cos(u_i, u_j), shape [T, T], in [-1, 1]."""
    return cosines_of(update_gram(gram))


def angle_map(cosines: ArrayLike) -> Array:
    """The map in degrees, in [0, 180]; NaN stays NaN. Angles below 1e-6 degrees are lost in a cosine."""
    angles: Array = np.degrees(np.arccos(np.clip(as_square(cosines, "cosines"), -1.0, 1.0)))
    return angles
