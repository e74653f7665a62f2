"""When conditions hold, what they remember, and what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lightning_traj import After, AtEpochs, AtSteps, EveryNEpochs, Plateau, Threshold, Trajectory
from lightning_traj.hybrid.conditions import ConditionContext, as_condition
from lightning_traj.hybrid.decisions import Decisions
from lightning_traj.hybrid.groups import Group
from lightning_traj.recording.recorder import Recorder
from lightning_traj.recording.settings import RecordingSettings

GROUPS = {name: Group((name,), frozenset([name])) for name in ("turning", "straight")}


def trajectory(epochs: int = 8) -> Trajectory:
    """Of a parameter that turns by 40 degrees an epoch as seen from θ_0, and of one that goes straight on."""
    recorder = Recorder(RecordingSettings(window=0))
    for t in range(epochs + 1):
        angle = np.radians(40.0 * t)
        turning = t * torch.tensor([np.cos(angle), np.sin(angle)])
        recorder.record({"turning": 1 + turning, "straight": torch.tensor([1.0, 2.0]) + t}, 10 * t, float(t))
    return recorder.collect()[0]


def seen(
    epoch: int, changed: int = -1, group: str = "straight", values: Any = (), n: int | None = None
) -> ConditionContext:
    return ConditionContext(epoch, changed, trajectory(epoch if n is None else n), GROUPS[group].has, values)


def test_a_group_is_judged_by_its_own_trajectory() -> None:
    drift = Threshold("direction_drift", below=0.1)
    assert drift.holds(seen(8, group="straight"))
    assert not drift.holds(seen(8, group="turning"))
    assert Threshold("direction_drift", above=0.1).holds(seen(8, group="turning"))
    expected = 1 - np.mean(np.cos(np.radians(40.0 * np.arange(1, 6))))  # of rows in float32
    assert Threshold("direction_drift", above=expected - 1e-6).holds(seen(8, group="turning"))
    assert not Threshold("direction_drift", above=expected + 1e-6).holds(seen(8, group="turning"))


@pytest.mark.parametrize("measure", ["mds", "saturation", "path_length", "tortuosity"])
def test_any_measure_will_do(measure: str) -> None:
    value = trajectory().summary("straight")[measure]
    assert Threshold(measure, below=value + 1e-6).holds(seen(8))
    assert not Threshold(measure, above=value + 1e-6).holds(seen(8))


def test_so_many_snapshots_in_a_row_since_the_last_change() -> None:
    drift = Threshold("direction_drift", below=0.1, snapshots=3)
    assert [drift.holds(seen(epoch)) for epoch in (2, 3, 4, 5)] == [False, False, True, True]  # undefined with one
    mds = Threshold("mds", above=0.1, snapshots=3)
    assert [mds.holds(seen(8, changed)) for changed in (3, 5, 6)] == [True, True, False]
    assert [drift.holds(seen(8, changed)) for changed in (0, 1, 2)] == [True, True, False]  # looks back on five


@pytest.mark.parametrize("pause", [2, 6])
def test_a_layer_is_not_judged_by_its_own_standing_still(pause: int) -> None:
    """One that turns by 5 degrees an epoch has a drift of 0.041: it never qualifies, also not after a pause."""
    frozen, thawed = 8, 8 + pause
    recorder, angles = Recorder(RecordingSettings(window=0)), [0.0]
    for t in range(24):
        angle = np.radians(angles[-1])
        displacement = torch.tensor([np.cos(angle), np.sin(angle)]) * (t > 0)
        recorder.record({"straight": 1 + displacement.float()}, 10 * t, float(t))
        angles.append(angles[-1] + 5.0 * (not frozen <= t < thawed))
        if t > thawed:
            held = ConditionContext(t, thawed, recorder.collect()[0], GROUPS["straight"].has, ())
            assert not Threshold("direction_drift", below=0.03, snapshots=2).holds(held)
    series = recorder.collect()[0].series(names=["direction_drift"])["direction_drift"]
    assert series[frozen] == pytest.approx(0.0414, abs=1e-3) == series[thawed + 5]
    assert series[thawed + 1 : thawed + 3].max() < 0.03  # what it would have been judged by


def test_series_of_a_few_measures_and_the_latest_snapshots_are_those_of_all() -> None:
    whole, part = trajectory().series("turning"), trajectory().series("turning", ["mds", "turn"], last=3)
    assert list(part) == ["mds", "turn"]
    for name, values in part.items():
        np.testing.assert_array_equal(values, whole[name][-3:])
    assert len(trajectory().series(last=100)["mds"]) == 9


@pytest.mark.parametrize(
    ("values", "holds"),
    [
        ([], False),
        ([3.0, 3.0], False),
        ([3.0, 3.0, 3.0], True),  # two that are no better than the best before
        ([3.0, 2.0, 2.5, 2.2], True),
        ([3.0, 2.0, 2.5, 1.9], False),
        ([3.0, 2.0, 1.99, 1.98], True),  # less than min_delta better
    ],
)
def test_plateau(values: list[float], holds: bool) -> None:
    assert Plateau("loss", patience=2, min_delta=0.05).holds(seen(8, values=values)) is holds
    flipped = [-value for value in values]
    assert Plateau("loss", patience=2, min_delta=0.05, mode="max").holds(seen(8, values=flipped)) is holds


def test_after() -> None:
    assert [After(2).holds(seen(epoch, -1)) for epoch in (1, 2, 3)] == [False, True, True]
    assert [After(2).holds(seen(epoch, 5)) for epoch in (6, 7, 8)] == [False, True, True]


def changes(when: Any, thaw: Any, epochs: int, steps: int = 10) -> list[tuple[int, str]]:
    """Epochs, or steps, at which one group is frozen and thawed by turns."""
    decisions = Decisions(as_condition("when", when), as_condition("thaw", thaw))
    groups, frozen, log = {"straight": GROUPS["straight"]}, set[str](), []

    def change(labels: list[str], at: int, epoch: int) -> None:
        for label in labels:
            log.append((at, "thaw" if label in frozen else "freeze"))
            frozen.symmetric_difference_update([label])
            decisions.changed[label] = epoch

    for epoch in range(epochs):
        change(decisions.at_epoch(epoch, groups, frozen, None), epoch, epoch)
        for step in range(epoch * steps + 1, (epoch + 1) * steps):
            change(decisions.after_steps(step, groups, frozen), step, epoch)
    return log


@pytest.mark.parametrize(
    ("when", "thaw", "expected"),
    [
        (3, None, [(3, "freeze")]),
        (0, None, [(0, "freeze")]),
        (2, 5, [(2, "freeze"), (5, "thaw")]),  # numbers act once
        (2, After(3), [(2, "freeze"), (5, "thaw")]),
        (After(2), After(3), [(2, "freeze"), (5, "thaw"), (7, "freeze")]),
        (AtEpochs([2, 6]), AtEpochs([4]), [(2, "freeze"), (4, "thaw"), (6, "freeze")]),
        (EveryNEpochs(2), EveryNEpochs(3), [(2, "freeze"), (3, "thaw"), (4, "freeze"), (6, "thaw")]),
        (AtSteps([15]), AtSteps([37]), [(15, "freeze"), (37, "thaw")]),
        (AtSteps([15]) | AtEpochs([5]), 3, [(15, "freeze"), (3, "thaw"), (5, "freeze")]),
    ],
)
def test_changes_over_a_run(when: Any, thaw: Any, expected: list[tuple[int, str]]) -> None:
    assert changes(when, thaw, epochs=8) == expected


def test_steps_are_asked_about_one_by_one() -> None:
    decisions = Decisions(as_condition("when", AtSteps([5])), None)
    assert decisions.after_steps(3, GROUPS, ()) == []
    assert decisions.after_steps(7, GROUPS, ()) == list(GROUPS)  # two optimizers, each with steps of its own
    assert decisions.after_steps(8, GROUPS, ()) == []


def test_monitors_are_remembered_since_the_last_change() -> None:
    decisions = Decisions(as_condition("when", 1), Plateau("loss", patience=2))
    decisions.conditions.pop("when")
    decisions.changed["straight"] = 3
    held = []
    for epoch, value in enumerate([9.0, 1.0, 1.0, 1.0, 5.0, float("nan"), 5.0, 5.0]):
        decisions.monitors.pending["loss"] = value
        decisions.monitors.note(epoch)
        held.append(bool(decisions.at_epoch(epoch, {"straight": GROUPS["straight"]}, ["straight"], None)))
        decisions.load_state_dict(decisions.state_dict())
    assert held == [False] * 7 + [True]
    assert decisions.monitors.missing == []
    assert Decisions(None, Plateau("other")).monitors.missing == ["other"]


WRONG: dict[str, tuple[Any, str]] = {
    "unknown measure": (lambda: Threshold("direction_drif", below=1), "close to it: 'direction_drift'"),
    "no value": (lambda: Threshold("mds"), "pass one of below and above"),
    "two values": (lambda: Threshold("mds", below=1, above=0), "pass one of below and above"),
    "no snapshots": (lambda: Threshold("mds", below=1, snapshots=0), r"Threshold\(snapshots=0\): pass a positive int"),
    "half a snapshot": (lambda: Threshold("mds", below=1, snapshots=0.5), r"snapshots=0\.5\): pass a positive int"),  # type: ignore[arg-type]
    "patience": (lambda: Plateau("loss", patience=0), r"patience=0\): pass a positive int"),
    "mode": (lambda: Plateau("loss", mode="least"), "pass 'min' or 'max'"),  # type: ignore[arg-type]
    "after": (lambda: After(0), r"After\(epochs=0\): pass a positive int"),
    "a negative epoch": (lambda: as_condition("thaw", -1), "thaw=-1: epochs are counted from 0"),
    "a share": (lambda: as_condition("when", 0.5), "when=0.5: pass an epoch"),
    "a truth": (lambda: as_condition("when", True), "when=True: pass an epoch"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments(case: str) -> None:
    make, said = WRONG[case]
    with pytest.raises((ValueError, TypeError), match=said):
        make()


def test_in_words() -> None:
    conditions = [Threshold("mds", above=0.5, snapshots=3), Plateau("loss"), After(2)]
    others = [as_condition("when", 3), as_condition("when", AtSteps([7]))]
    assert [str(condition) for condition in [*conditions, *others]] == [
        "mds above 0.5 for 3 snapshots",
        "loss no better for 3 logged values",
        "after 2 epochs",
        "epoch 3",
        "AtSteps(steps=(7,))",
    ]
