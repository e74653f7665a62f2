"""Standard errors: gradients against finite differences, the trace formula, and simulated sketches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import reference
from lightning_traj import measures
from lightning_traj.measures import errors as uncertainty
from lightning_traj.measures.errors import Gradient, standard_error


def of_map(scalar):
    return lambda gram: scalar(measures.trajectory_map(gram))


def about_zero(displacements):
    """The Gram matrix of θ_0 = 0 and these displacements, [T + 1, T + 1]."""
    return np.pad(displacements, ((1, 0), (1, 0)))


def summed(updates):
    """The Gram matrix of θ_0 = 0 and the sums of these updates, [T + 1, T + 1]."""
    return about_zero(np.cumsum(np.cumsum(updates, axis=0), axis=1))


# name: (the measure, its gradient), functions of one Gram matrix, of what the name says
GRADIENTS = {
    "mean cosine": (
        of_map(measures.mean_directional_similarity),
        uncertainty.mean_cosine_gradient,
    ),
    "effective rank": (
        of_map(measures.effective_rank),
        lambda gram: uncertainty.spectrum_gradients(gram).effective_rank,
    ),
    "participation ratio": (
        of_map(measures.participation_ratio),
        lambda gram: uncertainty.spectrum_gradients(gram).participation_ratio,
    ),
    "top-1 share": (
        of_map(measures.top1_share),
        lambda gram: uncertainty.spectrum_gradients(gram).top1_share,
    ),
    "path length of updates": (
        lambda gram: measures.path_length(summed(gram)),
        uncertainty.path_length_gradient,
    ),
    "tortuosity of updates": (
        lambda gram: measures.tortuosity(summed(gram)),
        uncertainty.tortuosity_gradient,
    ),
    "drift of displacements": (
        lambda gram: measures.direction_drift(about_zero(gram)),
        uncertainty.direction_drift_gradient,
    ),
    "drift of displacements, window 2": (
        lambda gram: measures.direction_drift(about_zero(gram), 2),
        lambda gram: uncertainty.direction_drift_gradient(gram, 2),
    ),
    "norm": (
        lambda gram: measures.parameter_norm(gram)[-1],
        lambda gram: uncertainty.norm_gradient(gram, -1),
    ),
    "angle": (
        lambda gram: measures.origin_angle(gram)[-1],
        lambda gram: uncertainty.angle_gradient(gram, -2, -1),
    ),
    "angle from a difference": (
        lambda gram: measures.angle_from_difference(gram[-2, -2], gram[-2, -1], gram[-1, -1]),
        lambda gram: uncertainty.difference_angle_gradient(gram, -2, -1),
    ),
}


def random_gram(m, seed=0, p=20):
    rows = 1 + np.random.default_rng(seed).standard_normal((m, p))
    return rows @ rows.T


def finite_differences(function, gram, step=1e-5):
    """∂f/∂A with df = tr(F dA), entry by entry, symmetric changes; left at 0 where a vector is zero."""
    gradient = np.zeros_like(gram)
    scale = np.sqrt(np.outer(gram.diagonal(), gram.diagonal()))
    for i, j in np.ndindex(*gram.shape):
        if scale[i, j] > 0:
            change = np.zeros_like(gram)
            change[i, j] += step * scale[i, j] / 2
            change[j, i] += step * scale[i, j] / 2
            gradient[i, j] = (function(gram + change) - function(gram - change)) / (2 * step * scale[i, j])
    return gradient


@pytest.mark.parametrize("m", [2, 3, 9])
@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_are_those_of_the_measures(name, m):
    measure, gradient = GRADIENTS[name]
    gram = random_gram(m)
    expected = finite_differences(measure, gram)
    np.testing.assert_allclose(gradient(gram).dense(), expected, rtol=1e-5, atol=1e-7 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["mean cosine", "effective rank", "participation ratio", "top-1 share", "norm"])
def test_gradients_leave_zero_vectors_out(name):
    measure, gradient = GRADIENTS[name]
    gram = random_gram(6)
    gram[[0, 3]] = gram[:, [0, 3]] = 0
    expected = finite_differences(measure, gram)
    assert not expected[[0, 3]].any()
    np.testing.assert_allclose(gradient(gram).dense(), expected, rtol=1e-5, atol=1e-8)


def test_gradients_of_paths_with_zero_updates():
    updates = random_gram(6)
    updates[2] = updates[:, 2] = 0
    moving = np.array([0, 1, 3, 4, 5])
    for name in ("path length of updates", "tortuosity of updates"):
        measure, gradient = GRADIENTS[name]
        expected = finite_differences(measure, updates)[np.ix_(moving, moving)]
        np.testing.assert_allclose(gradient(updates).dense()[np.ix_(moving, moving)], expected, rtol=1e-5, atol=1e-9)
        assert math.isfinite(standard_error(gradient(updates), [updates], 10))


def test_drift_gradient_takes_the_window_before_it_leaves_out_zero_displacements():
    gram = random_gram(7)
    gram[[0, 4]] = gram[:, [0, 4]] = 0
    measure, gradient = GRADIENTS["drift of displacements, window 2"]
    expected = finite_differences(measure, gram)
    np.testing.assert_allclose(gradient(gram).dense(), expected, rtol=1e-5, atol=1e-8)
    assert set(np.flatnonzero(expected.any(axis=0))) == {5, 6}


@pytest.mark.parametrize("size", [1e-3, 1e-6, 1e-9])
def test_standard_error_of_a_small_angle_is_accurate(size):
    a, u = np.array([1.0, 0.0]), size * np.array([math.cos(1.1), math.sin(1.1)])
    gram = np.array([[a @ a, a @ u], [a @ u, u @ u]])
    angle = float(measures.angle_from_difference(gram[0, 0], gram[0, 1], gram[1, 1]))
    error = standard_error(uncertainty.difference_angle_gradient(gram, 0, 1), gram[None], 1000)
    # A cosine has a standard error of (1 - c²) / √k, hence its angle one of sin / √k.
    assert error == pytest.approx(math.degrees(math.sin(math.radians(angle))) / math.sqrt(1000), rel=1e-9)


def test_standard_error_of_a_cosine_is_the_known_one():
    gram = random_gram(2, p=4)
    cosine = measures.trajectory_map(gram)[0, 1]
    # The mean of a map of two vectors is (1 + c) / 2.
    error = standard_error(uncertainty.mean_cosine_gradient(gram), gram[None], 400)
    assert error == pytest.approx((1 - cosine**2) / math.sqrt(400) / 2)


def direct(gradient, blocks, dim):
    dense = gradient.dense()
    return math.sqrt(sum(2 * np.trace(dense @ block @ dense @ block) for block in blocks) / dim)


@pytest.mark.parametrize("rank", [0, 1, 2, 5, 40])
@pytest.mark.parametrize("support", [1, 3, 20])
def test_standard_error_is_the_trace_formula(rank, support, monkeypatch):
    rng = np.random.default_rng(rank)
    diagonal, factors = rng.standard_normal(20), rng.standard_normal((20, rank))
    diagonal[support:] = factors[support:] = 0
    gradient = Gradient(diagonal, factors, rng.standard_normal(rank))
    blocks = np.stack([random_gram(20, seed, 5 + seed) for seed in range(7)])
    expected = direct(gradient, blocks, 128)
    assert standard_error(gradient, blocks, 128) == pytest.approx(expected, rel=1e-10)
    monkeypatch.setattr(uncertainty, "_CHUNK", 1000)  # two blocks at a time, the last one alone
    assert standard_error(gradient, blocks, 128) == pytest.approx(expected, rel=1e-10)


def test_standard_error_without_a_sketched_block_is_zero():
    gradient = uncertainty.mean_cosine_gradient(random_gram(4))
    assert standard_error(gradient, np.zeros((0, 4, 4)), 64) == 0.0
    assert standard_error(gradient, [], 64) == 0.0


def test_standard_error_keeps_its_digits_where_all_directions_agree():
    # Cosines of 1 - 1e-10, as in fine-tuning: the terms of tr((F A)²) cancel to 1e-20 of themselves.
    m, size, dim = 6, 1e-5, 100
    start, *updates = np.linalg.qr(np.random.default_rng(0).standard_normal((50, m)))[0].T
    rows = np.stack([start, *(start + size * update for update in updates)])
    gram = rows @ rows.T
    # To leading order 1 - c_ij = |u_i - u_j|² / 2|θ_0|², so 1 - ω = tr(W U) / |θ_0|²: a quadratic form in the
    # sketch of the u, and independently the squared norm of that of θ_0.
    quadratic = (np.eye(m) / m - np.ones((m, m)) / m**2) @ np.diag([0.0, *[size**2] * (m - 1)])
    variance = 2 * (np.trace(quadratic @ quadratic) + np.trace(quadratic) ** 2) / dim
    error = standard_error(uncertainty.mean_cosine_gradient(gram), gram[None], dim)
    assert error == pytest.approx(math.sqrt(variance), rel=1e-4)


def test_undefined_measures_have_undefined_errors():
    zero, one = np.zeros((3, 3)), np.ones((1, 1))
    undefined = [
        uncertainty.mean_cosine_gradient(zero),
        *uncertainty.spectrum_gradients(zero),
        uncertainty.direction_drift_gradient(zero),
        uncertainty.tortuosity_gradient(zero),
        uncertainty.angle_gradient(zero, 0, 1),
        uncertainty.difference_angle_gradient(zero, 0, 1),
        uncertainty.angle_gradient(np.ones((3, 3)), 0, 1),  # an angle of 0 is where arccos has no derivative
    ]
    for gradient in undefined:
        assert math.isnan(standard_error(gradient, zero[None], 10))
        assert math.isnan(standard_error(gradient, zero[None][:0], 10))
    assert math.isnan(standard_error(uncertainty.direction_drift_gradient(one), one[None], 10))
    empty = np.zeros((0, 0))
    for gradient in (
        uncertainty.mean_cosine_gradient(empty),
        *uncertainty.spectrum_gradients(empty),
        uncertainty.direction_drift_gradient(empty),
        uncertainty.tortuosity_gradient(empty),
    ):
        assert math.isnan(standard_error(gradient, np.zeros((2, 0, 0)), 10))
    assert standard_error(uncertainty.path_length_gradient(empty), np.zeros((2, 0, 0)), 10) == 0
    assert standard_error(uncertainty.norm_gradient(zero, 1), zero[None], 10) == 0


def test_one_vector_has_a_cosine_without_error():
    one = np.array([[3.0]])
    for gradient in (uncertainty.mean_cosine_gradient(one), *uncertainty.spectrum_gradients(one)):
        assert standard_error(gradient, one[None], 10) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("blocks", [np.ones((4, 4)), np.ones((2, 3, 3)), np.ones((2, 4, 3)), 1.0])
def test_blocks_of_another_shape_are_named(blocks):
    gradient = uncertainty.mean_cosine_gradient(random_gram(4))
    with pytest.raises(ValueError, match=r"block_grams must have the shape \[blocks, 4, 4\]") as error:
        standard_error(gradient, blocks, 10)
    assert str(list(np.shape(blocks))) in str(error.value)


def test_a_dimension_that_is_none_is_named():
    with pytest.raises(ValueError, match="dim must be the sketch dimension, at least 1, got 0"):
        standard_error(uncertainty.mean_cosine_gradient(random_gram(4)), [random_gram(4)], 0)


# Simulated sketches

DIM = 1500
SEEDS = 800


def trajectory():
    """Three blocks, drifting and wandering at different scales; the third is short, and kept whole."""
    rng = np.random.default_rng(7)
    blocks = []
    for size, start, drift, scale in ((700, 1.0, 0.15, 0.3), (400, 0.2, 0.05, 0.2), (60, 2.0, 0.1, 0.1)):
        updates = drift * rng.standard_normal(size) + scale * rng.standard_normal((9, size))
        walk = np.concatenate([np.zeros((1, size)), np.cumsum(updates, axis=0)])
        blocks.append(start * rng.standard_normal(size) + walk)
    return blocks


def displacements(gram):
    return measures.relative_gram(gram)[1:, 1:]


@dataclass
class Case:
    """A measure of the snapshots' Gram matrix; its gradient, of the Gram matrix in another basis."""

    value: Any
    basis: Any
    gradient: Any


