"""Files, local or remote, that are replaced in one step, and folders of results that never mix two calls."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

LOCAL = ("file", "local")  # fsspec's names for the local file system


def is_remote(place: str | os.PathLike[str]) -> bool:
    """Whether a place is a URL that fsspec opens, such as ``s3://bucket/run``; ``file://`` is local."""
    protocol, separator, _ = os.fspath(place).partition("://")
    return bool(separator) and protocol not in LOCAL


def local_path(place: str | os.PathLike[str]) -> Path:
    """Return the absolute path of a local place, with ``~`` expanded, so that a later ``chdir`` does not affect it."""
    path = os.fspath(place)
    if "://" in path:
        from fsspec.core import strip_protocol

        path = strip_protocol(path)
    return Path(os.path.abspath(os.path.expanduser(path)))


def as_place(place: str | os.PathLike[str]) -> Path | str:
    """Return a URL as it is, and a local place as a path."""
    path = os.fspath(place)
    return path if is_remote(path) else local_path(path) if "://" in path else Path(path)


def files_in(folder: Path | str, pattern: str) -> list[Path | str]:
    """Return the files in a folder that match a glob pattern, sorted, as paths or URLs.

    Raises:
        FileNotFoundError: There is no such folder.
    """
    if isinstance(folder, Path):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder")
        return sorted(file for file in folder.glob(pattern) if file.is_file())
    from fsspec.core import url_to_fs

    system, path = url_to_fs(folder)
    if not system.isdir(path):
        raise FileNotFoundError(f"{folder}: no such folder")
    found = sorted(system.glob(f"{path.rstrip('/')}/{pattern}"))
    return [folder.rstrip("/") + file.removeprefix(path.rstrip("/")) for file in found]


def put(file: Path, url: str) -> None:
    """Send a local file to a URL in one call: object stores have no rename, and show a file once it is complete."""
    from fsspec.core import url_to_fs

    system, target = url_to_fs(url)
    system.put_file(os.fspath(file), target)


@contextmanager
def local_copy(place: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a local path with the contents of a file: the file itself, or a temporary copy of a remote one.

    Raises:
        FileNotFoundError: There is no such file.
    """
    path = as_place(place)
    if isinstance(path, Path):
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        yield path
        return
    from fsspec.core import url_to_fs

    system, source = url_to_fs(path)
    if not system.isfile(source):
        raise FileNotFoundError(f"{path}: no such file")
    with TemporaryDirectory(prefix="lightning_traj-") as temporary:
        copy = Path(temporary, path.rpartition("/")[2])
        system.get_file(source, os.fspath(copy))
        yield copy


@contextmanager
def replace_atomically(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path; the file that the body writes there replaces ``path`` in one step.

    A reader sees the old file or the new one, never a part, even if the process is killed. If the body raises, ``path``
    is untouched and the temporary file is removed. Missing folders are made. A URL is written by one ``put``.
    """
    target = as_place(path)
    if not isinstance(target, Path):
        with TemporaryDirectory(prefix="lightning_traj-") as folder:
            staged = Path(folder, target.rpartition("/")[2])
            yield staged
            put(staged, target)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.stem}-{uuid.uuid4().hex[:12]}{target.suffix}")
    try:
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # some writers replace the file by one that only its owner can read
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(target)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


@contextmanager
def replace_together(folder: str | os.PathLike[str], earlier: Iterable[str]) -> Iterator[Path]:
    """Yield an empty folder within ``folder``; the files that the body writes there replace the ``earlier`` results.

    If the body raises, ``folder`` stays as it was. It is made if it is missing.

    Args:
        folder: Folder of the results.
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
