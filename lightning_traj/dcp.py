"""Folders of torch.distributed.checkpoint, read without its pickled metadata being able to run anything."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from lightning_traj.sources import Copied

METADATA = ".metadata"
_CHECKPOINT = "torch.distributed.checkpoint"
# Classes of plain values: what torch writes there, and nothing that does anything when it is made.
_ALLOWED = {
    (f"{_CHECKPOINT}.metadata", "Metadata"),
    (f"{_CHECKPOINT}.metadata", "TensorStorageMetadata"),
    (f"{_CHECKPOINT}.metadata", "BytesStorageMetadata"),
    (f"{_CHECKPOINT}.metadata", "ChunkStorageMetadata"),
    (f"{_CHECKPOINT}.metadata", "TensorProperties"),
    (f"{_CHECKPOINT}.metadata", "_MEM_FORMAT_ENCODING"),
    (f"{_CHECKPOINT}.metadata", "MetadataIndex"),
    (f"{_CHECKPOINT}.metadata", "StorageMeta"),
    (f"{_CHECKPOINT}.filesystem", "_StorageInfo"),
    ("collections", "OrderedDict"),
    ("pathlib", "Path"),
    ("pathlib", "PosixPath"),
    ("pathlib", "PurePosixPath"),
    ("pathlib", "WindowsPath"),
    ("pathlib._local", "PosixPath"),  # Python 3.13
    ("pathlib._local", "WindowsPath"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = getattr(torch, name, None) if module == "torch" else None
        if isinstance(found, torch.dtype):
            return found
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"Unsupported global: GLOBAL {module}.{name}")
        return super().find_class(module, name)


class _Reader(FileSystemReader):
    """Torch's reader, but for the metadata, which it would unpickle whatever they are."""

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        with (Path(self.path) / METADATA).open("rb") as file:
            metadata = _Unpickler(file).load()
        if not isinstance(metadata, Metadata):
            raise ValueError(f"{METADATA} holds no metadata of torch.distributed.checkpoint")
        metadata.storage_meta = StorageMeta()
        folder = Path(self.path).resolve()
        for info in metadata.storage_data.values():
            if folder not in (folder / info.relative_path).resolve().parents:
                raise ValueError(f"{METADATA} names {info.relative_path!r}, which is outside of the folder")
        return metadata


class DistributedCheckpoint:
    """Tensors of a folder of torch.distributed.checkpoint whose keys begin with a prefix.

    A tensor is put together from its shards, one at a time, and lies in a temporary file until it is let go of.
    """

    def __init__(self, path: Path, prefix: str = "") -> None:
        self.path = path
        self.prefix = prefix
        self._copies: dict[str, Copied] = {}
        entries = _Reader(path).read_metadata().state_dict_metadata
        self._shapes = {
            key.removeprefix(prefix): torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
            for key, entry in entries.items()
            if isinstance(entry, TensorStorageMetadata) and key.startswith(prefix)
        }

    def shapes(self) -> Mapping[str, Tensor]:
        return self._shapes

    def read(self, name: str) -> Tensor:
        if name not in self._copies:
            like = self._shapes[name]
            tensor = torch.empty(like.shape, dtype=like.dtype)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*is disabled, unavailable or uninitialized")
                load({self.prefix + name: tensor}, storage_reader=_Reader(self.path), no_dist=True)
            self._copies[name] = Copied({name: tensor})
        return self._copies[name].read(name)

    def release(self) -> None:
        self._copies.clear()
