"""Every measure of an optimization trajectory, as a pure function of a Gram matrix. NumPy, float64.

Snapshots θ_0 ... θ_T, n = T + 1 of them; `gram` [n, n] holds G_ij = <θ_i, θ_j>, taken to be
symmetric. d_t is the displacement θ_t - θ_0, u_t the update θ_t - θ_{t-1}. `cosines` is one
of the maps made here. Definitions: Singh, He, Hofmann, Schölkopf, "The Directionality of Optimization
Trajectories in Neural Networks", ICLR 2025 (arXiv:2403.07379).

*Translation.* What depends on differences of snapshots alone is the same from G and from the Gram matrix
about any point, such as `relative_gram(G)`, and more accurate from the latter, late updates being 1e-6 of
θ: `relative_gram`, `relative_trajectory_map`, `displacement`, `path_length`, `tortuosity`, `update_*`,
`apex_angle`, `cone_angle`, `pca`, `saturation`, `direction_drift`, `oscillation_*`. Not so what looks from
the origin: `trajectory_map`, `parameter_norm`, `origin_angle`, `turn`.

*Undefined values.* A cosine or an angle with a zero vector is NaN in maps and series and left out of means; a
scalar of which nothing is defined is NaN. A difference whose square drowns in the rounding of the Gram matrix
is a zero vector (`_RESOLUTION`).

*Errors.* Every function raises ValueError for arrays of a wrong shape and TypeError for what is not real.
"""

from __future__ import annotations

import operator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

# Inner products of equal rows may differ by a few roundings, by the place a row has in a matrix product.
# Without a floor, a run that stands still has updates, and angles between them, made of this noise.
# Differences of 1e-7 of θ are above it.
_RESOLUTION = 32 * float(np.finfo(np.float64).eps)

DRIFT_WINDOW = 5  # snapshots that direction drift looks back on
SATURATED = 0.9  # cosine with the final direction from which on a direction has saturated

_REMEDY = {
    "gram": "For snapshots stacked as rows [n, p], pass rows @ rows.T.",
    "cosines": "Pass one of the maps, such as trajectory_map(gram).",
}


# Maps -------------------------------------------------------------------------------------------------------


def trajectory_map(gram: ArrayLike) -> Array:
    """Trajectory map C_ij = cos(θ_i, θ_j), shape [n, n], in [-1, 1]."""
    return _cosines(_square(gram))


def relative_gram(gram: ArrayLike, tau: int = 0) -> Array:
    """Gram matrix about snapshot tau, <θ_i - θ_τ, θ_j - θ_τ>, shape [n, n].

    Row and column tau are exactly zero; applied again with the same tau, it returns its input bit for bit. A
    negative tau counts from the end; ValueError where there is no snapshot tau.
    """
    gram = _square(gram)
    n, tau = len(gram), _integer(tau, "tau")
    if n == 0:
        return gram.copy()
    if not -n <= tau < n:
        raise ValueError(f"tau must be one of the {n} snapshots, from {-n} to {n - 1}, got {tau}.")
    square = np.diagonal(gram)
    # Subtracting neighbours first is exact where they are close; other orders of the same sum would cancel.
    relative = (gram - gram[:, tau, None]) - (gram[tau] - square[tau])
    return _difference_gram(relative, np.maximum(square, square[tau]))


def relative_trajectory_map(gram: ArrayLike, tau: int = 0) -> Array:
    """Relative trajectory map cos(θ_i - θ_τ, θ_j - θ_τ), shape [T, T], in [-1, 1].

    Row and column tau, undefined by definition, are not in it.
    """
    relative = relative_gram(gram, tau)
    if len(relative) == 0:
        return relative
    return _cosines(np.delete(np.delete(relative, tau, axis=0), tau, axis=1))


def update_gram(gram: ArrayLike) -> Array:
    """Gram matrix of the updates, U_ij = <u_{i+1}, u_{j+1}>, shape [T, T]."""
    gram = _square(gram)
    square = np.diagonal(gram)
    return _difference_gram(np.diff(np.diff(gram, axis=0), axis=1), np.maximum(square[:-1], square[1:]))


def update_map(gram: ArrayLike) -> Array:
    """Update map cos(u_i, u_j), shape [T, T], in [-1, 1]."""
    return _cosines(update_gram(gram))


def angle_map(cosines: ArrayLike) -> Array:
    """The map in degrees, in [0, 180]; NaN stays NaN. Angles below 1e-6 degrees are lost in a cosine."""
    angles: Array = np.degrees(np.arccos(np.clip(_square(cosines, "cosines"), -1.0, 1.0)))
    return angles


