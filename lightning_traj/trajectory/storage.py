"""The file format of trajectories: safetensors with a JSON header, no pickle."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_traj.blocks import Block
from lightning_traj.files import local_copy, replace_atomically
from lightning_traj.trajectory.provenance import Provenance
from lightning_traj.trajectory.snapshot_grams import DTYPES, SnapshotGrams, Windows, check_dtype

TRAJECTORY = "lightning_traj"  # key of the header in the metadata of a trajectory file
FORMAT = "lightning_traj.trajectory"
FORMAT_VERSION = 1


def is_trajectory(path: Path) -> bool:
    """Return whether ``Trajectory.save`` has written a file, as its header says."""
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return TRAJECTORY in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def write_trajectory(trajectory: SnapshotGrams, path: str | os.PathLike[str]) -> None:
    """Write a trajectory to a safetensors file, replacing it in one step.

    Args:
        trajectory: Trajectory to write.
        path: Path of the file, or a URL that fsspec opens.
    """
    from safetensors.numpy import save_file

    header = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "blocks": [asdict(block) for block in trajectory.blocks],
        "settings": dict(trajectory.settings),
    }
    windows = {f"window_{name}": values for name, values in vars(trajectory.windows).items()}
    arrays = {name: windows[name] if name in windows else getattr(trajectory, name) for name in DTYPES}
    tensors = {
        name: np.ascontiguousarray(values, dtype=DTYPES[name]) for name, values in arrays.items() if values is not None
    }
    with replace_atomically(path) as temporary:
        save_file(tensors, temporary, metadata={TRAJECTORY: json.dumps(header)})


def read_trajectory(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the file of a trajectory, and return the arguments with which a ``Trajectory`` is made of it.

    Args:
        path: Path of the file, or a URL that fsspec opens.

    Raises:
        FileNotFoundError: There is no such file.
        SafetensorError: The file is damaged, or is no safetensors file.
        ValueError, TypeError, KeyError, RecursionError: The file is damaged, or holds no trajectory.
    """
    from safetensors import safe_open

    with local_copy(path) as local, safe_open(local, framework="numpy") as file:
        header = json.loads((file.metadata() or {}).get(TRAJECTORY, "{}"))
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise ValueError("it is a safetensors file, but holds no trajectory")
        if header["version"] > FORMAT_VERSION:
            raise ValueError(
                f"its format is {header['version']}, and this release reads up to {FORMAT_VERSION}: "
                "upgrade lightning-traj"
            )
        present = set(file.keys())
        tensors: dict[str, NDArray[Any]] = {name: file.get_tensor(name) for name in DTYPES if name in present}
    blocks = tuple(Block(**block) for block in header["blocks"])
    for name, values in tensors.items():
        check_dtype(name, values)
    if len(tensors["steps"]) == 0 or not all(isinstance(block.numel, int) for block in blocks):
        raise ValueError("it has no snapshots, or blocks without a size")
    windows = Windows(
        tensors.pop("window_sums"),
        tuple(tensors.pop("window_steps").tolist()),
        tuple(tensors.pop("window_counts").tolist()),
    )
    expected = (len(windows.steps), len(blocks), 3)
    if windows.sums.shape[:3] != expected or len(windows.counts) != len(windows.steps):
        raise ValueError(f"its windows have the shape {windows.sums.shape}")
    settings = dict(header["settings"])
    if "snapshot" not in settings:
        raise ValueError("it does not say how its snapshots were recorded")
    Provenance.from_settings(settings)  # an error here, and not when it is first used
    return {"blocks": blocks, "settings": settings, "windows": windows, **tensors}
