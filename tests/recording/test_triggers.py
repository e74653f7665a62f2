"""When snapshots and windows are due, from counts alone."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from lightning_traj import AtEpochs, AtSteps, EveryNEpochs, EveryNSteps
from lightning_traj.recording.triggers import Triggers
from lightning_traj.schedule import Schedule


def triggers(schedule: Schedule) -> Triggers:
    return Triggers(schedule, EveryNEpochs(1))


def recorded(schedule: Schedule, epochs: int, steps: int, first: bool = True) -> list[int]:
    """Steps whose quantity is recorded over epochs of so many steps each, each step noticed by itself."""
    asked, found, kept = triggers(schedule), [], None
    asked.first_due = first
    for epoch in range(1, epochs + 1):
        for number in range(1, steps + 1):
            step = (epoch - 1) * steps + number
            expected = asked.expect_step(step, epoch if number == steps else None)
            assert asked.step_taken(step, 1) == expected
            if asked.step_due:
                found.append(step)
                asked.first_due = False
            elif asked.epoch_due:
                kept = step
            asked.step_over()
        if kept is not None:
            found.append(kept)
            kept = None
    return found


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (EveryNEpochs(1), [1, 4, 8, 12]),
        (EveryNEpochs(2), [1, 8]),
        (EveryNSteps(5), [1, 5, 10]),
        (AtSteps([8, 9]) | AtEpochs([2]), [1, 8, 9]),  # once, where a step and an epoch are due
        (AtEpochs([3]), [1, 12]),
    ],
)
def test_quantities_of_a_step(schedule: Schedule, expected: list[int]) -> None:
    assert recorded(schedule, epochs=3, steps=4) == expected
    assert recorded(schedule, epochs=3, steps=4, first=False) == expected[1:]


def test_the_first_one_stays_due_until_it_is_recorded() -> None:
    asked = triggers(AtSteps([9]))
    asked.first_due = True
    assert [asked.expect_step(step, None) for step in (1, 2)] == [True, True]
    asked.first_due = False
    assert [asked.expect_step(step, None) for step in (3, 9)] == [False, True]


def test_of_several_steps_noticed_at_once_any_one_may_be_due() -> None:
    asked = triggers(EveryNSteps(4))
    assert [asked.step_taken(6, number) for number in (1, 2, 3)] == [False, False, True]
    assert EveryNSteps(4).due_after_steps(6, 3)
    assert not EveryNSteps(4).due_after_steps(7, 3)


class Own(EveryNSteps):
    """A user's own schedule."""


class Unnamed(Schedule):
    """Without a repr of its own."""

    def __init__(self) -> None:
        self.anything = object()

    def due_after_step(self, step: int) -> bool:
        return False

    def due_after_epoch(self, epoch: int) -> bool:
        return False


def test_settings_are_words_that_are_the_same_in_every_process() -> None:
    assert triggers(AtSteps([3])).settings == {
        "schedule": "AtSteps(steps=(3,))",
        "window_schedule": "EveryNEpochs(n=1)",
    }
    assert triggers(Unnamed()).settings == triggers(Unnamed()).settings
    assert "0x" not in triggers(Unnamed()).settings["schedule"]


def test_ranks_compare_a_schedule_of_the_users_own_by_its_class_alone() -> None:
    assert triggers(Own(2)).settings_of_ranks == triggers(Own(3)).settings_of_ranks
    assert triggers(EveryNSteps(2)).settings_of_ranks != triggers(EveryNSteps(3)).settings_of_ranks


@pytest.mark.parametrize(("steps", "epochs", "wrong"), [(10, 3, False), (4, 2, True)])
def test_a_schedule_beyond_the_run(steps: float, epochs: float, wrong: bool) -> None:
    asked = triggers(AtSteps([5]) | AtEpochs([3]))
    if wrong:
        with pytest.raises(ValueError, match="none of these is within max_steps=4 and max_epochs=2"):
            asked.check(steps, epochs)
    else:
        asked.check(steps, epochs)


@pytest.mark.parametrize("module", ["triggers", "tracker", "trackers", "notices"])
def test_they_know_no_lightning(module: Any) -> None:
    program = f"import sys, lightning_traj.recording.{module}; print('lightning' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
