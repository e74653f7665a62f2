"""Progress of an interrupted computation in a file, so that it can go on."""

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
    """File with the progress of a task; it counts only for the same task.

    Args:
        path: Path of the file; None to keep nothing.
        task: Description of the computation and its inputs, as plain values.
    """

    def __init__(self, path: str | os.PathLike[str] | None, task: Any) -> None:
        self.path = None if path is None else Path(path)
        self.task = json.dumps(task, sort_keys=True, default=str).encode()
        self._written = time.monotonic()

    def load(self) -> Any:
        """Return the progress that was kept last; None if there is none, or it is damaged or of another task."""
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
        """Keep the tensors and primitives that ``done`` returns; at most every ten seconds, unless ``now``."""
        if self.path is None or (not now and time.monotonic() - self._written < INTERVAL):
            return
        buffer = io.BytesIO()
        torch.save(done(), buffer)
        kept = buffer.getvalue()
        with replace_atomically(self.path) as temporary:
            temporary.write_bytes(self._digest(kept) + kept)
        self._written = time.monotonic()

    def _digest(self, kept: bytes) -> bytes:
        """Return a digest of the task and its progress, since torch's files alone do not tell if they are damaged."""
        return hashlib.sha256(hashlib.sha256(self.task).digest() + kept).digest()


def stamps(path: Path) -> list[tuple[str, int, int]]:
    """Return names, sizes and times of change of a file, or of the files in a folder, which tell if it has changed."""
    files = sorted(child for child in path.iterdir() if child.is_file()) if path.is_dir() else [path]
    return [(str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
