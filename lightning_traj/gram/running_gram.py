"""The running Gram matrix as a metric of torchmetrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_traj.gram.growing_gram import LISTS, STORED, TENSORS, GrowingGram


class RunningGram(GrowingGram, Metric):
    """Gram matrix of a growing sequence of snapshots, block by block, as a metric.

    A snapshot is given as one 1-D tensor a block, the whole of it (``exact=True``) or its sketch. ``update`` never
    waits for the device unless ``exact``. A snapshot with a non-finite entry leaves zeros, and False among
    ``finite``: drop it with ``keep``. Blocks that appear late count as constant before their first value, which has to
    be finite: all that comes later is measured from it.

    Args:
        exact: False keeps a copy of the displacements in float32, whose Gram matrix is accumulated in float64, all new
            rows at once when it is asked for. True keeps the given tensors themselves (they may be memory-mapped
            files), and takes differences and inner products in float64 as they come.
        storage: Device that keeps the rows and the Gram matrix; default: the device of the rows.
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

    def __init__(self, *, exact: bool = False, storage: torch.device | str | None = None, **kwargs: Any) -> None:
        # Summing over ranks is the recorder's: a metric that synchronised itself would count replicas twice.
        Metric.__init__(self, **{"sync_on_compute": False, **kwargs})
        GrowingGram.__init__(self, exact=exact, storage=storage)
        for state in (*LISTS, *TENSORS):
            self.add_state(state, default=getattr(self, state), dist_reduce_fx=None, persistent=True)

    def forward(self, row: Sequence[Tensor]) -> Tensor:
        """Take in the next snapshot and return the Gram matrix so far: a snapshot alone has no other to go with."""
        self.update(row)
        gram: Tensor = self.compute()
        return gram

    def keep(self, indices: Sequence[int]) -> None:
        """Keep these snapshots of 0 … n−1, in order and with 0 among them, and forget the others."""
        super().keep(indices)
        self._computed = None

    def reset(self) -> None:
        """Forget all snapshots."""
        GrowingGram.reset(self)
        Metric.reset(self)

    def to(self, *args: Any, **kwargs: Any) -> RunningGram:
        """Move the metric, as ``torch.nn.Module.to``; what ``storage`` keeps stays there."""
        return Metric.to(self, *args, **kwargs)

    def get_extra_state(self) -> list[int]:
        """Return the lengths of the sketches, for ``state_dict``."""
        return list(self.lengths)

    def set_extra_state(self, state: list[int]) -> None:
        """Set the lengths of the sketches, from ``state_dict``."""
        self.lengths = tuple(state)

    def _apply(self, fn: Any, exclude_state: Sequence[str] = ()) -> Any:
        return super()._apply(fn, (*exclude_state, *(STORED if self.storage else ())))
