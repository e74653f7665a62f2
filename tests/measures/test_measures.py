"""Measures from Gram matrices against their definitions on stacked parameters, closed forms, and edges."""

from __future__ import annotations

import inspect
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import reference
from lightning_traj import measures

THRESHOLD = 0.871234  # no cosine of small integers falls on it
KINDS = {
    "snapshots": measures.trajectory_map,
    "displacements": measures.relative_trajectory_map,
    "updates": measures.update_map,
}


def random_walk(n, p=300, seed=0, scale=0.1):
    rng = np.random.default_rng(seed)
    return rng.standard_normal(p) + scale * np.cumsum(rng.standard_normal((n, p)), axis=0)


def zero_start(n=9):
    """A bias or a LoRA B: two snapshots at zero, then a walk."""
    thetas = random_walk(n, 40, seed=1)
    thetas[:2] = 0
    return thetas


def stops(n=9):
    """A block that is frozen midway."""
    thetas = random_walk(n, 5000, seed=2)
    thetas[5:] = thetas[5]
    return thetas


def there_and_back():
    start, step = random_walk(2, 50, seed=3)
    return np.stack([start, start + step, start, start - 2 * step, start, start + step])


TRAJECTORIES = {
    "random walk": random_walk(12),
    "late start": np.concatenate([np.repeat(random_walk(1), 3, axis=0), random_walk(6)]),
    "zero start": zero_start(),
    "zero throughout": np.zeros((4, 7)),
    "standing still": np.repeat(random_walk(1, 10_007), 21, axis=0),
    "stops": stops(),
    "back and forth": there_and_back(),
    "ends where it began": np.concatenate([random_walk(7, seed=4), random_walk(1, seed=4)]),
    "one parameter": random_walk(8, 1, scale=3.0),
    "large and small": 1e6 * random_walk(6, seed=5) * np.logspace(0, -6, 300),
    "one snapshot": random_walk(1),
    "two snapshots": random_walk(2),
    "three snapshots": random_walk(3),
}

# name: (from the Gram matrix, by definition)
SERIES_AND_SCALARS = {
    "parameter_norm": (measures.parameter_norm, reference.parameter_norm),
    "displacement": (measures.displacement, reference.displacement),
    "update_length": (measures.update_length, reference.update_length),
    "path_length": (measures.path_length, reference.path_length),
    "tortuosity": (measures.tortuosity, reference.tortuosity),
    "saturation": (
        lambda gram: measures.saturation(gram, steps(len(gram)), THRESHOLD),
        lambda thetas: reference.saturation(thetas, steps(len(thetas)), THRESHOLD),
    ),
    "direction_drift": (measures.direction_drift, reference.direction_drift),
    "running_drift": (measures.running_drift, reference.running_drift),
    "oscillation_cosine": (measures.oscillation_cosine, reference.oscillation_cosine),
    "oscillation_reversals": (measures.oscillation_reversals, reference.oscillation_reversals),
    "oscillation_linearity": (measures.oscillation_linearity, reference.oscillation_linearity),
    "oscillation_step_length": (measures.oscillation_step_length, reference.oscillation_step_length),
}
ANGLES = {
    "update_angle": (measures.update_angle, reference.update_angle),
    "origin_angle": (measures.origin_angle, reference.origin_angle),
    "turn": (measures.turn, reference.turn),
    "apex_angle": (measures.apex_angle, reference.apex_angle),
    "cone_angle": (measures.cone_angle, reference.cone_angle),
}
MATRICES = {
    "relative_gram": (measures.relative_gram, reference.relative_gram),
    "update_gram": (measures.update_gram, reference.update_gram),
    "trajectory_map": (measures.trajectory_map, reference.trajectory_map),
    "relative_trajectory_map": (measures.relative_trajectory_map, reference.relative_trajectory_map),
    "update_map": (measures.update_map, reference.update_map),
}
OF_A_MAP = {
    "mean_directional_similarity": (
        measures.mean_directional_similarity,
        reference.mean_directional_similarity,
    ),
    "running_similarity": (measures.running_similarity, reference.running_similarity),
    "effective_rank": (measures.effective_rank, reference.effective_rank),
    "participation_ratio": (measures.participation_ratio, reference.participation_ratio),
    "top1_share": (measures.top1_share, reference.top1_share),
}
TESTED_BY_THEMSELVES = {
    "angle_map",
    "angle_from_difference",
    "heterogeneity",
    "oscillation",
    "pca",
    "random_walk_first_ratio",
    "saturation_index",
}


