"""How the files of trajectories are told from other safetensors files."""

from __future__ import annotations

from pathlib import Path

TRAJECTORY = "lightning_traj"  # key of the header in the metadata of a trajectory file


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
