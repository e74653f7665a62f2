"""Layout of files of torch: the pickle that lists the contents, and the place of each storage in the file.

``torch.save`` and ``torch.jit.save`` write zip archives. Files from before torch 1.6 are pickles, followed by the bytes
of all storages. Archives of Stable-Baselines3 have a file of torch inside.
"""

from __future__ import annotations

import io
import sys
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from mmap import mmap
from typing import Any

from lightning_traj.checkpoints.formats.placeholders import is_transparent
from lightning_traj.checkpoints.formats.stack_machine import UnpicklingError
from lightning_traj.checkpoints.formats.torch_pickles import TENSORS, Storage, is_module, own_key, stored_storage
from lightning_traj.checkpoints.formats.unpickling import Unpickler

_ZIP, _EMPTY_ZIP, _LOCAL_HEADER = b"PK\x03\x04", b"PK\x05\x06", 30
_MAGIC = 0x1950A86A20F9469CFC6C  # begins files from before torch 1.6
_PICKLE, _POLICY = "data.pkl", "policy.pth"  # the second: in archives of Stable-Baselines3
_NOTED = ("typing.", "omegaconf.")  # begins names of types, which omegaconf notes of its nodes
_LONGEST_KIND = 100  # letters that are shown
_COUNT = 8  # bytes of the number of entries, before each storage

Region = tuple[int, int]  # where in a file something begins, and its length, in bytes


@dataclass(frozen=True)
class Layout:
    """Layout of a file of torch.

    Attributes:
        value: Saved value, with a StoredTensor for each tensor.
        regions: Region of the file in which each storage lies.
        objects: Number of objects of each class that are not read; a class or function that is named counts as one.
    """

    value: Any
    regions: Mapping[str, Region]
    objects: Counter[str]


def read_layout(data: bytes | mmap) -> Layout:
    """Return the layout of a file.

    Raises:
        ValueError: It is damaged, or torch did not write it.
    """
    return _archive(data, 0, len(data)) if is_archive(data) else _legacy(data)


def is_archive(data: bytes | mmap) -> bool:
    """Return whether a file is a zip archive, complete or not."""
    return data[: len(_ZIP)] in (_ZIP, _EMPTY_ZIP)


# Archives ---------------------------------------------------------------------------------------------------


def _archive(data: bytes | mmap, start: int, end: int) -> Layout:
    records = _records(data, start, end)
    pickled = next((name for name in records if name.count("/") <= 1 and name.split("/")[-1] == _PICKLE), None)
    if pickled is None:
        if _POLICY not in records or start:
            raise ValueError(f"it is a zip archive without {_PICKLE}: neither torch.save nor torch.jit.save wrote it")
        first, length = _stored(records, _POLICY)
        return _archive(data, first, first + length)
    prefix = pickled.removesuffix(_PICKLE)
    if (order := f"{prefix}byteorder") in records:
        first, length = _stored(records, order)
        if data[first : first + min(length, 8)] != sys.byteorder.encode():
            raise ValueError("it was written on a machine of another byte order: load it there, and save safetensors")
    folder = f"{prefix}data/"
    regions = {
        name.removeprefix(folder): _stored(records, name)
        for name in records
        if name.startswith(folder) and not name.endswith("/")
    }
    first, length = _stored(records, pickled)
    reader = Unpickler(data[first : first + length], table=TENSORS, persistent=stored_storage)
    value = reader.load()
    return Layout(value, regions, _objects(reader))


def _records(data: bytes | mmap, start: int, end: int) -> dict[str, Region | None]:
    """Return the regions of the members of an archive within a file; None for compressed ones."""
    file = _Window(data, start, end)
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except zipfile.BadZipFile as error:
        raise ValueError(f"it is truncated or damaged: the end of the archive is missing ({error})") from error
    if members and min(member.header_offset for member in members) > 0:  # the directory is that of an archive within
        raise ValueError("it is truncated or damaged: the end of the archive is missing")
    found: dict[str, Region | None] = {}
    for member in members:
        at = start + member.header_offset
        header = data[at : at + _LOCAL_HEADER]
        lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        first = at + _LOCAL_HEADER + lengths
        if header[:4] != _ZIP or first + member.compress_size > end:
            raise ValueError(f"it is truncated or damaged: {member.filename:.100} is not where the archive says")
        plain = member.compress_type == zipfile.ZIP_STORED and member.file_size == member.compress_size
        found[member.filename] = (first, member.file_size) if plain and not member.flag_bits & 1 else None
    return found