def steps(n):
    return [5 + t**2 for t in range(n)]


def public_functions():
    functions = inspect.getmembers(measures, inspect.isfunction)
    formulas = {f"{measures.__name__}.{module}" for module in ("maps", "direction", "geometry", "spectrum", "windows")}
    return {name for name, function in functions if name in measures.__all__ and function.__module__ in formulas}


def check_all(gram, thetas, rtol=1e-9, atol=1e-9):
    """Every measure of this Gram matrix against its definition; angles of nearly 0 or 180 degrees to 1e-5."""
    scale = np.abs(gram).max(initial=1e-300)
    for name, (measure, definition) in SERIES_AND_SCALARS.items():
        np.testing.assert_allclose(measure(gram), definition(thetas), rtol, atol, err_msg=name)
    for name, (measure, definition) in ANGLES.items():
        np.testing.assert_allclose(measure(gram), definition(thetas), rtol, 1e-5, err_msg=name)
    for name, (measure, definition) in MATRICES.items():
        tolerance = 1e-13 * scale if name.endswith("gram") else atol
        np.testing.assert_allclose(measure(gram), definition(thetas), rtol, tolerance, err_msg=name)
    for kind, make_map in KINDS.items():
        for name, (measure, definition) in OF_A_MAP.items():
            expected = definition(reference.vectors_of(thetas, kind))
            np.testing.assert_allclose(measure(make_map(gram)), expected, rtol, atol, err_msg=f"{name}, {kind}")
    check_pca(gram, thetas)


def check_pca(gram, thetas):
    coordinates, ratios = measures.pca(gram)
    n, d = coordinates.shape
    assert n == len(thetas)
    assert ratios.shape == (d,)
    assert d <= max(n - 1, 0)
    # Distances in the coordinates are distances along the path, whatever the signs of the components.
    between = np.linalg.norm(coordinates[:, None] - coordinates, axis=-1)
    expected = np.linalg.norm(thetas[:, None] - thetas, axis=-1)
    np.testing.assert_allclose(between, expected, rtol=1e-6, atol=1e-6 * np.abs(thetas).max(initial=1e-300))
    if d:
        np.testing.assert_allclose(ratios, reference.pca(thetas, d)[1], rtol=1e-7, atol=1e-12)
        assert ratios.sum() == pytest.approx(1)


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_measures_of_the_gram_matrix_follow_their_definitions(name):
    thetas = TRAJECTORIES[name]
    check_all(thetas @ thetas.T, thetas)


@given(arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(1, 5)), elements=st.integers(-2, 2)))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_measures_follow_their_definitions_on_small_integers(thetas):
    # Zero vectors, equal, parallel, opposite and orthogonal ones, all exactly so.
    check_all(thetas @ thetas.T, thetas)


def test_every_public_measure_is_compared_or_tested_by_itself():
    compared = {*SERIES_AND_SCALARS, *ANGLES, *MATRICES, *OF_A_MAP}
    assert compared | TESTED_BY_THEMSELVES == public_functions()


def test_reference_notices_a_wrong_measure(monkeypatch):
    thetas = random_walk(6)
    wrong = dict(ANGLES, turn=(lambda gram: measures.turn(gram) + 1e-3, reference.turn))
    monkeypatch.setattr(sys.modules[__name__], "ANGLES", wrong)
    with pytest.raises(AssertionError, match="turn"):
        check_all(thetas @ thetas.T, thetas)