# Direction --------------------------------------------------------------------------------------------------


def mean_directional_similarity(cosines: ArrayLike) -> float:
    """Mean directional similarity (MDS, ω), in [0, 1]: the mean of all entries, diagonal included."""
    # The mean of a positive semidefinite matrix is not negative: only rounding leaves the range.
    return float(np.clip(_mean(_square(cosines, "cosines")), 0.0, 1.0))


def heterogeneity(similarities: ArrayLike) -> float:
    """Largest minus smallest ω of a layer's q, k and v blocks, in [0, 1]; NaN for fewer than two."""
    values = _vector(similarities, "similarities")
    values = values[~np.isnan(values)]
    return float(np.ptp(values)) if len(values) > 1 else float("nan")


def saturation(gram: ArrayLike, steps: ArrayLike, threshold: float = SATURATED) -> float:
    """First t >= 1 from which on cos(d_t, d_T) >= threshold holds, as (s_t - s_0) / (s_T - s_0).

    In [0, 1]. `steps` [n] are the optimizer steps s_t of the snapshots. ValueError for another number of
    steps, and for a threshold that is not a cosine.
    """
    first = saturation_index(gram, threshold)
    steps = _vector(steps, "steps")
    n = len(_square(gram))
    if len(steps) != n:
        raise ValueError(f"steps must hold one step for each of the {n} snapshots of gram, got {len(steps)}.")
    if first is None or steps[-1] == steps[0]:
        return float("nan")
    return float((steps[first] - steps[0]) / (steps[-1] - steps[0]))


def saturation_index(gram: ArrayLike, threshold: float = SATURATED) -> int | None:
    """The first snapshot t >= 1 from which on cos(d_t, d_T) >= threshold holds; None where d_T is undefined.

    ValueError for a threshold that is not a cosine.
    """
    cosines = relative_trajectory_map(gram)
    if not -1.0 <= threshold <= 1.0:
        raise ValueError(f"threshold must be a cosine, from -1 to 1, got {threshold!r}.")
    if len(cosines) < 1 or np.isnan(cosines[-1, -1]):
        return None
    below = np.flatnonzero(~(cosines[-1] >= threshold))  # an undefined direction is not yet the final one
    return int(below[-1]) + 2 if len(below) else 1


def direction_drift(gram: ArrayLike, window: int = DRIFT_WINDOW) -> float:
    """1 - mean cos(d_T, d_j) over the `window` snapshots j before T, in [0, 2]; small means redundant.

    θ_0 is never among them; fewer where there are fewer, or where some are undefined.
    """
    drift = running_drift(gram, window)
    return float(drift[-1]) if len(drift) else float("nan")


def running_drift(gram: ArrayLike, window: int = DRIFT_WINDOW) -> Array:
    """Direction drift of the first 2, 3, …, n snapshots, shape [T], in [0, 2]."""
    window = _integer(window, "window")
    if window < 1:
        raise ValueError(f"window must be at least one snapshot, got {window}.")
    cosines = relative_trajectory_map(gram)
    back = np.full((window, len(cosines)), np.nan)  # cos(d_t, d_{t-1-w}) of each w and t
    for w in range(min(window, len(cosines) - 1)):
        back[w, w + 1 :] = np.diagonal(cosines, -1 - w)
    count = np.sum(~np.isnan(back), axis=0)
    mean: Array = np.divide(np.nansum(back, axis=0), count, out=np.full(len(count), np.nan), where=count > 0)
    return 1.0 - mean


def running_similarity(cosines: ArrayLike) -> Array:
    """Mean directional similarity of the first 1, 2, …, n snapshots of a map, shape [n], in [0, 1]."""
    cosines = _square(cosines, "cosines")
    defined = ~np.isnan(cosines)
    total, count = (
        np.diagonal(np.cumsum(np.cumsum(x, axis=0), axis=1)) for x in (np.where(defined, cosines, 0.0), defined * 1.0)
    )
    mean: Array = np.divide(total, count, out=np.full(len(cosines), np.nan), where=count > 0)
    clipped: Array = np.clip(mean, 0.0, 1.0)
    return clipped


# Length, in the unit of the parameters ----------------------------------------------------------------------


def parameter_norm(gram: ArrayLike) -> Array:
    """|θ_t|, shape [n], >= 0."""
    return _norms(_square(gram))


def displacement(gram: ArrayLike) -> Array:
    """|d_t| = |θ_t - θ_0|, shape [n], >= 0; the first is exactly zero."""
    return _norms(relative_gram(gram))


