"""When a snapshot is due."""

from __future__ import annotations

import copy

import pytest

from lightning_traj.schedule import EveryNEpochs, EveryNSteps, Schedule

SCHEDULES = {
    "every epoch": (EveryNEpochs(1), [], [1, 2, 3, 4, 5, 6, 7]),
    "every third epoch": (EveryNEpochs(3), [], [3, 6]),
    "every step": (EveryNSteps(1), [1, 2, 3, 4, 5, 6, 7], []),
    "every fourth step": (EveryNSteps(4), [4], []),
    "rarely": (EveryNSteps(100), [], []),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name):
    schedule, steps, epochs = SCHEDULES[name]
    assert isinstance(schedule, Schedule)
    assert [step for step in range(1, 8) if schedule.due_after_step(step)] == steps
    assert [epoch for epoch in range(1, 8) if schedule.due_after_epoch(epoch)] == epochs
    # A resumed run compares them by what they say: equal settings, equal words.
    assert copy.deepcopy(schedule) == schedule
    assert repr(copy.deepcopy(schedule)) == repr(schedule)


def test_each_epoch_is_the_default():
    assert EveryNEpochs() == EveryNEpochs(1)


@pytest.mark.parametrize("schedule", [EveryNEpochs, EveryNSteps])
@pytest.mark.parametrize(
    ("n", "error"), [(0, ValueError), (-2, ValueError), (1.0, TypeError), ("3", TypeError), (True, TypeError)]
)
def test_bad_intervals_are_named(schedule, n, error):
    with pytest.raises(error, match=rf"{schedule.__name__}\(n={n!r}\): n .*{schedule.__name__}\(1\)"):
        schedule(n)


def test_what_answers_no_questions_is_no_schedule():
    assert not isinstance(5, Schedule)