@pytest.mark.parametrize("tau", [0, 3, 7, -1])
def test_relative_map_about_any_snapshot(tau):
    thetas = random_walk(8)
    gram = thetas @ thetas.T
    relative = measures.relative_gram(gram, tau)
    np.testing.assert_allclose(relative, reference.relative_gram(thetas, tau), rtol=1e-9, atol=1e-11)
    assert not relative[tau].any()
    assert not relative[:, tau].any()
    expected = reference.relative_trajectory_map(thetas, tau)
    np.testing.assert_allclose(measures.relative_trajectory_map(gram, tau), expected, atol=1e-10)


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.floats(-8, 1))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_relative_gram_of_a_relative_gram_is_the_same_bit_for_bit(seed, n, log_scale):
    thetas = random_walk(n, 30, seed, 10**log_scale)
    relative = measures.relative_gram(thetas @ thetas.T)
    np.testing.assert_array_equal(relative, relative.T)
    assert measures.relative_gram(relative).tobytes() == relative.tobytes()


# Closed forms


def test_line():
    direction = np.random.default_rng(0).standard_normal(100)
    thetas = 3.0 + np.array([0, 1, 2, 4, 8])[:, None] * direction
    gram = thetas @ thetas.T
    relative = measures.relative_trajectory_map(gram)
    assert measures.tortuosity(gram) == pytest.approx(1, abs=1e-12)
    assert measures.mean_directional_similarity(relative) == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(measures.update_map(gram), 1, rtol=1e-12)
    np.testing.assert_allclose(measures.apex_angle(gram), 0, atol=1e-5)
    assert measures.cone_angle(gram) == pytest.approx(0, abs=1e-5)
    assert measures.effective_rank(relative) == pytest.approx(1, abs=1e-9)
    assert measures.top1_share(relative) == pytest.approx(1)
    assert measures.saturation(gram, [0, 10, 20, 40, 80]) == 1 / 8
    assert measures.direction_drift(gram) == pytest.approx(0, abs=1e-12)
    assert measures.oscillation_cosine(gram) == pytest.approx(1)
    assert measures.oscillation_reversals(gram) == 0
    assert measures.oscillation_linearity(gram) == pytest.approx(1)
    coordinates, ratios = measures.pca(gram)
    assert ratios == pytest.approx([1])
    assert coordinates[:, 0] == pytest.approx(np.linalg.norm(direction) * np.array([-3, -2, -1, 1, 5]))


@pytest.mark.parametrize("n", [3, 8, 36])
def test_circle_about_the_origin(n):
    radius, phi = 2.5, 2 * math.pi / n
    t = np.arange(n)
    thetas = radius * np.stack([np.cos(phi * t), np.sin(phi * t)], axis=1)
    gram = thetas @ thetas.T
    chord = 2 * radius * math.sin(phi / 2)
    degrees = math.degrees(phi)
    np.testing.assert_allclose(measures.parameter_norm(gram), radius)
    np.testing.assert_allclose(measures.displacement(gram), 2 * radius * np.sin(phi * t / 2), atol=1e-12)
    np.testing.assert_allclose(measures.update_length(gram), chord)
    assert measures.path_length(gram) == pytest.approx((n - 1) * chord)
    assert measures.tortuosity(gram) == pytest.approx(n - 1)
    np.testing.assert_allclose(measures.origin_angle(gram), degrees)
    np.testing.assert_allclose(measures.turn(gram), np.minimum(t, n - t) * degrees, atol=1e-6)
    np.testing.assert_allclose(measures.update_angle(gram), degrees)
    np.testing.assert_allclose(measures.apex_angle(gram), degrees / 2)  # the inscribed angle
    assert measures.cone_angle(gram) == pytest.approx((n - 2) * degrees / 2)
    cosines = measures.trajectory_map(gram)
    assert measures.mean_directional_similarity(cosines) == pytest.approx(0, abs=1e-12)
    assert measures.effective_rank(cosines) == pytest.approx(2)
    assert measures.participation_ratio(cosines) == pytest.approx(2)
    assert measures.top1_share(cosines) == pytest.approx(0.5)
    coordinates, ratios = measures.pca(gram)
    assert ratios == pytest.approx([0.5, 0.5])
    np.testing.assert_allclose(np.linalg.norm(coordinates, axis=1), radius)