def snapshots(gram):
    return gram


CASES = {
    "mds": Case(of_map(measures.mean_directional_similarity), snapshots, GRADIENTS["mean cosine"][1]),
    "mds_relative": Case(
        lambda gram: measures.mean_directional_similarity(measures.relative_trajectory_map(gram)),
        displacements,
        GRADIENTS["mean cosine"][1],
    ),
    "param_norm": Case(lambda gram: measures.parameter_norm(gram)[-1], snapshots, GRADIENTS["norm"][1]),
    "displacement": Case(lambda gram: measures.displacement(gram)[-1], displacements, GRADIENTS["norm"][1]),
    "update_length": Case(lambda gram: measures.update_length(gram)[-1], measures.update_gram, GRADIENTS["norm"][1]),
    "path_length": Case(measures.path_length, measures.update_gram, uncertainty.path_length_gradient),
    "tortuosity": Case(measures.tortuosity, measures.update_gram, uncertainty.tortuosity_gradient),
    "update_angle": Case(lambda gram: measures.update_angle(gram)[-1], measures.update_gram, GRADIENTS["angle"][1]),
    "origin_angle": Case(lambda gram: measures.origin_angle(gram)[-1], snapshots, GRADIENTS["angle"][1]),
    "turn": Case(
        lambda gram: measures.turn(gram)[-1],
        snapshots,
        lambda gram: uncertainty.angle_gradient(gram, 0, -1),
    ),
    "apex_angle": Case(lambda gram: measures.apex_angle(gram)[-1], displacements, GRADIENTS["angle"][1]),
    "direction_drift": Case(measures.direction_drift, displacements, uncertainty.direction_drift_gradient),
    "effective_rank": Case(of_map(measures.effective_rank), snapshots, GRADIENTS["effective rank"][1]),
    "participation_ratio": Case(of_map(measures.participation_ratio), snapshots, GRADIENTS["participation ratio"][1]),
    "top1_share": Case(of_map(measures.top1_share), snapshots, GRADIENTS["top-1 share"][1]),
    "relative effective_rank": Case(
        lambda gram: measures.effective_rank(measures.relative_trajectory_map(gram)),
        displacements,
        GRADIENTS["effective rank"][1],
    ),
    "relative top1_share": Case(
        lambda gram: measures.top1_share(measures.relative_trajectory_map(gram)),
        displacements,
        GRADIENTS["top-1 share"][1],
    ),
}


