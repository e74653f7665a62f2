"""The contract of steps, windows, quantities and freezing, for every optimizer of the registry.

The expected values are those of a witness in the module itself, which copies the parameters around each step.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_traj import AtSteps, EveryNEpochs, EveryNSteps, HybridTraining, Trajectory, TrajectoryCallback
from lightning_traj.recording import Training
from lightning_traj.recording.quantities.registry import quantity
from models import BATCHES
from optimizers import REGISTRY, REQUIRED, SPARSE, TORCH, Entry, Stepping, dense_torch_classes

EPOCHS, WINDOW = 2, 3
FOLLOWS = "counted by trainer.global_step"


def test_the_registry_is_whole() -> None:
    assert REGISTRY.keys() >= REQUIRED
    assert dense_torch_classes() == TORCH.keys() | SPARSE, "give new optimizers of torch an entry"


@pytest.fixture(params=REGISTRY)
def entry(request: pytest.FixtureRequest) -> Entry:
    return REGISTRY[request.param]


def train(fit: Any, entry: Entry, *callbacks: Any) -> Stepping:
    def module() -> Stepping:
        made = entry.module(entry.make)
        made.moments = entry.moments
        return made

    trainer = fit(*callbacks, module=module, max_epochs=EPOCHS, **entry.settings)
    trained: Stepping = trainer.lightning_module
    assert len(trained.moves) == entry.steps * EPOCHS * BATCHES
    return trained


def flat(tensors: list[Tensor]) -> np.ndarray:
    return torch.cat([tensor.detach().double().flatten() for tensor in tensors]).numpy()


def rows(snapshots: list[list[Tensor | None]]) -> np.ndarray:
    """Snapshots one below the other, of the parameters that have values in them."""
    having = [i for i in range(len(snapshots[0])) if snapshots[0][i] is not None]
    return np.stack([flat([snapshot[i] for i in having]) for snapshot in snapshots])


def test_steps_quantities_and_windows(fit: Any, entry: Entry, caplog: Any) -> None:
    callbacks = {
        track: TrajectoryCallback(
            track=track, schedule=EveryNSteps(1) | EveryNEpochs(1), window=WINDOW if track == "weights" else None
        )
        for track in ("weights", "gradient", "update", *entry.moments)
    }
    with caplog.at_level(logging.INFO):
        module = train(fit, entry, *callbacks.values())
    assert (FOLLOWS in caplog.text) == entry.says
    expected = {
        "weights": rows([module.moves[0][0], *(after for _, _, after in module.moves)]),
        "gradient": rows([gradients for _, gradients, _ in module.moves]),
        "update": np.stack([flat(after) - flat(before) for before, _, after in module.moves]),
        **{name: rows([kept[name] for kept in module.kept]) for name in entry.moments},
    }
    for track, callback in callbacks.items():
        trajectory, wanted = callback.trajectory, expected[track]
        assert trajectory.steps.tolist() == list(range(track != "weights", len(module.moves) + 1)), track
        gram = wanted @ wanted.T
        np.testing.assert_allclose(trajectory.gram("*"), gram, rtol=1e-5, atol=1e-5 * np.abs(gram).max(), err_msg=track)
    assert_windows_are_of_the_steps_alone(callbacks["weights"].trajectory, module, entry.steps * BATCHES)


def assert_windows_are_of_the_steps_alone(trajectory: Trajectory, module: Stepping, an_epoch: int) -> None:
    windows = trajectory.windows
    starts = [epoch * an_epoch for epoch in range(EPOCHS)]
    assert list(zip(windows.steps, windows.counts, strict=True)) == [(start + WINDOW, WINDOW) for start in starts]
    everything = list(range(len(trajectory.blocks)))
    for index, start in enumerate(starts):
        steps = [flat(after) - flat(before) for before, _, after in module.moves[start : start + WINDOW]]
        sums = np.cumsum(steps, axis=0)
        products = [0.0, *(a @ b for a, b in zip(steps[1:], steps, strict=False))]
        expected = np.array([[u @ u for u in steps], products, [u @ u for u in sums]])
        np.testing.assert_allclose(windows.of(everything, index), expected, rtol=1e-6, atol=1e-9 * expected.max())


def test_freezing_by_steps(fit: Any, entry: Entry) -> None:
    hybrid = HybridTraining(train="net.2.*", when=AtSteps([5]))
    if not entry.freezes:
        with pytest.raises(ValueError, match="LBFGS"):
            train(fit, entry, hybrid)
        return
    module = train(fit, entry, hybrid)
    (event,) = hybrid.timeline.events
    assert event.step == -(-5 // entry.steps) * entry.steps  # it acts when a batch begins
    frozen = [i for i, (name, _) in enumerate(module.named_parameters()) if name.startswith("net.0")]
    moved = [any(not torch.equal(before[i], after[i]) for i in frozen) for before, _, after in module.moves]
    assert any(moved[: event.step])
    assert not any(moved[event.step :])


def test_moments_that_are_not_kept_are_refused_before_training(entry: Entry) -> None:
    module = entry.module(entry.make)
    training = Training(module, [module.configure_optimizers()])
    for track in ("first_moment", "second_moment"):
        if track in entry.moments:
            quantity(track).check(training)
        else:
            with pytest.raises(ValueError, match=f"track='{track}': .* keeps no such moment; use an optimizer that"):
                quantity(track).check(training)
