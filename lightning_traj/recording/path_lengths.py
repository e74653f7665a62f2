"""How far each layer, role and block has walked: accumulated as it happens, so that thinning does not shorten it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_traj.blocks import Block, block_groups


class PathLengths:
    """Path lengths Σ ‖u_t‖ of the groups of blocks (``block_groups``), at each kept snapshot.

    Attributes:
        kept: Of each kept snapshot, float64 [groups].
        latest: Up to the latest scheduled snapshot, whether or not it is kept.
    """

    def __init__(self) -> None:
        self.kept: list[Tensor] = []
        self.latest: Tensor | None = None
        self._groups: list[str] = []
        self._membership = torch.zeros(0, 0, dtype=torch.float64)  # of the groups of several blocks, which come first

    def regroup(self, blocks: Sequence[Block], device: torch.device) -> None:
        """These are the blocks now: what is new has not moved so far."""
        groups, before = block_groups(blocks), self._groups
        self._groups = list(groups)
        several = list(groups.values())[: len(groups) - len(blocks)]
        membership = torch.zeros(len(several), len(blocks), dtype=torch.float64)
        for row, members in enumerate(several):
            membership[row, members] = 1.0
        self._membership = membership.to(device)
        if self.latest is not None and before and before != self._groups:
            at = torch.tensor([self._groups.index(group) for group in before], device=self.latest.device)
            *self.kept, self.latest = (
                path.new_zeros(len(groups)).index_copy(0, at, path) for path in (*self.kept, self.latest)
            )

    def after(self, squares: Tensor) -> Tensor:
        """What they are after updates of which these are ‖u_t‖², by block. Nothing is taken in."""
        walked = torch.cat([self._membership @ squares, squares]).sqrt()
        return walked if self.latest is None else self.latest + walked

    def add(self, path: Tensor) -> None:
        """Take in the newest ones."""
        self.latest = path
        self.kept.append(path)

    def keep(self, indices: Sequence[int]) -> None:
        """Keep those of these snapshots."""
        self.kept = [self.kept[i] for i in indices]

    def to(self, device: torch.device) -> None:
        """Move to where the rows are going to be."""
        self.kept = [path.to(device) for path in self.kept]
        self.latest = None if self.latest is None else self.latest.to(device)
        self._membership = self._membership.to(device)
