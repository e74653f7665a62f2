"""What a recorder has on the device, on the host: copied once for each log, and only what is new."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_traj.gram import GrowingGram

Array = NDArray[np.float64]


@dataclass(frozen=True)
class HostCopy:
    """Gram matrices and path lengths of n snapshots and B blocks on the host.

    Attributes:
        order: Which of all scheduled snapshots these are.
        anchored: Gram(θ_0, d_1, …), [B, n, n].
        local: Local Gram matrices, [n, B, 4, 4].
        paths: Path lengths, [n, groups].
        finite: Whether all entries of each snapshot are finite, [n].
    """

    order: tuple[int, ...]
    anchored: Array
    local: Array
    paths: Array
    finite: NDArray[np.bool_]

    def taken(self, indices: Sequence[int]) -> HostCopy:
        """Of these snapshots alone."""
        if len(indices) == len(self.order):
            return self
        at = np.array(indices, dtype=np.int64)
        order = tuple(self.order[i] for i in indices)
        return HostCopy(order, self.anchored[:, at][:, :, at], self.local[at], self.paths[at], self.finite[at])


def mirrored(
    order: Sequence[int],
    gram: GrowingGram,
    paths: Sequence[Tensor],
    previous: HostCopy | None,
    more: Sequence[Tensor] = (),
) -> tuple[HostCopy, list[Array]]:
    """Copy to the host what ``previous`` lacks: Gram rows, local Gram matrices, path lengths, in one piece.

    Args:
        order: Which of all scheduled snapshots are kept.
        gram: Of these.
        paths: Path lengths of each, [groups].
        previous: What was copied last, if anything.
        more: What else is to be copied along, float64.

    Returns:
        The mirror, and ``more`` on the host.
    """
    n, b, groups = len(order), len(gram.lengths), paths[-1].numel()
    if previous is None or (len(previous.anchored), previous.paths.shape[1]) != (b, groups):  # blocks were added
        previous = HostCopy((), np.zeros((b, 0, 0)), np.zeros((0, b, 4, 4)), np.zeros((0, groups)), np.zeros(0, bool))
    still = set(order)
    old = previous.taken([i for i, kept in enumerate(previous.order) if kept in still])
    first = len(old.order)  # what is new comes last
    device_part = torch.cat(
        [
            paths[-1].new_empty(0),  # where nothing is new
            *(finite.double().view(1) for finite in gram.finite[first:]),
            *(torch.nn.functional.pad(x.flatten(), (0, b * 16 - x.numel())) for x in gram.local[first:]),
            *paths[first:],
            *(tensor.flatten() for tensor in more),
        ]
    )
    new_rows = gram.compute_anchored()[:, first:, :].flatten()
    if gram.storage is None:
        flat = torch.cat([device_part, new_rows]).cpu()
        device_part, new_rows = flat[: device_part.numel()], flat[device_part.numel() :]
    else:  # the Gram matrix is on the host already
        device_part = device_part.cpu()
    new = n - first
    sizes = [new, new * b * 16, new * groups, *(tensor.numel() for tensor in more)]
    finite, local, path, *others = (part.numpy() for part in torch.split(device_part, sizes))
    anchored = np.zeros((b, n, n))
    anchored[:, :first, :first] = old.anchored
    anchored[:, first:, :] = new_rows.numpy().reshape(b, new, n)
    anchored[:, :, first:] = anchored[:, first:, :].swapaxes(1, 2)
    mirror = HostCopy(
        tuple(order),
        anchored,
        np.concatenate([old.local, local.reshape(new, b, 4, 4)]),
        np.concatenate([old.paths, path.reshape(new, groups)]),
        np.concatenate([old.finite, finite.astype(bool)]),
    )
    return mirror, [values.reshape(tensor.shape) for values, tensor in zip(others, more, strict=True)]