def update_length(gram: ArrayLike) -> Array:
    """|u_t| for t = 1 ... T, shape [T], >= 0."""
    return _norms(update_gram(gram))


def path_length(gram: ArrayLike) -> float:
    """Sum of the update lengths, at least the displacement; 0 for a single snapshot."""
    return float(update_length(gram).sum())


def tortuosity(gram: ArrayLike) -> float:
    """Path length / |d_T|, >= 1; 1 on a straight path. NaN where θ_T = θ_0."""
    length = displacement(gram)[-1:].sum()
    return float(path_length(gram) / length) if length > 0 else float("nan")


# Angles, in degrees -----------------------------------------------------------------------------------------


def angle_from_difference(aa: ArrayLike, au: ArrayLike, uu: ArrayLike) -> Array:
    """Angle between a and b = a - u from <a, a>, <a, u>, <u, u>: elementwise, in [0, 180] degrees.

    NaN where a or b is a zero vector, as far as roundings tell. Accurate however small u is: a cosine near 1 loses an
    angle below 1e-8, while here the sine comes from the difference itself (the area that a and u span is that of a and
    b).
    """
    aa, au, uu = (np.asarray(value, dtype=np.float64) for value in (aa, au, uu))
    area = np.sqrt(np.maximum(aa * uu - au * au, 0.0))
    defined = (aa > 0) & (aa - 2 * au + uu > _RESOLUTION * (aa + uu))
    return np.where(defined, np.degrees(np.arctan2(area, aa - au)), np.nan)


def update_angle(gram: ArrayLike) -> Array:
    """Angle(u_t, u_{t+1}), shape [T - 1], in [0, 180] degrees."""
    return _consecutive_angles(update_gram(gram))


def origin_angle(gram: ArrayLike) -> Array:
    """Angle(θ_t, θ_{t+1}), seen from the origin: shape [T], in [0, 180] degrees."""
    return _consecutive_angles(_square(gram))


def turn(gram: ArrayLike) -> Array:
    """Angle(θ_0, θ_t), the turn since initialisation: shape [n], in [0, 180] degrees."""
    gram = _square(gram)
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


# Spectrum ---------------------------------------------------------------------------------------------------


def effective_rank(cosines: ArrayLike) -> float:
    """exp(entropy of λ / sum λ), λ the eigenvalues of a map; in [1, n].

    Roy and Vetterli, "The effective rank", EUSIPCO 2007.
    """
    shares = _spectral_shares(cosines)
    shares = shares[shares > 0]
    return float(np.exp(-np.sum(shares * np.log(shares)))) if len(shares) else float("nan")


def participation_ratio(cosines: ArrayLike) -> float:
    """(sum λ)^2 / sum λ^2, λ the eigenvalues of a map; in [1, n]."""
    defined = _defined(cosines)
    # The two sums are the squared trace and the squared Frobenius norm.
    return float(np.trace(defined) ** 2 / np.sum(defined**2)) if len(defined) else float("nan")


def top1_share(cosines: ArrayLike) -> float:
    """λ_1 / sum λ, the share of the largest eigenvalue of a map; in [1/n, 1]."""
    shares = _spectral_shares(cosines)
    return float(shares[-1]) if len(shares) else float("nan")


def pca(gram: ArrayLike) -> tuple[Array, Array]:
    """Principal components of the path: coordinates [n, d] and explained-variance ratios [d], largest first.

    The ratios sum to 1. Components that rounding alone would fill are left out: d <= T, and 0 where the path
    stands still. Each has the sign that makes its largest coordinate positive.
    """
    gram = _square(gram)
    if len(gram) == 0:
        return gram.copy(), np.zeros(0)
    relative = relative_gram(gram)
    mean = relative.mean(axis=0)
    values, vectors = np.linalg.eigh(relative - mean[:, None] - mean + mean.mean())
    noise = len(gram) * np.finfo(np.float64).eps * np.diagonal(gram).max()
    kept = np.flatnonzero(values > noise)[::-1]
    coordinates = vectors[:, kept] * np.sqrt(values[kept])
    largest = np.abs(coordinates).argmax(axis=0)
    coordinates *= np.sign(coordinates[largest, np.arange(len(kept))])
    return coordinates, values[kept] / values[kept].sum()


def random_walk_first_ratio(n: int) -> float:
    """First explained-variance ratio of a random walk of n snapshots in many dimensions; NaN for n = 1.

    6 / ((n^2 - 1) 4 sin^2(pi / 2n)), which tends to 6 / pi^2 = 0.61. Antognini and Sohl-Dickstein, "PCA of
    high dimensional random walks with comparison to neural network training", NeurIPS 2018.
    """
    n = _integer(n, "n")
    if n < 1:
        raise ValueError(f"n must be a number of snapshots, at least 1, got {n}.")
    return float(6 / ((n**2 - 1) * 4 * np.sin(np.pi / (2 * n)) ** 2)) if n > 1 else float("nan")


