"""Regions of a tensor: products of index sets along its dimensions.

The indices along each dimension are a few intervals, and a region holds the entries of all their combinations. That is
enough for any placement of a sharded tensor, and never takes as much memory as the tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import accumulate
from math import prod

Interval = tuple[int, int, int]  # first index in the local tensor, first index in the whole tensor, length


@dataclass(frozen=True)
class IndexRegion:
    """Some of the entries of a tensor.

    Attributes:
        shape: Shape of the whole tensor.
        runs: Intervals of indices along each dimension, in the order in which the local tensor has them.
    """

    shape: tuple[int, ...]
    runs: tuple[tuple[Interval, ...], ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of indices along each dimension."""
        return tuple(sum(length for _, _, length in runs) for runs in self.runs)

    @cached_property
    def numel(self) -> int:
        """Number of entries."""
        return prod(self.sizes)

    @cached_property
    def is_whole(self) -> bool:
        """Whether the region is all of the tensor, in its order."""
        return self.runs == whole(self.shape).runs

    def between(self, first: int, last: int) -> IndexRegion:
        """Return the sub-region that holds roughly entries `first:last`; cuts along one dimension.

        Entries are counted in the order of the local tensor. Both ends are rounded in the same way, so sub-regions
        that meet at a number fit together.
        """
        dim = next((dim for dim, size in enumerate(self.sizes) if size > 1), None)
        if not self.numel:
            return self
        if dim is None:  # a single entry
            return self if first <= 0 < last else replace(self, runs=((), *self.runs[1:]))
        inner = prod(self.sizes[dim + 1 :])
        first, last = (min(max((place + inner // 2) // inner, 0), self.sizes[dim]) for place in (first, last))
        return replace(self, runs=(*self.runs[:dim], slice_of(self.runs[dim], first, last), *self.runs[dim + 1 :]))

    def of_part(self, axis: int, width: int, begin: int, end: int) -> IndexRegion:
        """Return the region of one part of the tensor, as a region of that part alone.

        Args:
            axis: Axis along which groups of parts follow each other.
            width: Indices of one group along the axis.
            begin: First index in a group that belongs to the part.
            end: First index in a group after the part.
        """
        axis %= len(self.shape)
        runs = []
        for local, start, length in self.runs[axis]:
            for group in range(start // width, -(-(start + length) // width)):
                first, last = max(start, group * width + begin), min(start + length, group * width + end)
                if first < last:
                    place = group * (end - begin) + first - group * width - begin
                    runs.append((local + first - start, place, last - first))
        size = self.shape[axis] // width * (end - begin)
        return IndexRegion(
            (*self.shape[:axis], size, *self.shape[axis + 1 :]),
            (*self.runs[:axis], joined(runs), *self.runs[axis + 1 :]),
        )

    def as_real(self) -> IndexRegion:
        """Return the region of a complex tensor as a region of the tensor seen as pairs of reals."""
        return IndexRegion((*self.shape, 2), (*self.runs, ((0, 0, 2),)))


def whole(shape: Sequence[int]) -> IndexRegion:
    """Return the region of all entries of a tensor of this shape."""
    return _whole(tuple(shape))


@cache
def _whole(shape: tuple[int, ...]) -> IndexRegion:
    return IndexRegion(shape, tuple(((0, 0, size),) if size else () for size in shape))


def slice_of(runs: Sequence[Interval], first: int, last: int) -> tuple[Interval, ...]:
    """Return the intervals of the indices number `first:last`, counted in the order of the intervals."""
    found = []
    begins = accumulate((length for _, _, length in runs), initial=0)
    for (local, start, length), begin in zip(runs, begins, strict=False):
        lower, upper = max(first - begin, 0), min(last - begin, length)
        if lower < upper:
            found.append((local + lower, start + lower, upper - lower))
    return tuple(found)


def joined(runs: Sequence[Interval]) -> tuple[Interval, ...]:
    """Join intervals that continue each other."""
    found: list[Interval] = []
    for run in runs:
        if found and all(found[-1][i] + found[-1][2] == run[i] for i in (0, 1)):
            found[-1] = (*found[-1][:2], found[-1][2] + run[2])
        else:
            found.append(run)
    return tuple(found)


def strides_of(sizes: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of a contiguous tensor of these sizes."""
    return tuple(prod(sizes[dim + 1 :]) for dim in range(len(sizes)))
