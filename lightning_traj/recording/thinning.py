"""Which snapshots are kept, so that a run of any length stays in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence


def thinned(order: Sequence[int], stride: int, limit: int) -> tuple[list[int], int]:
    """What to keep after the newest has come, and the stride from then on.

    Past ``limit``, every second one between the first and the latest is dropped and the stride doubles; the latest is
    always kept, and given up when the next one comes if it is off the stride.

    Args:
        order: Which of all that ever came these are, ascending; the newest is last.
        stride: So far; a power of two.
        limit: How many to keep at most.

    Returns:
        Indices into ``order``, ascending, and the stride.
    """
    last = len(order) - 1
    keep = [i for i in range(last + 1) if not (0 < i == last - 1 and order[i] % stride)]
    while len(keep) > limit:  # more than once where some were taken out, and those left are on the next stride anyway
        stride *= 2
        keep = [i for i in keep if order[i] % stride == 0 or i == last]
    return keep, stride
