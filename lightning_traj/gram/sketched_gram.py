"""Gram matrix of sketched snapshots.

The matrix that is kept is that of θ_0 and the displacements d_t = θ_t − θ_0, one a block,

    H = Gram(θ_0, d_1, …, d_T)     [blocks, n, n]

because late updates are 1e-3 to 1e-6 of θ, and inner products of θ alone lose them. Everything else is a linear
change of basis of H (``measures.basis``) that adds and never cancels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lightning_traj.gram.inner_products import Row, local_grams
from lightning_traj.gram.layout import at, check_lengths, enlarged, with_blocks


def _nothing() -> Tensor:
    return torch.zeros(0, dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class SketchedGram:
    """Gram matrix of the sketches of n snapshots and B blocks. Immutable: every method returns a new one.

    Displacements are kept in float32, and their Gram matrix is accumulated in float64, for all new rows at once when
    it is asked for. Adding a row never waits for the device. A snapshot with a non-finite entry has zeros in ``rows``
    and H, NaN in ``local``, and False in ``finite``: drop it with ``keep``. Blocks that appear late count as constant
    before their first value, which has to be finite: all later ones are measured from it.

    Attributes:
        rows: Sketches of d_1, d_2, … of all blocks, flat; shorter where later blocks were not there yet.
        local: Gram matrices of θ_t, d_t, u_t and u_{t−1} for each snapshot, float64 [B, 4, 4].
        finite: Whether all entries of each snapshot are finite, bool scalars.
        base, latest, before: Sketches of θ_0, and of the last two finite snapshots, float64, flat.
        anchored: H of the snapshots for which it has been computed, float64 [B, ≤ n, ≤ n].
        lengths: Length of each block's sketch.
        storage: Device that keeps ``rows`` and ``anchored``; None: the device of the sketches.

    Example:
        >>> import torch
        >>> gram = SketchedGram()
        >>> for entry in (0.0, 1.0, 3.0):
        ...     gram = gram.with_row([torch.tensor([2.0, entry])])
        >>> gram.filled().anchored
        tensor([[[4., 0., 0.],
                 [0., 1., 3.],
                 [0., 3., 9.]]], dtype=torch.float64)
    """

    rows: tuple[Tensor, ...] = ()
    local: tuple[Tensor, ...] = ()
    finite: tuple[Tensor, ...] = ()
    base: Tensor = field(default_factory=_nothing)
    latest: Tensor = field(default_factory=_nothing)
    before: Tensor = field(default_factory=_nothing)
    anchored: Tensor = field(default_factory=lambda: torch.zeros(0, 0, 0, dtype=torch.float64))
    lengths: tuple[int, ...] = ()
    storage: torch.device | None = None

    def __len__(self) -> int:
        return len(self.local)

    def with_row(self, row: Sequence[Tensor] | Row) -> SketchedGram:
        """Return the Gram matrix with one more snapshot.

        Args:
            row: One 1-D sketch a block, always in the same order; new blocks come last. Tensors are copied, a ``Row``
                is not.

        Raises:
            ValueError: A block is missing or has another length than before.
        """
        check_lengths(row.lengths if isinstance(row, Row) else [sketch.numel() for sketch in row], self.lengths)
        row = row if isinstance(row, Row) else Row.of(row)
        theta, new = row.flat, len(row.lengths) - len(self.lengths)
        late = theta[theta.numel() - sum(row.lengths[len(self.lengths) :]) :]  # it has not moved so far
        kept = (self.base, self.latest, self.before)
        base, latest, before = (
            (torch.cat([vector, late]) if new else vector for vector in kept) if self.lengths else (theta,) * 3
        )
        displacement = torch.empty_like(theta, dtype=torch.float32)
        local = local_grams(row, base, latest, before, displacement)
        # Non-finite entries anywhere make a diagonal entry non-finite: no second pass over the snapshot.
        finite = torch.isfinite(local).all()
        rows = self.rows
        if self.local:
            zeros = displacement.new_zeros(1).expand_as(displacement)
            rows = (*rows, self._stored(_either(finite, displacement, zeros)))
        return replace(
            self,
            rows=rows,
            local=(*self.local, local),
            finite=(*self.finite, finite),
            base=base,
            latest=_either(finite, theta, latest),
            before=_either(finite, latest, before),
            anchored=with_blocks(self.anchored, local, new, self.storage) if new else self.anchored,
            lengths=row.lengths,
        )

    def filled(self) -> SketchedGram:
        """Return it with all of H computed, in ``anchored``: float64 [B, n, n]."""
        done, n = self.anchored.shape[-1], len(self)
        if done == n:
            return self
        self.wait_for_rows()
        anchored = enlarged(self.anchored, len(self.lengths), n, self.storage or self.base.device)
        for b, base in enumerate(Row(self.base, self.lengths).blocks()):
            displacements = self._displacements(b)  # [n - 1, k]
            new = displacements[done - 1 :]  # [new, k]
            products = new @ displacements.T  # [new, n - 1]
            square = products[:, done - 1 :]
            products[:, done - 1 :] = (square + square.T) / 2
            anchored[b, done:, 1:] = products
            anchored[b, 1:, done:] = products.T
            anchored[b, done:, 0] = anchored[b, 0, done:] = new @ base.to(new)
        return replace(self, anchored=anchored)

    def emptied(self) -> SketchedGram:
        """Return it without H, so that ``filled`` computes all of it from the rows again."""
        anchored = self.anchored.new_zeros(0, 0, 0)
        if self.lengths:
            local = local_grams(Row(self.base, self.lengths), self.base, self.base, self.base)
            anchored = with_blocks(anchored, local, len(self.lengths), self.storage)
        return replace(self, anchored=anchored)

    def keep(self, indices: Sequence[int]) -> SketchedGram:
        """Return it with these of the snapshots 0 … n−1 alone, ascending and with 0 among them."""
        if len(indices) == len(self):
            return self
        return replace(
            self,
            rows=tuple(self.rows[i - 1] for i in indices if i),
            local=tuple(self.local[i] for i in indices),
            finite=tuple(self.finite[i] for i in indices),
            anchored=at(self.anchored, indices),
        )

    def to(self, device: torch.device | str) -> SketchedGram:
        """Return it on a device, except for what ``storage`` keeps."""
        return replace(
            self,
            rows=self.rows if self.storage else _moved(self.rows, device),
            anchored=self.anchored if self.storage else self.anchored.to(device),
            local=_moved(self.local, device),
            finite=_moved(self.finite, device),
            base=self.base.to(device),
            latest=self.latest.to(device),
            before=self.before.to(device),
        )

    def wait_for_rows(self) -> None:
        """Wait until the rows that are kept on the host have arrived there. Returns at once if none are."""
        if self.storage is not None and self.base.is_cuda:
            torch.cuda.current_stream(self.base.device).synchronize()

    def _stored(self, row: Tensor) -> Tensor:
        """Return the row where it is kept. It goes to the host without waiting: it is read after a log has waited."""
        if self.storage is None or self.storage == row.device:
            return row
        kept = torch.empty(row.shape, dtype=row.dtype, device=self.storage, pin_memory=row.is_cuda)
        return kept.copy_(row, non_blocking=True)

    def _displacements(self, block: int) -> Tensor:
        """Return the displacements of one block, float64 [n − 1, k]; zero before the block came."""
        start, size = sum(self.lengths[:block]), self.lengths[block]
        pieces = [row[start : start + size] for row in self.rows]
        late = sum(piece.numel() < size for piece in pieces)
        stacked = torch.stack(pieces[late:]).double()
        return torch.nn.functional.pad(stacked, (0, 0, late, 0)) if late else stacked


def _moved(tensors: Sequence[Tensor], device: torch.device | str) -> tuple[Tensor, ...]:
    return tuple(tensor.to(device) for tensor in tensors)


def _either(finite: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """``torch.where``, without its copy where the condition is on the host."""
    if finite.is_cpu:
        return yes if finite else no
    return torch.where(finite, yes, no)
