"""Are the arguments of TrajectoryCallback what they should be? Asked before anything else happens."""

from __future__ import annotations

import os
import re
from typing import Any

from lightning_traj.blocks import BlockRules
from lightning_traj.checks import check_choice, check_int
from lightning_traj.files import is_remote
from lightning_traj.recording.quantities import QUANTITIES
from lightning_traj.schedule import EveryNEpochs, Schedule


def check_arguments(
    *,
    track: object,
    schedule: object,
    snapshot: object,
    sketch_dim: object,
    blocks: Any,
    include: Any,
    exclude: Any,
    fused: Any,
    max_snapshots: object,
    window: object,
    window_schedule: object,
    seed: object,
    dirpath: object,
    figures: object,
    name: object,
) -> None:
    """Raise for a wrong argument, naming it, its value and the remedy."""
    check_choice("track", track, QUANTITIES)
    for argument, value in (("schedule", schedule), ("window_schedule", window_schedule)):
        if not isinstance(value, Schedule):
            raise TypeError(
                f"{argument}={value!r} is no schedule: pass one such as EveryNEpochs(1) or EveryNSteps(100)."
            )
    if snapshot not in ("sketch", "full"):
        raise ValueError(f"snapshot={snapshot!r}: pass 'sketch' or 'full'.")
    for argument, value, least in (
        ("sketch_dim", 1 if sketch_dim is None else sketch_dim, 1),
        ("max_snapshots", max_snapshots, 4),
        ("window", 0 if window is None else window, 0),
        ("seed", seed, None),
    ):
        check_int(argument, value, least)
    BlockRules(blocks, {} if fused is None else fused, include, exclude)  # raises if one of them is wrong
    if window and track != "weights":
        raise ValueError(f"window={window} with track={track!r}: windows are of the weights' steps; pass None or 0.")
    if (window == 0 or track != "weights") and window_schedule != EveryNEpochs(1):
        raise ValueError(
            f"window_schedule={window_schedule!r} with window={window}, track={track!r}: no windows begin there; "
            "leave it out."
        )
    if window == 1:
        raise ValueError("window=1: an angle takes two steps; pass 0 for no windows, or at least 2.")
    if dirpath is not None:
        _check_dirpath(dirpath, snapshot)
    if not isinstance(figures, bool):
        raise TypeError(f"figures={figures!r}: pass True or False.")
    if not isinstance(name, str):
        raise TypeError(f'name={name!r} is no string: pass one such as "traj".')
    if not name or name.strip("._-") == "" or not all(c.isalnum() or c in "._-" for c in name):
        raise ValueError(
            f"name={name!r}: pass letters, digits, '.', '_' and '-'; it is part of tags and of file names."
        )


def _check_dirpath(dirpath: object, snapshot: object) -> None:
    if not isinstance(dirpath, (str, os.PathLike)):
        raise TypeError(f"dirpath={dirpath!r} is no path: pass a str or a Path, or None for the folder of the logs.")
    if not isinstance(dirpath, str) and re.match(r"[A-Za-z][\w+.-]+:/", os.fspath(dirpath)):
        raise ValueError(f"dirpath={dirpath!r}: a Path loses a slash of a URL; pass the URL as a str.")
    if not is_remote(dirpath):
        return
    from fsspec import get_filesystem_class

    url = os.fspath(dirpath)
    for link in url.split("::"):  # as in simplecache::s3://…
        try:
            get_filesystem_class(link.partition("://")[0])
        except (ValueError, ImportError) as error:
            raise ValueError(
                f"dirpath={url!r}: {error}; pass a URL whose file system fsspec knows and has installed, or a folder."
            ) from error
    if snapshot == "full":
        raise ValueError(
            f"dirpath={url!r}: snapshot='full' keeps its snapshots in files that are mapped into memory: pass a folder "
            "on this machine, or snapshot='sketch'."
        )
