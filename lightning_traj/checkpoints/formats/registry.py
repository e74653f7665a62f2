"""The formats of checkpoints that are read, one file each.

To add one, write a file with ``matches`` and ``read`` (and ``begins``, if the first bytes tell the format), and add a
line to ``FORMATS``. For the tests, add a function that writes a checkpoint to ``WRITERS`` in ``tests/saved.py``, and
its name to ``SAMPLES`` there.

An analysis holds one tensor of all checkpoints at once, and reads it again for each part of it. ``read`` therefore
returns shapes without data, keeps no file open, and gives each tensor as a view of the mapped file, or as a copy in a
temporary file (``torch_files.Copied``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lightning_traj.checkpoints.formats import distributed_reader, folder_reader, safetensors_reader, torch_reader
from lightning_traj.checkpoints.formats.checkpoint import Contents, Weights


@dataclass(frozen=True)
class Format:
    """A format of checkpoints.

    Attributes:
        name: Name of the format in tests and messages.
        matches: Function that tells whether a path is of this format, by its name and the names within.
        read: Function that reads a checkpoint. It is given the path, the key that leads to the state dict (None where
            it usually is; formats without nesting ignore it) and which weights to read, and raises any exception if
            the file is damaged.
        suffixes: Suffixes of files of this format; empty for folders.
        begins: Function that tells whether a file is of this format by its first bytes (at most ``START``) and its
            size; None if they do not tell.
    """

    name: str
    matches: Callable[[Path], bool]
    read: Callable[[Path, str | None, Weights], Contents]
    suffixes: tuple[str, ...] = ()
    begins: Callable[[bytes, int], bool] | None = None


SAFETENSORS = Format(
    "safetensors file",
    safetensors_reader.matches,
    safetensors_reader.read,
    safetensors_reader.SUFFIXES,
    safetensors_reader.begins,
)
TORCH = Format("torch file", torch_reader.matches, torch_reader.read, torch_reader.SUFFIXES, torch_reader.begins)
FOLDER = Format("model folder", folder_reader.matches, folder_reader.read)
FORMATS = (  # the first that fits is taken: another kind of zip archive has to come before files of torch
    Format("distributed folder", distributed_reader.matches, distributed_reader.read),
    FOLDER,
    TORCH,
    SAFETENSORS,
)
START = 512  # bytes: the name of the first member of an archive is among them
SUFFIXES = tuple(suffix for one in FORMATS for suffix in one.suffixes)


def format_of(path: Path) -> Format:
    """Return the format of a path; one that matches none is read as a file of torch or as a folder of a model.

    The first bytes of a file say more than its name: ``torch.save`` writes files that are called ``.safetensors``, too.
    """
    if path.is_file():
        with path.open("rb") as file:
            start, size = file.read(START), path.stat().st_size
        for one in FORMATS:
            if one.begins is not None and one.begins(start, size):
                return one
    return next((one for one in FORMATS if one.matches(path)), FOLDER if path.is_dir() else TORCH)
