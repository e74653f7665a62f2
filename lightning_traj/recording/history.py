"""Which snapshots a recording keeps, and when they were taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class History:
    """When snapshots were taken, and which of them are kept, so that a run of any length stays in bounded memory.

    Past a limit, every second snapshot between the first and the latest is dropped, and from then on only every second
    one is kept.

    Attributes:
        steps: Optimizer steps taken at each kept snapshot, ascending.
        epochs: Completed epochs at each kept snapshot, fractional within one.
        order: Index of each kept snapshot among all scheduled ones.
        scheduled: Number of snapshots that were ever taken.
        stride: Every so many scheduled snapshots are kept; a power of two.
        latest: Step and epoch of the last snapshot, even if it is not kept; None before the first one.
    """

    steps: tuple[int, ...] = ()
    epochs: tuple[float, ...] = ()
    order: tuple[int, ...] = ()
    scheduled: int = 0
    stride: int = 1
    latest: tuple[int, float] | None = None

    def __len__(self) -> int:
        return len(self.order)

    def with_snapshot(self, step: int, epoch: float, limit: int) -> tuple[History, list[int]]:
        """Return the history with one more snapshot, thinned to at most ``limit`` of them.

        Returns:
            The history, and the indices that are kept of the snapshots so far and the new one, ascending.
        """
        order = (*self.order, self.scheduled)
        keep, stride = thinned(order, self.stride, limit)
        grown = History((*self.steps, step), (*self.epochs, epoch), order, self.scheduled + 1, stride, (step, epoch))
        return grown.keep(keep), keep

    def keep(self, indices: Sequence[int]) -> History:
        """Return the history of these kept snapshots alone."""
        return replace(
            self,
            steps=tuple(self.steps[i] for i in indices),
            epochs=tuple(self.epochs[i] for i in indices),
            order=tuple(self.order[i] for i in indices),
        )


def thinned(order: Sequence[int], stride: int, limit: int) -> tuple[list[int], int]:
    """Return which snapshots (or windows) to keep after the newest has come, and the stride from then on.

    The latest is always kept, and given up when the next one comes if it is off the stride.

    Args:
        order: Index of each kept one among all that ever came, ascending; the newest is last.
        stride: Stride so far; a power of two.
        limit: Largest number to keep.

    Returns:
        Indices into ``order``, ascending, and the stride.
    """
    last = len(order) - 1
    keep = [i for i in range(last + 1) if not (0 < i == last - 1 and order[i] % stride)]
    while len(keep) > limit:  # more than once where some were taken out, and those left are on the next stride anyway
        stride *= 2
        keep = [i for i in keep if order[i] % stride == 0 or i == last]
    return keep, stride
