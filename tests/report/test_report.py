"""Tables and sentences for people."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rich.console import Console

from lightning_traj.plots import trajectory as plot
from lightning_traj.recording.recorder import Recorder
from lightning_traj.report import summary as report
from lightning_traj.trajectory.times import Times


def trajectory_of(thetas, per_epoch=1):
    recorder = Recorder()
    for t, theta in enumerate(np.asarray(thetas, dtype=np.float64)):
        recorder.record(
            {"net.fc1.weight": torch.tensor(theta), "net.fc1.bias": torch.tensor(theta[:2] * 2)}, t, t / per_epoch
        )
    return recorder.collect()[0]


def turning(angles):
    """Displacements of growing length in these directions, in degrees."""
    radians = np.radians(angles)
    steps = np.arange(1, len(angles) + 1)
    path = np.stack([steps * np.cos(radians), steps * np.sin(radians)], axis=1)
    return np.concatenate([np.zeros((1, 2)), path]) + np.array([5.0, 3.0])


@pytest.mark.parametrize(
    ("angles", "sentence"),
    [
        # 8.11 degrees are a cosine of 0.99
        ([90, 40, 9, 8, 3, 0], "was within 1 % of its final one from epoch 4 of 6 on."),
        ([3, 90, 1, 0], "was within 1 % of its final one from epoch 3 of 4 on."),
        ([0, 0, 0], "was within 1 % of its final one from epoch 1 of 3 on."),
        ([90, 60, 30, 0], "still changed by more than 1 % before the last snapshot, at epoch 4."),
    ],
)
def test_from_when_on_the_direction_was_found(angles, sentence):
    assert report.suggestion(trajectory_of(turning(angles))) == f"The direction from θ_0 {sentence}"


def test_nothing_is_suggested_without_a_path():
    assert report.suggestion(trajectory_of(turning([0]))) == ""
    assert report.suggestion(trajectory_of([[1.0, 2.0]] * 4)) == ""


def test_fractions_of_epochs():
    said = report.suggestion(trajectory_of(turning([90, 40, 9, 8, 3, 0]), per_epoch=4))
    assert said.endswith("from epoch 1 of 1.5 on.")


def test_table_by_group():
    trajectory = trajectory_of(turning([90, 40, 9, 8]))
    console = Console(width=140, record=True)
    console.print(report.group_table(trajectory, "block"))
    printed = console.export_text()
    assert "Trajectory by block" in printed
    assert "all 2 blocks, 4 parameters" in printed
    row = next(line for line in printed.splitlines() if "net.fc1.bias" in line)
    columns, _ = report.group_rows(trajectory, "block")
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    values = trajectory.summary("net.fc1.bias")
    assert cells[1:3] == ["1", "2"]
    assert cells[3] == f"{values['mds']:.4g}"
    assert cells[columns.index("oscillation_cosine")] == ""  # no window of single steps


def test_a_stream_is_counted_in_steps():
    recorder = Recorder()
    for t, theta in enumerate(turning([90, 40, 9, 8, 3, 0])):
        recorder.record({"w": torch.tensor(theta)}, 5000 * t, 0.0)
    assert report.suggestion(recorder.collect()[0]).endswith("from step 20,000 of 30,000 on.")


def test_sentences_and_charts_count_by_the_same_unit():
    """Data without a length has whole epochs only: several snapshots of one step schedule share them."""
    recorder = Recorder()
    for t, (theta, epoch) in enumerate(zip(turning([90, 40, 9, 8, 3, 0]), [0, 0, 0, 1, 1, 2, 2], strict=True)):
        recorder.record({"w": torch.tensor(theta)}, 10 * t, float(epoch))
    trajectory = recorder.collect()[0]
    assert plot.trajectory_map(trajectory).axes[0].get_ylabel() == Times(trajectory).unit == "step"
    assert report.suggestion(trajectory).endswith("from step 40 of 60 on.")
    assert report.saturated_at(trajectory) == "step 30"
