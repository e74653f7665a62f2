"""The Trajectory of a recording so far."""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType
from typing import Any, NamedTuple

import numpy as np
import torch

from lightning_traj.files import Picklable
from lightning_traj.gram import ExactGram
from lightning_traj.recording.host_copy import HostCopy, host_copy
from lightning_traj.recording.omission import without_blocks
from lightning_traj.recording.record_state import RecordState
from lightning_traj.recording.windows import StepWindows
from lightning_traj.trajectory import Trajectory, Windows


class Collected(NamedTuple):
    """A recording on the host.

    Attributes:
        trajectory: Trajectory of the snapshots whose entries are all finite; of none if θ_0 is not.
        indices: Indices of these among the kept snapshots.
        spoilt: Names of the blocks with non-finite entries, by the step of the snapshot.
    """

    trajectory: Trajectory
    indices: tuple[int, ...]
    spoilt: Mapping[int, tuple[str, ...]]


class Collector(Picklable, transient={"_copy": NoneType, "_key": NoneType, "_collected": NoneType}):
    """Copies a recording to the host, no more of it than is new since the last time."""

    def __init__(self) -> None:
        self._copy: HostCopy | None = None
        self._key: object = None
        self._collected: Collected | None = None

    def collect(self, state: RecordState, windows: StepWindows, settings: Mapping[str, Any]) -> Collected:
        """Return the Trajectory so far.

        Args:
            state: Recording so far, with H computed; at least one snapshot.
            windows: Windows of single steps.
            settings: Settings of the recording, for the Trajectory.
        """
        key = state.history.order, windows.order, tuple(state.partition.unreadable), len(state.blocks)
        if self._collected is None or key != self._key:
            self._copy = host_copy(state, windows, self._copy)
            self._collected = _collected(self._copy, state, windows, settings)
            self._key = key
        return self._collected


def _collected(copy: HostCopy, state: RecordState, windows: StepWindows, settings: Mapping[str, Any]) -> Collected:
    finite = copy.finite
    good = np.flatnonzero(finite.all(axis=1)).tolist()
    spoilt = {
        step: tuple(block.name for block, is_finite in zip(state.blocks, row, strict=True) if not is_finite)
        for step, row in zip(state.history.steps, finite, strict=True)
        if not row.all()
    }
    if 0 not in good:  # without a finite θ_0 nothing is defined
        good = []
    taken = copy.taken(good)
    trajectory = Trajectory(
        blocks=state.blocks,
        steps=np.array(state.history.steps, dtype=np.int64)[good],
        epochs=np.array(state.history.epochs, dtype=np.float64)[good],
        anchored=taken.anchored,
        local=taken.local,
        paths=taken.paths,
        windows=Windows(copy.stacked_windows(windows.order, windows.length), windows.steps, windows.counts),
        settings={**settings, "root": state.partition.root},
    )
    if not state.is_lost:  # else it ends here, and is true up to here
        trajectory = without_blocks(trajectory, state.partition.lost)
    return Collected(trajectory, tuple(good), spoilt)


def sketch_rows(state: RecordState) -> np.ndarray | None:
    """Return the kept sketches: θ_0, then displacements, float32 [n, k] on the host; None for full snapshots."""
    gram = state.gram
    if isinstance(gram, ExactGram) or not state.blocks:
        return None
    base = gram.base.float().cpu()
    padded = [torch.nn.functional.pad(row.cpu(), (0, base.numel() - row.numel())) for row in gram.rows]
    rows = torch.stack([base, *padded])
    lost = state.partition.lost
    if lost and not state.is_lost:
        by_block = torch.split(rows, list(gram.lengths), dim=1)
        rows = torch.cat([some for b, some in enumerate(by_block) if b not in lost], dim=1)
    return rows.numpy()
