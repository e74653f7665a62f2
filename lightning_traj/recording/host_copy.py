"""Copies of Gram matrices on the host: one transfer for each log, and only of new entries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_traj.recording.record_state import RecordState
from lightning_traj.recording.windows import StepWindows

Array = NDArray[np.float64]


@dataclass(frozen=True)
class HostCopy:
    """Gram matrices, path lengths and windows of n snapshots and B blocks on the host.

    Attributes:
        order: Index of each snapshot among all scheduled ones.
        anchored: Gram(θ_0, d_1, …), [B, n, n].
        local: Local Gram matrices, [n, B, 4, 4]; not finite where a block of the snapshot is not.
        paths: Path lengths, [n, groups].
        windows: Sums of each window of single steps, [blocks, 3, length], by its index among all that were finished;
            NaN in a block where one of its steps is not finite.
    """

    order: tuple[int, ...]
    anchored: Array
    local: Array
    paths: Array
    windows: Mapping[int, Array] = field(default_factory=dict)

    @property
    def finite(self) -> NDArray[np.bool_]:
        """Whether all entries of each block are finite in each snapshot, [n, B]."""
        return np.asarray(np.isfinite(self.local).all(axis=(2, 3)))

    def taken(self, indices: Sequence[int]) -> HostCopy:
        """Return the copy of these snapshots alone."""
        if len(indices) == len(self.order):
            return self
        at = np.array(indices, dtype=np.int64)
        order = tuple(self.order[i] for i in indices)
        return HostCopy(order, self.anchored[:, at][:, :, at], self.local[at], self.paths[at], self.windows)

    def stacked_windows(self, order: Sequence[int], length: int) -> Array:
        """Return the sums of these windows, [W, B, 3, length]; later blocks have taken no steps in earlier windows."""
        stacked = np.zeros((len(order), len(self.anchored), 3, length))
        for i, window in enumerate(order):
            stacked[i, : len(self.windows[window])] = self.windows[window]
        return stacked


def host_copy(state: RecordState, windows: StepWindows, previous: HostCopy | None) -> HostCopy:
    """Copy to the host whatever the previous copy lacks.

    Args:
        state: Recording so far, with H computed.
        windows: Windows of single steps.
        previous: Last copy, if there is one.
    """
    gram, paths = state.gram, state.path_lengths.kept
    n, b, groups = len(state.history), len(state.blocks), paths[-1].numel()
    landed = {} if previous is None else previous.windows
    if previous is None or (len(previous.anchored), previous.paths.shape[1]) != (b, groups):  # blocks were added
        previous = HostCopy((), np.zeros((b, 0, 0)), np.zeros((0, b, 4, 4)), np.zeros((0, groups)))
    still = set(state.history.order)
    old = previous.taken([i for i, kept in enumerate(previous.order) if kept in still])
    first = len(old.order)  # new snapshots come last
    fresh = {order: sums for order, sums in zip(windows.order, windows.sums, strict=True) if order not in landed}
    local, path, new_rows, *sums = _transferred(
        [
            [torch.nn.functional.pad(x.flatten(), (0, b * 16 - x.numel())) for x in gram.local[first:]],
            paths[first:],
            [gram.anchored[:, first:, :].flatten()],
            *([window.flatten()] for window in fresh.values()),
        ]
    )
    anchored = np.zeros((b, n, n))
    anchored[:, :first, :first] = old.anchored
    anchored[:, first:, :] = new_rows.reshape(b, n - first, n)
    anchored[:, :, first:] = anchored[:, first:, :].swapaxes(1, 2)
    came = {
        order: defined(flat.reshape(window.shape)) for (order, window), flat in zip(fresh.items(), sums, strict=True)
    }
    all_windows = {**landed, **came}
    return HostCopy(
        state.history.order,
        anchored,
        np.concatenate([old.local, local.reshape(n - first, b, 4, 4)]),
        np.concatenate([old.paths, path.reshape(n - first, groups)]),
        {order: all_windows[order] for order in windows.order},
    )


def _transferred(parts: Sequence[Sequence[Tensor]]) -> list[Array]:
    """Copy lists of flat float64 tensors to the host, each list as one array; one transfer for each device."""
    flat = [tensor for part in parts for tensor in part]
    moved: dict[int, Tensor] = {}
    for device in dict.fromkeys(tensor.device for tensor in flat):
        indices = [i for i, tensor in enumerate(flat) if tensor.device == device]
        joined = torch.cat([flat[i] for i in indices]).cpu()
        moved.update(zip(indices, torch.split(joined, [flat[i].numel() for i in indices]), strict=True))
    on_host = [moved[i].numpy() for i in range(len(flat))]
    arrays, first = [], 0
    for part in parts:
        arrays.append(np.concatenate([np.zeros(0), *on_host[first : first + len(part)]]))
        first += len(part)
    return arrays


def defined(sums: Array) -> Array:
    """Return the sums of a window [B, 3, length] with NaN in each block where one of its steps is not finite."""
    return np.where(np.isfinite(sums).all(axis=(1, 2), keepdims=True), sums, np.nan)