@pytest.mark.parametrize("n", [3, 12, 101])
def test_walk_of_orthogonal_unit_updates(n):
    steps_taken = n - 1
    t = np.arange(n)
    gram = np.minimum(t[:, None], t).astype(float)
    np.testing.assert_array_equal(measures.update_map(gram), np.eye(steps_taken))
    np.testing.assert_allclose(measures.update_angle(gram), 90)
    for measure in (measures.effective_rank, measures.participation_ratio):
        assert measure(measures.update_map(gram)) == pytest.approx(steps_taken)
    assert measures.top1_share(measures.update_map(gram)) == pytest.approx(1 / steps_taken)
    assert measures.tortuosity(gram) == pytest.approx(math.sqrt(steps_taken))
    assert measures.oscillation_cosine(gram) == 0
    assert measures.oscillation_linearity(gram) == pytest.approx(1 / math.sqrt(steps_taken))
    first = next(s for s in range(1, n) if math.sqrt(s / steps_taken) >= THRESHOLD)
    assert measures.saturation(gram, t, THRESHOLD) == first / steps_taken
    before = np.arange(max(1, steps_taken - 5), steps_taken)
    assert measures.direction_drift(gram) == pytest.approx(1 - np.sqrt(before / steps_taken).mean())
    assert measures.pca(gram)[1][0] == pytest.approx(measures.random_walk_first_ratio(n), rel=1e-10)


def test_random_walk_in_many_dimensions_has_the_first_ratio_of_the_formula():
    n, p = 40, 20_000
    thetas = random_walk(n, p, scale=1.0)
    ratio = measures.pca(thetas @ thetas.T)[1][0]
    assert ratio == pytest.approx(measures.random_walk_first_ratio(n), abs=0.02)  # fluctuates by about 1/√p
    assert measures.random_walk_first_ratio(2) == pytest.approx(1)
    assert measures.random_walk_first_ratio(10_000) == pytest.approx(6 / math.pi**2, abs=1e-6)
    assert math.isnan(measures.random_walk_first_ratio(1))


def test_standing_still_is_exactly_still_in_spite_of_rounding():
    theta = np.random.default_rng(0).standard_normal(10_007)
    gram = np.full((30, 30), theta @ theta)
    gram *= 1 + np.random.default_rng(1).integers(-4, 5, gram.shape) * np.finfo(float).eps  # as from any kernel
    gram = (gram + gram.T) / 2
    assert not measures.update_length(gram).any()
    assert not measures.displacement(gram).any()
    assert not measures.origin_angle(gram).any()
    assert np.isnan(measures.update_angle(gram)).all()
    assert np.isnan(measures.relative_trajectory_map(gram)).all()
    assert measures.mean_directional_similarity(measures.trajectory_map(gram)) == pytest.approx(1)
    assert measures.pca(gram)[0].shape == (30, 0)


def test_there_and_back():
    thetas = there_and_back()  # updates of 1, -1, -2, 2, 1 along one direction
    gram = thetas @ thetas.T
    assert measures.oscillation_cosine(gram) == pytest.approx(0)
    assert measures.oscillation_reversals(gram) == 0.5
    assert measures.oscillation_linearity(gram) == pytest.approx(1 / 7)
    assert measures.tortuosity(gram) == pytest.approx(7)
    assert measures.cone_angle(gram) == pytest.approx(180)


# Accuracy


