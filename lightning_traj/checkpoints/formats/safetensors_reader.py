"""Single files of safetensors."""

from __future__ import annotations

from pathlib import Path

from lightning_traj.checkpoints.formats.checkpoint import Contents, Weights
from lightning_traj.checkpoints.formats.errors import CheckpointError
from lightning_traj.checkpoints.formats.weight_folders import safetensors_file
from lightning_traj.trajectory import TRAJECTORY

SUFFIXES = (".safetensors",)
_LENGTH = 8  # bytes of the length of the header, which comes first


def matches(path: Path) -> bool:
    """Return whether the name of a file is that of a safetensors file."""
    return path.suffix in SUFFIXES and path.is_file()


def begins(start: bytes, size: int) -> bool:
    """Return whether a file begins with the length of a header that fits in it, and with that header."""
    return start[_LENGTH : _LENGTH + 1] == b"{" and _LENGTH + int.from_bytes(start[:_LENGTH], "little") <= size


def read(path: Path, key: str | None, weights: Weights) -> Contents:
    """Read a file; its metadata may date it, and no tensor in it is nested.

    Raises:
        CheckpointError: It is truncated, or is the file of a trajectory.
    """
    file = safetensors_file(path)
    metadata = file.metadata()
    if TRAJECTORY in metadata:
        raise CheckpointError("it is a trajectory, not a checkpoint; compare takes those")
    return Contents(file, {name: int(value) for name, value in metadata.items() if value.isdecimal()})
