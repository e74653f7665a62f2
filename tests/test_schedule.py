"""When a snapshot is due."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_traj.schedule import AtEpochs, AtSteps, EveryNEpochs, EveryNSteps, LogSpaced, Schedule

COUNT = 60  # steps and epochs that are asked about

counts = st.integers(1, COUNT)
lists = st.lists(counts, min_size=1, max_size=8)


def multiples(n):
    return {i for i in range(1, COUNT + 1) if i % n == 0}


def log_spaced(cap, base):
    """1, base, base², … below the cap, and its multiples."""
    steps, step = set(), 1
    while step < cap:
        steps.add(step)
        step *= base
    return {step for step in steps | multiples(cap) if step <= COUNT}


# A schedule with the steps and the epochs that it stands for, by a plain enumeration.
simple = st.one_of(
    st.builds(lambda n: (EveryNEpochs(n), set(), multiples(n)), counts),
    st.builds(lambda n: (EveryNSteps(n), multiples(n), set()), counts),
    st.builds(lambda c, b: (LogSpaced(c, b), log_spaced(c, b), set()), st.integers(1, 200), st.integers(2, 7)),
    st.builds(lambda steps: (AtSteps(steps), set(steps), set()), lists),
    st.builds(lambda epochs: (AtEpochs(epochs), set(), set(epochs)), lists),
)
schedules = st.recursive(
    simple,
    lambda inner: st.builds(lambda a, b: (a[0] | b[0], a[1] | b[1], a[2] | b[2]), inner, inner),
    max_leaves=5,
)


@given(schedules)
def test_schedules_are_what_they_enumerate(case):
    schedule, steps, epochs = case
    assert isinstance(schedule, Schedule)
    assert {step for step in range(1, COUNT + 1) if schedule.due_after_step(step)} == steps
    assert {epoch for epoch in range(1, COUNT + 1) if schedule.due_after_epoch(epoch)} == epochs
    # A resumed run compares them by what they say: equal settings, equal words.
    assert copy.deepcopy(schedule) == schedule
    assert repr(eval(repr(schedule))) == repr(schedule)


@given(lists, st.integers(0, 2 * COUNT))
def test_lists_know_when_they_begin(values, length):
    assert AtSteps(values).begins_by(length, 0) == any(value <= length for value in values)
    assert AtEpochs(values).begins_by(0, length) == any(value <= length for value in values)
    assert EveryNSteps(7).begins_by(length, 0)
    both = AtEpochs([COUNT]) | AtSteps(values)
    assert both.begins_by(length, 0) == AtSteps(values).begins_by(length, 0)  # one that begins is enough


def test_the_steps_of_pythias_checkpoints():
    steps = [step for step in range(1, 5001) if LogSpaced(1000).due_after_step(step)]
    assert steps == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 2000, 3000, 4000, 5000]


def test_each_epoch_is_the_default():
    assert EveryNEpochs() == EveryNEpochs(1)


def test_the_order_of_a_union_does_not_count():
    assert EveryNSteps(3) | AtSteps([1]) == AtSteps([1]) | EveryNSteps(3) | AtSteps([1])
    assert repr(EveryNSteps(3) | EveryNEpochs(2)) == "EveryNEpochs(n=2) | EveryNSteps(n=3)"


def test_integers_of_numpy():
    assert AtSteps(np.arange(1, 4)) == AtSteps([1, 2, 3])
    with pytest.raises(TypeError, match="True is not an integer"):
        AtSteps([True])


def test_lists_are_sorted_sets():
    assert AtSteps([5, 1, 5]) == AtSteps((1, 5))
    assert repr(AtEpochs(range(1, 4))) == "AtEpochs(epochs=(1, 2, 3))"


@pytest.mark.parametrize("schedule", [EveryNEpochs, EveryNSteps])
@pytest.mark.parametrize(
    ("n", "error"), [(0, ValueError), (-2, ValueError), (1.0, TypeError), ("3", TypeError), (True, TypeError)]
)
def test_bad_intervals_are_named(schedule, n, error):
    with pytest.raises(error, match=rf"{schedule.__name__}\(n={n!r}\): pass a positive int"):
        schedule(n)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: LogSpaced(0), ValueError, r"LogSpaced\(cap=0\): pass a positive int"),
        (lambda: LogSpaced(10, 1), ValueError, r"LogSpaced\(base=1\): pass an int of at least 2"),
        (lambda: LogSpaced(2.5), TypeError, r"LogSpaced\(cap=2.5\): pass a positive int"),
        (lambda: AtSteps([]), ValueError, r"AtSteps\(steps=\[\]\) is never due: name at least one"),
        (lambda: AtSteps([3, 0]), ValueError, "0 is below 1, and the first one is 1"),
        (lambda: AtEpochs([1.5]), TypeError, "1.5 is not an integer"),
        (lambda: AtEpochs("12"), TypeError, r"AtEpochs\(epochs='12'\): pass a list of integers"),
        (lambda: AtEpochs(3), TypeError, r"AtEpochs\(epochs=3\): pass a list of integers, such as AtEpochs"),
        (lambda: EveryNSteps(1) | 5, TypeError, r"EveryNSteps\(n=1\) \| 5: the right side is not a schedule"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_what_answers_no_questions_is_no_schedule():
    assert not isinstance(5, Schedule)