@pytest.mark.parametrize("relative_size", [1e-6, 1e-9])
def test_tiny_updates_are_accurate_from_the_gram_about_theta_0(relative_size):
    rng = np.random.default_rng(0)
    start = rng.standard_normal(2000)
    displacements = relative_size * np.cumsum(rng.standard_normal((10, 2000)), axis=0)
    displacements -= displacements[0]
    about_start = displacements @ displacements.T
    for name, (measure, definition) in {**SERIES_AND_SCALARS, **ANGLES}.items():
        if name not in {"parameter_norm", "origin_angle", "turn"}:
            expected = definition(displacements)
            np.testing.assert_allclose(measure(about_start), expected, rtol=1e-10, err_msg=name)
    np.testing.assert_allclose(
        measures.update_map(about_start), reference.update_map(displacements), rtol=1e-10, atol=1e-12
    )
    # What this guards against: from the Gram matrix of the snapshots the same measure loses digits.
    thetas = start + displacements
    direct = measures.update_length(thetas @ thetas.T)
    assert np.abs(direct / measures.update_length(about_start) - 1).max() > 1e-6


@pytest.mark.parametrize("size", [1e-3, 1e-6, 1e-9, 1e-12])
@pytest.mark.parametrize("direction", [0.3, 1.5, 3.0, -2.0])
def test_angles_from_a_difference_are_accurate_however_small(size, direction):
    # a = (1, 0), u = size (cos, sin), so that b = a - u is seen from the origin at a known angle.
    expected = math.degrees(math.atan2(size * abs(math.sin(direction)), 1 - size * math.cos(direction)))
    angle = measures.angle_from_difference(1.0, size * math.cos(direction), size**2)
    assert float(angle) == pytest.approx(expected, rel=1e-13)


def test_angles_from_a_difference_cover_the_whole_range():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 50, 3))
    u = a - b
    aa, au, uu = ((x * y).sum(axis=1) for x, y in ((a, a), (a, u), (u, u)))
    expected = [reference.angle(x, y) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(measures.angle_from_difference(aa, au, uu), expected, rtol=1e-9)
    assert measures.angle_from_difference(1.0, 3.0, 9.0) == 180  # b = -2 a
    assert measures.angle_from_difference(1.0, 0.0, 0.0) == 0  # b = a
    assert np.isnan(measures.angle_from_difference(1.0, 1.0, 1.0))  # b = 0
    assert np.isnan(measures.angle_from_difference(0.0, 0.0, 1.0))  # a = 0
    assert measures.angle_from_difference(np.ones((2, 1)), np.zeros(3), 0.0).shape == (2, 3)


def test_small_angles_are_as_accurate_as_the_gram_matrix_resolves():
    # Two displacements of length 1 that differ by 1e-6, orthogonally: their squares differ in the 12th digit.
    displacements = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1e-6]])
    gram = displacements @ displacements.T
    assert measures.apex_angle(gram) == pytest.approx([math.degrees(1e-6)], rel=1e-3)
    assert measures.cone_angle(gram) == pytest.approx(math.degrees(1e-6), rel=1e-3)


def test_angles_between_vectors_of_very_different_lengths():
    gram = np.array([[1.0, 1e-12], [1e-12, 2e-24]])  # of (1, 0) and 1e-12 (1, 1)
    assert measures.origin_angle(gram) == pytest.approx([45])
    assert measures.turn(gram[::-1, ::-1]) == pytest.approx([0, 45])


def test_cosines_of_parallel_vectors_do_not_pass_one():
    thetas = np.random.default_rng(0).uniform(-9, 9, (40, 1)) * random_walk(1)
    gram = thetas @ thetas.T
    norms = np.sqrt(gram.diagonal())
    assert np.abs(gram / np.outer(norms, norms)).max() > 1
    assert np.abs(measures.trajectory_map(gram)).max() == 1


# Undefined values


