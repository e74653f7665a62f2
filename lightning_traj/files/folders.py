"""Folders that a run writes its files to: on this machine, or at a URL that fsspec opens."""

from __future__ import annotations

import itertools
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from lightning_traj.files.atomic import is_remote, local_path
from lightning_traj.files.uploads import Uploads

PATIENCE = 60.0  # longest time, in seconds, that the end of a fit waits for uploads

Warn = Callable[[str], None]


class Folder(ABC):
    """A folder of files that are replaced as a whole."""

    @abstractmethod
    def write(self, name: str, write: Callable[[Path], object]) -> None:
        """Replace a file.

        Args:
            name: The file's name.
            write: Function that writes the new contents to the path that it is given.
        """

    @abstractmethod
    def set_aside(self, name: str) -> None:
        """Rename an earlier file to ``<stem>-v1``, so that nobody's results are overwritten."""

    @abstractmethod
    def describe(self, name: str) -> str:
        """Return the place of a file, for messages."""

    def close(self) -> None:  # noqa: B027 (a local folder has nothing to wait for)
        """Wait, for a limited time, until all files are in place."""


class LocalFolder(Folder):
    """A folder on this machine.

    Args:
        path: Path of the folder, which is made when the first file is written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def write(self, name: str, write: Callable[[Path], object]) -> None:  # noqa: D102 (see Folder)
        write(self.path / name)

    def set_aside(self, name: str) -> None:  # noqa: D102
        file = self.path / name
        if file.exists():
            count = 1
            while (other := file.with_name(f"{file.stem}-v{count}{file.suffix}")).exists():
                count += 1
            file.rename(other)

    def describe(self, name: str) -> str:  # noqa: D102
        return str(self.path / name)


class RemoteFolder(Folder):
    """A folder at a URL. Files are made on this machine and sent by a background thread; training never waits for it.

    Args:
        url: URL of the folder.
        warn: Function that warns of files that could not be sent.
    """

    def __init__(self, url: str, warn: Warn) -> None:
        scheme, _, path = url.partition("://")
        self.url = f"{scheme}://{path.rstrip('/')}"  # a URL that is only a scheme keeps its slashes
        self._warn = warn
        self._kept: set[str] = set()
        self._numbers = itertools.count()
        self._staging: TemporaryDirectory[str] | None = None  # holds files until they are sent
        self._uploads: Uploads | None = None
        self._unsent: list[str] = []

    def write(self, name: str, write: Callable[[Path], object]) -> None:  # noqa: D102 (see Folder)
        if self._staging is None or self._uploads is None:
            self._staging = TemporaryDirectory(prefix="lightning_traj-")
            self._uploads = Uploads(self.url, self._kept)
        staged = Path(self._staging.name, str(next(self._numbers)), name)
        staged.parent.mkdir()
        write(staged)
        self._uploads.send(name, staged)
        self._report(self._uploads)

    def set_aside(self, name: str) -> None:  # noqa: D102
        self._kept.add(name)  # it is copied when it is replaced, since looking for it now would delay training

    def describe(self, name: str) -> str:  # noqa: D102
        return f"{self.url}/{name}" + (" (its latest state could not be sent)" if name in self._unsent else "")

    def close(self) -> None:  # noqa: D102
        if self._staging is None or self._uploads is None:
            return
        self._unsent = self._uploads.close(PATIENCE)
        self._report(self._uploads)
        if self._unsent:
            names = ", ".join(self._unsent)
            self._warn(f"{names} could not be sent to {self.url} within {PATIENCE:g} s")
        self._staging.cleanup()
        self._staging = self._uploads = None

    def _report(self, uploads: Uploads) -> None:
        if (failure := uploads.take_failure()) is not None:
            self._warn(f"sending to {self.url} failed with {failure}; it is tried again at each log")


def folder_at(place: str | os.PathLike[str], warn: Warn) -> Folder:
    """Return the folder at a path or URL."""
    return RemoteFolder(os.fspath(place), warn) if is_remote(place) else LocalFolder(local_path(place))
