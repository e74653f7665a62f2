"""What an interrupted computation has done so far, in a file, so that it can go on."""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lightning_traj.files import replace_atomically

INTERVAL = 10.0  # seconds between two writes
_LENGTH = 32  # of a digest


class Resumption:
    """A file with what has been done, which counts only for the same task.

    Args:
        path: The file; None: nothing is kept.
        task: What is computed, of which inputs: plain values.
    """

    def __init__(self, path: str | os.PathLike[str] | None, task: Any) -> None:
        self.path = None if path is None else Path(path)
        self.task = json.dumps(task, sort_keys=True, default=str).encode()
        self._written = time.monotonic()

    def load(self) -> Any:
        """What was kept last; None where there is nothing, or it is of another task, or damaged."""
        if self.path is None or not self.path.is_file():
            return None
        content = self.path.read_bytes()
        digest, kept = content[:_LENGTH], content[_LENGTH:]
        if digest != self._digest(kept):
            return None
        try:
            return torch.load(io.BytesIO(kept), weights_only=True)
        except Exception:  # made by someone for this very task: done anew all the same
            return None

    def save(self, done: Callable[[], Any], *, now: bool = False) -> None:
        """Keep tensors and primitives, which ``done`` gives; at most every ten seconds, unless ``now``."""
        if self.path is None or (not now and time.monotonic() - self._written < INTERVAL):
            return
        buffer = io.BytesIO()
        torch.save(done(), buffer)
        kept = buffer.getvalue()
        with replace_atomically(self.path) as temporary:
            temporary.write_bytes(self._digest(kept) + kept)
        self._written = time.monotonic()

    def _digest(self, kept: bytes) -> bytes:
        """Of the task and of what has been done: torch's files alone don't tell when they are damaged."""
        return hashlib.sha256(hashlib.sha256(self.task).digest() + kept).digest()


def stamps(path: Path) -> list[tuple[str, int, int]]:
    """Names, sizes and times of change of a file, or of the files in a folder: whether it is still the same."""
    files = sorted(child for child in path.iterdir() if child.is_file()) if path.is_dir() else [path]
    return [(str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
