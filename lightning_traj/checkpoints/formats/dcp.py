"""Folders of torch.distributed.checkpoint, read without torch's reader, which unpickles anything in them.

Their ``.metadata`` is a pickle that lists the tensors, the chunks of each, and the place of each chunk in a file, where
it lies as ``torch.save`` wrote it. Here it is read as plain values and placeholders, and nothing in it is called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from reprlib import repr as short  # of nested values, the whole might be endless
from typing import Any

import torch
from torch import Tensor

from lightning_traj.checkpoints.formats.torch_files import Copied, TorchContents
from lightning_traj.checkpoints.formats.torch_pickles import TENSORS, StoredTensor
from lightning_traj.checkpoints.formats.unpickling import Unpickler

METADATA = ".metadata"
DIMENSIONS = 64  # of a tensor
SIDE_BY_SIDE = 2**12  # chunks: each of them is compared with all others


@dataclass(frozen=True)
class Chunk:
    """Part of a tensor, and the bytes of a file in which ``torch.save`` has written it."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: Path
    start: int
    length: int


@dataclass(frozen=True)
class Entry:
    """Tensor of the folder."""

    size: tuple[int, ...]
    dtype: torch.dtype
    chunks: tuple[Chunk, ...]


class DistributedCheckpoint:
    """Source of the tensors in a folder of torch.distributed.checkpoint.

    A tensor is put together from its chunks when it is read, and lies in a temporary file until another one is.

    Args:
        entries: Tensors of ``read_metadata``, by the names that they are to have.
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
    """Return the tensors of a folder, by their full names.

    Raises:
        ValueError: The metadata is not of torch, or does not go with the files.
    """
    root = Unpickler((folder / METADATA).read_bytes(), table=TENSORS).load()
    try:
        storage = {
            (_text(key.state["fqn"]), _counts(key.state.get("offset") or ())): info.state
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
        file = (folder / _text(where["relative_path"])).resolve()
        if folder.resolve() not in file.parents:
            raise ValueError(f"{METADATA} names {short(where['relative_path'])}, which is outside of the folder")
        if where.get("transform_descriptors"):
            raise ValueError(
                f"{name} is stored through {short(where['transform_descriptors'])}, which is not understood"
            )
        if not file.is_file() or start + length > file.stat().st_size or prod(sizes) * dtype.itemsize > length:
            raise ValueError(f"{where['relative_path']} is missing or too short for {name}")
        if len(sizes) != len(size) or any(o + s > n for o, s, n in zip(offsets, sizes, size, strict=True)):
            raise ValueError(f"a chunk of {name} lies outside of it")
        chunks.append(Chunk(offsets, sizes, file, start, length))
    if sum(prod(chunk.sizes) for chunk in chunks) != prod(size):
        raise ValueError(f"the chunks of {name} do not make up the tensor")
    if _overlap(chunks):
        raise ValueError(f"chunks of {name} overlap")
    return Entry(size, dtype, tuple(chunks))


def _overlap(chunks: Sequence[Chunk]) -> bool:
    """Return whether two chunks have an entry in common; then others would be missing."""
    reaching: list[Chunk] = []  # those that reach beyond the beginning of the present one along the first axis
    for chunk in sorted((chunk for chunk in chunks if prod(chunk.sizes)), key=lambda chunk: chunk.offsets):
        reaching = [other for other in reaching if other.offsets[0] + other.sizes[0] > chunk.offsets[0]]
        if len(reaching) > SIDE_BY_SIDE:
            raise ValueError(f"{METADATA} has more than {SIDE_BY_SIDE:,} chunks side by side")
        if any(_meet(chunk, other) for other in reaching):
            return True
        if chunk.offsets:
            reaching.append(chunk)
    return False


def _meet(one: Chunk, other: Chunk) -> bool:
    sides = zip(one.offsets, one.sizes, other.offsets, other.sizes, strict=True)
    return all(a < b + m and b < a + n for a, n, b, m in sides)


def _joined(entry: Entry) -> Tensor:
    tensor = torch.empty(entry.size, dtype=entry.dtype)
    for chunk in entry.chunks:
        with chunk.file.open("rb") as file:
            file.seek(chunk.start)
            contents = TorchContents(file.read(chunk.length))
        stored = contents.value
        if not isinstance(stored, StoredTensor) or (stored.size, stored.dtype) != (chunk.sizes, entry.dtype):
            raise ValueError(f"{chunk.file.name} does not hold what {METADATA} says")
        target = tensor
        for axis, (start, count) in enumerate(zip(chunk.offsets, chunk.sizes, strict=True)):
            target = target.narrow(axis, start, count)
        target.copy_(contents.read(stored))
    return tensor


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{METADATA} has a {type(value).__name__} for a name")
    return value


def _counts(values: Sequence[Any]) -> tuple[int, ...]:
    if not all(isinstance(value, int) and 0 <= value < 2**63 for value in values) or len(values) > DIMENSIONS:
        raise ValueError(f"{METADATA} has sizes that are none: {short(values)}")
    return tuple(values)
