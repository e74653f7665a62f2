"""What a process holds of a sharded parameter: which entries, and where in the whole parameter they are.

Along each dimension these are runs of consecutive indices, and the entries are those of all their combinations: enough
for any placements, and never as long as the parameter. Nothing here communicates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import accumulate, product
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_traj.blocks.fused import FusedLayout
from lightning_traj.blocks.reading import UnreadableError, describe, read

Interval = tuple[int, int, int]  # where it begins in the local tensor, where in the whole one, and its length

LONG = 2**14  # entries: stretches that are longer go one by one
GAPS = (
    16  # shorter ones go with zeros in the gaps between them, up to so many times as many entries; others by an index
)
AT_ONCE = 2**19  # entries: zeros and an index are made for so many at most


@dataclass(frozen=True)
class IndexRegion:
    """Some of the entries of a tensor.

    Attributes:
        shape: Of the whole tensor.
        runs: Along each dimension, in the order in which the local tensor has them.
    """

    shape: tuple[int, ...]
    runs: tuple[tuple[Interval, ...], ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Entries along each dimension."""
        return tuple(sum(length for _, _, length in runs) for runs in self.runs)

    @cached_property
    def numel(self) -> int:
        """Entries."""
        return prod(self.sizes)

    @cached_property
    def is_whole(self) -> bool:
        """Whether it is all of the tensor, in its order."""
        return self.runs == whole(self.shape).runs

    def between(self, first: int, last: int) -> IndexRegion:
        """About those of its entries (in the order of the local tensor) from the first to before the last.

        It is cut along a dimension, so both are rounded: shares that meet at a number fit together.
        """
        dim = next((dim for dim, size in enumerate(self.sizes) if size > 1), None)
        if not self.numel:
            return self
        if dim is None:  # a single entry
            return self if first <= 0 < last else replace(self, runs=((), *self.runs[1:]))
        inner = prod(self.sizes[dim + 1 :])
        first, last = (min(max((place + inner // 2) // inner, 0), self.sizes[dim]) for place in (first, last))
        return replace(self, runs=(*self.runs[:dim], _between(self.runs[dim], first, last), *self.runs[dim + 1 :]))

    def of_part(self, layout: FusedLayout, role: str) -> IndexRegion:
        """What it has of a part of a fused tensor."""
        axis = layout.axis % len(self.shape)
        width, begin, end = layout.interval(self.shape[axis], role)
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
            (*self.runs[:axis], _joined(runs), *self.runs[axis + 1 :]),
        )

    def as_real(self) -> IndexRegion:
        """Of the pairs of reals that complex entries are."""
        return IndexRegion((*self.shape, 2), (*self.runs, ((0, 0, 2),)))


class LocalEntries(NamedTuple):
    """Entries of a tensor that are here.

    Attributes:
        tensor: Has these entries, and maybe more. Of a whole tensor any view in its order.
        share: Which they are.
    """

    tensor: Tensor
    share: IndexRegion

    def now(self) -> LocalEntries:
        """Return it as it is: what ``Deferred`` has yet to read."""
        return self

    @property
    def is_whole(self) -> bool:
        """Whether the tensor is all of the whole one, in its order, and nothing else."""
        return self.share.is_whole and self.tensor.numel() == self.share.numel

    def boxes(self) -> Iterator[tuple[Tensor, tuple[int, ...]]]:
        """The entries as views of the tensor, each with the indices of its first entry in the whole tensor."""
        if self.is_whole:
            yield self.tensor, (0,) * len(self.share.shape)
            return
        for box in product(*self.share.runs):
            view = self.tensor
            for dim, (local, _, length) in enumerate(box):
                view = view.narrow(dim, local, length)
            yield view, tuple(start for _, start, _ in box)

    def flat(self) -> Tensor:
        """The entries, box by box, 1-D: a view where that is possible."""
        boxes = [view.reshape(-1) for view, _ in self.boxes()]
        return boxes[0] if len(boxes) == 1 else torch.cat([self.tensor.new_empty(0), *boxes])

    def stretches(self) -> Iterator[tuple[Tensor, int, Tensor | None]]:
        """The entries as tensors, each with the position of its first one in the whole tensor or an index of all.

        Zeros may come with them.
        """
        if self.is_whole:
            yield self.tensor, 0, None
            return
        strides = strides_of(self.share.shape)
        for view, corner in self.boxes():
            yield from _stretches(view, sum(i * stride for i, stride in zip(corner, strides, strict=True)), strides)


class Deferred(NamedTuple):
    """Entries that are here in a form that has to be read first: one block at a time, since what is read is a copy.

    Attributes:
        tensor: What is here of the parameter.
        share: Which of a piece's entries count here.
        name: The parameter's name.
        entries: Takes the piece out of the values of ``tensor``.
    """

    tensor: Tensor
    share: IndexRegion
    name: str
    entries: Callable[[Tensor], Tensor]

    def now(self) -> LocalEntries:
        """Read the tensor.

        Raises:
            UnreadableError: that failed.
        """
        try:
            values = read(self.tensor)
        except (MemoryError, torch.OutOfMemoryError):  # which says nothing of the tensor
            raise
        except Exception as error:
            raise UnreadableError({self.name: describe(self.tensor, error)}) from error
        return LocalEntries(self.entries(values), self.share)


def stretches_of(pieces: Iterable[LocalEntries | Deferred]) -> Iterator[tuple[Tensor, int, Tensor | None]]:
    """The ``stretches`` of tensors that lie one after the other, as if they were one."""
    begin = 0
    for held in pieces:
        for tensor, start, index in held.now().stretches():
            yield tensor, begin + start, None if index is None else begin + index
        begin += prod(held.share.shape)


def whole(shape: Sequence[int]) -> IndexRegion:
    """All entries of a tensor of this shape."""
    return _whole(tuple(shape))


@cache
def _whole(shape: tuple[int, ...]) -> IndexRegion:
    return IndexRegion(shape, tuple(((0, 0, size),) if size else () for size in shape))


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor: each process has a part of it, or a copy."""
    return hasattr(tensor, "placements")


def local_tensor(tensor: Any) -> Tensor:
    """What is here of a DTensor; any other tensor is itself."""
    if not is_sharded(tensor):
        whole_tensor: Tensor = tensor
        return whole_tensor
    with torch.no_grad():
        local: Tensor = tensor.to_local()
    return local


def held_share(name: str, tensor: Any) -> IndexRegion:
    """What of a tensor is here: all of a plain one, of a DTensor what its placements say.

    Raises:
        ValueError: it is placed in a way that is not known, as partial sums are.
    """
    if not is_sharded(tensor):
        return whole(tensor.shape)
    runs = list(whole(tensor.shape).runs)
    coordinates = tensor.device_mesh.get_coordinate()
    if coordinates is None:  # it is a matter of other processes
        return IndexRegion(tuple(tensor.shape), ((), *runs[1:]))
    for i in _order(tensor.placements):
        placement = tensor.placements[i]
        if placement.is_replicate():
            continue
        if not (placement.is_shard() or _is_strided(placement)):
            raise ValueError(f"parameter {name!r} is placed as {placement}: only shards and replicas can be recorded.")
        runs[placement.dim] = _chunk(runs[placement.dim], tensor.device_mesh.shape[i], coordinates[i])
    share = IndexRegion(tuple(tensor.shape), tuple(_joined(_packed(found)) for found in runs))
    if (sizes := tuple(local_tensor(tensor).shape)) != share.sizes:
        raise ValueError(
            f"parameter {name!r} of shape {share.shape}, placed as {tensor.placements}, has a shard of shape {sizes} "
            f"here where {share.sizes} was expected: this placement is not supported."
        )
    return share


def _is_strided(placement: Any) -> bool:
    """Whether it shards what placements to its right have sharded already, as FSDP2 does over tensor parallel."""
    return hasattr(placement, "split_factor")


def _order(placements: Sequence[Any]) -> list[int]:
    """The dimensions of the mesh in the order in which they cut: from left to right, then strided ones from the right.

    By the definition of strided shards it is the other way around, which is the same for even sizes alone.
    """
    strided = [i for i, placement in enumerate(placements) if _is_strided(placement)]
    return [*(i for i in range(len(placements)) if i not in strided), *reversed(strided)]


def _between(runs: Sequence[Interval], first: int, last: int) -> tuple[Interval, ...]:
    """The runs of those indices that are, in the order of the runs, from the first to before the last."""
    found = []
    begins = accumulate((length for _, _, length in runs), initial=0)
    for (local, start, length), begin in zip(runs, begins, strict=False):
        lower, upper = max(first - begin, 0), min(last - begin, length)
        if lower < upper:
            found.append((local + lower, start + lower, upper - lower))
    return tuple(found)


def _chunk(runs: Sequence[Interval], count: int, at: int) -> tuple[Interval, ...]:
    """One of so many chunks, as ``torch.chunk`` makes them."""
    size = -(-sum(length for _, _, length in runs) // count)
    return _between(runs, at * size, (at + 1) * size)


def _packed(runs: Sequence[Interval]) -> list[Interval]:
    """The runs of a local tensor that has these one after the other, and nothing else."""
    begins = accumulate((length for _, _, length in runs), initial=0)
    return [(begin, start, length) for begin, (_, start, length) in zip(begins, runs, strict=False)]


def _joined(runs: Sequence[Interval]) -> tuple[Interval, ...]:
    """As few runs as these indices are."""
    found: list[Interval] = []
    for run in runs:
        if found and all(found[-1][i] + found[-1][2] == run[i] for i in (0, 1)):
            found[-1] = (*found[-1][:2], found[-1][2] + run[2])
        else:
            found.append(run)
    return tuple(found)


def strides_of(sizes: Sequence[int]) -> tuple[int, ...]:
    """Of a contiguous tensor of these sizes."""
    return tuple(prod(sizes[dim + 1 :]) for dim in range(len(sizes)))


def _stretches(view: Tensor, start: int, strides: Sequence[int]) -> Iterator[tuple[Tensor, int, Tensor | None]]:
    """A tensor whose entry [i, j] is at start + i·strides[0] + j·strides[1], and so on."""
    if not view.numel():
        return
    own = strides_of(view.shape)
    follow = [size == 1 or stride == mine for size, stride, mine in zip(view.shape, strides, own, strict=True)]
    if all(follow):
        yield view, start, None
        return
    step = max(1, AT_ONCE // strides[0])
    if len(view) == 1 or step == 1 or own[0] >= LONG:
        for i, row in enumerate(view):
            yield from _stretches(row, start + i * strides[0], strides[1:])
        return
    firsts = range(0, len(view), step)
    if all(follow[1:]) and strides[0] <= GAPS * own[0]:
        for first in firsts:
            rows = view[first : first + step]
            filled = view.new_zeros(len(rows), strides[0])
            filled[:, : own[0]] = rows.reshape(len(rows), -1)
            yield filled.view(-1)[: (len(rows) - 1) * strides[0] + own[0]], start + first * strides[0], None
        return
    places = torch.zeros((), dtype=torch.int64, device=view.device)
    for size, stride in zip(view.shape[1:], strides[1:], strict=True):
        places = places[..., None] + torch.arange(size, device=view.device) * stride
    for first in firsts:
        rows = view[first : first + step]
        begins = start + strides[0] * torch.arange(first, first + len(rows), device=view.device)
        yield rows, 0, begins.view(-1, *(1,) * places.ndim) + places
