"""The formats of checkpoints that are read, one file each.

To add one, write a file with ``matches`` and ``read``, add a line to ``FORMATS``, and a sample to ``tests/saved.py``
for the contract test.
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
            it usually is) and which weights to read, and raises any exception if the file is damaged.
        suffixes: Suffixes of files of this format; empty for folders.
    """

    name: str
    matches: Callable[[Path], bool]
    read: Callable[[Path, str | None, Weights], Contents]
    suffixes: tuple[str, ...] = ()


SAFETENSORS = Format(
    "safetensors file", safetensors_reader.matches, safetensors_reader.read, safetensors_reader.SUFFIXES
)
TORCH = Format("torch file", torch_reader.matches, torch_reader.read, torch_reader.SUFFIXES)
FOLDER = Format("model folder", folder_reader.matches, folder_reader.read)
FORMATS = (  # the first that matches is taken
    Format("distributed folder", distributed_reader.matches, distributed_reader.read),
    FOLDER,
    TORCH,
    SAFETENSORS,
)
_ZIP, _HEADER = b"PK\x03\x04", 8  # beginning of an archive; bytes of the length of safetensors' header
SUFFIXES = tuple(suffix for one in FORMATS for suffix in one.suffixes)


def format_of(path: Path) -> Format:
    """Return the format of a path; one that matches none is read as a file of torch or as a folder of a model.

    The first bytes of a file say more than its name: ``torch.save`` writes files that are called ``.safetensors``, too.
    """
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(_HEADER + 1)
        if start.startswith(_ZIP):
            return TORCH
        length = int.from_bytes(start[:_HEADER], "little")
        if start[_HEADER:] == b"{" and _HEADER + length <= path.stat().st_size:
            return SAFETENSORS
    return next((one for one in FORMATS if one.matches(path)), FOLDER if path.is_dir() else TORCH)
