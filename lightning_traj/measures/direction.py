"""Measures of direction: how similar the directions of the snapshots are, and from when on they no longer change."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from lightning_traj.measures.arrays import Array, as_index, as_square, as_vector, mean_of_defined
from lightning_traj.measures.maps import relative_trajectory_map

DRIFT_WINDOW = 5  # snapshots that direction drift looks back on
SATURATED = 0.9  # cosine with the final direction from which on a direction has saturated


def mean_directional_similarity(cosines: ArrayLike) -> float:
    """Mean directional similarity (MDS, ω), in [0, 1]: the mean of all entries, diagonal included."""
    # The mean of a positive semidefinite matrix is not negative: only rounding leaves the range.
    return float(np.clip(mean_of_defined(as_square(cosines, "cosines")), 0.0, 1.0))


def running_similarity(cosines: ArrayLike) -> Array:
    """Mean directional similarity of the first 1, 2, …, n snapshots of a map, shape [n], in [0, 1]."""
    cosines = as_square(cosines, "cosines")
    defined = ~np.isnan(cosines)
    total, count = (
        np.diagonal(np.cumsum(np.cumsum(x, axis=0), axis=1)) for x in (np.where(defined, cosines, 0.0), defined * 1.0)
    )
    mean: Array = np.divide(total, count, out=np.full(len(cosines), np.nan), where=count > 0)
    clipped: Array = np.clip(mean, 0.0, 1.0)
    return clipped


def heterogeneity(similarities: ArrayLike) -> float:
    """Largest minus smallest ω of a layer's q, k and v blocks, in [0, 1]; NaN for fewer than two."""
    values = as_vector(similarities, "similarities")
    values = values[~np.isnan(values)]
    return float(np.ptp(values)) if len(values) > 1 else float("nan")


def saturation(gram: ArrayLike, steps: ArrayLike, threshold: float = SATURATED) -> float:
    """First t >= 1 from which on cos(d_t, d_T) >= threshold holds, as (s_t - s_0) / (s_T - s_0).

    In [0, 1]. `steps` [n] are the optimizer steps s_t of the snapshots. ValueError for another number of
    steps, and for a threshold that is not a cosine.
    """
    first = saturation_index(gram, threshold)
    steps = as_vector(steps, "steps")
    n = len(as_square(gram))
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
    window = as_index(window, "window")
    if window < 1:
        raise ValueError(f"window must be at least one snapshot, got {window}.")
    cosines = relative_trajectory_map(gram)
    back = np.full((window, len(cosines)), np.nan)  # cos(d_t, d_{t-1-w}) of each w and t
    for w in range(min(window, len(cosines) - 1)):
        back[w, w + 1 :] = np.diagonal(cosines, -1 - w)
    count = np.sum(~np.isnan(back), axis=0)
    mean: Array = np.divide(np.nansum(back, axis=0), count, out=np.full(len(count), np.nan), where=count > 0)
    return 1.0 - mean
