"""Entries that two ways of dividing a block among processes have in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod

import numpy as np
from numpy.typing import NDArray

from lightning_traj.tensors.regions import IndexRegion, Interval, strides_of


def overlaps(ours: Sequence[IndexRegion], theirs: Sequence[IndexRegion]) -> NDArray[np.int64]:
    """Return the stretches of a block's entries that two holders have in common.

    Args:
        ours: Regions of the block's tensors that one holder has, one for each tensor. Its entries are numbered in the
            order of ``LocalEntries.flat``.
        theirs: Regions that the other holder has.

    Returns:
        int64 [stretches, 3]: for each stretch, where it begins among ours, where it begins among theirs, and its
        length.
    """
    found = [np.zeros((0, 3), dtype=np.int64)]
    by_tensor: dict[int, list[tuple[int, tuple[Interval, ...]]]] = {}
    for tensor, place, box in _boxes(theirs):
        by_tensor.setdefault(tensor, []).append((place, box))
    for tensor, place, box in _boxes(ours):
        for other_place, other in by_tensor.get(tensor, []):
            found.append(_overlap(place, box, other_place, other))
    return np.concatenate(found)


def _boxes(shares: Sequence[IndexRegion]) -> Iterator[tuple[int, int, tuple[Interval, ...]]]:
    """Yield the boxes of regions: the index of the tensor, the number of the box's first entry, and its intervals."""
    place = 0
    for tensor, share in enumerate(shares):
        for box in product(*share.runs):
            yield tensor, place, box
            place += prod(length for _, _, length in box)


def _overlap(place: int, box: Sequence[Interval], other_place: int, other: Sequence[Interval]) -> NDArray[np.int64]:
    """Return the stretches that two boxes have in common, in the form of ``overlaps``."""
    sides = [
        (max(a, b), min(a + m, b + n) - max(a, b), a, b, m, n) for (_, a, m), (_, b, n) in zip(box, other, strict=True)
    ]
    if any(size <= 0 for _, size, *_ in sides):
        return np.zeros((0, 3), dtype=np.int64)
    length, dim = 1, len(sides)
    while dim and (dim == len(sides) or all(sides[dim][1] == sides[dim][side] for side in (4, 5))):
        dim -= 1
        length *= sides[dim][1]
    strides, other_strides = (strides_of([side[i] for side in sides]) for i in (4, 5))
    first = np.array([place, other_place], dtype=np.int64)
    for (start, _, a, b, *_), stride, other_stride in zip(sides, strides, other_strides, strict=True):
        first += ((start - a) * stride, (start - b) * other_stride)
    begins = first[None]
    for (_, size, *_), stride, other_stride in zip(sides[:dim], strides, other_strides, strict=False):
        steps = np.arange(size, dtype=np.int64)[:, None] * np.array([stride, other_stride])
        begins = (begins[:, None] + steps).reshape(-1, 2)
    return np.column_stack([begins, np.full(len(begins), length, dtype=np.int64)])
