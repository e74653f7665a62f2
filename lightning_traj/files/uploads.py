"""Sending files to remote storage while training goes on."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from lightning_traj.files.atomic import put


class Uploads:
    """Sends the newest state of files to a remote folder, on one background thread.

    A file that could not be sent is tried again when the next one is handed over, and once more at the end.

    Args:
        url: URL of the folder.
        kept: Names of files whose earlier contents are copied to a free name (``<stem>-v1``) before they are replaced
            for the first time. A name is removed from the set once that is done.
    """

    def __init__(self, url: str, kept: set[str]) -> None:
        self.url, self.kept = url, kept
        self._waiting: dict[str, Path] = {}  # by name, the newest state of each file
        self._failed: dict[str, Path] = {}  # by name, files that could not be sent
        self._sending: str | None = None
        self._failure: str | None = None
        self._closing = False
        self._changed = threading.Condition()
        # A daemon thread, so that a store that no longer answers cannot keep the process from ending.
        self._thread = threading.Thread(target=self._run, name=f"uploads to {url}", daemon=True)
        self._thread.start()

    def send(self, name: str, file: Path) -> None:
        """Hand over the newest state of a file. The file is deleted once it has been sent or is out of date."""
        with self._changed:
            outdated = [files.pop(name) for files in (self._waiting, self._failed) if name in files]
            self._waiting |= self._failed | {name: file}
            self._failed = {}
            self._changed.notify()
        for earlier in outdated:
            earlier.unlink()

    def close(self, timeout: float) -> list[str]:
        """Wait until everything has been sent, for at most `timeout` seconds.

        Returns:
            Names of the files whose newest state has not been sent.
        """
        with self._changed:
            self._waiting |= self._failed
            self._failed = {}
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout)
        with self._changed:
            unsent = {*self._waiting, *self._failed, *([] if self._sending is None else [self._sending])}
            self._waiting = {}  # late files must not replace those of a later fit
        return sorted(unsent)

    def take_failure(self) -> str | None:
        """Return the latest error since the last call, if any, and forget it."""
        with self._changed:
            failure, self._failure = self._failure, None
        return failure

    def _run(self) -> None:
        while (job := self._next()) is not None:
            name, file = job
            failure = None
            try:
                self._put(name, file)
            except Exception as error:
                failure = f"{type(error).__name__}: {error}"
            with self._changed:
                self._sending = None
                if failure is not None:
                    self._failure = failure
                if failure is not None and name not in self._waiting:
                    self._failed[name] = file
                else:
                    file.unlink(missing_ok=True)

    def _next(self) -> tuple[str, Path] | None:
        """Wait for a file to send; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            if not self._waiting:
                return None
            self._sending = next(iter(self._waiting))
            return self._sending, self._waiting.pop(self._sending)

    def _put(self, name: str, file: Path) -> None:
        if name in self.kept:
            self._copy_aside(name)
            self.kept.discard(name)
        put(file, f"{self.url}/{name}")

    def _copy_aside(self, name: str) -> None:
        from fsspec.core import url_to_fs

        system, earlier = url_to_fs(f"{self.url}/{name}")
        if not system.exists(earlier):
            return
        stem, suffix = os.path.splitext(earlier)
        count = 1
        while system.exists(other := f"{stem}-v{count}{suffix}"):
            count += 1
        try:
            system.copy(earlier, other)
        except NotImplementedError:  # not every file system copies
            system.pipe_file(other, system.cat_file(earlier))
