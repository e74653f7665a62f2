"""Checkpoints that hold the same weights, and parameters that are saved twice, compared bit by bit.

Files are unmapped while they are compared, so that memory depends neither on their size nor on their number.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_traj.checkpoints import streaming
from lightning_traj.checkpoints.formats.checkpoint import Checkpoint
from lightning_traj.checkpoints.streaming import Reader
from lightning_traj.tensors import flat_range

COMPARED = 2**20  # entries that are compared at once
START = 64  # entries of a tensor that are looked at first
PAGES = 2**18  # bytes that a system maps around the first one, which is between 64 KiB and 2 MiB


def same_weights(
    checkpoints: Sequence[Checkpoint], alike: NDArray[np.bool_], names: Collection[str]
) -> list[list[int]]:
    """Group the checkpoints that hold exactly the same weights.

    Args:
        checkpoints: Checkpoints of a series, in order.
        alike: Whether two checkpoints may hold the same weights, [n, n]. No other pairs are read.
        names: Names of the parameters.

    Returns:
        Indices of each group of two or more, in order.
    """
    reader = Reader(checkpoints)
    groups: list[list[int]] = []
    for j, checkpoint in enumerate(checkpoints):
        for group in groups:
            if alike[group[0], j] and _same(reader, checkpoints[group[0]], checkpoint, names):
                group.append(j)
                break
        else:
            groups.append([j])
    reader.release()
    return [group for group in groups if len(group) > 1]


def are_equal(one: Checkpoint, other: Checkpoint) -> bool:
    """Return whether the floating-point tensors that two checkpoints share are the same, bit by bit."""
    reader = Reader([one, other])
    shared = [
        name
        for name, like in one.shapes.items()
        if name in other.shapes and like.is_floating_point() and not is_expanded(like)
    ]
    equal = bool(shared) and all(_equal(reader, one, name, other, name) for name in shared)
    reader.release()
    return equal


def is_expanded(tensor: Tensor) -> bool:
    """Return whether several entries of a tensor lie in one place of the file."""
    reach = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.numel() > max(reach, 0)


def tied(checkpoints: Sequence[Checkpoint], names: Iterable[str]) -> dict[str, str]:
    """Return matrices that are saved twice, as {second name: first name}.

    They hold the same entries in every checkpoint. Constant ones, such as zeros that were never trained, do not count.
    """
    last, reader = checkpoints[-1], Reader(checkpoints)
    alike: dict[tuple[object, ...], list[str]] = {}
    for name in names:
        if name in last.shapes and last.shapes[name].ndim > 1:
            reader.reserve(PAGES)
            tensor = last.read(name)
            start = _bits(tensor, 0, min(START, tensor.numel())).tobytes()
            alike.setdefault((tuple(tensor.shape), tensor.dtype, start), []).append(name)
            del tensor  # or it would keep its file mapped
    found = {}
    for members in alike.values():
        firsts: list[str] = []
        for name in members if len(members) > 1 else ():
            if _is_constant(reader, last, name):
                continue
            first = next((first for first in firsts if _tied(reader, first, name)), None)
            if first is None:
                firsts.append(name)
            else:
                found[name] = first
    reader.release()
    return found


def _same(reader: Reader, one: Checkpoint, other: Checkpoint, names: Collection[str]) -> bool:
    shared = [name for name in names if name in one.shapes]
    return all(name in other.shapes and _equal(reader, one, name, other, name) for name in shared)


def _tied(reader: Reader, first: str, other: str) -> bool:
    having = [checkpoint for checkpoint in reader.checkpoints if {first, other} <= checkpoint.shapes.keys()]
    return all(_equal(reader, checkpoint, first, checkpoint, other) for checkpoint in reversed(having))


def _equal(reader: Reader, one: Checkpoint, name: str, other: Checkpoint, other_name: str) -> bool:
    """Return whether two tensors are the same bit by bit, also if damaged ones hold NaN."""
    first, second = one.shapes[name], other.shapes[other_name]
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    for start, stop in _parts(first.numel(), streaming.MAPPED // (2 * first.element_size())):
        reader.reserve(2 * first.element_size() * (stop - start))
        if not _equal_entries(one.read(name), other.read(other_name), start, stop):
            return False
    return True


def _equal_entries(first: Tensor, second: Tensor, start: int, stop: int) -> bool:
    if first.data_ptr() == second.data_ptr() and first.stride() == second.stride():
        return True  # torch.save writes what is shared once
    parts = _parts(stop, COMPARED, start)
    return all(np.array_equal(_bits(first, *part), _bits(second, *part)) for part in parts)


def _is_constant(reader: Reader, checkpoint: Checkpoint, name: str) -> bool:
    like = checkpoint.shapes[name]
    for start, stop in _parts(like.numel(), COMPARED):
        reader.reserve(like.element_size() * (stop - start))
        tensor = checkpoint.read(name)
        first = _bits(tensor, 0, 1)
        is_constant = bool((_bits(tensor, start, stop).reshape(-1, len(first)) == first).all())
        del tensor, first  # as above
        if not is_constant:
            return False
    return True


def _bits(tensor: Tensor, start: int, stop: int) -> NDArray[np.uint8]:
    """Return the bytes of entries in C order; NumPy compares them in a tenth of the time that torch takes."""
    entries = flat_range(tensor, start, stop).resolve_conj().resolve_neg()
    flat = entries.contiguous().as_strided((len(entries),), (1,))  # a single entry has any stride
    return flat.view(torch.uint8).numpy()


def _parts(stop: int, length: int, start: int = 0) -> Iterator[tuple[int, int]]:
    """Yield intervals of at most this length that make up ``start … stop``."""
    return ((first, min(first + length, stop)) for first in range(start, stop, length))
