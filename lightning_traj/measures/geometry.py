"""Lengths, in the unit of the parameters, and angles, in degrees, along the path."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_traj.measures.arrays import RESOLUTION, Array, as_square, norms_of
from lightning_traj.measures.maps import relative_gram, update_gram


def parameter_norm(gram: ArrayLike) -> Array:
    """|θ_t|, shape [n], >= 0."""
    return norms_of(as_square(gram))


def displacement(gram: ArrayLike) -> Array:
    """|d_t| = |θ_t - θ_0|, shape [n], >= 0; the first is exactly zero."""
    return norms_of(relative_gram(gram))


def update_length(gram: ArrayLike) -> Array:
    """|u_t| for t = 1 ... T, shape [T], >= 0."""
    return norms_of(update_gram(gram))


def path_length(gram: ArrayLike) -> float:
    """Sum of the update lengths, at least the displacement; 0 for a single snapshot."""
    return float(update_length(gram).sum())


def tortuosity(gram: ArrayLike) -> float:
    """Path length / |d_T|, >= 1; 1 on a straight path. NaN where θ_T = θ_0."""
    length = displacement(gram)[-1:].sum()
    return float(path_length(gram) / length) if length > 0 else float("nan")


def angle_from_difference(aa: ArrayLike, au: ArrayLike, uu: ArrayLike) -> Array:
    """Angle between a and b = a - u from <a, a>, <a, u>, <u, u>: elementwise, in [0, 180] degrees.

    NaN where a or b is a zero vector, as far as roundings tell. Accurate however small u is: a cosine near 1 loses an
    angle below 1e-8, while here the sine comes from the difference itself (the area that a and u span is that of a and
    b).
    """
    aa, au, uu = (np.asarray(value, dtype=np.float64) for value in (aa, au, uu))
    area = np.sqrt(np.maximum(aa * uu - au * au, 0.0))
    defined = (aa > 0) & (aa - 2 * au + uu > RESOLUTION * (aa + uu))
    return np.where(defined, np.degrees(np.arctan2(area, aa - au)), np.nan)


def update_angle(gram: ArrayLike) -> Array:
    """Angle(u_t, u_{t+1}), shape [T - 1], in [0, 180] degrees."""
    return _consecutive_angles(update_gram(gram))


def origin_angle(gram: ArrayLike) -> Array:
    """Angle(θ_t, θ_{t+1}), seen from the origin: shape [T], in [0, 180] degrees."""
    return _consecutive_angles(as_square(gram))


def turn(gram: ArrayLike) -> Array:
    """Angle(θ_0, θ_t), the turn since initialisation: shape [n], in [0, 180] degrees."""
    gram = as_square(gram)
    t = np.arange(len(gram))
    return _angles(gram, 0 * t, t)


def apex_angle(gram: ArrayLike) -> Array:
    """Angle(d_t, d_{t+1}) for t = 1 ... T - 1, seen from θ_0: shape [T - 1], in [0, 180] degrees."""
    return _consecutive_angles(relative_gram(gram)[1:, 1:])


def cone_angle(gram: ArrayLike) -> float:
    """Largest angle(d_i, d_j), the opening of the cone with its apex at θ_0 that the path spans.

    In [0, 180] degrees; 0 for a single displacement.
    """
    relative = relative_gram(gram)
    rays = np.flatnonzero(np.diagonal(relative) > 0)
    if len(rays) == 0:
        return float("nan")
    i, j = np.triu_indices(len(rays))
    return float(_angles(relative, rays[i], rays[j]).max())


def _angles(gram: Array, i: NDArray[np.int64], j: NDArray[np.int64]) -> Array:
    """Angles between vectors i and j of a Gram matrix, elementwise, in degrees."""
    square = np.diagonal(gram)
    # The shorter one is a: then the squared norm of b = a - u, at least that of a, does not cancel.
    shorter = square[i] <= square[j]
    a, b = np.where(shorter, i, j), np.where(shorter, j, i)
    aa, bb, ab = square[a], square[b], gram[a, b]
    uu = (aa - ab) - (ab - bb)
    return angle_from_difference(aa, aa - ab, np.where(uu > RESOLUTION * bb, uu, 0.0))


def _consecutive_angles(gram: Array) -> Array:
    t = np.arange(max(len(gram) - 1, 0))
    return _angles(gram, t, t + 1)
