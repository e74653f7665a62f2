"""Paths -> opened checkpoints, of whatever format, dated by the file or else by its name."""

from __future__ import annotations

from pathlib import Path

from lightning_traj.checkpoints.formats.checkpoint import Checkpoint, Contents, Weights
from lightning_traj.checkpoints.formats.dates import (
    completed_epochs_in,
    epoch_in,
    epoch_in_name,
    epochs_of_lightning,
    epochs_of_mmcv,
    number_in_name,
    step_in,
    step_in_name,
)
from lightning_traj.checkpoints.formats.errors import CheckpointError, unreadable
from lightning_traj.checkpoints.formats.foreign import foreign_file, is_deepspeed
from lightning_traj.checkpoints.formats.registry import FORMATS, SUFFIXES, format_of
from lightning_traj.checkpoints.formats.weight_folders import is_whole_model, one_of_several
from lightning_traj.checkpoints.hyperparameters import plain_hyperparameters

# In Lightning's checkpoints, the later one is believed; then where others keep them.
HYPERPARAMETERS = ("args", "cfg", "config", "hparams", "datamodule_hyper_parameters", "hyper_parameters")


def open_checkpoint(path: Path, key: str | None = None, weights: Weights = "raw") -> Checkpoint:
    """Open a checkpoint, whatever its format.

    Args:
        path: File or folder.
        key: Keys, joined by dots, that lead to the state dict in a file, such as ``"ema.model"``; None where it
            usually is.
        weights: Whether to read raw or averaged weights, of checkpoints of Lightning's ``WeightAveraging``.

    Raises:
        CheckpointError: It is damaged, or of another kind.
    """
    try:
        if path.is_file():
            if path.stat().st_size == 0:
                raise CheckpointError("it is empty")
            if words := foreign_file(path):
                raise CheckpointError(words)
        contents = format_of(path).read(path, key, weights)
        opened = _dated(path, contents)
        if weights == "average" and not opened.averaged:
            raise CheckpointError('it has no averaged weights beside the raw ones: leave out weights="average"')
        return opened
    except Exception as error:
        raise unreadable(path, error) from error


def is_checkpoint(path: Path) -> bool:
    """Return whether a path looks like a checkpoint: by its name, or by the names in the folder.

    Folders of DeepSpeed count, too, so that whoever names one hears what to do.
    """
    if path.is_file() and path.name.startswith("."):
        return False
    return any(one.matches(path) for one in FORMATS) or (path.is_dir() and is_deepspeed(path))


def folder_and_name(path: Path) -> tuple[Path, str]:
    """Return the folder and the name that tell a checkpoint apart: without suffixes; for a model's file, its folder's.

    Args:
        path: The file or folder.
    """
    if one_of_several(path):
        return path.parent.parent, f"{path.parent.name}/{path.stem}"
    named = path.parent if is_whole_model(path) else path
    name = named.name
    while (suffix := Path(name).suffix) in SUFFIXES:
        name = name.removesuffix(suffix)
    return named.parent, name


def _dated(path: Path, contents: Contents) -> Checkpoint:
    """Return the checkpoint, dated by the values beside its tensors, or else by its name."""
    _, name = folder_and_name(path)
    said = contents.said
    step, number = step_in(said), None
    completed = (epochs_of_lightning(said), completed_epochs_in(said), epochs_of_mmcv(said))
    epoch = next((found for found in completed if found is not None), None)
    if step is None:
        is_folder = path.is_dir() or is_whole_model(path) or one_of_several(path)
        step = step_in_name(name, folder=is_folder)
    if step is None:
        number = number_in_name(name)
        epoch = next((found for found in (epoch, epoch_in(said), epoch_in_name(name)) if found is not None), None)
    logged = plain_hyperparameters(*(said.get(name) for name in HYPERPARAMETERS))
    return Checkpoint(
        path,
        contents.source,
        step=step,
        epoch=epoch,
        number=number,
        averaged=contents.averaged,
        config=contents.config,
        logged=logged,
        objects=contents.objects,
        unread=contents.unread,
    )
