"""The running Gram matrix: rows of snapshots in, inner products out, all of it on the device of the rows.

Kept is the Gram matrix of θ_0 and the displacements d_t = θ_t − θ_0, one a block,

    H = Gram(θ_0, d_1, …, d_T)     [blocks, n, n]

because late updates are 1e-3 to 1e-6 of θ, which inner products of θ alone lose. Everything else is a linear
change of basis of H (``measures.basis``) that adds and never cancels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_traj.gram.inner_products import NEW, Row, exact_products, local_grams
from lightning_traj.measures import DISPLACEMENT, PREVIOUS_UPDATE, THETA, UPDATE, snapshot_gram

LISTS = ("rows", "local", "finite")  # the state of a GrowingGram: lists with an entry a snapshot, and tensors
TENSORS = ("base", "latest", "before", "anchored")
STORED = ("rows", "anchored")  # of these, what ``storage`` keeps


class GrowingGram:
    """Gram matrix of a growing sequence of snapshots, block by block.

    A snapshot is given as one 1-D tensor a block, the whole of it (``exact=True``) or its sketch. ``update`` never
    waits for the device unless ``exact``. A snapshot with a non-finite entry leaves zeros, and False among
    ``finite``: drop it with ``keep``. Blocks that appear late count as constant before their first value, which has to
    be finite: all that comes later is measured from it.

    This is all that recording needs; ``RunningGram`` is the same as a metric of torchmetrics, which takes seconds to
    import.

    Args:
        exact: False keeps a copy of the displacements in float32, whose Gram matrix is accumulated in float64, all new
            rows at once when it is asked for. True keeps the given tensors themselves (they may be memory-mapped
            files), and takes differences and inner products in float64 as they come.
        storage: Device that keeps the rows and the Gram matrix; default: the device of the rows.

    Example:
        >>> import torch
        >>> gram = GrowingGram()
        >>> for entry in (0.0, 1.0, 3.0):
        ...     gram.update([torch.tensor([2.0, entry])])
        >>> gram.compute_anchored()  # of θ_0 and the displacements
        tensor([[[4., 0., 0.],
                 [0., 1., 3.],
                 [0., 3., 9.]]], dtype=torch.float64)
    """

    rows: list[Tensor]
    local: list[Tensor]
    finite: list[Tensor]
    base: Tensor
    latest: Tensor
    before: Tensor
    anchored: Tensor

    def __init__(self, *, exact: bool = False, storage: torch.device | str | None = None) -> None:
        self.exact = exact
        self.storage = None if storage is None else torch.device(storage)
        self.reset()

    def reset(self) -> None:
        """Forget all snapshots."""
        self.rows, self.local, self.finite = [], [], []
        # Sketches of all blocks, flat: θ_0, θ_t and θ_{t−1}.
        self.base = self.latest = self.before = torch.zeros(0, dtype=torch.float64)
        self.anchored = torch.zeros(0, 0, 0, dtype=torch.float64)
        self.lengths: tuple[int, ...] = ()  # of the blocks' sketches, or of the blocks
        # Exact: the given tensors, by snapshot and block; of θ_0, θ_t and θ_{t−1} by block, and the newest local Gram.
        self.snapshots: list[Sequence[Tensor]] = []
        self.given: tuple[list[Tensor], list[Tensor], list[Tensor]] = [], [], []
        self.newest = torch.zeros(0, 4, 4, dtype=torch.float64)

    def to(self, device: torch.device | str) -> GrowingGram:
        """Move what is kept to a device, except for what ``storage`` keeps; returns self."""
        for state in (*LISTS, *TENSORS):
            if not (self.storage and state in STORED):
                value = getattr(self, state)
                moved = [tensor.to(device) for tensor in value] if isinstance(value, list) else value.to(device)
                setattr(self, state, moved)
        return self

    def __len__(self) -> int:
        return len(self.local)

    def update(self, row: Sequence[Tensor] | Row, products: Tensor | None = None) -> None:
        """Take in the next snapshot.

        Args:
            row: 1-D tensors, one a block, always in the same order; blocks that are new come last. Sketches are
                copied, unless they come as a ``Row``.
            products: Where ``exact`` rows are divided among processes: the sum over these of what ``products`` gives
                for their parts of the row.

        Raises:
            ValueError: a block is missing or has another length than before.
            FloatingPointError: exact, and an entry is not finite. Nothing was taken in.
        """
        if self.exact:
            assert not isinstance(row, Row)
            self._take_blocks(row, self.products(row) if products is None else products)
        else:
            self._check([piece.numel() for piece in row] if not isinstance(row, Row) else row.lengths)
            self._take_sketches(row if isinstance(row, Row) else Row.of(row))

    def _take_sketches(self, row: Row) -> None:
        theta, new = row.flat, len(row.lengths) - len(self.lengths)
        late = theta[theta.numel() - sum(row.lengths[len(self.lengths) :]) :]  # it has not moved so far
        rows = (self.base, self.latest, self.before)
        base, latest, before = (
            (torch.cat([kept, late]) if new else kept for kept in rows) if self.lengths else (theta,) * 3
        )
        displacement = torch.empty_like(theta, dtype=torch.float32)
        local = local_grams(row, base, latest, before, displacement)
        anchored = self._with_blocks(local, new) if new else self.anchored
        # Non-finite entries anywhere make a diagonal entry non-finite: no second pass over the snapshot.
        finite = torch.isfinite(local).all()
        stored = None
        if self.local:
            stored = self._stored(_either(finite, displacement, displacement.new_zeros(1).expand_as(displacement)))
        latest, before = _either(finite, theta, latest), _either(finite, latest, before)
        # What can fail, or be interrupted, has happened: from here on all that is kept grows together.
        self.lengths, self.anchored = row.lengths, anchored
        self.base, self.latest, self.before = base, latest, before
        self.local.append(torch.where(finite, local, 0.0))
        self.finite.append(finite)
        if stored is not None:
            self.rows.append(stored)

    def _take_blocks(self, row: Sequence[Tensor], products: Tensor) -> None:
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
        finite = torch.isfinite(local).all()
        if not finite:
            raise FloatingPointError("row has non-finite entries: leave this snapshot out.")
        new = len(row) - len(self.lengths)
        anchored = self._with_blocks(local, new) if new else self.anchored
        if self.snapshots:
            anchored = self._grown(anchored, len(row), len(self.snapshots) + 1, local.device)
            squares = local[:, DISPLACEMENT, DISPLACEMENT, None]
            anchored[:, -1, :] = anchored[:, :, -1] = torch.cat([others, squares], dim=1)
        # As above.
        self.lengths, self.anchored = tuple(piece.numel() for piece in row), anchored
        self.given = base, list(row), latest
        self.local.append(local)
        self.finite.append(finite)
        self.snapshots.append(row)
        self.newest = local

    def compute(self) -> Tensor:
        """The Gram matrix of the snapshots, float64 [blocks, n, n]."""
        return snapshot_gram(self.compute_anchored())

    def compute_anchored(self) -> Tensor:
        """H = Gram(θ_0, d_1, …, d_T), float64 [blocks, n, n], after filling in the rows that are new."""
        done, n = self.anchored.shape[-1], len(self)
        if done < n:
            self.wait_for_rows()
            grown = self._grown(self.anchored, len(self.lengths), n, self.base.device)
            for b, base in enumerate(Row(self.base, self.lengths).blocks()):
                displacements = self._displacements(b)  # [n - 1, k]
                new = displacements[done - 1 :]  # [new, k]
                products = new @ displacements.T  # [new, n - 1]
                square = products[:, done - 1 :]
                products[:, done - 1 :] = (square + square.T) / 2
                grown[b, done:, 1:] = products
                grown[b, 1:, done:] = products.T
                grown[b, done:, 0] = grown[b, 0, done:] = new @ base.to(new)
            self.anchored = grown
        return self.anchored

    def wait_for_rows(self) -> None:
        """Wait until rows that are kept on the host have arrived there; others are not waited for."""
        if self.storage is not None and self.base.is_cuda:
            torch.cuda.current_stream(self.base.device).synchronize()

    def recompute(self) -> None:
        """Forget the Gram matrix of sketches: ``compute_anchored`` takes all of it from the rows again."""
        self.anchored = self.anchored.new_zeros(0, 0, 0)
        if self.lengths:
            local = local_grams(Row(self.base, self.lengths), self.base, self.base, self.base)
            self.anchored = self._with_blocks(local, len(self.lengths))

    def keep(self, indices: Sequence[int]) -> None:
        """Keep these snapshots of 0 … n−1, in order and with 0 among them, and forget the others."""
        if len(indices) == len(self):
            return
        done = [i for i in indices if i < self.anchored.shape[-1]]
        if len(done) < self.anchored.shape[-1]:
            self.anchored = _at(_at(self.anchored, done, 1), done, 2)
        for state, shift in (("rows", 1), ("snapshots", 0), ("local", 0), ("finite", 0)):
            kept = getattr(self, state)
            setattr(self, state, [kept[i - shift] for i in indices if i >= shift] if kept else [])

    def products(self, row: Sequence[Tensor]) -> Tensor:
        """What ``update`` needs of a row that is divided among processes, where ``exact``: it adds up over their parts.

        Args:
            row: As for ``update``; of each block the part that is here, maybe empty.

        Returns:
            Inner products of θ_t, d_t and u_t with each other, of u_t with u_{t−1}, and of d_t with θ_0, d_1, …,
            d_{t−1}, block by block, 1-D, ``products_numel(len(row))`` entries.
        """
        found = []
        for b, vectors in enumerate(zip(*self._vectors(row), strict=True)):
            stored = [snapshot[b] for snapshot in self.snapshots[1:] if b < len(snapshot)]
            local, products = exact_products(*vectors, stored)
            late = len(self.snapshots[1:]) - len(stored)  # snapshots before this block came: it had not moved
            found += [local, *([products[:1], products.new_zeros(late), products[1:]] if self.snapshots else ())]
        return torch.cat(found)

    def products_numel(self, blocks: int) -> int:
        """Entries of ``products`` for so many blocks."""
        return blocks * (len(NEW[0]) + len(self.snapshots))

    def _vectors(self, row: Sequence[Tensor]) -> tuple[Sequence[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        """Exact: θ_t, θ_0, θ_{t−1} and θ_{t−2}, each with the blocks of the row; what is new has not moved so far."""
        self._check([piece.numel() for piece in row])
        base, latest, before = ([*kept, *row[len(kept) :]] for kept in self.given)
        return row, base, latest, before

    def _check(self, lengths: Sequence[int]) -> None:
        if not lengths or tuple(lengths[: len(self.lengths)]) != self.lengths:
            raise ValueError(
                f"row has blocks of lengths {list(lengths)}, where snapshots so far have {list(self.lengths)}: "
                "pass one 1-D tensor for each block, in the order of the first snapshot, new blocks last."
            )

    def _with_blocks(self, local: Tensor, new: int) -> Tensor:
        """A copy of H with these new blocks, which have not moved so far."""
        grown = self._grown(self.anchored, len(local), max(1, self.anchored.shape[-1]), local.device)
        grown[-new:, 0, 0] = local[-new:, THETA, THETA]
        return grown

    def _grown(self, anchored: Tensor, blocks: int, n: int, device: torch.device) -> Tensor:
        """A copy of H with room for so many blocks and n snapshots."""
        grown = torch.zeros(blocks, n, n, dtype=torch.float64, device=self.storage or device)
        grown[: anchored.shape[0], : anchored.shape[1], : anchored.shape[2]] = anchored
        return grown

    def _stored(self, row: Tensor) -> Tensor:
        """The row where it is kept. To a host it goes without waiting: it is read only after a log has waited."""
        if self.storage is None or self.storage == row.device:
            return row
        kept = torch.empty(row.shape, dtype=row.dtype, device=self.storage, pin_memory=row.is_cuda)
        return kept.copy_(row, non_blocking=True)

    def _displacements(self, block: int) -> Tensor:
        """Displacements of one block, float64 [n − 1, k]; zero where the block came later."""
        start, size = sum(self.lengths[:block]), self.lengths[block]
        pieces = [row[start : start + size] for row in self.rows]
        late = sum(piece.numel() < size for piece in pieces)
        stacked = torch.stack(pieces[late:]).double()
        return torch.nn.functional.pad(stacked, (0, 0, late, 0)) if late else stacked


def _at(tensor: Tensor, indices: Sequence[int], dim: int) -> Tensor:
    """These entries of a dimension, in order. By slices: an index tensor would be a copy to the device, and a wait."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and runs[-1][-1] == index - 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return torch.cat([tensor.narrow(dim, run[0], len(run)) for run in runs], dim)


def _either(finite: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """``torch.where`` without its copy where the answer is at hand."""
    if finite.is_cpu:
        return yes if finite else no
    return torch.where(finite, yes, no)
