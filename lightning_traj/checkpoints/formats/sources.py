"""Named tensors in files, as views of the mapped files; tensors that are not used are not read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor


class Source(Protocol):
    """Named tensors in files, which are opened when they are used and closed by ``release``."""

    def shapes(self) -> Mapping[str, Tensor]:
        """Return every tensor on the meta device, with its shape and dtype."""

    def read(self, name: str) -> Tensor:
        """Return a tensor, most often a view of a mapped file."""

    def release(self) -> None:
        """Close the files, so that mapped pages no longer count as memory in use."""


class SafetensorsFile:
    """Tensors of a safetensors file, in the natural order of their names, since the file has them by dtype."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open: Any = None
        self._shapes: dict[str, Tensor] | None = None

    def metadata(self) -> Mapping[str, str]:
        """Return the metadata of the header."""
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


class Sharded:
    """Tensors in several files.

    Args:
        files: File that has each tensor, and the name of the tensor in it.
    """

    def __init__(self, files: Mapping[str, tuple[Source, str]]) -> None:
        self.files = files

    def shapes(self) -> Mapping[str, Tensor]:
        return {name: file.shapes()[inside] for name, (file, inside) in self.files.items()}

    def read(self, name: str) -> Tensor:
        file, inside = self.files[name]
        return file.read(inside)

    def release(self) -> None:
        for file, _ in self.files.values():
            file.release()


def read_json(path: Path) -> Mapping[str, Any]:
    """Return the JSON object in a file; empty if there is no such file.

    Raises:
        ValueError: It holds something else.
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


def natural(name: str) -> list[tuple[int, str]]:
    """Return a key for sorting that puts h.2 before h.10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
