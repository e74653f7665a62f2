"""Wording that messages, figures and tables share."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any


def join_names(names: Sequence[str], most: int | None = None) -> str:
    """Return names as they are listed in a sentence: ``a, b and c``, or ``a, b and 7 more`` for more than `most`."""
    if most is not None and len(names) > most:
        return f"{', '.join(names[: most - 1])} and {len(names) - most + 1} more"
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)


def printable(text: str) -> str:
    """Return a text with ``?`` for control characters, which could change a terminal's state and have no glyphs."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text)


def cut(name: str, most: int) -> str:
    """Return a name of at most `most` letters: the text between its numbers loses its middle.

    Numbers and stars stay, and an end of the text between them, even if that takes more letters.
    """
    if len(name) <= most:
        return name
    pieces = re.split(r"(\d+|\*)", name)  # every second one is a number
    room = most - sum(map(len, pieces[1::2]))
    lengths = [len(piece) for piece in pieces[::2]]
    longest = max(
        (size for size in range(3, max(lengths) + 1) if sum(min(size, x) for x in lengths) <= room), default=3
    )
    spare = max(0, room - sum(min(longest, x) for x in lengths))
    for place in range(0, len(pieces), 2):
        allowed = longest
        if len(pieces[place]) > longest and spare:  # what is left over goes to the first
            allowed, spare = longest + 1, spare - 1
        pieces[place] = _without_middle(pieces[place], allowed)
    return "".join(pieces)


def _without_middle(text: str, most: int) -> str:
    ends = most // 2
    return text if len(text) <= most else f"{text[: most - ends - 1]}…{text[-ends:]}"


def function_name(function: Any) -> str:
    """Return a function's name, the same in every process: without an address."""
    if isinstance(function, partial):
        return f"{function_name(function.func)} with {stable_repr(function.args)}, {stable_repr(function.keywords)}"
    return str(getattr(function, "__qualname__", type(function).__qualname__))


def stable_repr(value: object) -> str:
    """Return the repr of a value without addresses, which is the same in every process."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def check_unchanged(
    ours: Mapping[str, object], theirs: Mapping[str, object], recorded: str, show: Callable[[object], str] = str
) -> None:
    """Raise ValueError where a setting differs from the one that a state was saved with.

    Args:
        ours: Settings of this run, by argument, as descriptions or plain values.
        theirs: Settings of the run that saved the state.
        recorded: The end of the phrase "with which …" about the saved state.
        show: Function that returns a setting as the message shows it.
    """
    for argument, value in ours.items():
        if (saved := theirs.get(argument)) != value:
            raise ValueError(
                f"{argument}={show(value)} differs from {argument}={show(saved)}, with which {recorded}: pass "
                f"{argument}={show(saved)} to go on with it, or another name= to begin a new one."
            )
