"""The processes that train together, and the one sum over all of them."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from types import NoneType
from typing import Any

import torch
from torch import Tensor

from lightning_traj.files import Picklable

# Shorter than the default timeout of training's own collectives (ten minutes with NCCL, thirty otherwise). If ranks no
# longer call the same collectives, the sum here gives up first, and training goes on.
TIMEOUT = timedelta(minutes=5)

GONE = "processes no longer record together, since one has failed or waited in vain: nothing more is recorded"


class Ranks(Picklable, transient={"group": NoneType, "broken": lambda: True}):
    """The processes among which parameters are sharded or repeated.

    Their sums run in a process group of their own, so an error here cannot mix with the sums of gradients.

    Args:
        rank: Rank of this process.
        size: Number of processes.
        group: Process group of torch.distributed; None for a single process.

    Attributes:
        broken: Whether a sum has failed, or this rank has left. There are no more sums then.
    """

    def __init__(self, rank: int = 0, size: int = 1, group: Any = None) -> None:
        self.rank, self.size, self.group = rank, size, group
        self.broken = False

    @staticmethod
    def of_world() -> Ranks:
        """Return the ranks of torch.distributed's default group; a single one if it is not initialised.

        All ranks have to call this.
        """
        dist = torch.distributed
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return Ranks()
        # NCCL takes tensors on a GPU only, and values that concern files are on the host.
        backend = "cpu:gloo,cuda:nccl" if "nccl" in dist.get_backend() else None
        return Ranks(dist.get_rank(), dist.get_world_size(), dist.new_group(backend=backend, timeout=TIMEOUT))

    def sum(self, values: Tensor) -> Tensor:
        """Sum a tensor over all ranks in place; the result is the same on each. All ranks have to call this.

        Raises:
            RuntimeError: This sum or an earlier one failed, so that ranks no longer record together.
        """
        if self.size > 1:
            if self.broken:
                raise RuntimeError(GONE)
            with self.alone():
                try:
                    torch.distributed.all_reduce(values, group=self.group)
                except Exception as error:
                    raise RuntimeError(f"{GONE} ({error})") from error
        return values

    def leave(self) -> None:
        """Stop taking part, so that the next sum fails at once on the other ranks."""
        if self.size > 1 and not self.broken:
            self.broken = True
            with suppress(Exception):
                torch.distributed.destroy_process_group(self.group)
            self.group = None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Leave if the body raises: it fails on this rank alone, which then no longer keeps step with the others."""
        try:
            yield
        except BaseException:
            self.leave()
            raise

    def sum_of(self, own: Callable[[], Tensor], blank: Tensor) -> tuple[Tensor, Exception | None]:
        """Compute a tensor on each rank and return their sum.

        If a rank fails, it adds NaNs instead: the others need not wait for it, and cannot mistake their sum for the
        sum over all. A single process raises.

        Args:
            own: Computes the tensor of this rank.
            blank: Tensor of NaNs of the same size, which is added if that fails.

        Returns:
            The sum, and the error on this rank, if any.
        """
        if self.size == 1:
            return own(), None
        if self.broken:  # computing the tensor would be in vain
            raise RuntimeError(GONE)
        failure: Exception | None = None
        try:
            values = own()
        except Exception as error:
            failure = error
            values = blank
        return self.sum(values), failure

    def all_do(self, do: Callable[[], object]) -> None:
        """Call a function on all ranks; if one of them raises, all raise.

        Raises:
            RuntimeError: The function failed on other ranks only.
        """
        failure: Exception | None = None
        try:
            do()
        except Exception as error:
            failure = error
        failed = int(self.sum(torch.tensor([float(failure is not None)], dtype=torch.float64)))
        if failure is not None:
            raise failure
        if failed:
            raise RuntimeError(f"this failed on {failed} of {self.size} processes, whose messages say why.")

    def each(self, numbers: Sequence[int]) -> Tensor:
        """Return the numbers of every rank, int64 [ranks, numbers]. All ranks have to pass the same number of them."""
        table = torch.zeros(self.size, len(numbers), dtype=torch.int64)
        table[self.rank] = torch.tensor(numbers, dtype=torch.int64)
        return self.sum(table)

    def agree(self, value: object) -> bool:
        """Whether a plain value is the same on all ranks. All ranks have to call this."""
        table = self.each([fingerprint(value)])
        return bool((table == table[0]).all())

    def compare(self, values: Mapping[str, object]) -> None:
        """Check that plain values are the same on all ranks. All ranks have to pass the same number of them.

        Raises:
            ValueError: A value differs. All ranks raise, and each names its own value; of a list, the first item that
                differs.
        """
        table = self.each([fingerprint(value) for value in values.values()])
        differs = (table != table[0]).any(dim=0).tolist()
        for name, value in itertools.compress(values.items(), differs):
            lengths = self.each([len(value) if isinstance(value, list) else -1])
            if isinstance(value, list) and lengths.min() >= 0:
                numbers = [fingerprint(item) for item in value] + [0] * (int(lengths.max()) - len(value))
                first = int((self.each(numbers).diff(dim=0) != 0).any(dim=0).nonzero()[0])
                name, value = f"{name}[{first}]", [*value, "nothing"][min(first, len(value))]
            raise ValueError(
                f"{name}={value} on rank {self.rank} of {self.size} is not what all others have. Sums over ranks need "
                "the same on all of them: build the same model and the same callback on each."
            )


def fingerprint(value: object) -> int:
    """Return a number that tells plain values apart and is the same in every process."""
    digest = hashlib.blake2b(repr(value).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
