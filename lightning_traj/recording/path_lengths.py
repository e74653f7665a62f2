"""Path lengths of layers, roles and blocks, accumulated as they happen, so that thinning does not shorten them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lightning_traj.blocks import Block, block_groups


@dataclass(frozen=True, eq=False)
class PathLengths:
    """Path lengths Σ ‖u_t‖ of the groups of blocks (``block_groups``). Immutable.

    Attributes:
        kept: Path lengths up to each kept snapshot, float64 [groups].
        latest: Path lengths up to the last snapshot, even if it is not kept; None before the first one.
        groups: Names of the groups.
        membership: 1 for the blocks in each group of several blocks, else 0; float64 [groups of several blocks, B].
            These groups come first.
    """

    kept: tuple[Tensor, ...] = ()
    latest: Tensor | None = None
    groups: tuple[str, ...] = ()
    membership: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.float64))

    def regrouped(self, blocks: Sequence[Block], device: torch.device) -> PathLengths:
        """Return the path lengths for these blocks. New ones come last, and have not moved so far."""
        found = block_groups(blocks)
        several = list(found.values())[: len(found) - len(blocks)]
        membership = torch.zeros(len(several), len(blocks), dtype=torch.float64)
        for row, members in enumerate(several):
            membership[row, members] = 1.0
        grown = replace(self, groups=tuple(found), membership=membership.to(device))
        if self.latest is None or not self.groups or self.groups == grown.groups:
            return grown
        place = {group: i for i, group in enumerate(grown.groups)}
        at = torch.tensor([place[group] for group in self.groups], device=self.latest.device)
        *kept, latest = (path.new_zeros(len(place)).index_copy(0, at, path) for path in (*self.kept, self.latest))
        return replace(grown, kept=tuple(kept), latest=latest)

    def with_updates(self, squares: Tensor) -> PathLengths:
        """Return the path lengths after one more snapshot.

        Args:
            squares: ‖u_t‖² of each block, float64 [B].
        """
        lengths = torch.cat([self.membership @ squares, squares]).sqrt()
        latest = lengths if self.latest is None else self.latest + lengths
        return replace(self, kept=(*self.kept, latest), latest=latest)

    def keep(self, indices: Sequence[int]) -> PathLengths:
        """Return the path lengths with these of the kept snapshots alone."""
        return replace(self, kept=tuple(self.kept[i] for i in indices))

    def to(self, device: torch.device) -> PathLengths:
        """Return the path lengths on a device."""
        return replace(
            self,
            kept=tuple(path.to(device) for path in self.kept),
            latest=None if self.latest is None else self.latest.to(device),
            membership=self.membership.to(device),
        )
