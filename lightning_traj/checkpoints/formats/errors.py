"""Errors for checkpoints that cannot be read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class CheckpointError(ValueError):
    """Error for a checkpoint that cannot be read; the message names it and says why.

    Attributes:
        path: Path of the checkpoint.
    """

    path: Path | None = None


class NoWeights(ValueError):
    """Error for a file that holds no weights, but something that is saved beside them."""


def unreadable(path: Path, error: BaseException) -> CheckpointError:
    """Return the error for a checkpoint, which names it and says what went wrong."""
    named = CheckpointError(f"{path} cannot be read as a checkpoint: {reason(error)}.")
    named.path = path
    return named


def with_skip_bad(error: CheckpointError) -> CheckpointError:
    """Return an error for a checkpoint that adds how to go on without it."""
    told = CheckpointError(f"{error} To leave it out, pass skip_bad=True (--skip-bad).")
    told.path, told.__cause__ = error.path, error.__cause__
    return told


def reason(error: BaseException) -> str:
    """Return why something cannot be read, without a full stop."""
    text = str(error).strip()
    said = text.splitlines()[0][:300] if text else type(error).__name__
    clear = isinstance(error, (CheckpointError, NoWeights, OSError)) or said.startswith("it is ")
    return (said if clear else f"it is damaged, or of another kind ({said})").rstrip(".")


@contextmanager
def within(name: str) -> Iterator[None]:
    """Name the file in errors that are raised while it is read, if a checkpoint has several files."""
    try:
        yield
    except Exception as error:
        raise CheckpointError(f"in {name}, {reason(error)}") from error
