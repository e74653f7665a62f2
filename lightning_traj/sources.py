"""Named tensors in files, as views of the mapped files: what is not used is not read.

No pickle is loaded but by ``torch.load(weights_only=True)``; ``dcp.py`` reads what that cannot.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import warnings
import weakref
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

import torch
from torch import Tensor

TRAJECTORY = "lightning_traj"  # what the header of our own files is called


class Source(Protocol):
    """Named tensors in files: opened when they are used, and let go of when that is asked for."""

    def shapes(self) -> Mapping[str, Tensor]:
        """Every tensor on the meta device: its shape and its dtype."""

    def read(self, name: str) -> Tensor:
        """A tensor, most often a view of a mapped file."""

    def release(self) -> None:
        """Close what is open: what has been read since counts no more as memory in use."""


class SafetensorsFile:
    """Tensors of a safetensors file, in the natural order of their names: the file has them by dtype."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open: Any = None
        self._shapes: dict[str, Tensor] | None = None

    def metadata(self) -> Mapping[str, str]:
        """What the header says besides the tensors."""
        return dict(self._file().metadata() or {})

    def shapes(self) -> Mapping[str, Tensor]:
        if self._shapes is None:
            self._shapes = {name: self.read(name).to("meta") for name in sorted(self._file().keys(), key=natural)}
        return self._shapes

    def read(self, name: str) -> Tensor:
        tensor: Tensor = self._file().get_tensor(name)
        return tensor

    def release(self) -> None:
        self._open = None

    def _file(self) -> Any:
        from safetensors import safe_open

        if self._open is None:
            self._open = safe_open(self.path, framework="pt")
        return self._open


def is_trajectory(path: Path) -> bool:
    """Whether a file is what ``Trajectory.save`` writes, as its header says."""
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    from safetensors import SafetensorError

    try:
        return TRAJECTORY in SafetensorsFile(path).metadata()
    except (SafetensorError, OSError):
        return False


class TorchFile:
    """Tensors of a file that ``torch.save`` wrote, under a key inside it."""

    def __init__(self, path: Path, inside: Sequence[str] = (), loaded: Any = None) -> None:
        self.path = path
        self.inside = tuple(inside)
        self._state = None if loaded is None else self._found(loaded)
        self._shapes: dict[str, Tensor] | None = None

    def shapes(self) -> Mapping[str, Tensor]:
        if self._shapes is None:
            self._shapes = {name: tensor.to("meta") for name, tensor in self._tensors().items()}
        return self._shapes

    def read(self, name: str) -> Tensor:
        return self._tensors()[name]

    def release(self) -> None:
        self._state = None

    def _tensors(self) -> dict[str, Tensor]:
        if self._state is None:
            self._state = self._found(load(self.path))
        return self._state

    def _found(self, state: Any) -> dict[str, Tensor]:
        for key in self.inside:
            state = state[key]
        return tensors_of(state)


class Copied(TorchFile):
    """Tensors that cannot be mapped where they are: copied, once, into a temporary file."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        folder = tempfile.mkdtemp(prefix="lightning_traj-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        super().__init__(Path(folder, "copy.pt"))
        torch.save(dict(tensors), self.path)


class Sharded:
    """Tensors in several files, by name."""

    def __init__(self, files: Mapping[str, Source]) -> None:
        self.files = files

    def shapes(self) -> Mapping[str, Tensor]:
        return {name: file.shapes()[name] for name, file in self.files.items()}

    def read(self, name: str) -> Tensor:
        return self.files[name].read(name)

    def release(self) -> None:
        for file in self.files.values():
            file.release()


def load(file: Path | IO[bytes]) -> Any:
    """What ``torch.save`` wrote; of a file of torch 1.6 or later the tensors are mapped.

    Raises:
        ValueError: it is a compressed archive, or one that was not written by torch.
    """
    mappable = is_mappable(file)
    if mappable:
        _check_archive(file)
    with warnings.catch_warnings():  # of what is deprecated, or unusual, in old files: they are not ours to change
        warnings.simplefilter("ignore")
        mmap = mappable and isinstance(file, Path)
        if not isinstance(file, Path):
            file.seek(0)
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)


def is_mappable(file: Path | IO[bytes]) -> bool:
    """Whether it is a file of torch 1.6 or later: a zip archive of uncompressed tensors."""
    return zipfile.is_zipfile(file)


def tensors_of(state: Any) -> dict[str, Tensor]:
    """The tensors of a state dict, detached; what else is in it is left out.

    Raises:
        ValueError: a tensor is without its entries, or has fewer than its shape says.
    """
    if not isinstance(state, Mapping):
        return {}
    tensors = {
        name: value.detach()
        for name, value in state.items()
        if isinstance(name, str) and isinstance(value, Tensor) and value.layout == torch.strided
    }
    for name, tensor in tensors.items():
        if tensor.device.type != "cpu":
            raise ValueError(f"{name} was saved from the {tensor.device.type} device, without its entries")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ValueError(f"{name} has {tensor.numel():,} entries, and fewer are in the file")
    return tensors


def read_json(path: Path) -> Mapping[str, Any]:
    """A JSON object; empty where there is no such file.

    Raises:
        ValueError: it holds something else.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds no JSON object")
    return content


def _check_archive(file: Path | IO[bytes]) -> None:
    """Torch stores without compressing: what is compressed would be mapped as it is, or unpacked to any size."""
    with zipfile.ZipFile(file) as archive:
        for record in archive.infolist():
            if record.compress_type != zipfile.ZIP_STORED or record.file_size != record.compress_size:
                raise ValueError("it is a compressed archive, which torch.save does not write: unpack it")


def natural(name: str) -> list[tuple[int, str]]:
    """As a key for sorting, puts h.2 before h.10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
