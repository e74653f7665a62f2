"""Stack machine that runs the program of a pickle, with memory bounded by the length of the pickle.

Every length in a pickle is bounded by the bytes present, the memo is a dict, and the numbers of operations, containers
and copied bytes are limited.
"""

from __future__ import annotations

import struct
from mmap import mmap
from typing import Any

OPERATIONS = 2**24  # of one pickle: about ten seconds
CONTAINERS = 2**22  # lists, dicts, sets, placeholders and entries of the memo, which take up to 220 bytes each
COPIES = 2**20  # entries that may be copied besides two for each byte of the pickle


class UnpicklingError(ValueError):
    """Error for a pickle that is truncated, damaged, or made to do harm."""


class StackMachine:
    """Stack with marks, memo, and bytes of a pickle.

    Args:
        data: Bytes that hold the pickle.
        start: Index of the first byte of the pickle.

    Attributes:
        stop: Index of the first byte of the next operation.
    """

    def __init__(self, data: bytes | mmap, start: int = 0) -> None:
        self.data, self.stop = data, start
        self._memo: dict[int, Any] = {}
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._containers = 0
        self._copies = 2 * (len(data) - start) + COPIES

    def copying(self, length: int) -> None:
        """Count entries or bytes before they are copied, since a pickle could ask for copies of one value for ever."""
        self._copies -= length
        if self._copies < 0:
            raise UnpicklingError("its pickle makes more copies of its values than it has bytes")

    def _read(self, length: int) -> bytes:
        end = self.stop + length
        if length < 0 or end > len(self.data):
            raise UnpicklingError("it is truncated or damaged: its pickle goes on after the end of the file")
        content = self.data[self.stop : end]
        self.stop = end
        return content

    def _number(self, layout: str) -> Any:
        return struct.unpack(layout, self._read(struct.calcsize(layout)))[0]

    def _line(self) -> bytes:
        end = self.data.find(b"\n", self.stop)
        if end < 0:
            raise UnpicklingError("it is truncated or damaged: its pickle goes on after the end of the file")
        return self._read(end + 1 - self.stop)[:-1]

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _contain(self) -> None:
        self._containers += 1
        if self._containers > CONTAINERS:
            raise UnpicklingError(f"its pickle makes more than {CONTAINERS:,} containers")

    def _push_container(self, value: Any) -> None:
        self._contain()
        self._stack.append(value)

    def _pop(self) -> Any:
        if not self._stack:
            raise UnpicklingError("its pickle takes a value that is not there")
        return self._stack.pop()

    def _top(self) -> Any:
        if not self._stack:
            raise UnpicklingError("its pickle uses a value that is not there")
        return self._stack[-1]

    def _mark(self) -> None:
        self._contain()
        self._marked.append(self._stack)
        self._stack = []

    def _pop_mark(self) -> list[Any]:
        if not self._marked:
            raise UnpicklingError("its pickle goes back to a mark that it has not set")
        values, self._stack = self._stack, self._marked.pop()
        self._containers -= 1  # the stack of the mark goes
        return values

    def _pop_or_mark(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._pop_mark()

    def _put(self, place: int) -> None:
        self._contain()
        self._memo[place] = self._top()

    def _get(self, place: int) -> None:
        if place not in self._memo:
            raise UnpicklingError("its pickle recalls a value that it has not kept")
        self._push(self._memo[place])