def test_single_snapshot():
    gram = np.array([[4.0]])
    assert measures.mean_directional_similarity(measures.trajectory_map(gram)) == 1
    assert measures.parameter_norm(gram) == [2]
    assert measures.displacement(gram) == [0]
    assert measures.path_length(gram) == 0
    assert measures.turn(gram) == [0]
    for series in (measures.update_length, measures.update_angle, measures.origin_angle, measures.apex_angle):
        assert series(gram).shape == (0,)
    for matrix in (measures.update_gram, measures.update_map, measures.relative_trajectory_map):
        assert matrix(gram).shape == (0, 0)
    for scalar in (
        measures.tortuosity,
        measures.cone_angle,
        measures.direction_drift,
        measures.oscillation_cosine,
        measures.oscillation_reversals,
        measures.oscillation_linearity,
    ):
        assert math.isnan(scalar(gram)), scalar
    assert math.isnan(measures.saturation(gram, [0]))


def test_no_snapshot():
    gram = np.zeros((0, 0))
    for name, (measure, _) in {**SERIES_AND_SCALARS, **ANGLES, **MATRICES}.items():
        value = measure(gram)
        assert np.size(value) == 0 or math.isnan(value) or name == "path_length", name
    for measure, _ in OF_A_MAP.values():
        value = measure(gram)
        assert np.size(value) == 0 or math.isnan(value)
    coordinates, ratios = measures.pca(gram)
    assert coordinates.shape == (0, 0)
    assert ratios.shape == (0,)


def test_undefined_cosines_are_nan_in_maps_and_left_out_of_means():
    gram = np.diag([0.0, 1.0, 4.0])
    cosines = measures.trajectory_map(gram)
    assert np.isnan(cosines[0]).all()
    assert np.isnan(cosines[:, 0]).all()
    assert not np.isnan(cosines[1:, 1:]).any()
    assert measures.mean_directional_similarity(cosines) == 0.5
    assert measures.effective_rank(cosines) == pytest.approx(2)
    assert measures.participation_ratio(cosines) == 2
    assert measures.top1_share(cosines) == 0.5
    np.testing.assert_array_equal(np.isnan(measures.angle_map(cosines)), np.isnan(cosines))


def test_angle_map():
    cosines = np.array([[1.0, 0.5, np.nan], [0.5, 1.0 + 1e-15, -1.0], [np.nan, -1.0 - 1e-15, 0.0]])
    expected = [[0, 60, np.nan], [60, 0, 180], [np.nan, 180, 90]]
    np.testing.assert_allclose(measures.angle_map(cosines), expected, atol=1e-12)
    thetas = random_walk(6)
    np.testing.assert_allclose(
        measures.angle_map(measures.trajectory_map(thetas @ thetas.T)), reference.angle_map(thetas), atol=1e-5
    )


def test_heterogeneity():
    assert measures.heterogeneity([0.5, 0.9, 0.6]) == reference.heterogeneity([0.5, 0.9, 0.6])
    assert measures.heterogeneity([0.5, np.nan, 0.6]) == pytest.approx(0.1)
    assert math.isnan(measures.heterogeneity([0.5, np.nan]))
    assert math.isnan(measures.heterogeneity([]))


def test_saturation_counts_from_the_last_time_the_direction_was_elsewhere():
    # Towards the end, away from it, and back: only the second arrival counts.
    displacements = np.array([[0, 0], [1, 0], [0, 1], [1, 0.1], [2, 0]])
    gram = displacements @ displacements.T
    assert measures.saturation(gram, [100, 110, 120, 150, 200]) == 0.5
    assert measures.saturation(gram, [100, 110, 120, 150, 200], threshold=-1) == 0.1
    assert math.isnan(measures.saturation(gram, [7] * 5))  # no step was taken
    assert measures.saturation_index(gram) == 3
    assert measures.saturation_index(gram, threshold=-1) == 1
    assert measures.saturation_index(np.zeros((3, 3))) is None


