"""Entries of a tensor that are on this process, with their positions in the whole tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_traj.tensors.reading import UnreadableError, describe, read
from lightning_traj.tensors.regions import IndexRegion, strides_of

LONG = 2**14  # Stretches of at least this many entries are given one by one.
GAPS = 16  # Shorter ones are padded with zeros to at most this many times their size, or given with an index.
AT_ONCE = 2**19  # Zeros and indices are made for at most this many entries at once.


class LocalEntries(NamedTuple):
    """Entries of a tensor that are on this process.

    Attributes:
        tensor: Tensor that has these entries, and possibly others. For a whole tensor: any view of it in its order.
        share: Region of the whole tensor to which the entries belong.
    """

    tensor: Tensor
    share: IndexRegion

    def now(self) -> LocalEntries:
        """Return the entries as they are; ``Deferred`` entries are read first."""
        return self

    @property
    def is_whole(self) -> bool:
        """Whether the tensor is the whole one, in its order, and nothing else."""
        return self.share.is_whole and self.tensor.numel() == self.share.numel

    def boxes(self) -> Iterator[tuple[Tensor, tuple[int, ...]]]:
        """Yield the entries as views of the tensor, each with the indices of its first entry in the whole tensor."""
        if self.is_whole:
            yield self.tensor, (0,) * len(self.share.shape)
            return
        for box in product(*self.share.runs):
            view = self.tensor
            for dim, (local, _, length) in enumerate(box):
                view = view.narrow(dim, local, length)
            yield view, tuple(start for _, start, _ in box)

    def flat(self) -> Tensor:
        """Return the entries box by box, 1-D: a view if possible."""
        boxes = [view.reshape(-1) for view, _ in self.boxes()]
        return boxes[0] if len(boxes) == 1 else torch.cat([self.tensor.new_empty(0), *boxes])

    def stretches(self) -> Iterator[tuple[Tensor, int, Tensor | None]]:
        """Yield tensors, each with the position in the whole tensor of its first entry, or with an index of all.

        Together they have each local entry once; zeros may be among them, at positions of other entries.
        """
        if self.is_whole:
            yield self.tensor, 0, None
            return
        strides = strides_of(self.share.shape)
        for view, corner in self.boxes():
            yield from _stretches(view, sum(i * stride for i, stride in zip(corner, strides, strict=True)), strides)


class Deferred(NamedTuple):
    """Entries of a compressed tensor, which are read one block at a time, since reading makes a copy.

    Attributes:
        tensor: Local part of the parameter.
        share: Region of the piece's entries that count on this process.
        name: Name of the parameter.
        entries: Function that takes the piece out of the values of ``tensor``.
    """

    tensor: Tensor
    share: IndexRegion
    name: str
    entries: Callable[[Tensor], Tensor]

    def now(self) -> LocalEntries:
        """Read the tensor.

        Raises:
            UnreadableError: The tensor cannot be read.
        """
        try:
            values = read(self.tensor)
        except (MemoryError, torch.OutOfMemoryError):  # the tensor itself may be readable
            raise
        except Exception as error:
            raise UnreadableError({self.name: describe(self.tensor, error)}) from error
        return LocalEntries(self.entries(values), self.share)


def stretches_of(pieces: Iterable[LocalEntries | Deferred]) -> Iterator[tuple[Tensor, int, Tensor | None]]:
    """Yield the ``stretches`` of tensors that lie one after the other, as if they were one tensor."""
    begin = 0
    for held in pieces:
        for tensor, start, index in held.now().stretches():
            yield tensor, begin + start, None if index is None else begin + index
        begin += prod(held.share.shape)


def _stretches(view: Tensor, start: int, strides: Sequence[int]) -> Iterator[tuple[Tensor, int, Tensor | None]]:
    """Yield the stretches of a tensor whose entry [i, j, …] is at position start + i·strides[0] + j·strides[1] + …."""
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
