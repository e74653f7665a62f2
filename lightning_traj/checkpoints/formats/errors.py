"""What is said of a checkpoint that cannot be read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class CheckpointError(ValueError):
    """A checkpoint cannot be read: the message names it, and says why.

    Attributes:
        path: Of the checkpoint.
    """

    path: Path | None = None


class NoWeights(ValueError):
    """A file holds no weights, but something that is saved beside them."""


def unreadable(path: Path, error: BaseException) -> CheckpointError:
    """What went wrong with a checkpoint, in words that name it."""
    named = CheckpointError(f"{path} cannot be read as a checkpoint: {reason(error)}.")
    named.path = path
    return named


def reason(error: BaseException) -> str:
    """Why something cannot be read, without a full stop."""
    text = str(error).strip()
    said = text.splitlines()[0][:300] if text else type(error).__name__
    clear = isinstance(error, (CheckpointError, NoWeights, OSError)) or said.startswith("it is ")
    return (said if clear else f"it is damaged, or of another kind ({said})").rstrip(".")


@contextmanager
def within(name: str) -> Iterator[None]:
    """Of several files of a checkpoint, name the one with which something is wrong."""
    try:
        yield
    except Exception as error:
        raise CheckpointError(f"in {name}, {reason(error)}") from error