@pytest.fixture(scope="module")
def exact():
    """The Gram matrices of the blocks, [3, n, n]; the last one is not sketched."""
    return np.stack([block @ block.T for block in trajectory()])


@pytest.fixture(scope="module")
def sketched(exact):
    """Gram matrices [seeds, 2, n, n] of the first two blocks' rows times a Gaussian [p, DIM].

    Its variance is 1 / DIM. Such a product is, in distribution, the rows' coordinates in their own span times a
    Gaussian [n, DIM].
    """
    rng = np.random.default_rng(0)
    grams = np.empty((SEEDS, 2, *exact.shape[1:]))
    for b in range(2):
        coordinates = np.linalg.cholesky(exact[b])
        for seed in range(SEEDS):
            rows = coordinates @ rng.standard_normal((len(coordinates), DIM)) / math.sqrt(DIM)
            grams[seed, b] = rows @ rows.T
    return grams


def error_of(case, sketched_blocks, whole):
    gradient = case.gradient(case.basis(sketched_blocks.sum(axis=0) + whole))
    return standard_error(gradient, [case.basis(block) for block in sketched_blocks], DIM)


def within(observed, expected):
    """Whether an empirical standard deviation agrees, to 4 of its own standard errors, 1/√(2 SEEDS) of it.

    To that come 2 % for what linearising leaves out at this dimension.
    """
    return abs(observed / expected - 1) < 4 / math.sqrt(2 * SEEDS) + 0.02


