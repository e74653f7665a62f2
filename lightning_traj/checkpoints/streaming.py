"""Exact Gram matrices of checkpoints, block by block, in memory that depends neither on their size nor on their number.

Of one block at a time, a stretch of all checkpoints is read, its updates are taken in float64, and their inner
products are added up:

    U = Gram(θ_0, u_1, …, u_T)     u_t = θ_t − θ_{t−1}     [n, n]

Every other Gram matrix of the snapshots follows from it by addition. Blocks do not need each other: they can be done in
several processes, and what is done needs not be done again after an interruption.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_traj.blocks import Piece
from lightning_traj.checkpoints.formats.checkpoint import Checkpoint
from lightning_traj.measures import DISPLACEMENT, PREVIOUS_UPDATE, THETA, UPDATE
from lightning_traj.tensors import flat_range, whole

Array = NDArray[np.float64]
Advance = Callable[[int], None]  # is told how many entries have been taken in

STRETCH = 2**20  # entries of all checkpoints that are taken in at once: 8 MiB in float64, which a cache holds
LEAST = 2**10  # of one checkpoint, however many there are
MAPPED = 2**27  # bytes of files that are mapped at once


@dataclass(frozen=True)
class UpdateGram:
    """Gram(θ_0, u_1, …) of one block over the checkpoints that have it, all finite.

    Attributes:
        having: Indices of these checkpoints, m of them.
        bad: Indices of checkpoints in which the block is not finite.
        gram: Gram matrix of θ_0 and the updates, float64 [m, m].
    """

    having: tuple[int, ...]
    bad: tuple[int, ...]
    gram: Array

    def over(self, wanted: Sequence[int]) -> Array:
        """Return the Gram matrix over other checkpoints; where one lacks the block, it stands still."""
        if tuple(wanted) == self.having:
            return self.gram
        if not self.having or not wanted:
            return np.zeros((len(wanted), len(wanted)))
        usable = [i for i, t in enumerate(self.having) if t in set(wanted)] or [0]
        ends = [max((i for i in usable if self.having[i] <= t), default=usable[0]) for t in wanted]
        starts = [0, *(end + 1 for end in ends[:-1])]
        sums = np.zeros((len(wanted), len(self.having)))  # the updates between those that are left are sums of updates
        for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
            sums[row, start : end + 1] = 1.0
        summed: Array = sums @ self.gram @ sums.T
        return summed


class Reader:
    """Reader of pieces of blocks from all checkpoints, which unmaps files when enough of them is mapped.

    A block that a checkpoint lacks in part is as in the one before it, or, before it appears, as it is at first.

    Args:
        checkpoints: Checkpoints in the order of the trajectory.
    """

    def __init__(self, checkpoints: Sequence[Checkpoint]) -> None:
        self.checkpoints = checkpoints
        self._mapped = 0

    def holding(self, pieces: Sequence[Piece]) -> list[int]:
        """Return the indices of the checkpoints that have the whole block of these pieces."""
        parameters = {piece.parameter for piece in pieces}
        return [t for t, checkpoint in enumerate(self.checkpoints) if all(p in checkpoint.shapes for p in parameters)]

    def stretches(self, pieces: Sequence[Piece], among: Sequence[int], length: int) -> Iterator[list[Tensor]]:
        """Yield the real entries of a block in stretches of at most this length, flat, of each of these checkpoints."""
        for piece in pieces:
            shapes = [self.checkpoints[t].shapes[piece.parameter] for t in among]
            size = _entries(piece, shapes[0]).numel()
            width = sum(shape.element_size() for shape in shapes)  # of an entry, in all of them
            span = max(length, MAPPED // width)
            for first in range(0, size, span):
                last = min(first + span, size)
                self.reserve(width * (last - first))
                tensors = [_entries(piece, self.checkpoints[t].read(piece.parameter)) for t in among]
                for start in range(first, last, length):
                    stop = min(start + length, last)
                    yield [flat_range(tensor, start, stop) for tensor in tensors]
                del tensors  # or they would keep their files mapped

    def reserve(self, count: int) -> None:
        """Announce that this many bytes will be read; files are let go of where that would be more than ``MAPPED``."""
        if self._mapped + count > MAPPED:
            self.release()
        self._mapped += count

    def release(self) -> None:
        """Close all files; they are opened again when they are used."""
        for checkpoint in self.checkpoints:
            checkpoint.release()
        self._mapped = 0


def update_gram(pieces: Sequence[Piece], reader: Reader, advance: Advance = lambda _: None) -> UpdateGram:
    """Return Gram(θ_0, u_1, …) of a block, over the checkpoints in which all its entries are finite.

    Args:
        pieces: Pieces of the block.
        reader: Reader of the checkpoints.
        advance: Function that is told the number of entries that have been taken in.
    """
    among = reader.holding(pieces)
    gram = _update_gram(pieces, reader, among, advance)
    good = among
    if not np.isfinite(gram).all():  # one pass more, over this block alone, finds out where
        good = _finite(pieces, reader, among)
        gram = _update_gram(pieces, reader, good, lambda _: None)
    return UpdateGram(tuple(good), tuple(t for t in among if t not in good), gram)


def update_grams(
    blocks: Mapping[int, Sequence[Piece]],
    checkpoints: Sequence[Checkpoint],
    reopen: Callable[[], Sequence[Checkpoint]],
    processes: int = 1,
    advance: Advance = lambda _: None,
) -> Iterator[tuple[int, UpdateGram]]:
    """Yield the number and the ``update_gram`` of each block when it is done.

    Args:
        blocks: Pieces of each block, by its number.
        checkpoints: Checkpoints in the order of the trajectory.
        reopen: Picklable function that opens the same checkpoints in another process.
        processes: Number of processes; 1 for this one alone.
        advance: Function that is told the number of entries that have been taken in.
    """
    if processes == 1:
        reader = Reader(checkpoints)
        for b, pieces in blocks.items():
            yield b, update_gram(pieces, reader, advance)
        return
    # Forked processes would inherit the locks of this one's threads.
    with ProcessPoolExecutor(processes, get_context("spawn"), _begin, (reopen, processes)) as pool:
        with _without_interrupts():
            futures = {pool.submit(_in_process, pieces): b for b, pieces in blocks.items()}
        try:
            for future in as_completed(futures):
                entries, result = future.result()
                advance(entries)
                yield futures[future], result
        except BrokenProcessPool as error:
            raise OSError("a process died, maybe for want of memory: work in fewer of them (processes=).") from error
        finally:  # interrupted, or failed: what has not begun is not done
            pool.shutdown(cancel_futures=True)


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Start processes that Ctrl-C does not interrupt; it interrupts this one, which ends them."""
    if threading.current_thread() is not threading.main_thread():  # other threads may not set handlers of signals
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def anchored_gram(gram: Array) -> Array:
    """Return Gram(θ_0, d_1, …, d_T) from Gram(θ_0, u_1, …, u_T); d_t is a sum of updates."""
    anchored = gram.copy()
    anchored[1:] = anchored[1:].cumsum(axis=0)
    anchored[:, 1:] = anchored[:, 1:].cumsum(axis=1)
    return anchored


