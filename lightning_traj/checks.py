"""Checks of arguments, whose messages name the argument, the value that it was given and the remedy."""

from __future__ import annotations

from collections.abc import Iterable


def check_int(argument: str, value: object, least: int | None = None, example: int | None = None) -> None:
    """Raise unless a value is an int that is large enough.

    Args:
        argument: The argument as messages name it, such as ``"dim"`` or ``"cap of LogSpaced"``.
        value: The value that was passed. A bool is not taken for an int.
        least: Smallest value that is allowed. None allows every int.
        example: A sensible value, for the message. Default: the smallest one, or 0.

    Raises:
        TypeError: The value is not an int.
        ValueError: The value is too small.
    """
    is_int = isinstance(value, int) and not isinstance(value, bool)
    if is_int and (least is None or value >= least):  # type: ignore[operator]
        return
    kinds = {None: "an int", 0: "an int of 0 or more", 1: "a positive int"}
    wanted = kinds.get(least, f"an int of at least {least}")
    example = (least or 0) if example is None else example
    error = ValueError if is_int else TypeError
    raise error(f"{argument} must be {wanted}, got {value!r}. Pass an int such as {example}.")


def check_choice(argument: str, value: object, choices: Iterable[object]) -> None:
    """Raise ValueError unless a value is one of a few choices.

    Args:
        argument: The argument as messages name it.
        value: The value that was passed.
        choices: The values that are allowed.
    """
    choices = list(choices)
    if value not in choices:
        *others, last = map(repr, choices)
        raise ValueError(f"{argument} must be {', '.join(others)} or {last}, got {value!r}. Pass one of these.")
