"""Tensors of files that torch wrote, as views of the mapped files.

``torch.load`` and ``torch.jit.load`` are not used: ``unpickling.py`` reads the pickles, and runs nothing.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_traj.checkpoints.formats.pickled_values import Array
from lightning_traj.checkpoints.formats.placeholders import Name, Placeholder, content
from lightning_traj.checkpoints.formats.torch_layout import read_layout
from lightning_traj.checkpoints.formats.torch_pickles import Storage, StoredTensor, module_tensors

_NOTHING = torch.empty(0, dtype=torch.uint8).untyped_storage()


class TorchContents:
    """Contents of a file of torch, which is mapped when tensors are used and unmapped by ``release``.

    Args:
        data: Path of the file, or the bytes of one.

    Attributes:
        value: Saved value, with a StoredTensor for each tensor.
        objects: Number of objects of each class that are not read; a class or function that is named counts as one.

    Raises:
        ValueError: It is damaged, or torch did not write it.
    """

    def __init__(self, data: Path | bytes) -> None:
        self.data = data
        if isinstance(data, bytes):
            layout = read_layout(data)
        elif data.stat().st_size == 0:
            raise ValueError("it is empty")
        else:
            with data.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as mapped:
                layout = read_layout(mapped)
        self.value, self.objects = layout.value, layout.objects
        self._regions = layout.regions
        self._whole: Any = None
        self._copies: dict[tuple[str, bool], Any] = {}

    def tensors(self, value: Any) -> dict[str, StoredTensor]:
        """Return the tensors of a state dict, or of a network that was saved as a whole.

        Raises:
            ValueError: A tensor is without its entries, or has fewer than its shape says.
        """
        value = content(value)
        named: Any = value.items() if isinstance(value, Mapping) else ()
        if isinstance(value, Placeholder):
            named = module_tensors(value)
        found = {name: it for name, it in named if isinstance(name, str) and isinstance(it, StoredTensor)}
        for name, tensor in found.items():
            self._bytes(name, tensor)
        return found

    def are_aligned(self, tensors: Mapping[str, StoredTensor]) -> bool:
        """Return whether tensors can be views of the mapped file, in which their entries then lie aligned."""
        return isinstance(self.data, Path) and all(
            tensor.storage.content is None and self._regions[tensor.storage.key][0] % tensor.dtype.itemsize == 0
            for tensor in tensors.values()
            if tensor.storage is not None
        )

    def read(self, tensor: StoredTensor) -> Tensor:
        """Return the tensor: a view of the mapped file if it is aligned, else a copy."""
        storage = self._bytes("a tensor", tensor)
        made = torch.empty(0, dtype=tensor.dtype)
        made.set_(self._storage(storage, tensor.dtype.itemsize), tensor.offset, tensor.size, tensor.stride)
        made = made.conj() if tensor.conjugate else made
        return torch._neg_view(made) if tensor.negative else made

    def plain(self, value: Any) -> Any:
        """Return a tensor or array of a single number as that number, and any other value as it is."""
        if isinstance(value, StoredTensor) and value.storage is not None and value.numel == 1:
            return self.read(value).item()
        if isinstance(value, Array) and value.values is not None and value.values.size == 1:
            return value.values.item()
        return value

    def release(self) -> None:
        """Close the file; it is mapped again when a tensor is read."""
        self._whole = None
        self._copies.clear()

    def _bytes(self, name: str, tensor: StoredTensor) -> Storage:
        """Return the storage of a tensor, which has all of its entries."""
        if tensor.storage is None:
            raise ValueError(f"{name} was saved from the meta device, without its entries")
        held = tensor.storage.content
        if held is None and tensor.storage.key not in self._regions:
            raise ValueError(f"the entries of {name} are missing")
        there = len(held) if held is not None else self._regions[tensor.storage.key][1]
        if tensor.numel and tensor.end * tensor.dtype.itemsize > there:
            raise ValueError(f"{name} has {tensor.numel:,} entries, and fewer are in the file")
        return tensor.storage

    def _storage(self, storage: Storage, width: int) -> Any:
        key = storage.key, storage.content is None
        if key in self._copies:
            return self._copies[key]
        if storage.content is not None:
            found = _copied(storage.content)
        else:
            start, length = self._regions[storage.key]
            found = self._mapped()[start : start + length]
            if start % width == 0:
                return found
            found = found.clone()
        self._copies[key] = found
        return found

    def _mapped(self) -> Any:
        """Return the bytes of the whole file."""
        if self._whole is None:
            if isinstance(self.data, bytes):
                self._whole = _copied(self.data)
            else:
                self._whole = torch.UntypedStorage.from_file(os.fspath(self.data), False, self.data.stat().st_size)
        return self._whole


def _copied(content: bytes) -> Any:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).untyped_storage() if content else _NOTHING


class TorchFile:
    """Source of tensors in a file of torch.

    Args:
        contents: Contents of the file.
        tensors: Tensors to read, by name.
    """

    def __init__(self, contents: TorchContents, tensors: Mapping[str, StoredTensor]) -> None:
        self.contents, self.tensors = contents, tensors
        self._shapes: dict[str, Tensor] | None = None

    def shapes(self) -> Mapping[str, Tensor]:
        """Return every tensor on the meta device, with its strides."""
        if self._shapes is None:
            self._shapes = {
                name: torch.empty_strided(it.size, it.stride, dtype=it.dtype, device="meta")
                for name, it in self.tensors.items()
            }
        return self._shapes

    def read(self, name: str) -> Tensor:
        """Return a tensor, as a view of the mapped file."""
        return self.contents.read(self.tensors[name])

    def release(self) -> None:
        """Close the file."""
        self.contents.release()


class Copied(TorchFile):
    """Source of tensors that cannot be mapped where they are, and are copied once into a temporary file."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        folder = tempfile.mkdtemp(prefix="lightning_traj-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        path = Path(folder, "copy.pt")
        torch.save(dict(tensors), path)
        contents = TorchContents(path)
        super().__init__(contents, contents.tensors(contents.value))


def kind_of(value: Any) -> str:
    """Return the name of a value's class, or of the class that it would have if it were rebuilt."""
    if isinstance(value, StoredTensor):
        return "Tensor"
    if isinstance(value, Array):
        return "numpy.ndarray"
    return repr(value.kind)[1:-1][:100] if isinstance(value, (Placeholder, Name)) else type(value).__name__


def torch_source(contents: TorchContents, tensors: Mapping[str, StoredTensor]) -> TorchFile:
    """Return a source of some tensors of a file, which are mapped if possible and else copied."""
    if contents.are_aligned(tensors):
        return TorchFile(contents, tensors)
    copied = Copied({name: contents.read(tensor) for name, tensor in tensors.items()})
    contents.release()
    return copied
