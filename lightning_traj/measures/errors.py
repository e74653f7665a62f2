"""Standard errors of measures that were computed from sketches. NumPy, float64.

A sketch of dimension k estimates the Gram matrix A_b of a block without bias, with the covariance of a
Gaussian projection. For a smooth measure f of A = Σ_b A_b with symmetric gradient F, df = tr(F dA),
linearising gives

    SE² = Σ_b 2 tr((F A_b)²) / k    over the sketched blocks b.

A is the Gram matrix in which the measure is written: of snapshots θ_t, of displacements d_t, of updates u_t,
or of a few vectors; a small difference should be a vector of its own. Undefined measures, and angles of
exactly 0 or 180 degrees, have a gradient of NaN, and so a standard error of NaN. There is none for measures
that are not smooth (saturation, cone angle), and none holds for the spectrum of the update map, which
sketches bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from lightning_traj.measures.arrays import Array
from lightning_traj.measures.direction import DRIFT_WINDOW
from lightning_traj.measures.geometry import parameter_norm
from lightning_traj.measures.maps import trajectory_map

_CHUNK = 2**16  # entries of blocks worked on at a time, with what is made of them: about what a cache holds


@dataclass(frozen=True)
class Gradient:
    """Gradient of a measure of a Gram matrix [m, m]: diag(diagonal) + factors diag(weights) factorsᵀ.

    Most have one factor or two, which is why they are kept in this form. Weights of NaN mean undefined.
    """

    diagonal: Array  # [m]
    factors: Array  # [m, r]
    weights: Array  # [r]

    def dense(self) -> Array:
        """The gradient as a matrix [m, m]."""
        return np.diag(self.diagonal) + (self.factors * self.weights) @ self.factors.T


class SpectrumGradients(NamedTuple):
    """Gradients of the measures of a cosine map's spectrum."""

    effective_rank: Gradient
    participation_ratio: Gradient
    top1_share: Gradient


