"""Values that are rebuilt from pickles: containers, numbers, paths, and NumPy's arrays of numbers.

``VALUES`` maps the calls in a pickle to functions of this module. Each checks its arguments, and none takes more memory
than the pickle has bytes for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_traj.checkpoints.formats.placeholders import Buildable, Name, Placeholder
from lightning_traj.checkpoints.formats.stack_machine import UnpicklingError
from lightning_traj.checkpoints.formats.unpickling import Unpickler

DIMENSIONS = 32  # of an array
# By NumPy's codes: truth values, integers, floating-point and complex numbers whose size is the same on all platforms.
_NUMBERS = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")


class NumberType(Buildable):
    """NumPy dtype of numbers."""

    def __init__(self, code: str) -> None:
        self.dtype: np.dtype[Any] = np.dtype(code)

    def build(self, state: Any) -> None:
        """Set the byte order."""
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if order not in ("<", ">", "|", "="):
            raise UnpicklingError("it has a NumPy dtype of no known byte order")
        self.dtype = self.dtype.newbyteorder(order)


class Array(Buildable):
    """Array of numbers; its ``values`` are None if it is one of anything else."""

    values: NDArray[Any] | None = None

    def build(self, state: Any) -> None:
        """Set shape, dtype and entries, as ``ndarray.__setstate__`` would."""
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            raise UnpicklingError("it has a NumPy array without shape, dtype and bytes")
        shape, kind, fortran, content = state[-4:]
        if isinstance(kind, NumberType):
            self.values = _array(content, kind.dtype, shape, "F" if fortran else "C")


def _array(content: Any, dtype: np.dtype[Any], shape: Any, order: Any) -> NDArray[Any]:
    content = _as_bytes(content)
    if (
        not isinstance(shape, tuple)
        or not all(isinstance(n, int) and 0 <= n < 2**63 for n in shape)
        or order not in ("C", "F")
    ):
        raise UnpicklingError("it has a NumPy array of no known shape")
    if len(shape) > DIMENSIONS or prod(shape) * dtype.itemsize != len(content):
        raise UnpicklingError(f"it has a NumPy array of {len(content):,} bytes, which its shape does not go with")
    return np.frombuffer(content, dtype).reshape(shape, order=order)


def _as_bytes(content: Any) -> bytes | bytearray:
    if isinstance(content, str):  # of Python 2
        content = content.encode("latin-1")
    if not isinstance(content, (bytes, bytearray)):
        raise UnpicklingError("it has a NumPy array without bytes")
    return content


# How calls are answered -------------------------------------------------------------------------------------


def _dtype(reader: Unpickler, code: Any, *rest: Any) -> Any:
    return NumberType(code) if code in _NUMBERS else reader.placeholder("numpy.dtype", (code, *rest))


def _scalar(reader: Unpickler, kind: Any, content: Any = None) -> Any:
    if not isinstance(kind, NumberType):
        return reader.placeholder("numpy.scalar", (content,))
    return _array(content, kind.dtype, (), "C").item()


def _from_buffer(reader: Unpickler, content: Any, kind: Any, shape: Any, order: Any) -> Any:
    array = Array()
    if isinstance(kind, NumberType):
        array.values = _array(content, kind.dtype, shape, order)
    return array


def _encode(reader: Unpickler, text: Any, encoding: Any = "latin1") -> bytes:
    """Return bytes, as pickles of protocol 2 have them."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise UnpicklingError("it has bytes in an unknown encoding")
    reader.copying(len(text))
    return text.encode("latin-1")


def _bytes(reader: Unpickler, content: Any = b"", encoding: Any = "latin1") -> bytes:
    return _encode(reader, content, encoding) if isinstance(content, str) else _sequence(bytes)(reader, content)


def _sequence(kind: Callable[[Any], Any]) -> Callable[..., Any]:
    """Return a function that makes a list, tuple, set or bytes of the members of another."""

    def rebuild(reader: Unpickler, members: Any = (), *_: Any) -> Any:
        if not isinstance(members, (list, tuple, set, frozenset, bytes)):
            raise UnpicklingError(f"it has a container that is made of a {type(members).__name__}")
        reader.copying(len(members))
        return kind(map(reader.key, members)) if kind in (set, frozenset) else kind(members)

    return rebuild


def _mapping(reader: Unpickler, entries: Any = ()) -> dict[Any, Any]:
    """Return an OrderedDict, Counter and the like as a dict."""
    pairs = list(entries.items()) if isinstance(entries, dict) else entries
    if not isinstance(pairs, (list, tuple)) or not all(isinstance(p, (list, tuple)) and len(p) == 2 for p in pairs):
        raise UnpicklingError("it has a dict that is not made of pairs")
    reader.copying(len(pairs))
    return reader.pairs(pairs)


def _complex(reader: Unpickler, real: Any = 0, imaginary: Any = 0) -> complex:
    if not isinstance(real, (int, float)) or not isinstance(imaginary, (int, float)):
        raise UnpicklingError("it has a complex number that is not made of two numbers")
    return complex(real, imaginary)


def _path(kind: type[PurePosixPath] | type[PureWindowsPath]) -> Callable[..., str]:
    def rebuild(reader: Unpickler, *parts: Any) -> str:
        if not all(isinstance(part, str) for part in parts):
            raise UnpicklingError("it has a path that is not made of texts")
        reader.copying(sum(map(len, parts)))
        return str(kind(*parts))

    return rebuild


def _old_object(reader: Unpickler, kind: Any, base: Any = None, value: Any = None) -> Placeholder:
    """Return an object in a pickle of protocol 0 or 1; a kind of dict keeps its entries."""
    if not isinstance(kind, Name):
        raise UnpicklingError("it has an object without a class")
    reader.used.add(kind.kind)
    made = reader.placeholder(kind.kind)
    made.entries = value if isinstance(value, dict) else {}
    return made


_BUILTINS: dict[str, Any] = {
    **{kind.__name__: _sequence(kind) for kind in (list, tuple, set, frozenset)},
    "bytes": _bytes,
    "bytearray": _bytes,
    "dict": _mapping,
    "complex": _complex,
    **{name: Name(f"builtins.{name}") for name in ("bool", "int", "long", "float", "str", "unicode", "object", "type")},
}
_NUMPY: dict[str, Any] = {
    "multiarray.scalar": _scalar,
    "multiarray._reconstruct": lambda reader, *_: Array(),
    "numeric._frombuffer": _from_buffer,
}
VALUES: Mapping[str, Any] = {
    **{f"{module}.{name}": it for module in ("builtins", "__builtin__") for name, it in _BUILTINS.items()},
    "collections.OrderedDict": _mapping,
    "collections.Counter": _mapping,
    "collections.defaultdict": lambda reader, *_: {},
    "collections.deque": _sequence(list),
    "_codecs.encode": _encode,
    **{f"{module}._reconstructor": _old_object for module in ("copyreg", "copy_reg")},
    **{f"numpy.{core}.{name}": it for core in ("core", "_core") for name, it in _NUMPY.items()},
    "numpy.dtype": _dtype,
    "numpy.ndarray": Name("numpy.ndarray"),
    **{
        f"{module}.{pure}{name}Path": _path(PureWindowsPath if name == "Windows" else PurePosixPath)
        for module in ("pathlib", "pathlib._local")
        for pure in ("", "Pure")
        for name in ("", "Posix", "Windows")
    },
}
