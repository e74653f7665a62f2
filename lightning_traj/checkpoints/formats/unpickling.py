"""Pickles as plain values: nothing that they name is imported, and nothing in them is called.

A pickle is a program for a small stack machine. Python's own unpicklers, the one in Python that can be subclassed
included, import what a pickle names, call it, and hand it state. This is an interpreter of its own, and no subclass:
what a subclass forgets to override still acts (``__setstate__``, ``setattr``, the registry of extension codes, opcodes
of later versions), whereas here an opcode that is not listed is an error, and the only functions that can be called are
those of the table that the caller passes. Everything else that a pickle would call becomes a ``Placeholder``.

A pickle may be hostile by its size, too. ``stack_machine.py`` bounds the memory that it takes. Nesting needs no
recursion here, and keys of dicts and members of sets are such that hashing and comparing them is cheap.
"""

from __future__ import annotations

import codecs
import pickle
from collections.abc import Callable, Iterable, Mapping
from mmap import mmap
from typing import Any

from lightning_traj.checkpoints.formats.placeholders import Buildable, Name, Placeholder
from lightning_traj.checkpoints.formats.stack_machine import OPERATIONS, StackMachine, UnpicklingError

TUPLE_KEYS = 2**13  # their hashes can be made to collide, which makes each comparison with all others necessary
KEY_LENGTH = 8  # of a tuple that is a key
LONGEST_NAME = 2**10
MOST_ARGUMENTS = 2**8  # handing them over takes time, and a pickle may do so with the same ones again and again

Rebuild = Callable[..., Any]  # is given the Unpickler, and what the pickle would pass to the function named in it


