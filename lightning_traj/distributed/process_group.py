"""The processes that train together: what each of them answers for, and the one sum over all of them."""

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
from lightning_traj.tensors import IndexRegion, has_entries, held_share, is_sharded

# Shorter than what training's own collectives wait for by default (ten minutes with NCCL, else thirty): where ranks
# have come apart, the sum here gives up first, and training goes on.
TIMEOUT = timedelta(minutes=5)


GONE = "processes no longer record together, since one has failed or waited in vain: nothing more is recorded"


class Ranks(Picklable, transient={"group": NoneType, "broken": lambda: True}):
    """The processes among which parameters are sharded or repeated.

    They sum in a group of their own: whatever goes wrong here, nothing of it can meet a gradient.

    Args:
        rank: Which one this is.
        size: How many there are.
        group: Of these processes, of torch.distributed; None where there is but one.

    Attributes:
        broken: Whether a sum has failed, or this rank has left: there are no more.
    """

    def __init__(self, rank: int = 0, size: int = 1, group: Any = None) -> None:
        self.rank, self.size, self.group = rank, size, group
        self.broken = False

    @staticmethod
    def of_world() -> Ranks:
        """Those of torch.distributed's default group; one alone where it is not initialised. All have to call it."""
        dist = torch.distributed
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return Ranks()
        # NCCL takes tensors on a GPU only, and what belongs to files is on the host.
        backend = "cpu:gloo,cuda:nccl" if "nccl" in dist.get_backend() else None
        return Ranks(dist.get_rank(), dist.get_world_size(), dist.new_group(backend=backend, timeout=TIMEOUT))

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks, in place and the same on each of them. All of them have to call it.

        Raises:
            RuntimeError: it failed, or one before did: others no longer take part.
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
        """Take part no more: to the others the next sum fails at once."""
        if self.size > 1 and not self.broken:
            self.broken = True
            with suppress(Exception):
                torch.distributed.destroy_process_group(self.group)
            self.group = None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """What fails within fails on this rank alone: it no longer keeps step with the others, and leaves."""
        try:
            yield
        except BaseException:
            self.leave()
            raise

    def sum_of(self, own: Callable[[], Tensor], blank: Tensor) -> tuple[Tensor, Exception | None]:
        """The sum over all ranks of what ``own`` gives on each.

        One on which it fails adds the blank, of NaNs: nobody waits for it, or takes the others' for all there is. A
        rank that is alone raises.

        Args:
            own: What this rank adds.
            blank: What it adds instead, as large.

        Returns:
            The sum, and what failed on this rank.
        """
        if self.size == 1:
            return own(), None
        if self.broken:  # what it makes would be for nothing
            raise RuntimeError(GONE)
        failure: Exception | None = None
        try:
            values = own()
        except Exception as error:
            failure = error
            values = blank
        return self.sum(values), failure

    def all_do(self, do: Callable[[], object]) -> None:
        """Call ``do`` on all ranks; what one of them raises, all raise.

        Raises:
            RuntimeError: it failed on another rank alone.
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
        """What every rank gives, int64 [ranks, numbers]. All of them have to call it, with as many."""
        table = torch.zeros(self.size, len(numbers), dtype=torch.int64)
        table[self.rank] = torch.tensor(numbers, dtype=torch.int64)
        return self.sum(table)

    def agree(self, value: object) -> bool:
        """Whether a plain value is the same on all ranks. All have to call it."""
        table = self.each([_number(value)])
        return bool((table == table[0]).all())

    def compare(self, values: Mapping[str, object]) -> None:
        """Make sure that plain values are the same on all ranks. All have to call it, with as many.

        Raises:
            ValueError: on all ranks, if they are not; each names what it has itself, of lists the first that differs.
        """
        table = self.each([_number(value) for value in values.values()])
        differs = (table != table[0]).any(dim=0).tolist()
        for name, value in itertools.compress(values.items(), differs):
            lengths = self.each([len(value) if isinstance(value, list) else -1])
            if isinstance(value, list) and lengths.min() >= 0:
                numbers = [_number(item) for item in value] + [0] * (int(lengths.max()) - len(value))
                first = int((self.each(numbers).diff(dim=0) != 0).any(dim=0).nonzero()[0])
                name, value = f"{name}[{first}]", [*value, "nothing"][min(first, len(value))]
            raise ValueError(
                f"{name}={value} on rank {self.rank} of {self.size} is not what all others have. Sums over ranks need "
                "the same on all of them: build the same model and the same callback on each."
            )

    def shares(self, parameters: Mapping[str, Tensor]) -> dict[str, IndexRegion]:
        """What this rank answers for: every entry of every parameter has exactly one rank that does.

        Ranks that hold the same entries (replicas; all ranks where a parameter is a plain tensor) share them out: of
        these entries, parameter after parameter, each has one stretch. All ranks have to call it.
        """
        held: dict[str, IndexRegion] = {}
        # All of them or none: one that cannot tell would leave the others waiting.
        self.all_do(lambda: held.update((name, held_share(name, tensor)) for name, tensor in parameters.items()))
        if self.size == 1:
            return held
        marks = self.each([_number(share.runs) for share in held.values()])
        same = marks == marks[self.rank]  # [ranks, parameters]
        replicas: dict[tuple[int, ...], list[str]] = {}
        for name, holders in zip(held, same.T.tolist(), strict=True):
            replicas.setdefault(tuple(rank for rank, is_one in enumerate(holders) if is_one), []).append(name)
        shares = {}
        for ranks, names in replicas.items():
            begins = list(itertools.accumulate((held[name].numel for name in names), initial=0))
            at, total = ranks.index(self.rank), begins[-1]
            first, last = (total * i // len(ranks) for i in (at, at + 1))
            for name, begin in zip(names, begins, strict=False):
                shares[name] = held[name].between(first - begin, last - begin)
        return {name: shares[name] for name in held}


class Ownership:
    """Which entries of which parameters this rank answers for, as long as these stay where they are.

    Attributes:
        is_shared: Whether they are but a part of all: what is made of them has to be summed over ranks.
        shares: By parameter.
    """

    def __init__(self) -> None:
        self.is_shared = False
        self.shares: dict[str, IndexRegion] = {}
        self._placed: dict[str, tuple[Any, ...]] = {}

    def lacks(self, parameters: Mapping[str, Tensor]) -> bool:
        """Whether any of these is new, or has moved."""
        return any(self._placed.get(name) != place for name, place in _places(parameters).items())

    def follow(self, ranks: Ranks, parameters: Mapping[str, Tensor], share_out: bool) -> None:
        """Bring it up to date. What is known, and has not moved, stays with whom it is. All ranks have to call it.

        Args:
            ranks: Among whom.
            parameters: By name.
            share_out: Whether each is to answer for a part of plain parameters too; they are, where others are sharded.
        """
        placed = _places(parameters)
        counted = {name: parameters[name] for name in placed}
        new = [name for name, place in placed.items() if self._placed.get(name) != place]
        if not new:
            return
        is_shared = ranks.size > 1 and (share_out or any(is_sharded(parameter) for parameter in counted.values()))
        if is_shared != self.is_shared:
            new = list(placed)
        shares = (ranks if is_shared else Ranks()).shares({name: counted[name] for name in new})
        self.is_shared = is_shared
        self.shares |= shares
        self._placed |= placed


def _places(parameters: Mapping[str, Tensor]) -> dict[str, tuple[Any, ...]]:
    """Of those that can be recorded: their shapes, and where they are."""
    return {
        name: (p.shape, getattr(p, "device_mesh", None), getattr(p, "placements", None))
        for name, p in parameters.items()
        if has_entries(p)
    }


def _number(value: object) -> int:
    """A number that tells plain values from one another, the same in every process."""
    digest = hashlib.blake2b(repr(value).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
