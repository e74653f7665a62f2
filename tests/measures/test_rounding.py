"""What rounding of the parameters does to exact values, and so how well exact runs can be told apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import reference
from lightning_traj import from_checkpoints
from lightning_traj.compare.runs import Run
from lightning_traj.compare.words import at_a_glance

pytestmark = pytest.mark.usefixtures("one_thread")
Array = np.ndarray
Walk = Callable[..., list[dict[str, torch.Tensor]]]

SHAPES = {"a.weight": (4, 3), "b.weight": (2, 4)}
STEPS = [0, 10, 40, 50, 90]
FLOAT32 = 2.0**-24

# Measure -> its value by definition.
DEFINITIONS: dict[str, Callable[[Array], float]] = {
    "mds": lambda x: reference.mean_directional_similarity(reference.vectors_of(x, "snapshots")),
    "mds_relative": lambda x: reference.mean_directional_similarity(reference.vectors_of(x, "displacements")),
    "param_norm": lambda x: reference.parameter_norm(x)[-1],
    "displacement": lambda x: reference.displacement(x)[-1],
    "update_length": lambda x: reference.update_length(x)[-1],
    "path_length": reference.path_length,
    "tortuosity": reference.tortuosity,
    "update_angle": lambda x: reference.update_angle(x)[-1],
    "origin_angle": lambda x: reference.origin_angle(x)[-1],
    "turn": lambda x: reference.turn(x)[-1],
    "apex_angle": lambda x: reference.apex_angle(x)[-1],
    "effective_rank": lambda x: reference.effective_rank(reference.vectors_of(x, "snapshots")),
    "direction_drift": reference.direction_drift,
}


def save(folder: Path, snapshots: list[dict[str, torch.Tensor]], steps: list[int] = STEPS) -> Path:
    folder.mkdir()
    for step, snapshot in zip(steps, snapshots, strict=True):
        torch.save(snapshot, folder / f"step={step}.pt")
    return folder


def stack(snapshots: list[dict[str, torch.Tensor]]) -> Array:
    return np.stack([torch.cat([x.flatten() for x in some.values()]).double().numpy() for some in snapshots])


def gradients(value: Callable[[Array], float], thetas: Array, h: float = 1e-6) -> Array:
    """Derivatives of a measure by every entry of every snapshot, by central differences."""
    found = np.zeros_like(thetas)
    for index in np.ndindex(thetas.shape):
        ahead, behind = thetas.copy(), thetas.copy()
        ahead[index] += h
        behind[index] -= h
        found[index] = (value(ahead) - value(behind)) / (2 * h)
    return found


@pytest.mark.parametrize("stored", [FLOAT32, 2.0**-8, 2.0**-53])
def test_errors_are_those_of_the_worst_roundings(walk: Walk, tmp_path: Path, stored: float) -> None:
    snapshots = walk(SHAPES, 5, dtype=torch.float64, size=0.3)
    trajectory = from_checkpoints(save(tmp_path / "run", snapshots))
    assert trajectory.settings["rounding"] == 2.0**-53
    trajectory = replace(trajectory, settings={**trajectory.settings, "rounding": stored})
    thetas = stack(snapshots)
    norms = np.linalg.norm(thetas, axis=1)
    trained = min(stored, FLOAT32) * np.sqrt(np.diff(STEPS, prepend=0)) * norms
    errors = trajectory.rounding_errors()
    for name, value in DEFINITIONS.items():
        by_theta = gradients(value, thetas)
        # A rounding in training moves this snapshot and all later ones.
        later = [np.linalg.norm(by_theta[t:].sum(axis=0)) for t in range(len(thetas))]
        once = np.linalg.norm(by_theta, axis=1)
        expected = np.sqrt(((later * trained) ** 2).sum() + ((once * stored * norms) ** 2).sum())
        assert errors[name] == pytest.approx(expected, rel=2e-3), name
    assert not {"saturation", "cone_angle"} & set(errors)  # not smooth


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_is_stored_in_a_low_precision_is_off_by_no_more(walk: Walk, tmp_path: Path, dtype: torch.dtype) -> None:
    snapshots = walk({"a.weight": (40, 30)}, 5, dtype=torch.float64, size=0.3)
    rounded = [{name: tensor.to(dtype) for name, tensor in some.items()} for some in snapshots]
    trajectory = from_checkpoints(save(tmp_path / "run", rounded))
    assert trajectory.settings["rounding"] == torch.finfo(dtype).eps / 2
    summary, errors = trajectory.summary(), trajectory.rounding_errors()
    for name, value in DEFINITIONS.items():
        assert abs(summary[name] - value(stack(snapshots))) <= errors[name], name


def test_one_snapshot_and_one_that_stands_still(walk: Walk, tmp_path: Path) -> None:
    snapshots = walk(SHAPES, 1) * 2
    still = from_checkpoints(save(tmp_path / "still", snapshots, [0, 1]))
    assert all(np.isfinite(error) for error in still.rounding_errors().values())


# Exact runs, ranked -----------------------------------------------------------------------------------------


@pytest.fixture
def compared(walk: Walk, tmp_path: Path) -> Callable[..., list[str]]:
    """What is said at a glance of exact runs whose last snapshots differ by so much of their updates."""

    def say(*differences: float, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> list[str]:
        runs = []
        for i, difference in enumerate(differences):
            snapshots = walk({"a.weight": (40, 30)}, 5, dtype=torch.float64, size=0.3)
            for t in range(1, 5):
                base = snapshots[0]["a.weight"]
                snapshots[t]["a.weight"] = base + (snapshots[t]["a.weight"] - base) * scale * (1 + difference)
            rounded = [{name: tensor.to(dtype) for name, tensor in some.items()} for some in snapshots]
            trajectory = from_checkpoints(save(tmp_path / f"run{len(list(tmp_path.iterdir()))}", rounded))
            runs.append(Run("abcd"[i], Path(f"{i}.safetensors"), trajectory))
        return list(at_a_glance(runs, []))

    return say


def of(measure: str, said: list[str]) -> str:
    (sentence,) = [sentence for sentence in said if sentence.startswith(f"{measure}:")]
    return sentence


@pytest.mark.parametrize("measure", ["mds", "displacement", "tortuosity"])
def test_exact_runs_that_differ_by_a_millionth_are_not_ranked(compared: Any, measure: str) -> None:
    said = of(measure, compared(0.0, 1e-6, -1e-6))
    assert said.endswith(", the same within rounding, are not told apart.")


def test_exact_runs_that_differ_by_more_are_ranked(compared: Any) -> None:
    said = compared(0.0, 1e-3)
    assert of("displacement", said).startswith("displacement: a ends nearest to its start (")
    assert of("mds", said).startswith("mds: b turns most as seen from the origin (")
    # Their paths have one shape.
    assert of("tortuosity", said).endswith("the same within rounding, are not told apart.")


def test_what_bfloat16_can_claim(compared: Any) -> None:
    """The same difference is told in float32 and is nothing in bfloat16."""
    assert of("displacement", compared(0.0, 1e-3)).startswith("displacement: a ends nearest")
    assert of("displacement", compared(0.0, 1e-3, dtype=torch.bfloat16)).endswith("are not told apart.")
    assert of("displacement", compared(0.0, 0.5, dtype=torch.bfloat16)).startswith("displacement: a ends nearest")


def test_small_angles_are_not_lost(compared: Any) -> None:
    """Fine-tuning hardly turns: ω is 1 less some millionths, of which one run has four times as many."""
    said = compared(0.0, 1.0, scale=2e-2)
    assert of("mds", said).startswith("mds: b turns most as seen from the origin (0.99")


def test_of_several_runs_only_the_leading_ones_are_tied(compared: Any) -> None:
    said = of("displacement", compared(0.0, 1e-7, 0.1))
    tied, _, far = said.partition("; ")
    assert tied.startswith("displacement: which of ")
    assert tied.endswith(", the same within rounding, ends nearest to its start is not told apart")
    assert far.startswith("c ends farthest from it (")
