"""Named tensors in files, as views of the mapped files: what is not used is not read.

No pickle is loaded but by ``torch.load(weights_only=True)``; ``dcp.py`` reads what that cannot.
"""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor


class Source(Protocol):
    """Named tensors in files: opened when they are used, and let go of when that is asked for."""

    def shapes(self) -> Mapping[str, Tensor]:
        """Every tensor on the meta device: its shape and its dtype."""

    def read(self, name: str) -> Tensor:
        """A tensor, most often a view of a mapped file."""

    def release(self) -> None:
        """Close what is open: what has been read since counts no more as memory in use."""


class SafetensorsFile:
    """Tensors of a safetensors file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open: Any = None
        self._shapes: dict[str, Tensor] | None = None

    def metadata(self) -> Mapping[str, str]:
        """What the header says besides the tensors."""
        return dict(self._file().metadata() or {})

    def shapes(self) -> Mapping[str, Tensor]:
        if self._shapes is None:
            # They lie in the order of their names as text, which puts h.10 before h.2.
            names = sorted(self._file().keys(), key=_by_number)
            self._shapes = {name: self.read(name).to("meta") for name in names}
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


class TorchFile:
    """Tensors of a file that ``torch.save`` wrote, under a key inside it."""

    def __init__(self, path: Path, inside: Sequence[str] = ()) -> None:
        self.path = path
        self.inside = tuple(inside)
        self._state: dict[str, Tensor] | None = None
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
            state = load(self.path)
            for key in self.inside:
                state = state[key]
            self._state = tensors_of(state)
        return self._state


class Copied(SafetensorsFile):
    """Tensors that cannot be mapped where they are: copied, once, into a temporary file."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        from safetensors.torch import save_file

        self._folder = tempfile.TemporaryDirectory(prefix="lightning_traj-", ignore_cleanup_errors=True)
        super().__init__(Path(self._folder.name, "copy.safetensors"))
        save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, self.path)


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


def _by_number(name: str) -> list[tuple[int, str]]:
    """A key that sorts the numbers in names as numbers: ``h.2`` before ``h.10``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def load(path: Path) -> Any:
    """What ``torch.save`` wrote, mapped where that can be done: only in files of torch 1.6 or later."""
    return torch.load(path, map_location="cpu", weights_only=True, mmap=is_mappable(path))


def is_mappable(path: Path) -> bool:
    """Whether it is a file of torch 1.6 or later: a zip archive of uncompressed tensors."""
    return zipfile.is_zipfile(path)


def tensors_of(state: Any) -> dict[str, Tensor]:
    """The tensors of a state dict, detached; what else is in it is left out."""
    if not isinstance(state, Mapping):
        return {}
    return {
        name: value.detach()
        for name, value in state.items()
        if isinstance(name, str) and isinstance(value, Tensor) and value.layout == torch.strided
    }


def read_json(path: Path) -> Mapping[str, Any]:
    """A JSON object; empty where there is no such file.

    Raises:
        ValueError: it holds something else.
    """
    if not path.is_file():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds no JSON object")
    return content
