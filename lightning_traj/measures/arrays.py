"""Array checks and the few operations on small matrices that all measures share."""

from __future__ import annotations

import operator

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

# Relative size below which the square of a difference is rounding noise. Inner products of equal rows may differ by a
# few roundings, depending on the place of a row in a matrix product. Without a floor, a run that stands still would
# have updates, and angles between them, made of this noise. Differences of 1e-7 of θ are above it.
RESOLUTION = 32 * float(np.finfo(np.float64).eps)

_REMEDY = {
    "gram": "For snapshots stacked as rows [n, p], pass rows @ rows.T.",
    "cosines": "Pass one of the maps, such as trajectory_map(gram).",
}


def as_square(values: ArrayLike, name: str = "gram") -> Array:
    """Return `values` as a float64 matrix [n, n]; ValueError for another shape. `name` is the argument in messages."""
    matrix = as_real(values, name)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        shape = list(matrix.shape)
        raise ValueError(f"{name} must be a square matrix [n, n], got shape {shape}. {_REMEDY[name]}")
    return matrix


def as_vector(values: ArrayLike, name: str) -> Array:
    """Return `values` as a float64 vector; ValueError for another shape."""
    vector = as_real(values, name)
    if vector.ndim != 1:
        raise ValueError(f"{name} must be a list of numbers, got shape {list(vector.shape)}. Flatten it.")
    return vector


def as_real(values: ArrayLike, name: str) -> Array:
    """Return `values` as a float64 array; TypeError unless all are real numbers."""
    if np.iscomplexobj(values):
        raise TypeError(f"{name} must hold real numbers, got complex ones. See them as pairs of real ones.")
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be an array of real numbers, got {type(values)}: {error}") from error


def as_index(value: int, name: str) -> int:
    """Return `value` as an int; TypeError for anything but an integer."""
    try:
        return operator.index(value)
    except TypeError as error:
        raise TypeError(f"{name} must be an integer, got {value!r}.") from error


def difference_gram(gram: Array, scale: Array) -> Array:
    """Gram matrix of differences, symmetric, and zero where they drown in vectors of squared norm `scale`."""
    gram = 0.5 * (gram + gram.T)
    unresolved = np.diagonal(gram) <= RESOLUTION * scale
    gram[unresolved] = 0.0
    gram[:, unresolved] = 0.0
    return gram


def cosines_of(gram: Array) -> Array:
    """Return the cosines between the vectors of a Gram matrix, [n, n]; NaN with a zero vector."""
    square = np.diagonal(gram)
    norms = np.sqrt(np.where(square > 0, square, np.nan))
    cosines: Array = np.clip(gram / np.outer(norms, norms), -1.0, 1.0)
    np.fill_diagonal(cosines, np.where(square > 0, 1.0, np.nan))
    return cosines


def norms_of(gram: Array) -> Array:
    """Return the norms of the vectors of a Gram matrix, [n]."""
    norms: Array = np.sqrt(np.maximum(np.diagonal(gram), 0.0))
    return norms


def mean_of_defined(values: Array) -> float:
    """Return the mean of the values that are not NaN; NaN where there are none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")


def defined_part(cosines: ArrayLike) -> Array:
    """Leave undefined rows and columns out of a map."""
    cosines = as_square(cosines, "cosines")
    kept = np.flatnonzero(~np.isnan(np.diagonal(cosines)))
    return cosines[kept[:, None], kept]
