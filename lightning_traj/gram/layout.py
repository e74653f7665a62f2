"""Shapes that both Gram matrices share: blocks that come later, and room for more snapshots."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_traj.measures import THETA


def check_lengths(lengths: Sequence[int], before: tuple[int, ...]) -> None:
    """Raise ValueError unless a row has the blocks of earlier ones, with new ones at its end."""
    if not lengths or tuple(lengths[: len(before)]) != before:
        raise ValueError(
            f"row has blocks of lengths {list(lengths)}, where snapshots so far have {list(before)}: "
            "pass one 1-D tensor for each block, in the order of the first snapshot, new blocks last."
        )


def enlarged(anchored: Tensor, blocks: int, n: int, device: torch.device) -> Tensor:
    """Return a copy of H [B, m, m] with room for ``blocks`` blocks and n snapshots."""
    larger = torch.zeros(blocks, n, n, dtype=torch.float64, device=device)
    larger[: anchored.shape[0], : anchored.shape[1], : anchored.shape[2]] = anchored
    return larger


def with_blocks(anchored: Tensor, local: Tensor, new: int, storage: torch.device | None = None) -> Tensor:
    """Return a copy of H with ``new`` more blocks, which have not moved so far.

    Args:
        anchored: H of the other blocks, float64 [B − new, n, n].
        local: Local Gram matrices of the newest snapshot, float64 [B, 4, 4].
        new: Number of new blocks, which are last.
        storage: Device of the copy; None: that of ``local``.
    """
    larger = enlarged(anchored, len(local), max(1, anchored.shape[-1]), storage or local.device)
    larger[-new:, 0, 0] = local[-new:, THETA, THETA]
    return larger


def at(anchored: Tensor, indices: Sequence[int]) -> Tensor:
    """Return H [B, n, n] at these snapshots, ascending; those beyond n are passed over."""
    done = [i for i in indices if i < anchored.shape[-1]]
    if len(done) == anchored.shape[-1]:
        return anchored
    return _along(_along(anchored, done, 1), done, 2)


def _along(tensor: Tensor, indices: Sequence[int], dim: int) -> Tensor:
    """Return these entries of a dimension. By slices: an index tensor would be a copy to the device, and a wait."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and runs[-1][-1] == index - 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return torch.cat([tensor.narrow(dim, run[0], len(run)) for run in runs], dim)
