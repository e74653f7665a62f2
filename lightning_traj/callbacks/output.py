"""Folders that the files of a fit go to."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import NoneType

from lightning_traj import loggers
from lightning_traj.callbacks.trainer import Trainer
from lightning_traj.files import Folder, Picklable, folder_at, is_remote, local_path


class Output(Picklable, transient={"_temporary": NoneType}):
    """Folder of a fit's files.

    It is looked up once for a fit, so that a later ``chdir`` does not spread the files over two folders.

    Attributes:
        place: Absolute path or URL of the folder; empty in a ``fast_dev_run``, which leaves no files behind.
    """

    def __init__(self) -> None:
        self.place = ""
        self._temporary: tempfile.TemporaryDirectory[str] | None = None

    def find(
        self,
        dirpath: str | os.PathLike[str] | None,
        trainer: Trainer,
        warn: Callable[[str], None],
    ) -> None:
        """Look up the folder.

        Args:
            dirpath: Folder or URL that the user named; None for the folder of the logs.
            trainer: Trainer of the fit.
            warn: Warns of loggers whose folder cannot be used.
        """
        self.place = ""
        if trainer.fast_dev_run:
            return
        place = dirpath
        problems: list[str] = []
        if place is None:
            place = loggers.log_folder(trainer.loggers, problems.append) or trainer.default_root_dir
            place = trainer.strategy.broadcast(place)
        self.place = os.fspath(place) if is_remote(place) else str(local_path(place))
        if problems:
            warn(f"{'; '.join(problems)}; files go to {self.place}, unless dirpath= names another folder")

    def check_full_snapshots(self) -> None:
        """Raise ValueError if the folder cannot take full snapshots."""
        if is_remote(self.place):
            raise ValueError(
                f"snapshot='full' keeps its snapshots in files that are mapped into memory, and the folder is "
                f"{self.place}: pass dirpath= a folder on this machine, or snapshot='sketch'."
            )

    def folder(self, warn: Callable[[str], None]) -> Folder | None:
        """Return the folder; None if the fit leaves no files behind. ``warn`` is told of files that are not sent."""
        return folder_at(self.place, warn) if self.place else None

    def snapshots(self, name: str) -> Path:
        """Return the folder of the full snapshots of the trajectory of this name."""
        folder = self.place
        if not folder:
            self._temporary = tempfile.TemporaryDirectory(prefix="lightning_traj-")
            folder = self._temporary.name
        return Path(folder, f"{name}-snapshots")

    def clean_up(self) -> None:
        """Remove the snapshots of a fit that leaves no files behind."""
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None
