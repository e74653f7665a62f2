"""Trajectories as CSV and NumPy files for other programs."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_traj.blocks import Select
from lightning_traj.files import replace_atomically

if TYPE_CHECKING:
    from lightning_traj.trajectory.trajectory import Trajectory


def write_csv(trajectory: Trajectory, path: str | os.PathLike[str], select: Select = None) -> None:
    """Write a row a snapshot, with its step, its epoch, and a column a measure, which is empty where undefined.

    Args:
        trajectory: Trajectory to write.
        path: Path of the file, or a URL that fsspec opens.
        select: Blocks to count, as for ``Trajectory.select``.
    """
    columns: dict[str, Sequence[Any]] = {"step": trajectory.steps.tolist(), "epoch": trajectory.epochs.tolist()}
    for name, values in trajectory.series(select).items():
        columns[name] = ["" if np.isnan(value) else repr(float(value)) for value in values]
    with replace_atomically(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def write_npz(trajectory: Trajectory, path: str | os.PathLike[str], select: Select = None) -> None:
    """Write ``steps``, ``epochs``, ``gram``, ``map``, ``relative_map`` and the series, by tag.

    Args:
        trajectory: Trajectory to write.
        path: Path of the .npz file, or a URL that fsspec opens.
        select: Blocks to count, as for ``Trajectory.select``.
    """
    arrays = {
        "steps": trajectory.steps,
        "epochs": trajectory.epochs,
        "gram": trajectory.gram(select),
        "map": trajectory.map(select),
        "relative_map": trajectory.relative_map(select),
        **trajectory.series(select),
    }
    with replace_atomically(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
