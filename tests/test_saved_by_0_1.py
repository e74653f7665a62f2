"""Files that the first version wrote load for ever, with the values that they had then."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_traj import HybridTraining, Trajectory, TrajectoryCallback
from saved_by_0_1.make import HERE, Recorded, data, trainer

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings(
        "ignore:You're resuming from a checkpoint that ended before the epoch ended",
        "ignore:Be aware that when using `ckpt_path`, callbacks used to create the checkpoint",
    ),
]


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: Any) -> Any:
    """The Trainer of a run that goes on from the saved checkpoint: in its third of four epochs, at step 10 of 16."""
    folder = tmp_path_factory.mktemp("saved")
    shutil.copytree(HERE / "full-snapshots", folder / "full-snapshots")
    going_on = trainer(folder, epochs=4)
    going_on.fit(Recorded(), data(), ckpt_path=HERE / "run.ckpt")
    return going_on


def test_a_trajectory_file_loads_with_its_values() -> None:
    trajectory = Trajectory.load(HERE / "trajectory.safetensors")
    with np.load(HERE / "trajectory.npz") as expected:
        assert trajectory.steps.tolist() == expected["steps"].tolist() == [0, 4, 8, 12]
        summary = trajectory.summary()
        for name in set(expected.files) - {"steps"}:  # measures that came later have no value there
            # Angles of nearly parallel vectors lose digits to the rounding of their cosines.
            np.testing.assert_allclose(summary[name], expected[name], rtol=1e-9, atol=1e-9, err_msg=name)
    assert trajectory.settings["sketch_dim"] == 2048
    assert trajectory.sketches is not None
    assert trajectory.sketches.shape == (4, 2048 + 400 + 400 + 1)


@pytest.mark.parametrize(("which", "steps"), [(0, [0, 4, 8, 12, 16]), (1, [0, 2, 4, 6, 8, 10, 12, 14, 16])])
def test_a_checkpoint_goes_on(resumed: Any, which: int, steps: list[int]) -> None:
    callback = resumed.callbacks[which]
    assert isinstance(callback, TrajectoryCallback)
    trajectory = callback.trajectory
    with np.load(HERE / f"{callback.name}.npz") as expected:
        kept = [int(step) for step in expected["steps"] if step <= 10 and step % (4 - 2 * which) == 0]
        n = len(kept)
        assert trajectory.steps.tolist() == steps
        assert steps[:n] == kept
        gram = np.stack([trajectory.gram(lambda b, n=block.name: b.name == n) for block in trajectory.blocks])
        np.testing.assert_allclose(gram[:, :n, :n], expected["gram"][:, :n, :n], rtol=1e-12)
        paths = trajectory.series(names=["path_length"])["path_length"]
        np.testing.assert_allclose(paths[:n], expected["path_length"][:n], rtol=1e-12)
        finished = expected["windows"][:2] if which == 0 else expected["windows"]
        # Windows may be kept in float32.
        np.testing.assert_allclose(trajectory.windows.sums[: len(finished)].sum(1), finished.sum(1), rtol=1e-5)


def test_the_sketch_length_of_the_checkpoint_is_kept(resumed: Any) -> None:
    """Whatever the default has become: lengths that differ cannot be compared."""
    assert resumed.callbacks[0].trajectory.settings["sketch_dim"] == 2048


def test_what_was_frozen_stays_frozen(resumed: Any) -> None:
    hybrid = resumed.callbacks[2]
    assert isinstance(hybrid, HybridTraining)
    assert hybrid.frozen == ("model",)
    before = torch.load(HERE / "run.ckpt")["state_dict"]
    after = resumed.lightning_module.state_dict()
    moved = {name: not torch.equal(before[name], after[name]) for name in before}
    assert moved == {"net.0.weight": False, "net.0.bias": True, "net.2.weight": False, "net.2.bias": True}


def test_the_folder_is_as_it_was_made() -> None:
    assert len(list((HERE / "full-snapshots").iterdir())) == 6
    assert {path.name for path in Path(HERE).iterdir()} >= {"run.ckpt", "trajectory.safetensors", "make.py"}
