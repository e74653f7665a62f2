"""Paths that a user names -> the paths of checkpoints that are meant."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from lightning_traj.checkpoints.formats.foreign import foreign_folder
from lightning_traj.checkpoints.formats.opening import is_checkpoint
from lightning_traj.checkpoints.formats.registry import SUFFIXES
from lightning_traj.checkpoints.formats.sources import natural
from lightning_traj.checkpoints.formats.weight_folders import is_part, models_in
from lightning_traj.checkpoints.names import counts_checkpoints, is_start
from lightning_traj.trajectory import is_trajectory

FOLDERS = ("", "checkpoints")  # where in a folder checkpoints are looked for; Lightning's logs have the second
LEAST = 2  # checkpoints of a trajectory
# Names of the parts of one state, of LLaMA, Megatron and others.
_SHARD = re.compile(r"^consolidated\.\d+(?=\.|$)|(?:mp_rank|model_states_rank)_\d+(?:_\d+)*")


def find(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Find the checkpoints that are named, or that lie in the folders that are.

    Args:
        paths: Paths of checkpoints, and of folders that hold some.

    Raises:
        FileNotFoundError: A path does not exist.
        PermissionError: A folder may not be looked into.
        ValueError: A folder holds no checkpoint, or files are shards of one.
    """
    found: list[Path] = []
    given = [Path(path) for path in ([paths] if isinstance(paths, (str, os.PathLike)) else paths)]
    for path in given:
        try:
            # A file that is named itself has a place of its own.
            found += [child for child in _found(path) if child == path or child not in given]
        except PermissionError as error:
            raise PermissionError(
                f"{error.filename or path} may not be looked into (permission denied): allow yourself to read it "
                "(chmod u+rx), or name other paths."
            ) from error
    found = list(dict.fromkeys(found))
    _check_shards(found)
    return found


def _check_shards(paths: Iterable[Path]) -> None:
    """Check that no two of these are shards of one checkpoint, which have the same names and often the same shapes.

    Raises:
        ValueError: Two are.
    """
    first: dict[tuple[str, ...], Path] = {}
    for path in paths:
        parts = tuple(_SHARD.sub("*", part) for part in path.parts)
        other = first.setdefault(parts, path)
        if parts != path.parts and other != path:
            raise ValueError(
                f"{other} and {path} are shards of one checkpoint, each with a part of its parameters: merge them with "
                "the tools of the library that wrote them, or name the same shard of several steps to analyse it alone."
            )


def _found(path: Path) -> list[Path]:
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file or folder.")
    folders = [child for child in _children(path) if child.is_dir() and is_checkpoint(child) and not is_part(child)]
    if is_checkpoint(path) and len(folders) >= LEAST:  # transformers' Trainer puts the last model beside them
        return list(_models(folders))
    if path.is_file() or is_checkpoint(path):
        return list(_models([path]))
    inside = [child for folder in FOLDERS for child in _children(path / folder) if is_checkpoint(child)]
    inside = [child for child in inside if not is_trajectory(child)]
    if sum(counts_checkpoints(child.name) for child in inside) < LEAST:
        inside += _in_numbered_folders(path)
    if not inside:
        words = foreign_folder(path) or (
            f"neither files that end in {', '.join(SUFFIXES)} nor folders with a model are in it"
        )
        raise ValueError(f"{path} holds no checkpoint: {words}.")
    return list(_models(inside))


def _models(checkpoints: Iterable[Path]) -> Iterator[Path]:
    """Yield the checkpoints, and of a folder in which accelerate has saved several models, each model."""
    for path in checkpoints:
        yield from (models_in(path) if path.is_dir() else ()) or [path]


def _in_numbered_folders(path: Path) -> list[Path]:
    """Return the files in sub-folders that hold one checkpoint each and are numbered, such as ``epoch_1/weights.pt``.

    Folders that are called otherwise (``best/weights.pt``) count where at least two are numbered.
    """
    inside = {folder: [file for file in _children(folder) if is_checkpoint(file)] for folder in _children(path)}
    alone = {folder.name: files for folder, files in inside.items() if len(files) == 1}
    if sum(map(counts_checkpoints, alone)) < LEAST:
        return []
    return [file for files in alone.values() for file in files if not is_trajectory(file)]


def _children(folder: Path) -> list[Path]:
    """List a folder by the numbers in the names; files that are called initial come first."""
    if not folder.is_dir():
        return []
    return sorted(folder.iterdir(), key=lambda path: (not is_start(path.stem), natural(path.name)))
