"""A tracker in a training loop without Lightning records what the callback does under Lightning."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from lightning_traj import AtSteps, EveryNEpochs, EveryNSteps, LogSpaced, Trajectory, TrajectoryCallback
from lightning_traj.recording import Recorder, RecordingSettings, StepCounter, Tracker, Triggers, new_tracker
from lightning_traj.schedule import Schedule
from models import Module, batches
from trajectories import assert_same

EPOCHS = 3


class Adam(Module):
    """Has both moments."""

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.01)


class Guard:
    """Fails where something fails, and keeps warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def __call__(self, what: str, do: Callable[..., Any], *args: Any) -> None:
        do(*args)

    def warn(self, what: str, message: str) -> None:
        self.warnings.append(message)


@dataclass
class Loop:
    """A training loop of one's own, and its counts."""

    module: nn.Module
    optimizers: list[Any]
    epoch: int = 0
    epochs: float = 0.0
    is_last_batch: bool = False
    averaged: Any = None


def train(
    track: str, schedule: Schedule, state: Mapping[str, Any] | None = None, epochs: range = range(EPOCHS)
) -> tuple[Tracker, dict[str, Any]]:
    """Train as the Trainer of the tests does, with a tracker instead of a callback; also return a checkpoint."""
    torch.manual_seed(0)
    module = Adam()
    optimizer = module.configure_optimizers()
    if state is not None:
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
    counter, guard = StepCounter(), Guard()
    recorder = Recorder(RecordingSettings(track=track, sketch_dim=16, window=8 if track == "weights" else 0))
    tracker = new_tracker(recorder, Triggers(schedule, EveryNEpochs(1)), counter, guard)
    loop = Loop(module, [optimizer], epoch=epochs.start, epochs=float(epochs.start))
    introduced: list[int] = []
    tracker.quantity.parameters.of(module)
    tracker.attach(loop, lambda: introduced.append(counter.count))
    if state is not None:
        tracker.load_state_dict(state["tracker"])
    assert tracker.prepare().startswith("recording 4 blocks")
    counter.start([optimizer], counter.count, say=print, before=tracker.before_step, after=tracker.after_step)
    tracker.begin(loop.epochs, resumed=state is not None)
    data = batches(alike=True)
    for loop.epoch in epochs:
        for i, batch in enumerate(data):
            loop.is_last_batch, loop.epochs = i + 1 == len(data), loop.epoch + (i + 1) / len(data)
            counter.batch_starts([optimizer])
            optimizer.zero_grad()
            module.loss(batch).backward()
            optimizer.step()
            counter.follow(counter.count)
            tracker.batch_ends()
        tracker.epoch_ends()
    assert introduced == ([] if tracker.quantity.at_steps else [0 if state is None else 4 * epochs.start])
    assert guard.warnings == []
    saved = {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "tracker": tracker.state_dict()}
    counter.stop()
    tracker.stop()
    assert not hasattr(tracker, "run")
    return tracker, copy.deepcopy(saved)


def trajectory(tracker: Tracker) -> Trajectory:
    found, dropped = tracker.recorder.collect()
    assert not dropped
    return found


SCHEDULES = [EveryNEpochs(1), EveryNSteps(3), LogSpaced(4) | EveryNEpochs(2), AtSteps([2, 5])]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("track", ["weights", "gradient", "update", "first_moment", "second_moment"])
def test_a_plain_loop_gives_the_trajectory_of_the_callback(fit: Any, track: str, schedule: Schedule) -> None:
    torch.manual_seed(0)
    callback = TrajectoryCallback(track=track, schedule=schedule, sketch_dim=16)
    fit(callback, module=Adam, max_epochs=EPOCHS, data=batches(alike=True))
    tracker, _ = train(track, schedule)
    assert_same(trajectory(tracker), callback.trajectory)


@pytest.mark.parametrize("track", ["weights", "gradient"])
def test_a_plain_loop_goes_on(track: str) -> None:
    whole, _ = train(track, EveryNEpochs(1))
    _, saved = train(track, EveryNEpochs(1), epochs=range(2))
    resumed, _ = train(track, EveryNEpochs(1), saved, range(2, EPOCHS))
    assert_same(trajectory(resumed), trajectory(whole))
    with pytest.raises(ValueError, match=r"schedule=EveryNSteps\(n=2\) differs from schedule=EveryNEpochs\(n=1\)"):
        train(track, EveryNSteps(2), saved)
