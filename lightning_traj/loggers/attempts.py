"""Tasks that may fail without stopping the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable


def attempt_all(tasks: Iterable[Callable[[], object]]) -> None:
    """Do all tasks, then raise the first error, so that a logger that fails keeps nothing from the others."""
    first: Exception | None = None
    for task in tasks:
        try:
            task()
        except Exception as error:
            first = first or error
    if first is not None:
        raise first