def _stored(records: Mapping[str, Region | None], name: str) -> Region:
    region = records[name]
    if region is None:
        raise ValueError("it is a compressed archive, which torch.save does not write: unpack it")
    return region


class _Window(io.RawIOBase):
    """Part of the bytes as a file, which zipfile needs."""

    def __init__(self, data: bytes | mmap, start: int, end: int) -> None:
        self.data, self.start, self.length, self.at = data, start, end - start, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        at = {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.length}[whence] + offset
        if at < 0:
            raise OSError("a place before the beginning of the file")
        self.at = at
        return at

    def read(self, size: int = -1) -> bytes:
        last = self.length if size < 0 else min(self.at + size, self.length)
        content = self.data[self.start + self.at : self.start + last] if last > self.at else b""
        self.at += len(content)
        return content


# Files from before torch 1.6 --------------------------------------------------------------------------------


def _legacy(data: bytes | mmap, table: Mapping[str, Any] | None = None) -> Layout:
    widths: dict[str, int] = {}

    def refer(reference: Any) -> Any:
        storage = stored_storage(reference)
        if isinstance(storage, Storage):
            widths[storage.key] = storage.dtype.itemsize
        return storage

    first = Unpickler(data, table=_WITH_BYTES if table is None else table)
    magic = first.load()
    if not isinstance(magic, int) or magic != _MAGIC:  # a bare pickle
        return Layout(magic, {}, _objects(first))
    at = first.stop
    for _ in range(2):  # a version, and what machine it was
        reader = Unpickler(data, at, table=TENSORS)
        told = reader.load()
        at = reader.stop
    if isinstance(told, dict) and told.get("little_endian") is not (sys.byteorder == "little"):
        raise ValueError("it was written on a machine of another byte order: load it there, and save safetensors")
    reader = Unpickler(data, at, table=TENSORS, persistent=refer)
    value = reader.load()
    keys_reader = Unpickler(data, reader.stop, table=TENSORS)
    keys = keys_reader.load()
    if not isinstance(keys, list) or not all(isinstance(key, str) and key in widths for key in keys):
        raise UnpicklingError("it has storages that no tensor uses")
    at, regions = keys_reader.stop, {}
    for key in keys:
        length = int.from_bytes(data[at : at + _COUNT], "little") * widths[key]
        if at + _COUNT + length > len(data):
            raise ValueError("it is truncated: the entries of some tensors are missing")
        regions[key] = (at + _COUNT, length)
        at += _COUNT + length
    return Layout(value, regions, _objects(reader))


def _storage_from_bytes(reader: Unpickler, content: Any) -> Storage:
    """Return a storage that ``pickle.dump`` has written instead of ``torch.save``: a file of torch in the pickle."""
    if not isinstance(content, bytes):
        raise UnpicklingError("it has a storage without bytes")
    reader.copying(len(content))
    inner = _legacy(content, TENSORS)
    storage = inner.value
    if not isinstance(storage, Storage) or storage.key not in inner.regions:
        raise UnpicklingError("it has a storage that is none")
    start, length = inner.regions[storage.key]
    return Storage(own_key(), storage.dtype, content=content[start : start + length])


def _objects(reader: Unpickler) -> Counter[str]:
    kinds = Counter(_printable(it.kind) for it in reader.placeholders if not is_transparent(it) and not is_module(it))
    kinds.update(_printable(name) for name in sorted(reader.unused) if not name.startswith(_NOTED))
    return kinds


def _printable(kind: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in kind[:_LONGEST_KIND])


_WITH_BYTES: Mapping[str, Any] = {**TENSORS, "torch.storage._load_from_bytes": _storage_from_bytes}