def local_grams(gram: Array) -> Array:
    """Return Gram(θ_t, d_t, u_t, u_{t−1}) of every snapshot, [n, 4, 4], from Gram(θ_0, u_1, …, u_T)."""
    n = len(gram)
    vectors = np.zeros((n, 4, n))
    for t in range(n):
        vectors[t, THETA, : t + 1] = 1.0
        vectors[t, DISPLACEMENT, 1 : t + 1] = 1.0
        vectors[t, UPDATE, t] = float(t > 0)
        vectors[t, PREVIOUS_UPDATE, max(t - 1, 0)] = float(t > 1)
    local: Array = vectors @ gram @ vectors.swapaxes(1, 2)
    return local


def _entries(piece: Piece, tensor: Tensor) -> Tensor:
    """Return a view of the real entries of a piece of a parameter that is complete."""
    return piece.entries(tensor, whole(tensor.shape))


def _update_gram(pieces: Sequence[Piece], reader: Reader, among: Sequence[int], advance: Advance) -> Array:
    """Return Gram(θ_0, u_1, …) over checkpoints that have the block."""
    n = len(among)
    gram = torch.zeros(n, n, dtype=torch.float64)
    if not n:
        return gram.numpy()
    length = max(LEAST, STRETCH // n)
    rows = torch.empty(n, length, dtype=torch.float64)
    scratch = torch.empty(2, length, dtype=torch.float64)
    for flats in reader.stretches(pieces, among, length):
        count = flats[0].numel()
        taken = rows[:, :count]
        for t, flat in enumerate(flats):
            now, before = scratch[t % 2, :count], scratch[1 - t % 2, :count]
            now.copy_(flat)
            if t == 0:
                taken[0].copy_(now)
            else:
                torch.sub(now, before, out=taken[t])
        gram.addmm_(taken, taken.T)
        advance(n * count)
    return gram.numpy()


def _finite(pieces: Sequence[Piece], reader: Reader, among: Sequence[int]) -> list[int]:
    """Return the indices of the checkpoints in which all entries of the block are finite."""
    finite = np.ones(len(among), dtype=bool)
    for flats in reader.stretches(pieces, among, max(LEAST, STRETCH // len(among))):
        finite &= [bool(flat.double().isfinite().all()) for flat in flats]
    return [t for t, is_finite in zip(among, finite, strict=True) if is_finite]


_reader: Reader | None = None  # of a worker process


def _begin(reopen: Callable[[], Sequence[Checkpoint]], processes: int) -> None:
    global _reader
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
    _reader = Reader(reopen())


def _in_process(pieces: Sequence[Piece]) -> tuple[int, UpdateGram]:
    assert _reader is not None
    counts: list[int] = []
    result = update_gram(pieces, _reader, counts.append)
    return sum(counts), result
