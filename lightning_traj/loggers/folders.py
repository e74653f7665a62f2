"""Folders of loggers."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any


def log_folder(loggers: Sequence[Any], warn: Callable[[str], object] = lambda _: None) -> str | None:
    """Return the folder in which the first logger that has one keeps this run's files, a path or a URL, or None.

    Args:
        loggers: Loggers of the Trainer.
        warn: Function that is called with a message about a logger whose folder is not a path, which can happen with
            mocks and home-made loggers. The next logger is then asked.
    """
    for logger in loggers:
        try:
            if folder := _folder_of(logger):
                return folder
        except Exception as error:  # properties of a logger may raise anything
            warn(f"{type(logger).__name__} has no folder for files: {error if str(error) else type(error).__name__}")
    return None


def as_folder(attribute: str, value: Any) -> str | None:
    """Return a path as a string; None if there is none.

    Args:
        attribute: Name of the logger's attribute, for the message.
        value: Value of the attribute.

    Raises:
        TypeError: The value is not a path. A mock is not one either, even if it has the members of a path.
    """
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, PathLike) and os.fspath(value) == str(value):
        return str(value)
    raise TypeError(f"{attribute}={value!r} is not a path")


def _folder_of(logger: Any) -> str | None:
    """Return the folder of a logger for this run; None if it keeps no files here.

    Raises:
        TypeError: The attributes of the logger do not make up a path.
    """
    if folder := as_folder("log_dir", getattr(logger, "log_dir", None)):
        return folder
    if not (parent := as_folder("save_dir", getattr(logger, "save_dir", None))):
        return None
    name, version = logger.name, logger.version
    for attribute, value in (("name", name), ("version", version)):
        if not isinstance(value, str | int | None):
            raise TypeError(f"{attribute}={value!r} is not a str")
    return os.path.join(parent, str(name), version if isinstance(version, str) else f"version_{version}")
