"""Tensors in pickles of torch, which refer to a storage elsewhere in the file and have strides."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from math import prod
from typing import Any

import torch

from lightning_traj.checkpoints.formats.pickled_values import VALUES, Array
from lightning_traj.checkpoints.formats.placeholders import Name, Placeholder
from lightning_traj.checkpoints.formats.stack_machine import UnpicklingError
from lightning_traj.checkpoints.formats.unpickling import Unpickler

DIMENSIONS = 64  # of a tensor
ENTRIES, LONGEST_NAME = 2**20, 2**10  # of a network that was saved as a whole
DTYPES = {name: dtype for name, dtype in vars(torch).items() if isinstance(dtype, torch.dtype)}
_STORAGES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexDouble": torch.complex128,
    "ComplexFloat": torch.complex64,
    "QInt8": torch.qint8,
    "QUInt8": torch.quint8,
    "QInt32": torch.qint32,
    "Untyped": torch.uint8,
}


_numbers = count()  # of storages; the addresses of their bytes are used again when those are freed


@dataclass(frozen=True, eq=False)
class Storage:
    """Place in which entries of tensors lie.

    Attributes:
        key: Name of the storage in the file.
        dtype: Dtype of the entries, as far as the storage knows.
        first: Number of entries between the beginning of the storage in the file and the first one that counts.
        content: The bytes, if the pickle itself holds them.
    """

    key: str
    dtype: torch.dtype
    first: int = 0
    content: bytes | None = None


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """Tensor in a file.

    Attributes:
        storage: Place of the entries; None if the tensor was saved without them.
        dtype: Dtype of the entries.
        offset: Place of the first entry in the storage, in entries.
        size: Size of each dimension.
        stride: Stride of each dimension, in entries.
        conjugate: Whether the entries are conjugates of those in the storage.
        negative: Whether the entries are the negatives of those in the storage.
    """

    storage: Storage | None
    dtype: torch.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    conjugate: bool = False
    negative: bool = False

    @property
    def numel(self) -> int:
        """Number of entries; several may lie in one place."""
        return prod(self.size)

    @property
    def end(self) -> int:
        """Number of entries of the storage up to the last one that the tensor uses."""
        return self.offset + 1 + sum((n - 1) * s for n, s in zip(self.size, self.stride, strict=True))


def own_key() -> str:
    """Return a key for a storage whose bytes are in the pickle itself, which has none."""
    return f"in the pickle, {next(_numbers)}"


def stored_storage(reference: Any) -> Any:
    """Return the Storage that a pickle of torch refers to by a persistent id.

    Raises:
        UnpicklingError: The id is not that of a storage.
    """
    if isinstance(reference, tuple) and len(reference) == 4 and reference[0] == "module":
        return reference[1]  # in old files: the class of a module, with its source
    if not isinstance(reference, tuple) or len(reference) not in (5, 6) or reference[0] != "storage":
        raise UnpicklingError("its pickle refers to something that is no storage of a tensor")
    dtype, key = reference[1:3]
    if not isinstance(dtype, torch.dtype) or not isinstance(key, str):
        raise UnpicklingError("its pickle refers to a storage of unknown type")
    view = reference[5] if len(reference) == 6 else None  # in old files: a part of another storage
    return Storage(key, dtype, _counts(view[1:2])[0] if isinstance(view, tuple) else 0)


def module_tensors(module: Placeholder) -> Iterator[tuple[str, StoredTensor]]:
    """Yield the parameters and buffers of a network that was saved as a whole, by the names of its state dict."""
    left, looked_at = [("", module)], 0
    while left:
        prefix, module = left.pop()
        attributes = module.attributes
        if is_scripted(module):
            tensors = children = attributes
        else:
            transient = attributes.get("_non_persistent_buffers_set") or ()
            buffers = {n: b for n, b in _dict(attributes, "_buffers").items() if n not in transient}
            tensors, children = _dict(attributes, "_parameters") | buffers, _dict(attributes, "_modules")
        looked_at += 1 + len(tensors) + len(children)
        if looked_at > ENTRIES or len(prefix) > LONGEST_NAME:  # of modules that hold themselves, say
            raise UnpicklingError("it holds a network that is nested without an end")
        yield from (
            (prefix + name, value)
            for name, value in tensors.items()
            if isinstance(name, str) and isinstance(value, StoredTensor)
        )
        inside = [(n, m) for n, m in children.items() if isinstance(n, str) and isinstance(m, Placeholder)]
        left += [(f"{prefix}{n}.", m) for n, m in reversed(inside)]


def is_scripted(placeholder: Placeholder) -> bool:
    """Return whether an object is a module of TorchScript, whose attributes are tensors, modules and constants."""
    return placeholder.kind.startswith("__torch__.")


def is_module(placeholder: Placeholder) -> bool:
    """Return whether an object is a module of a network."""
    return is_scripted(placeholder) or "_parameters" in placeholder.attributes


def _dict(attributes: Mapping[Any, Any], name: str) -> dict[Any, Any]:
    found = attributes.get(name)
    return found if isinstance(found, dict) else {}


def _counts(values: Any) -> tuple[int, ...]:
    if not isinstance(values, (tuple, list)) or not all(isinstance(n, int) and 0 <= n < 2**63 for n in values):
        raise UnpicklingError("it has a tensor whose sizes are no counts")
    return tuple(values)


# How calls are answered -------------------------------------------------------------------------------------


def _tensor(
    reader: Unpickler, storage: Any, offset: Any, size: Any, stride: Any, _: Any = None, hooks: Any = None, *rest: Any
) -> Any:
    if not isinstance(storage, Storage):
        raise UnpicklingError("it has a tensor without a storage")
    return _view(storage, storage.dtype, offset, size, stride, *rest[:1])


def _tensor_of_type(
    reader: Unpickler, storage: Any, offset: Any, size: Any, stride: Any, _: Any, hooks: Any, dtype: Any, *rest: Any
) -> Any:
    if not isinstance(storage, Storage) or not isinstance(dtype, torch.dtype):
        raise UnpicklingError("it has a tensor without a storage")
    return _view(storage, dtype, offset, size, stride, *rest[:1])


def _view(storage: Storage, dtype: torch.dtype, offset: Any, size: Any, stride: Any, bits: Any = None) -> StoredTensor:
    size, stride, (offset,) = _counts(size), _counts(stride), _counts((offset,))
    if len(size) != len(stride) or len(size) > DIMENSIONS:
        raise UnpicklingError("it has a tensor whose sizes and strides don't go with each other")
    bits = bits if isinstance(bits, dict) else {}
    first = offset + storage.first
    return StoredTensor(storage, dtype, first, size, stride, bits.get("conj") is True, bits.get("neg") is True)


def _empty(reader: Unpickler, dtype: Any, size: Any, stride: Any, *_: Any) -> StoredTensor:
    if not isinstance(dtype, torch.dtype):
        raise UnpicklingError("it has a tensor of no known dtype")
    return StoredTensor(None, dtype, 0, _counts(size), _counts(stride))


def _from_array(reader: Unpickler, array: Any, dtype: Any, *_: Any) -> Any:
    """Return a tensor of a device that torch copies to NumPy first, such as a TPU."""
    if not isinstance(array, Array) or array.values is None or not isinstance(dtype, torch.dtype):
        raise UnpicklingError("it has a tensor that is not made of numbers")
    reader.copying(array.values.size * max(array.values.itemsize, dtype.itemsize))
    tensor = torch.from_numpy(array.values.astype(array.values.dtype.newbyteorder("="))).to(dtype).contiguous()
    content = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
    storage = Storage(own_key(), dtype, content=content)
    return StoredTensor(storage, dtype, 0, tuple(tensor.shape), tensor.stride())


def _first(reader: Unpickler, value: Any, *_: Any) -> Any:
    """Return the first argument: the tensor of a Parameter, the contents of a container, the name of a layout."""
    return value


def _of_subclass(reader: Unpickler, function: Any, kind: Any, arguments: Any, state: Any = None, *_: Any) -> Any:
    """Return a tensor of a subclass as a plain tensor, or as a placeholder if it is made of others."""
    if not isinstance(function, Name) or not isinstance(kind, Name) or function.kind in _SUBCLASSES:
        raise UnpicklingError("it has a tensor of no known class")
    reader.used.add(kind.kind)
    made = reader.call(function.kind, arguments)
    if isinstance(made, Placeholder):
        made.kind, made.state = kind.kind, state
    return made


def _device(reader: Unpickler, kind: Any = "", index: Any = None, *_: Any) -> str:
    if not isinstance(kind, str) or not (index is None or isinstance(index, int)):
        raise UnpicklingError("it has a device of no known kind")
    return kind if index is None else f"{kind}:{index}"


_SUBCLASSES = ("torch._tensor._rebuild_from_type_v2", "torch._tensor._rebuild_from_type")
_UTILITIES: Mapping[str, Callable[..., Any]] = {
    **dict.fromkeys(("_rebuild_tensor", "_rebuild_tensor_v2"), _tensor),
    "_rebuild_tensor_v3": _tensor_of_type,
    **dict.fromkeys(("_rebuild_parameter", "_rebuild_parameter_with_state"), _first),
    "_rebuild_device_tensor_from_cpu_tensor": _first,
    **dict.fromkeys(("_rebuild_device_tensor_from_numpy", "_rebuild_xla_tensor"), _from_array),
    "_rebuild_meta_tensor_no_storage": _empty,
}
TENSORS: Mapping[str, Any] = {
    **VALUES,
    **{f"torch.{name}": dtype for name, dtype in DTYPES.items()},
    **{
        f"{module}.{name}Storage": dtype
        for module in ("torch", "torch.storage", "torch.cuda")
        for name, dtype in _STORAGES.items()
    },
    **{f"torch._utils.{name}": it for name, it in _UTILITIES.items()},
    **dict.fromkeys(_SUBCLASSES, _of_subclass),
    "torch.Size": VALUES["builtins.tuple"],
    "torch.device": _device,
    "torch.serialization._get_layout": _first,
    **{
        f"torch.jit._pickle.{name}": _first
        for name in ("build_intlist", "build_tensorlist", "build_doublelist", "build_boollist", "restore_type_tag")
    },
}