def test_direction_drift_takes_the_last_of_its_window():
    displacements = np.array([[0, 0], [0, 1], [0, 1], [1, 0], [1, 0]])
    gram = displacements @ displacements.T
    assert [measures.direction_drift(gram, window) for window in (1, 2, 3, 99)] == pytest.approx(
        [0, 1 / 2, 2 / 3, 2 / 3]
    )


def test_pca_coordinates():
    thetas = random_walk(9)
    coordinates, ratios = measures.pca(thetas @ thetas.T)
    expected, expected_ratios = reference.pca(thetas, 8)
    np.testing.assert_allclose(coordinates, expected, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(ratios, expected_ratios, rtol=1e-9)


# Properties


@given(st.integers(0, 2**32 - 1), st.integers(2, 10), st.floats(-3, 1))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_ranges_and_invariance(seed, n, log_scale):
    thetas = random_walk(n, 12, seed, 10**log_scale)
    gram = thetas @ thetas.T
    for make_map in KINDS.values():
        cosines = make_map(gram)
        size = len(cosines)
        np.testing.assert_array_equal(cosines, cosines.T)
        assert np.abs(cosines).max() <= 1
        np.testing.assert_array_equal(np.diagonal(cosines), 1)
        assert 0 <= measures.mean_directional_similarity(cosines) <= 1
        for measure in (measures.effective_rank, measures.participation_ratio):
            assert 1 - 1e-12 <= measure(cosines) <= size * (1 + 1e-12)
        assert 1 / size - 1e-12 <= measures.top1_share(cosines) <= 1
    assert measures.tortuosity(gram) >= 1 - 1e-12
    assert measures.path_length(gram) >= measures.displacement(gram)[-1] * (1 - 1e-12)
    assert 0 <= measures.saturation(gram, range(n)) <= 1
    assert 0 <= measures.cone_angle(gram) <= 180
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((12, 12)))
    rotated = 1000 * thetas @ rotation
    for name, (measure, _) in {**SERIES_AND_SCALARS, **ANGLES}.items():
        length = name in {"parameter_norm", "displacement", "update_length", "path_length", "oscillation_step_length"}
        expected = np.multiply(measure(gram), 1000 if length else 1)
        np.testing.assert_allclose(measure(rotated @ rotated.T), expected, rtol=1e-6, atol=1e-6, err_msg=name)


def test_gram_matrices_of_disjoint_blocks_add_up():
    thetas = random_walk(7, 300)
    first, second = thetas[:, :113], thetas[:, 113:]
    check_all(first @ first.T + second @ second.T, thetas)


# Bad input

OF_GRAM = {
    **{name: pair[0] for name, pair in {**SERIES_AND_SCALARS, **ANGLES, **MATRICES}.items()},
    "saturation": lambda gram: measures.saturation(gram, range(3)),
    "pca": measures.pca,
}
OF_COSINES = {"angle_map": measures.angle_map, **{name: pair[0] for name, pair in OF_A_MAP.items()}}


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 2, 2), ()])
@pytest.mark.parametrize("name", [*OF_GRAM, *OF_COSINES])
def test_wrong_shapes_are_named_with_the_remedy(name, shape):
    argument, remedy = ("gram", "rows @ rows.T") if name in OF_GRAM else ("cosines", "trajectory_map(gram)")
    with pytest.raises(ValueError, match=f"^{argument} must be a square matrix") as error:
        {**OF_GRAM, **OF_COSINES}[name](np.zeros(shape))
    assert f"got shape {list(shape)}" in str(error.value)
    assert remedy in str(error.value)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda g: measures.trajectory_map(1j * g), TypeError, "gram must hold real numbers, got complex"),
        (lambda g: measures.trajectory_map("nothing"), TypeError, "gram must be an array of real numbers"),
        (lambda g: measures.relative_gram(g, 3), ValueError, "tau must be one of the 3 snapshots.* got 3"),
        (lambda g: measures.relative_gram(g, -4), ValueError, "tau must be one of the 3 snapshots.* got -4"),
        (lambda g: measures.relative_gram(g, 0.5), TypeError, "tau must be an integer, got 0.5"),
        (
            lambda g: measures.saturation(g, [0, 1]),
            ValueError,
            "steps must hold one step .* 3 snapshots.* got 2",
        ),
        (lambda g: measures.saturation(g, [[0, 1, 2]]), ValueError, r"steps must be .* got shape \[1, 3\]"),
        (lambda g: measures.saturation(g, [0, 1, 2], 90), ValueError, "threshold must be a cosine.* got 90"),
        (lambda g: measures.direction_drift(g, 0), ValueError, "window must be at least one .* got 0"),
        (lambda g: measures.direction_drift(g, 2.5), TypeError, "window must be an integer, got 2.5"),
        (
            lambda g: measures.heterogeneity([[0.1]]),
            ValueError,
            r"similarities must be .* got shape \[1, 1\]",
        ),
        (lambda g: measures.random_walk_first_ratio(0), ValueError, "n must be .* at least 1, got 0"),
    ],
)
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call(np.eye(3))


