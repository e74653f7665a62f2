"""Checks of arguments, whose messages name the argument, the value that it was given and the remedy."""

from __future__ import annotations

from collections.abc import Iterable


def check_int(
    argument: str, value: object, least: int | None = None, *, owner: str = "", example: int | None = None
) -> None:
    """Raise unless a value is an int that is large enough.

    Args:
        argument: Name of the argument.
        value: The value that was passed. A bool is not taken for an int.
        least: Smallest value that is allowed. None allows every int.
        owner: Name of the class or function that has the argument, for messages that need it.
        example: A sensible value that the message suggests.

    Raises:
        TypeError: The value is not an int.
        ValueError: The value is too small.
    """
    is_int = isinstance(value, int) and not isinstance(value, bool)
    if is_int and (least is None or value >= least):  # type: ignore[operator]
        return
    kinds = {None: "an int", 0: "an int of 0 or more", 1: "a positive int"}
    remedy = kinds.get(least, f"an int of at least {least}") + ("" if example is None else f", such as {example}")
    error = ValueError if is_int else TypeError
    raise error(f"{_passed(argument, value, owner)}: pass {remedy}.")


def check_choice(argument: str, value: object, choices: Iterable[object], *, owner: str = "") -> None:
    """Raise ValueError unless a value is one of a few choices. Arguments as for ``check_int``."""
    choices = list(choices)
    if value not in choices:
        raise ValueError(f"{_passed(argument, value, owner)}: pass one of {', '.join(map(repr, choices))}.")


def _passed(argument: str, value: object, owner: str) -> str:
    """Return the argument and its value as in a call."""
    return f"{owner}({argument}={value!r})" if owner else f"{argument}={value!r}"