# Oscillation, over a window of snapshots at consecutive optimizer steps -------------------------------------


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
    lengths = np.sqrt(np.maximum(_vector(squares, "squares"), 0.0))
    products = _vector(products, "products")
    if len(products) != max(0, len(lengths) - 1):
        raise ValueError(f"products must hold one entry less than squares, got {len(products)} for {len(lengths)}.")
    scale = lengths[1:] * lengths[:-1]
    cosines = np.divide(products, scale, out=np.full(len(products), np.nan), where=scale > 0)
    cosines = np.clip(cosines, -1.0, 1.0)
    walked = float(lengths.sum())
    return Oscillation(
        cosine=_mean(cosines),
        reversals=_mean(np.where(np.isnan(cosines), np.nan, cosines < 0)),
        linearity=min(1.0, float(np.sqrt(max(total, 0.0))) / walked) if walked > 0 else float("nan"),
        step_length=_mean(lengths),
    )


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


# What they share --------------------------------------------------------------------------------------------


def _square(values: ArrayLike, name: str = "gram") -> Array:
    matrix = _real(values, name)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        shape = list(matrix.shape)
        raise ValueError(f"{name} must be a square matrix [n, n], got shape {shape}. {_REMEDY[name]}")
    return matrix


def _vector(values: ArrayLike, name: str) -> Array:
    vector = _real(values, name)
    if vector.ndim != 1:
        raise ValueError(f"{name} must be a list of numbers, got shape {list(vector.shape)}. Flatten it.")
    return vector


def _real(values: ArrayLike, name: str) -> Array:
    if np.iscomplexobj(values):
        raise TypeError(f"{name} must hold real numbers, got complex ones. See them as pairs of real ones.")
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be an array of real numbers, got {type(values)}: {error}") from error


def _integer(value: int, name: str) -> int:
    try:
        return operator.index(value)
    except TypeError as error:
        raise TypeError(f"{name} must be an integer, got {value!r}.") from error


def _difference_gram(gram: Array, scale: Array) -> Array:
    """Gram matrix of differences, symmetric, and zero where they drown in vectors of squared norm `scale`."""
    gram = 0.5 * (gram + gram.T)
    unresolved = np.diagonal(gram) <= _RESOLUTION * scale
    gram[unresolved] = 0.0
    gram[:, unresolved] = 0.0
    return gram


def _cosines(gram: Array) -> Array:
    square = np.diagonal(gram)
    norms = np.sqrt(np.where(square > 0, square, np.nan))
    cosines: Array = np.clip(gram / np.outer(norms, norms), -1.0, 1.0)
    np.fill_diagonal(cosines, np.where(square > 0, 1.0, np.nan))
    return cosines


def _norms(gram: Array) -> Array:
    norms: Array = np.sqrt(np.maximum(np.diagonal(gram), 0.0))
    return norms


def _angles(gram: Array, i: NDArray[np.int64], j: NDArray[np.int64]) -> Array:
    """Angles between vectors i and j of a Gram matrix, elementwise, in degrees."""
    square = np.diagonal(gram)
    # The shorter one is a: then the squared norm of b = a - u, at least that of a, does not cancel.
    shorter = square[i] <= square[j]
    a, b = np.where(shorter, i, j), np.where(shorter, j, i)
    aa, bb, ab = square[a], square[b], gram[a, b]
    uu = (aa - ab) - (ab - bb)
    return angle_from_difference(aa, aa - ab, np.where(uu > _RESOLUTION * bb, uu, 0.0))


def _consecutive_angles(gram: Array) -> Array:
    t = np.arange(max(len(gram) - 1, 0))
    return _angles(gram, t, t + 1)


def _mean(values: Array) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")


def _defined(cosines: ArrayLike) -> Array:
    """Leave undefined rows and columns out of a map."""
    cosines = _square(cosines, "cosines")
    kept = np.flatnonzero(~np.isnan(np.diagonal(cosines)))
    return cosines[kept[:, None], kept]


def _spectral_shares(cosines: ArrayLike) -> Array:
    """Eigenvalues of a map over their sum, in ascending order, none negative."""
    values: Array = np.maximum(np.linalg.eigvalsh(_defined(cosines)), 0.0)
    return values / values.sum() if len(values) else values
