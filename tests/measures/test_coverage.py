"""Nominal 95 % intervals, made from sketches as they are in a run, cover the exact values about 95 % of the time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lightning_traj.measures.catalogue import MEASURES
from lightning_traj.recording.recorder import Recorder
from lightning_traj.recording.settings import RecordingSettings
from lightning_traj.sketch.countsketch import DEFAULT_DIM

pytestmark = pytest.mark.usefixtures("one_thread")

SEEDS = 240
DIM = DEFAULT_DIM
# Many times as long as a sketch, a few times, and kept whole.
SHAPES = {"conv.weight": (300, 250), "fc.weight": (100, 80), "head.weight": (30, 40), "norm.weight": (200,)}
CHANCE = 1e-4  # of each measure to fail although it covers exactly 95 %


def training(n=11):
    """Snapshots of a run: momentum, noise, the pull of a minimum, weight decay and a drop of the learning rate."""
    generator = torch.Generator().manual_seed(4)

    def noise():
        return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}

    theta, minimum, velocity = noise(), noise(), {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    theta["norm.weight"] = torch.ones(SHAPES["norm.weight"])
    snapshots = []
    for t in range(n):
        snapshots.append({name: tensor.clone() for name, tensor in theta.items()})
        rate = 0.15 if t < 6 else 0.03
        for name, step in noise().items():
            gradient = 0.5 * (theta[name] - minimum[name]) + 0.8 * step + 0.1 * theta[name]
            velocity[name] = 0.6 * velocity[name] - rate * gradient
            theta[name] = theta[name] + velocity[name]
    return snapshots


@pytest.fixture(scope="module")
def runs(recorded, tmp_path_factory):
    """The exact summary, and summary and standard errors of sketches over seeds."""
    snapshots = training()
    full, _ = recorded(snapshots, snapshot="full", folder=tmp_path_factory.mktemp("snapshots")).collect()
    sketched = []
    for seed in range(SEEDS):
        trajectory, _ = recorded(snapshots, Recorder(RecordingSettings(sketch_dim=DIM, seed=seed))).collect()
        sketched.append((trajectory.summary(), trajectory.standard_errors()))
    return full.summary(), sketched


def quantiles(chance):
    """Smallest and largest number of intervals of SEEDS that cover, but for `chance` on each side."""
    log = [math.lgamma(SEEDS + 1) - math.lgamma(i + 1) - math.lgamma(SEEDS - i + 1) for i in range(SEEDS + 1)]
    mass = np.exp([log[i] + i * math.log(0.95) + (SEEDS - i) * math.log(0.05) for i in range(SEEDS + 1)])
    assert mass.sum() == pytest.approx(1)
    return int(np.searchsorted(mass.cumsum(), chance)), SEEDS - int(np.searchsorted(mass[::-1].cumsum(), chance))


def coverage(name, runs, factor=1.0):
    exact, sketched = runs
    return sum(abs(values[name] - exact[name]) <= 1.96 * factor * errors[name] for values, errors in sketched)


@pytest.mark.parametrize("name", [name for name, measure in MEASURES.items() if measure.error])
def test_intervals_cover(name, runs):
    low, high = quantiles(CHANCE)
    assert low <= coverage(name, runs) <= high, coverage(name, runs) / SEEDS


def test_intervals_that_are_too_short_or_too_long_are_noticed(runs):
    low, high = quantiles(CHANCE)
    assert coverage("mds", runs, factor=0.7) < low
    assert coverage("mds", runs, factor=2) > high


def test_measures_without_an_interval_are_those_without_a_formula(runs):
    for _, errors in runs[1]:
        assert set(errors) == {name for name, measure in MEASURES.items() if measure.error}


def spread(name, recorded, snapshots, seeds=80, **settings):
    """Standard deviation of a measure over seeds, and the mean of its standard errors."""
    values, errors = [], []
    for seed in range(seeds):
        trajectory, _ = recorded(
            snapshots, Recorder(RecordingSettings(sketch_dim=128, seed=seed, **settings))
        ).collect()
        values.append(trajectory.summary()[name])
        errors.append(trajectory.standard_errors()[name])
    return np.std(values, ddof=1), np.mean(errors)


def test_errors_of_blocks_with_like_contents_average_out(recorded):
    """Norm gains are all ones and shrink alike: with one hash for all, their errors would add up instead."""
    snapshots = [{f"norm.{i}.weight": torch.full((512,), 1 - 0.1 * t) for i in range(40)} for t in range(4)]
    for name in ("param_norm", "displacement"):
        deviation, error = spread(name, recorded, snapshots)
        assert 0.6 < deviation / error < 1.5  # of 80 seeds: a chi distribution, to beyond five of its deviations


def test_errors_after_thinning_are_those_of_the_whole_path(recorded, walk):
    deviation, error = spread("tortuosity", recorded, walk({"w": (40, 30)}, 60), max_snapshots=8)
    assert 0.6 < deviation / error < 1.5
