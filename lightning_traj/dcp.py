"""Folders of torch.distributed.checkpoint, read without torch's reader, which unpickles whatever is there.

Their ``.metadata`` is a pickle: of which tensors there are, of the chunks that each consists of, and of where in which
file each chunk lies, as ``torch.save`` wrote it. Here it is read as plain values, and nothing in it is called.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_traj.sources import Copied, load

METADATA = ".metadata"
_MODULES = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")
# What torch writes there, besides dtypes. Anything else is not from torch.
_KNOWN = {
    *((_MODULES[0], name) for name in ("Metadata", "StorageMeta", "MetadataIndex", "_MEM_FORMAT_ENCODING")),
    *((_MODULES[0], f"{kind}StorageMetadata") for kind in ("Tensor", "Bytes", "Chunk")),
    (_MODULES[0], "TensorProperties"),
    (_MODULES[1], "_StorageInfo"),
    *((module, f"{kind}Path") for module in ("pathlib", "pathlib._local") for kind in ("", "Posix", "Windows")),
    *(("pathlib", f"Pure{kind}Path") for kind in ("", "Posix", "Windows")),
    ("torch.serialization", "_get_layout"),
}
_DTYPES = {name: dtype for name, dtype in vars(torch).items() if isinstance(dtype, torch.dtype)}


@dataclass(frozen=True)
class Chunk:
    """A part of a tensor, and where it lies: these bytes of this file are what ``torch.save`` has made of it."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: Path
    start: int
    length: int


@dataclass(frozen=True)
class Entry:
    """A tensor of the folder."""

    size: tuple[int, ...]
    dtype: torch.dtype
    chunks: tuple[Chunk, ...]


class DistributedCheckpoint:
    """Tensors of a folder of torch.distributed.checkpoint.

    One is put together from its chunks when it is read, and lies in a temporary file until another is.

    Args:
        entries: As ``read_metadata`` gives them, by the names that the tensors are to have.
    """

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self.entries = entries
        self._copy: tuple[str, Copied] | None = None
        self._shapes = {
            name: torch.empty(entry.size, dtype=entry.dtype, device="meta") for name, entry in entries.items()
        }

    def shapes(self) -> Mapping[str, Tensor]:
        return self._shapes

    def read(self, name: str) -> Tensor:
        if self._copy is None or self._copy[0] != name:
            self._copy = name, Copied({name: _joined(self.entries[name])})
        return self._copy[1].read(name)

    def release(self) -> None:
        if self._copy is not None:
            self._copy[1].release()


def read_metadata(folder: Path) -> dict[str, Entry]:
    """The tensors of a folder, by their full names.

    Raises:
        pickle.UnpicklingError: the metadata is not of torch.
        ValueError: it does not go with the files.
    """
    root = _Unpickler(io.BytesIO((folder / METADATA).read_bytes())).load()
    try:
        storage = {
            (key.state["fqn"], tuple(key.state.get("offset") or ())): info.state
            for key, info in root.state["storage_data"].items()
        }
        return {
            name: _entry(name, value.state, storage, folder)
            for name, value in root.state["state_dict_metadata"].items()
            if isinstance(name, str) and "chunks" in value.state  # others are bytes: pickles, which are not read
        }
    except (AttributeError, KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{METADATA} holds no metadata of torch.distributed.checkpoint ({error!r})") from error


def _entry(name: str, state: Mapping[str, Any], storage: Mapping[Any, Any], folder: Path) -> Entry:
    dtype, size = state["properties"].state[0], _counts(state["size"])
    chunks = []
    for chunk in state["chunks"]:
        offsets, sizes = _counts(chunk.state["offsets"]), _counts(chunk.state["sizes"])
        where = storage[name, offsets]
        start, length = _counts((where["offset"], where["length"]))
        file = (folder / where["relative_path"]).resolve()
        if folder.resolve() not in file.parents:
            raise ValueError(f"{METADATA} names {where['relative_path']!r}, which is outside of the folder")
        if where.get("transform_descriptors"):
            raise ValueError(f"{name} is stored through {where['transform_descriptors']}, which is not understood")
        if not file.is_file() or start + length > file.stat().st_size or prod(sizes) * dtype.itemsize > length:
            raise ValueError(f"{where['relative_path']} is missing or too short for {name}")
        if len(sizes) != len(size) or any(o + s > n for o, s, n in zip(offsets, sizes, size, strict=True)):
            raise ValueError(f"a chunk of {name} lies outside of it")
        chunks.append(Chunk(offsets, sizes, file, start, length))
    if sum(prod(chunk.sizes) for chunk in chunks) != prod(size):
        raise ValueError(f"the chunks of {name} do not make up the tensor")
    return Entry(size, dtype, tuple(chunks))


def _joined(entry: Entry) -> Tensor:
    tensor = torch.empty(entry.size, dtype=entry.dtype)
    for chunk in entry.chunks:
        with chunk.file.open("rb") as file:
            file.seek(chunk.start)
            part = load(io.BytesIO(file.read(chunk.length)))
        if not isinstance(part, Tensor) or tuple(part.shape) != chunk.sizes or part.dtype != entry.dtype:
            raise ValueError(f"{chunk.file.name} does not hold what {METADATA} says")
        target = tensor
        for axis, (start, count) in enumerate(zip(chunk.offsets, chunk.sizes, strict=True)):
            target = target.narrow(axis, start, count)
        target.copy_(part.detach())
    return tensor


def _counts(values: Sequence[Any]) -> tuple[int, ...]:
    if not all(isinstance(value, int) and value >= 0 for value in values):
        raise ValueError(f"{METADATA} has sizes that are none: {values!r:.100}")
    return tuple(values)


class _Plain:
    """Stands for an object of the metadata: what it would be made of, and nothing that does anything."""

    state: Any = ()

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle._Unpickler):
    """Makes plain values of whatever the metadata has. The one in C takes the memory that a file asks for."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) == ("torch", "Size"):
            return tuple
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"Unsupported global: GLOBAL {module}.{name}")
        return type(name, (_Plain,), {})  # a new one each time: a pickle can set attributes of the class too

    # Extension codes may stand for any class that the process knows already; byte arrays are made before they are read.
    dispatch: ClassVar = {
        code: method
        for code, method in pickle._Unpickler.dispatch.items()
        if code not in (pickle.EXT1[0], pickle.EXT2[0], pickle.EXT4[0], pickle.BYTEARRAY8[0])
    }
