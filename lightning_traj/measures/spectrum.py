"""Spectra of maps, and principal components of the path."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from lightning_traj.measures.arrays import Array, as_index, as_square, defined_part
from lightning_traj.measures.maps import relative_gram


def effective_rank(cosines: ArrayLike) -> float:
    """exp(entropy of λ / sum λ), λ the eigenvalues of a map; in [1, n].

    Roy and Vetterli, "The effective rank", EUSIPCO 2007.
    """
    shares = _spectral_shares(cosines)
    shares = shares[shares > 0]
    return float(np.exp(-np.sum(shares * np.log(shares)))) if len(shares) else float("nan")


def participation_ratio(cosines: ArrayLike) -> float:
    """(sum λ)^2 / sum λ^2, λ the eigenvalues of a map; in [1, n]."""
    defined = defined_part(cosines)
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
    gram = as_square(gram)
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
    n = as_index(n, "n")
    if n < 1:
        raise ValueError(f"n must be a number of snapshots, at least 1, got {n}.")
    return float(6 / ((n**2 - 1) * 4 * np.sin(np.pi / (2 * n)) ** 2)) if n > 1 else float("nan")


def _spectral_shares(cosines: ArrayLike) -> Array:
    """Eigenvalues of a map over their sum, in ascending order, none negative."""
    values: Array = np.maximum(np.linalg.eigvalsh(defined_part(cosines)), 0.0)
    return values / values.sum() if len(values) else values