@pytest.mark.parametrize("name", CASES)
def test_standard_errors_are_those_of_simulated_sketches(name, exact, sketched):
    case, whole = CASES[name], exact[-1]
    truth = case.value(exact.sum(axis=0))
    values = np.array([case.value(blocks.sum(axis=0) + whole) for blocks in sketched])
    expected = error_of(case, exact[:-1], whole)
    assert within(values.std(), expected), (values.std(), expected)
    assert not within(values.std(), 1.25 * expected)  # the check can fail

    # Intervals are made as they are in a run, from the sketch itself.
    errors = np.array([error_of(case, blocks, whole) for blocks in sketched])
    coverage = (np.abs(values - truth) <= 1.96 * errors).mean()
    margin = 4 * math.sqrt(0.95 * 0.05 / SEEDS)
    assert 0.95 - margin < coverage < 0.95 + margin, coverage


def test_simulated_sketches_are_random_projections(exact, sketched):
    """The shortcut of the fixture has the moments of projections of the parameters themselves."""
    rows = trajectory()[1]
    rng = np.random.default_rng(1)
    projected = [rows @ rng.standard_normal((rows.shape[1], DIM)) / math.sqrt(DIM) for _ in range(40)]
    samples = np.array([reference.gram(list(sketch))[0, -1] for sketch in projected])
    shortcut = sketched[:, 1, 0, -1]
    known = math.sqrt((exact[1, 0, 0] * exact[1, -1, -1] + exact[1, 0, -1] ** 2) / DIM)
    assert abs(samples.mean() - exact[1, 0, -1]) < 4 * known / math.sqrt(40)
    assert abs(shortcut.mean() - exact[1, 0, -1]) < 4 * known / math.sqrt(SEEDS)
    assert abs(samples.std() / known - 1) < 4 / math.sqrt(2 * 40)
    assert abs(shortcut.std() / known - 1) < 4 / math.sqrt(2 * SEEDS)
