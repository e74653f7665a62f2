"""Gram matrix of full snapshots, which may lie in memory-mapped files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lightning_traj.gram.inner_products import NEW, exact_products
from lightning_traj.gram.layout import at, check_lengths, enlarged, with_blocks
from lightning_traj.measures import DISPLACEMENT, PREVIOUS_UPDATE, THETA, UPDATE

Blocks = Sequence[Tensor]  # one 1-D tensor a block


@dataclass(frozen=True, eq=False)
class ExactGram:
    """Gram matrix of n full snapshots and B blocks. Immutable: every method returns a new one.

    It keeps the given tensors themselves, and takes differences and inner products in float64 as snapshots come. Blocks
    that appear late count as constant before their first value.

    Attributes:
        snapshots: The kept snapshots.
        local: Gram matrices of θ_t, d_t, u_t and u_{t−1} for each snapshot, float64 [B, 4, 4].
        base, latest, before: Blocks of θ_0 (or the first value of a later block) and of the last two snapshots, kept or
            not.
        newest: Local Gram matrix of the last snapshot, kept or not, float64 [B, 4, 4].
        anchored: H = Gram(θ_0, d_1, …, d_T), float64 [B, n, n].
    """

    snapshots: tuple[Blocks, ...] = ()
    local: tuple[Tensor, ...] = ()
    base: Blocks = ()
    latest: Blocks = ()
    before: Blocks = ()
    newest: Tensor = field(default_factory=lambda: torch.zeros(0, 4, 4, dtype=torch.float64))
    anchored: Tensor = field(default_factory=lambda: torch.zeros(0, 0, 0, dtype=torch.float64))

    def __len__(self) -> int:
        return len(self.local)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Entries of each block."""
        return tuple(block.numel() for block in self.base)

    @property
    def finite(self) -> tuple[Tensor, ...]:
        """True for each snapshot: one with a non-finite entry is never added."""
        return (torch.tensor(True),) * len(self.local)

    def products(self, row: Blocks) -> Tensor:
        """Return the inner products that ``with_row`` needs.

        Where blocks are divided among processes, they add up over the parts.

        Args:
            row: The next snapshot; of each block the part that is here, maybe empty.

        Returns:
            Block by block: the inner products of θ_t, d_t and u_t with each other, of u_t with u_{t−1}, and of d_t with
            θ_0, d_1, …, d_{t−1}. float64 [``products_numel(len(row))``].

        Raises:
            ValueError: A block is missing or has another length than before.
        """
        found = []
        for b, vectors in enumerate(zip(*self._vectors(row), strict=True)):
            stored = [snapshot[b] for snapshot in self.snapshots[1:] if b < len(snapshot)]
            local, products = exact_products(*vectors, stored)
            late = len(self.snapshots[1:]) - len(stored)  # snapshots before this block came: it had not moved
            found += [local, *([products[:1], products.new_zeros(late), products[1:]] if self.snapshots else ())]
        return torch.cat(found)

    def products_numel(self, blocks: int) -> int:
        """Return the number of inner products that ``products`` returns for this number of blocks."""
        return blocks * (len(NEW[0]) + len(self.snapshots))

    def with_row(self, row: Blocks, products: Tensor | None = None) -> ExactGram:
        """Return the Gram matrix with one more snapshot.

        Args:
            row: One 1-D tensor a block, always in the same order; new blocks come last.
            products: Sum over processes of what ``products`` returns, if blocks are divided among them.

        Raises:
            ValueError: A block is missing or has another length than before.
            FloatingPointError: An entry is not finite.
        """
        products = self.products(row) if products is None else products
        _, base, latest, _ = self._vectors(row)
        sizes = [len(NEW[0]), len(self.snapshots)]
        found, others = torch.split(products.view(len(row), -1), sizes, dim=1)
        local = products.new_zeros(len(row), 4, 4)
        local[:, NEW[0], NEW[1]] = local[:, NEW[1], NEW[0]] = found
        # u_{t−1} was the update, and ⟨θ_t, u_{t−1}⟩ = ⟨θ_{t−1}, u_{t−1}⟩ + ⟨u_t, u_{t−1}⟩. That loses digits only
        # where θ_t or d_t is all at once much shorter than before, and no measure is made of these two.
        past = local.new_zeros(len(row), 3)
        past[: len(self.newest)] = self.newest[:, :3, UPDATE]
        past[:, :UPDATE] += local[:, UPDATE, PREVIOUS_UPDATE, None]
        for i, vector in enumerate((THETA, DISPLACEMENT, PREVIOUS_UPDATE)):
            local[:, vector, PREVIOUS_UPDATE] = local[:, PREVIOUS_UPDATE, vector] = past[:, i]
        if not torch.isfinite(local).all():
            raise FloatingPointError("row has non-finite entries: leave this snapshot out.")
        new = len(row) - len(self.base)
        anchored = with_blocks(self.anchored, local, new) if new else self.anchored
        if self.snapshots:
            anchored = enlarged(anchored, len(row), len(self.snapshots) + 1, local.device)
            squares = local[:, DISPLACEMENT, DISPLACEMENT, None]
            anchored[:, -1, :] = anchored[:, :, -1] = torch.cat([others, squares], dim=1)
        return replace(
            self,
            snapshots=(*self.snapshots, row),
            local=(*self.local, local),
            base=base,
            latest=list(row),
            before=latest,
            newest=local,
            anchored=anchored,
        )

    def filled(self) -> ExactGram:
        """Return itself: all of H is computed as snapshots come."""
        return self

    def keep(self, indices: Sequence[int]) -> ExactGram:
        """Return it with these of the snapshots 0 … n−1 alone, ascending and with 0 among them."""
        if len(indices) == len(self):
            return self
        return replace(
            self,
            snapshots=tuple(self.snapshots[i] for i in indices if self.snapshots),
            local=tuple(self.local[i] for i in indices),
            anchored=at(self.anchored, indices),
        )

    def _vectors(self, row: Blocks) -> tuple[Blocks, Blocks, Blocks, Blocks]:
        """Return θ_t, θ_0, θ_{t−1} and θ_{t−2}, each with the blocks of the row; new ones have not moved so far."""
        check_lengths([block.numel() for block in row], self.lengths)
        base, latest, before = ([*kept, *row[len(kept) :]] for kept in (self.base, self.latest, self.before))
        return row, base, latest, before