def test_input_is_left_as_it_is():
    gram = np.array([[1.0, 1.0, 0.5], [1.0, 1.0, 0.5], [0.5, 0.5, 2.0]])
    before = gram.copy()
    gram.flags.writeable = False
    for measure in OF_GRAM.values():
        measure(gram)
    np.testing.assert_array_equal(gram, before)


def test_importing_measures_loads_neither_torch_nor_lightning():
    program = (
        "import sys; import lightning_traj.measures; "
        "print(sorted({'torch', 'lightning', 'pytorch_lightning', 'torchmetrics'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_oscillation_from_inner_products_that_add_up():
    thetas = random_walk(9)
    halves = [np.diff(thetas[:, part], axis=0) for part in (slice(0, 100), slice(100, None))]
    squares = sum((u**2).sum(axis=1) for u in halves)
    products = sum((u[1:] * u[:-1]).sum(axis=1) for u in halves)
    total = sum((u.sum(axis=0) ** 2).sum() for u in halves)
    found = measures.oscillation(squares, products, total)
    for name in ("cosine", "reversals", "linearity", "step_length"):
        assert getattr(found, name) == pytest.approx(getattr(reference, f"oscillation_{name}")(thetas), rel=1e-12)


def test_zigzag_of_gradient_descent_on_a_quadratic():
    """Steps of x <- x - lr * h * x shrink or grow by r = 1 - lr * h, and turn back where r is negative."""
    for curvature, cosine in ((0.5, 1.0), (1.9, -1.0)):
        r = 1 - curvature
        thetas = np.array([[3.0 * r**t, 0.0] for t in range(9)])
        found = measures.oscillation_cosine(thetas @ thetas.T)
        assert found == pytest.approx(cosine, abs=1e-6)
        steps_taken = [abs(3.0 * r**t * (r - 1)) for t in range(8)]
        linearity = abs(3.0 * (1 - r**8)) / sum(steps_taken)
        assert measures.oscillation_linearity(thetas @ thetas.T) == pytest.approx(linearity, rel=1e-6)
    # A steep and a flat direction: the cosine between two steps is (a² r_a + b² r_b) / (|u| |u'|).
    a, b, r_a, r_b = 1.0, 2.0, -0.9, 0.9
    thetas = np.array([[a * r_a**t, b * r_b**t] for t in range(2 + 1)])
    first = np.array([a * (r_a - 1), b * (r_b - 1)])
    second = first * [r_a, r_b]
    expected = first @ second / np.linalg.norm(first) / np.linalg.norm(second)
    assert measures.oscillation_cosine(thetas @ thetas.T) == pytest.approx(expected, abs=1e-12)


def test_inner_products_of_oscillation_have_to_match():
    with pytest.raises(ValueError, match="products must hold one entry less than squares, got 2 for 2"):
        measures.oscillation([1, 1], [0, 0], 1.0)
    assert math.isnan(measures.oscillation([], [], 0.0).cosine)