def standard_error(gradient: Gradient, block_grams: ArrayLike, dim: int) -> float:
    """Standard error of a measure: sqrt(Σ_b 2 tr((F A_b)²) / dim), NaN for an undefined gradient.

    Args:
        gradient: F, of the measure at the Gram matrix of all blocks, in the measure's unit.
        block_grams: The Gram matrices A_b [B, m, m] of the blocks that were sketched. Blocks that were
            kept whole have no error and stay out; without any block the result is 0.
        dim: The sketch dimension k.

    Raises:
        ValueError: The blocks don't have the gradient's shape, or `dim` is not positive.
    """
    blocks = np.asarray(block_grams, dtype=np.float64)
    m = len(gradient.diagonal)
    if blocks.shape[:1] == (0,):
        blocks = blocks.reshape(0, m, m)
    if blocks.ndim != 3 or blocks.shape[1:] != (m, m):
        raise ValueError(
            f"block_grams must have the shape [blocks, {m}, {m}] of the gradient, got {list(blocks.shape)}. "
            "Stack the Gram matrices of the sketched blocks, in the basis in which the measure is written."
        )
    if dim < 1:
        raise ValueError(f"dim must be the sketch dimension, at least 1, got {dim!r}.")
    if np.isnan(gradient.weights).any():
        return float("nan")
    support = np.flatnonzero((gradient.diagonal != 0) | (gradient.factors != 0).any(axis=1))
    if 2 * len(support) < m:
        gradient = Gradient(gradient.diagonal[support], gradient.factors[support], gradient.weights)
        blocks = blocks[:, support[:, None], support]
    size = max(1, _CHUNK // max(1, len(support) ** 2))
    total = sum(_squared_trace(gradient, blocks[i : i + size]) for i in range(0, len(blocks), size))
    return float(np.sqrt(2 * max(total, 0.0) / dim))


def _squared_trace(gradient: Gradient, blocks: Array) -> float:
    """Σ_b tr((A_b F)²). The entries of A_b F are formed before they are squared: large terms cancel there."""
    m, rank = gradient.factors.shape
    if rank == 0:
        return float(np.sum(((blocks**2) @ gradient.diagonal) @ gradient.diagonal))
    rows = blocks.reshape(-1, m)
    if 4 * rank < m:
        product = blocks * gradient.diagonal
        product += (((rows @ gradient.factors) * gradient.weights) @ gradient.factors.T).reshape(blocks.shape)
    else:
        product = (rows @ gradient.dense()).reshape(blocks.shape)
    return float(sum(np.einsum("ij,ji->", matrix, matrix) for matrix in product))


# Gradients --------------------------------------------------------------------------------------------------


def mean_cosine_gradient(gram: ArrayLike) -> Gradient:
    """Gradient of `mean_directional_similarity(trajectory_map(gram))` for any Gram matrix [m, m].

    That of snapshots belongs to ω, that of displacements to ω_0. Undefined rows are left out.
    """
    defined = parameter_norm(gram) > 0
    if not defined.any():
        return _undefined(len(defined))
    return _through_cosines(gram, np.ones((len(defined), 1)), np.array([1 / defined.sum() ** 2]))


def spectrum_gradients(gram: ArrayLike) -> SpectrumGradients:
    """Gradients of effective rank, participation ratio and top-1 share of `trajectory_map(gram)`.

    One eigendecomposition serves all three. The top-1 share is smooth where its eigenvalue is a single one.
    """
    defined = np.flatnonzero(parameter_norm(gram) > 0)
    m = len(np.asarray(gram))
    if len(defined) == 0:
        return SpectrumGradients(_undefined(m), _undefined(m), _undefined(m))
    values, vectors = np.linalg.eigh(trajectory_map(gram)[defined[:, None], defined])
    values = np.maximum(values, 0.0)
    factors = np.zeros((m, len(defined)))
    factors[defined] = vectors
    total = values.sum()
    shares = values / total
    # The sum of the eigenvalues is fixed, so a constant in their weights has no effect. Eigenvalues that are only
    # rounding are so in every block, and their logarithms can be left out.
    logs = np.log(np.where(shares > np.finfo(np.float64).eps, shares, 1.0))
    entropy = -np.sum(shares * logs)
    ratio = 1 / np.sum(shares**2)
    return SpectrumGradients(
        _through_cosines(gram, factors, -np.exp(entropy) / total * logs),
        _through_cosines(gram, factors, -2 * ratio**2 / total * shares),
        _through_cosines(gram, factors[:, -1:], np.array([1 / total])),
    )


def direction_drift_gradient(displacements: ArrayLike, window: int = DRIFT_WINDOW) -> Gradient:
    """Gradient of `direction_drift` for the Gram matrix [T, T] of the displacements d_1 ... d_T."""
    defined = parameter_norm(displacements) > 0
    last = len(defined) - 1
    recent = max(last - window, 0) + np.flatnonzero(defined[:last][-window:])
    if len(recent) == 0 or not defined[last]:
        return _undefined(len(defined))
    newest, others = np.zeros(len(defined)), np.zeros(len(defined))
    newest[last] = 1.0
    others[recent] = -1 / (2 * len(recent))
    # newest othersᵀ + others newestᵀ
    factors = np.stack([newest + others, newest - others], axis=1)
    return _through_cosines(displacements, factors, np.array([0.5, -0.5]))


def path_length_gradient(updates: ArrayLike) -> Gradient:
    """Gradient of `path_length` for the Gram matrix [T, T] of the updates; zero for zero updates."""
    lengths = parameter_norm(updates)
    return Gradient(0.5 * _inverse(lengths), np.zeros((len(lengths), 0)), np.zeros(0))


def tortuosity_gradient(updates: ArrayLike, path: float | None = None) -> Gradient:
    """Gradient of `tortuosity` for the Gram matrix [T, T] of the updates, whose sum is d_T.

    `path` is the path length if it was accumulated over more snapshots than these updates connect.
    """
    lengths = parameter_norm(updates)
    square = np.asarray(updates, dtype=np.float64).sum()
    if not square > 0:
        return _undefined(len(lengths))
    displacement = np.sqrt(square)
    weights = np.array([-(lengths.sum() if path is None else path) / (2 * displacement**3)])
    return Gradient(0.5 * _inverse(lengths) / displacement, np.ones((len(lengths), 1)), weights)


def norm_gradient(gram: ArrayLike, index: int) -> Gradient:
    """Gradient of the norm of vector `index` of any Gram matrix [m, m]; zero for a zero vector."""
    norms = parameter_norm(gram)
    diagonal = np.zeros(len(norms))
    diagonal[index] = 0.5 * _inverse(norms)[index]
    return Gradient(diagonal, np.zeros((len(norms), 0)), np.zeros(0))


def angle_gradient(gram: ArrayLike, i: int, j: int) -> Gradient:
    """Gradient of the angle between vectors i and j of any Gram matrix [m, m], in degrees."""
    gram = np.asarray(gram, dtype=np.float64)
    aa, ab, bb = gram[i, i], gram[i, j], gram[j, j]
    area = np.sqrt(max(aa * bb - ab**2, 0.0))
    if not area > 0:
        return _undefined(len(gram))
    return _pair(gram, i, j, ab / (2 * aa * area), -1 / (2 * area), ab / (2 * bb * area))


def difference_angle_gradient(gram: ArrayLike, a: int, u: int) -> Gradient:
    """Gradient of `angle_from_difference` for vectors a and u of any Gram matrix [m, m], in degrees."""
    gram = np.asarray(gram, dtype=np.float64)
    aa, au, uu = gram[a, a], gram[a, u], gram[u, u]
    area, inner, square = np.sqrt(max(aa * uu - au**2, 0.0)), aa - au, aa * (aa - 2 * au + uu)
    if not (area > 0 and square > 0):
        return _undefined(len(gram))
    by_aa = (inner * uu / (2 * area) - area) / square
    by_au = (area - inner * au / area) / square  # counts both entries
    by_uu = inner * aa / (2 * area * square)
    return _pair(gram, a, u, by_aa, by_au / 2, by_uu)


def _through_cosines(gram: ArrayLike, factors: Array, weights: Array) -> Gradient:
    """Chain rule from the cosines, with the gradient factors diag(weights) factorsᵀ, to their Gram matrix."""
    scale = _inverse(parameter_norm(gram))
    cosines = np.nan_to_num(trajectory_map(gram), nan=0.0)
    # Rescaling a vector leaves every cosine: diag(F A) = 0.
    by_norm = ((factors * (cosines @ factors)) @ weights) * scale**2
    return Gradient(-by_norm, factors * scale[:, None], weights)


def _pair(gram: Array, i: int, j: int, by_ii: float, by_ij: float, by_jj: float) -> Gradient:
    """A gradient that is zero outside of the vectors i and j."""
    factor = np.zeros((len(gram), 1))
    factor[[i, j], 0] = 1 / np.sqrt(gram[[i, j], [i, j]])  # neither entry drowns the other's diagonal
    weight = by_ij / (factor[i, 0] * factor[j, 0])
    diagonal = np.zeros(len(gram))
    diagonal[[i, j]] = np.array([by_ii, by_jj]) - weight * factor[[i, j], 0] ** 2
    return Gradient(np.degrees(diagonal), factor, np.degrees([weight]))


def _inverse(norms: Array) -> Array:
    """1 / norm, and 0 for a zero vector."""
    return np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)


def _undefined(size: int) -> Gradient:
    return Gradient(np.zeros(size), np.zeros((size, 1)), np.array([np.nan]))
