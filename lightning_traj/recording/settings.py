"""Settings of a recording, checked before anything else happens."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightning_traj.blocks import BlockRules, FusedLayout, Granularity, Partition, Patterns
from lightning_traj.checks import check_choice, check_int
from lightning_traj.files import is_remote
from lightning_traj.recording.quantities.registry import QUANTITIES
from lightning_traj.schedule import EveryNEpochs, Schedule

DEFAULT_WINDOW = 8  # optimizer steps


@dataclass(frozen=True)
class RecordingSettings:
    """Settings of a recording. ``TrajectoryCallback`` documents each of them for its users.

    Args:
        track: Quantity that is recorded, one of ``QUANTITIES``.
        snapshot: ``"sketch"`` or ``"full"``.
        sketch_dim: Length of a block's sketch, at least 1. None: the default, or, when a recording goes on from a
            checkpoint, the length with which it was made.
        blocks: Granularity of the blocks: ``"tensor"``, ``"layer"``, ``"role"``, ``"model"``, or a function from a
            tensor's block to the name of the block that it is added to.
        include, exclude: Glob patterns over names of parameters and parts. None includes all, and excludes none.
        fused: Layouts of fused tensors that are not known, by glob pattern over parameter names.
        max_snapshots: Largest number of snapshots and of windows that are kept, at least 4.
        window: Optimizer steps in a window for the oscillation measures: at least 2, or 0 for no windows. None: 8 for
            the weights.
        seed: Seed of the sketch.

    Raises:
        TypeError, ValueError: A setting is wrong. The message names it, its value and the remedy.
    """

    track: str = "weights"
    snapshot: str = "sketch"
    sketch_dim: int | None = None
    blocks: Granularity = "tensor"
    include: Patterns | None = None
    exclude: Patterns | None = None
    fused: Mapping[str, FusedLayout] | None = None
    max_snapshots: int = 256
    window: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("track", self.track, QUANTITIES)
        check_choice("snapshot", self.snapshot, ("sketch", "full"))
        check_int("sketch_dim", 1 if self.sketch_dim is None else self.sketch_dim, 1)
        check_int("max_snapshots", self.max_snapshots, 4)
        check_int("window", 0 if self.window is None else self.window, 0)
        check_int("seed", self.seed)
        self.partition()  # raises if blocks, include, exclude or fused are wrong
        if self.window and self.track != "weights":
            raise ValueError(
                f"window={self.window} with track={self.track!r}: windows are of the weights' steps; pass None or 0."
            )
        if self.window == 1:
            raise ValueError("window=1: an angle takes two steps; pass 0 for no windows, or at least 2.")

    @property
    def is_full(self) -> bool:
        """Whether snapshots are full ones."""
        return self.snapshot == "full"

    @property
    def window_steps(self) -> int:
        """Optimizer steps of a window; 0 if there are no windows."""
        if self.window is None:
            return DEFAULT_WINDOW if self.track == "weights" else 0
        return self.window

    def partition(self) -> Partition:
        """Return a partition into such blocks that has met no parameters yet."""
        return Partition(BlockRules(self.blocks, {} if self.fused is None else self.fused, self.include, self.exclude))

    def described(self, sketch_dim: int) -> dict[str, Any]:
        """Return the settings that have to stay the same for a recording to go on, as plain values.

        Args:
            sketch_dim: Length of the sketches, which the recording may have chosen.
        """
        return {
            "track": self.track,
            "snapshot": self.snapshot,
            "sketch_dim": sketch_dim,
            "seed": self.seed,
            **self.partition().rules.settings,
            "max_snapshots": self.max_snapshots,
            "window": self.window_steps,
        }


def check_schedules(schedule: object, window_schedule: object, settings: RecordingSettings) -> None:
    """Raise TypeError or ValueError if the schedules of snapshots and windows are wrong for these settings."""
    for argument, value in (("schedule", schedule), ("window_schedule", window_schedule)):
        if not isinstance(value, Schedule):
            raise TypeError(
                f"{argument}={value!r} is not a schedule: pass one such as EveryNEpochs(1) or EveryNSteps(100)."
            )
    if not settings.window_steps and window_schedule != EveryNEpochs(1):
        raise ValueError(
            f"window_schedule={window_schedule!r} with window={settings.window}, track={settings.track!r}: no windows "
            "begin there; leave it out."
        )


def check_output(name: object, dirpath: object, figures: object, snapshot: str) -> None:
    """Raise TypeError or ValueError if the name of a recording, its folder or ``figures`` is wrong."""
    if dirpath is not None:
        _check_dirpath(dirpath, snapshot)
    if not isinstance(figures, bool):
        raise TypeError(f"figures={figures!r}: pass True or False.")
    if not isinstance(name, str):
        raise TypeError(f'name={name!r} is not a string: pass one such as "traj".')
    if not name or name.strip("._-") == "" or not all(c.isalnum() or c in "._-" for c in name):
        raise ValueError(
            f"name={name!r}: pass letters, digits, '.', '_' and '-'; it is part of tags and of file names."
        )


def _check_dirpath(dirpath: object, snapshot: str) -> None:
    if not isinstance(dirpath, (str, os.PathLike)):
        raise TypeError(f"dirpath={dirpath!r} is not a path: pass a str or a Path, or None for the folder of the logs.")
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