class Unpickler(StackMachine):
    """Reader of one pickle.

    Args:
        data: Bytes that hold the pickle.
        start: Index of the first byte of the pickle.
        table: Functions that answer calls, by the dotted name that the pickle would call; a value that is no function
            replaces the name itself.
        persistent: Function that resolves references to values outside of the pickle.

    Attributes:
        stop: Index of the byte behind the pickle, once it is loaded.
        placeholders: All placeholders that were made.
        used: Names that were called, or that are classes of values.
    """

    def __init__(
        self,
        data: bytes | mmap,
        start: int = 0,
        *,
        table: Mapping[str, Any],
        persistent: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__(data, start)
        self.table, self.persistent = table, persistent
        self.placeholders: list[Placeholder] = []
        self._names: dict[str, Any] = {}
        self.used: set[str] = set()
        self._tuple_keys = 0

    @property
    def unused(self) -> set[str]:
        """Names of classes, functions and modules in the pickle that are neither used nor known."""
        return self._names.keys() - self.used - self.table.keys()

    def load(self) -> Any:
        """Return the value of the pickle.

        Raises:
            UnpicklingError: It is truncated, damaged, or made to do harm.
        """
        for _ in range(OPERATIONS):
            code = self._read(1)
            if code == pickle.STOP:
                return self._pop()
            operation = _OPERATIONS.get(code)
            if operation is None:
                raise UnpicklingError(f"it holds the byte {code!r} where an operation of a pickle should be")
            operation(self)
        raise UnpicklingError(f"its pickle has more than {OPERATIONS:,} operations")

    def call(self, kind: str, arguments: Any) -> Any:
        """Answer a call to this name by the table, or else with a placeholder."""
        if not isinstance(arguments, tuple):
            raise UnpicklingError(f"its pickle calls {kind:.100} with no tuple of arguments")
        self.used.add(kind)
        rebuild = self.table.get(kind)
        if callable(rebuild) and len(arguments) <= MOST_ARGUMENTS:
            return rebuild(self, *arguments)
        return self.placeholder(kind, arguments)

    def placeholder(self, kind: str, arguments: tuple[Any, ...] = ()) -> Placeholder:
        """Return a new Placeholder."""
        self._contain()
        self.placeholders.append(Placeholder(kind, arguments))
        return self.placeholders[-1]

    def key(self, value: Any) -> Any:
        """Return a value as a key of a dict or a member of a set; unusual ones become placeholders."""
        if isinstance(value, (str, bytes)) and len(value) > LONGEST_NAME:
            self.copying(len(value))  # comparing it with an equal key takes as long as copying it
        if isinstance(value, tuple):
            self._tuple_keys += 1
            cheap = self._tuple_keys <= TUPLE_KEYS and len(value) <= KEY_LENGTH and all(map(_is_simple, value))
        else:
            cheap = (
                _is_simple(value) or getattr(type(value), "__hash__", None) is object.__hash__
            )  # equal to itself alone
        return value if cheap else self.placeholder(type(value).__name__, (value,))

    def pairs(self, pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
        """Return a dict of these pairs."""
        return {self.key(key): value for key, value in pairs}

    def _tuple(self, length: int) -> None:
        values = [self._pop() for _ in range(length)]
        self._push_container(tuple(reversed(values)))

    def _append(self, values: list[Any]) -> None:
        target = self._top()
        items = target.items if isinstance(target, Placeholder) else target
        if not isinstance(items, list):
            raise UnpicklingError(f"its pickle appends to a {type(target).__name__}")
        items.extend(values)

    def _add(self, values: list[Any]) -> None:
        target = self._top()
        if isinstance(target, Placeholder):
            target.items.extend(values)
        elif isinstance(target, set):
            target.update(map(self.key, values))
        else:
            raise UnpicklingError(f"its pickle adds members to a {type(target).__name__}")

    def _set(self, values: list[Any]) -> None:
        target = self._top()
        entries = target.entries if isinstance(target, Placeholder) else target
        if not isinstance(entries, dict) or len(values) % 2:
            raise UnpicklingError(f"its pickle sets entries of a {type(target).__name__}")
        entries.update(self.pairs(zip(values[::2], values[1::2], strict=True)))

    def _dict(self) -> None:
        values = self._pop_mark()
        self._push_container({})
        self._set(values)

    def _name(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str)) or len(module) + len(name) > LONGEST_NAME:
            raise UnpicklingError("its pickle names something that is no name")
        kind = f"{module}.{name}"
        if kind not in self._names:
            self.copying(len(kind))
            known = self.table.get(kind)
            self._names[kind] = Name(kind) if known is None or callable(known) else known
        self._push(self._names[kind])

    def _reduce(self, arguments: Any, function: Any) -> None:
        if not isinstance(function, (Name, Placeholder)):
            raise UnpicklingError(f"its pickle calls a {type(function).__name__}")
        self._push(self.call(function.kind, arguments))

    def _build(self) -> None:
        state, target = self._pop(), self._top()
        if isinstance(target, Placeholder):
            target.state = state
        elif isinstance(target, Buildable):
            target.build(state)
        elif isinstance(target, Name):
            raise UnpicklingError(f"its pickle changes {target.kind:.100}")
        # Attributes of other values, such as the versions (_metadata) of a state dict, are of no use here.

    def _new_with_keywords(self) -> None:
        keywords, arguments, kind = self._pop(), self._pop(), self._pop()
        if keywords:  # no function of the table takes any
            if not isinstance(kind, Name) or not isinstance(arguments, tuple):
                raise UnpicklingError(f"its pickle calls a {type(kind).__name__}")
            self.used.add(kind.kind)
            self.copying(len(arguments))
            self._push(self.placeholder(kind.kind, (*arguments, keywords)))
        else:
            self._reduce(arguments, kind)

    def _object(self) -> None:
        values = self._pop_mark()
        if not values:
            raise UnpicklingError("its pickle calls nothing")
        self._reduce(tuple(values[1:]), values[0])

    def _instance(self) -> None:
        kind = f"{self._line().decode()}.{self._line().decode()}"
        self._push(self.call(kind, tuple(self._pop_mark())))

    def _refer(self, reference: Any) -> None:
        if self.persistent is None:
            raise UnpicklingError("its pickle refers to something outside of it")
        self._push(self.persistent(reference))


def _is_simple(value: Any) -> bool:
    """Return whether hashing a value is cheap; large integers can be made to collide."""
    if isinstance(value, int):
        return value.bit_length() <= 64
    return value is None or isinstance(value, (str, bytes, float))


def _integer(digits: bytes) -> int | bool:
    return digits == b"01" if digits in (b"00", b"01") else int(digits)


def _quoted(text: bytes) -> str:
    return codecs.escape_decode(text[1:-1])[0].decode("latin-1")


_Operation = Callable[[Unpickler], Any]
_OPERATIONS: dict[bytes, _Operation] = {
    pickle.PROTO: lambda u: u._read(1),
    pickle.FRAME: lambda u: u._read(8),  # frames help those who read from a stream
    pickle.NONE: lambda u: u._push(None),
    pickle.NEWTRUE: lambda u: u._push(True),
    pickle.NEWFALSE: lambda u: u._push(False),
    pickle.INT: lambda u: u._push(_integer(u._line())),
    pickle.BININT: lambda u: u._push(u._number("<i")),
    pickle.BININT1: lambda u: u._push(u._number("<B")),
    pickle.BININT2: lambda u: u._push(u._number("<H")),
    pickle.LONG: lambda u: u._push(int(u._line().removesuffix(b"L"))),
    pickle.LONG1: lambda u: u._push(pickle.decode_long(u._read(u._number("<B")))),
    pickle.LONG4: lambda u: u._push(pickle.decode_long(u._read(u._number("<i")))),
    pickle.FLOAT: lambda u: u._push(float(u._line())),
    pickle.BINFLOAT: lambda u: u._push(u._number(">d")),
    # Strings of Python 2 are texts or bytes: one latin-1 letter to each byte keeps both.
    pickle.STRING: lambda u: u._push(_quoted(u._line())),
    pickle.BINSTRING: lambda u: u._push(u._read(u._number("<i")).decode("latin-1")),
    pickle.SHORT_BINSTRING: lambda u: u._push(u._read(u._number("<B")).decode("latin-1")),
    pickle.BINBYTES: lambda u: u._push(u._read(u._number("<I"))),
    pickle.SHORT_BINBYTES: lambda u: u._push(u._read(u._number("<B"))),
    pickle.BINBYTES8: lambda u: u._push(u._read(u._number("<Q"))),
    pickle.BYTEARRAY8: lambda u: u._push(u._read(u._number("<Q"))),
    pickle.UNICODE: lambda u: u._push(u._line().decode("raw-unicode-escape")),
    pickle.BINUNICODE: lambda u: u._push(u._read(u._number("<I")).decode("utf-8", "replace")),
    pickle.SHORT_BINUNICODE: lambda u: u._push(u._read(u._number("<B")).decode("utf-8", "replace")),
    pickle.BINUNICODE8: lambda u: u._push(u._read(u._number("<Q")).decode("utf-8", "replace")),
    pickle.EMPTY_TUPLE: lambda u: u._push(()),
    pickle.EMPTY_LIST: lambda u: u._push_container([]),
    pickle.EMPTY_DICT: lambda u: u._push_container({}),
    pickle.EMPTY_SET: lambda u: u._push_container(set()),
    pickle.MARK: Unpickler._mark,
    pickle.TUPLE: lambda u: u._push_container(tuple(u._pop_mark())),
    pickle.TUPLE1: lambda u: u._tuple(1),
    pickle.TUPLE2: lambda u: u._tuple(2),
    pickle.TUPLE3: lambda u: u._tuple(3),
    pickle.LIST: lambda u: u._push_container(u._pop_mark()),
    pickle.DICT: Unpickler._dict,
    pickle.FROZENSET: lambda u: u._push_container(frozenset(map(u.key, u._pop_mark()))),
    pickle.APPEND: lambda u: u._append([u._pop()]),
    pickle.APPENDS: lambda u: u._append(u._pop_mark()),
    pickle.ADDITEMS: lambda u: u._add(u._pop_mark()),
    pickle.SETITEM: lambda u: u._set([u._pop(), u._pop()][::-1]),
    pickle.SETITEMS: lambda u: u._set(u._pop_mark()),
    pickle.POP: Unpickler._pop_or_mark,
    pickle.POP_MARK: Unpickler._pop_mark,
    pickle.DUP: lambda u: u._push(u._top()),
    pickle.PUT: lambda u: u._put(int(u._line())),
    pickle.BINPUT: lambda u: u._put(u._number("<B")),
    pickle.LONG_BINPUT: lambda u: u._put(u._number("<I")),
    pickle.MEMOIZE: lambda u: u._put(len(u._memo)),
    pickle.GET: lambda u: u._get(int(u._line())),
    pickle.BINGET: lambda u: u._get(u._number("<B")),
    pickle.LONG_BINGET: lambda u: u._get(u._number("<I")),
    pickle.GLOBAL: lambda u: u._name(u._line().decode(), u._line().decode()),
    pickle.STACK_GLOBAL: lambda u: u._name(*[u._pop(), u._pop()][::-1]),
    pickle.REDUCE: lambda u: u._reduce(u._pop(), u._pop()),
    pickle.NEWOBJ: lambda u: u._reduce(u._pop(), u._pop()),
    pickle.NEWOBJ_EX: Unpickler._new_with_keywords,
    pickle.OBJ: Unpickler._object,
    pickle.INST: Unpickler._instance,
    pickle.BUILD: Unpickler._build,
    pickle.PERSID: lambda u: u._refer(u._line().decode()),
    pickle.BINPERSID: lambda u: u._refer(u._pop()),
}
