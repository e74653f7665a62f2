"""Folders of Hugging Face, also sharded ones with an index, of accelerate, and of diffusers."""

from __future__ import annotations

from pathlib import Path

from lightning_traj.checkpoints.formats.checkpoint import Contents, Weights
from lightning_traj.checkpoints.formats.dcp import METADATA
from lightning_traj.checkpoints.formats.errors import CheckpointError
from lightning_traj.checkpoints.formats.foreign import foreign_folder
from lightning_traj.checkpoints.formats.sources import read_json
from lightning_traj.checkpoints.formats.weight_folders import WEIGHTS, folder_source, has_weights, parts


def matches(path: Path) -> bool:
    """Return whether a folder holds weights, itself or in the folders of its networks."""
    return path.is_dir() and (has_weights(path) or bool(parts(path)))


def read(path: Path, key: str | None, weights: Weights) -> Contents:
    """Read a folder, whose trainer_state.json dates it.

    Raises:
        CheckpointError: It holds no weights, or its index does not go with its files.
    """
    averaged = weights == "average" and not has_weights(path)
    source = folder_source(path, averaged)
    if source is None:
        raise CheckpointError(foreign_folder(path) or f"the folder holds none of {', '.join((METADATA, *WEIGHTS))}")
    said, config = read_json(path / "trainer_state.json"), read_json(path / "config.json")
    return Contents(source, said, averaged=averaged, config=config)
