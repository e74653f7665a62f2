"""The running Gram matrix as a metric of torchmetrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_traj.gram.exact_gram import ExactGram
from lightning_traj.gram.inner_products import Row
from lightning_traj.gram.sketched_gram import SketchedGram
from lightning_traj.measures import snapshot_gram

LISTS = ("rows", "local", "finite")  # states with an entry a snapshot
TENSORS = ("base", "latest", "before", "anchored")
STORED = ("rows", "anchored")  # the states that ``storage`` keeps


class RunningGram(Metric):
    """Gram matrix of a growing sequence of snapshots, block by block, as a metric.

    A shell around ``SketchedGram`` and ``ExactGram``, which recording uses without it.

    A snapshot is given as one 1-D tensor a block: the whole block (``exact=True``) or its sketch. ``update`` never
    waits for the device unless ``exact``. A snapshot with a non-finite entry leaves zeros, and False among
    ``finite``: drop it with ``keep``. Blocks that appear late count as constant before their first value, which has to
    be finite: all later ones are measured from it.

    Args:
        exact: False keeps a copy of the displacements in float32, whose Gram matrix is accumulated in float64, for all
            new rows at once when it is asked for. True keeps the given tensors themselves (they may be memory-mapped
            files), and takes differences and inner products in float64 as they come.
        storage: Device that keeps the rows and the Gram matrix of sketches; default: the device of the rows.
        kwargs: Arguments of ``torchmetrics.Metric``.

    Example:
        >>> import torch
        >>> gram = RunningGram(exact=True)
        >>> gram.update([torch.tensor([3.0, 4.0])])
        >>> gram.update([torch.tensor([3.0, 5.0])])
        >>> gram.compute()
        tensor([[[25., 29.],
                 [29., 34.]]], dtype=torch.float64)
    """

    is_differentiable = False
    full_state_update = False
    rows: list[Tensor]
    local: list[Tensor]
    finite: list[Tensor]
    base: Tensor
    latest: Tensor
    before: Tensor
    anchored: Tensor

    def __init__(self, *, exact: bool = False, storage: torch.device | str | None = None, **kwargs: Any) -> None:
        # Ranks are summed by the recorder: a metric that synchronised itself would count replicas twice.
        super().__init__(**{"sync_on_compute": False, **kwargs})
        self.exact = exact
        self.storage = None if storage is None else torch.device(storage)
        empty = SketchedGram()
        for state in (*LISTS, *TENSORS):
            default = [] if state in LISTS else getattr(empty, state)
            self.add_state(state, default=default, dist_reduce_fx=None, persistent=True)
        self.reset()

    def __len__(self) -> int:
        return len(self.local)

    def update(self, row: Sequence[Tensor] | Row, products: Tensor | None = None) -> None:
        """Take in the next snapshot.

        Args:
            row: 1-D tensors, one a block, always in the same order; new blocks come last. Sketches are copied, unless
                they come as a ``Row``.
            products: Sum over processes of what ``ExactGram.products`` returns, if exact blocks are divided among them.

        Raises:
            ValueError: A block is missing or has another length than before.
            FloatingPointError: ``exact``, and an entry is not finite. Nothing was taken in.
            RuntimeError: ``exact``, after ``load_state_dict``: the snapshots themselves are in no state.
        """
        if self.exact:
            assert not isinstance(row, Row)
            gram = self._full
            if len(gram.snapshots) != len(gram):
                raise RuntimeError(
                    f"RunningGram(exact=True) has the Gram matrix of {len(gram)} snapshots from a state_dict, which "
                    "does not hold the snapshots: a new one cannot be compared with them. Call reset(), or pickle the "
                    "metric instead of saving its state_dict."
                )
            self._set(gram.with_row(row, products))
        else:
            self._set(self._sketched.with_row(row))

    def compute(self) -> Tensor:
        """Return the Gram matrix of the snapshots, float64 [blocks, n, n]."""
        return snapshot_gram(self.compute_anchored())

    def compute_anchored(self) -> Tensor:
        """Return H = Gram(θ_0, d_1, …, d_T), float64 [blocks, n, n]."""
        if not self.exact:
            self._set(self._sketched.filled())
        return self.anchored

    def forward(self, row: Sequence[Tensor]) -> Tensor:
        """Take in the next snapshot and return the Gram matrix so far: a snapshot alone has no other to go with."""
        self.update(row)
        gram: Tensor = self.compute()
        return gram

    def keep(self, indices: Sequence[int]) -> None:
        """Keep these snapshots of 0 … n−1, ascending and with 0 among them, and forget the others."""
        self._set((self._full if self.exact else self._sketched).keep(indices))
        self._computed = None

    def reset(self) -> None:
        """Forget all snapshots."""
        super().reset()
        self.lengths: tuple[int, ...] = ()
        self._exact = ExactGram()

    def get_extra_state(self) -> list[int]:
        """Return the lengths of the sketches, for ``state_dict``."""
        return list(self.lengths)

    def set_extra_state(self, state: list[int]) -> None:
        """Set the lengths of the sketches, from ``state_dict``."""
        self.lengths = tuple(state)

    @property
    def _full(self) -> ExactGram:
        return replace(self._exact, local=tuple(self.local), anchored=self.anchored)

    @property
    def _sketched(self) -> SketchedGram:
        states = {state: getattr(self, state) for state in (*LISTS, *TENSORS)}
        lists = {state: tuple(states[state]) for state in LISTS}
        return SketchedGram(**{**states, **lists}, lengths=self.lengths, storage=self.storage)

    def _set(self, gram: SketchedGram | ExactGram) -> None:
        """Make this Gram matrix the state of the metric."""
        self.local, self.finite, self.anchored = list(gram.local), list(gram.finite), gram.anchored
        self.lengths = gram.lengths
        if isinstance(gram, ExactGram):
            self._exact = gram
        else:
            self.rows, self.base, self.latest, self.before = list(gram.rows), gram.base, gram.latest, gram.before

    def _apply(self, fn: Any, exclude_state: Sequence[str] = ()) -> Any:
        return super()._apply(fn, (*exclude_state, *(STORED if self.storage else ())))
