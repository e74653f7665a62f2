"""Files that are never seen half written, and folders of results that are never of two calls."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory


@contextmanager
def replace_atomically(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``; what is written there replaces ``path`` in one step.

    Readers, and a process killed at any moment, see the old file or the new one. If the body raises, ``path`` is
    untouched and the temporary file is removed. The folder is made if it is missing.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.stem}-{uuid.uuid4().hex[:12]}{target.suffix}")
    try:
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # some writers make a file of their own, readable by its owner alone
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(target)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


@contextmanager
def replace_together(folder: str | os.PathLike[str], earlier: Iterable[str]) -> Iterator[Path]:
    """Yield an empty folder within ``folder``; what is written there takes the place of the ``earlier`` results.

    If the body raises, ``folder`` is as it was. It is made if it is missing.

    Args:
        folder: Of the results.
        earlier: Names of files and folders in it that are removed, whether or not there are new ones of these names.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".results-", dir=folder) as temporary:
        yield Path(temporary)
        for path in map(folder.joinpath, earlier):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        for made in sorted(Path(temporary).iterdir()):
            made.rename(folder / made.name)
