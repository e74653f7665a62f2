"""Ownership of entries: every entry of every parameter has exactly one rank that answers for it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lightning_traj.distributed.process_group import Ranks, fingerprint
from lightning_traj.tensors import IndexRegion, has_entries, held_share, is_sharded


class Ownership:
    """Entries that this rank answers for, for as long as parameters stay where they are.

    Attributes:
        is_shared: Whether other ranks answer for some entries, so that results have to be summed over ranks.
        shares: Region that this rank answers for, by parameter.
    """

    def __init__(self) -> None:
        self.is_shared = False
        self.shares: dict[str, IndexRegion] = {}
        self._placed: dict[str, tuple[Any, ...]] = {}

    def lacks(self, parameters: Mapping[str, Tensor]) -> bool:
        """Whether any of the parameters is new, or has moved."""
        return any(self._placed.get(name) != place for name, place in _places(parameters).items())

    def follow(self, ranks: Ranks, parameters: Mapping[str, Tensor], share_out: bool) -> None:
        """Assign new and moved parameters to ranks; all others keep their owners. All ranks have to call it.

        Args:
            ranks: The processes.
            parameters: Parameters by name.
            share_out: Whether to divide plain parameters among ranks. They are divided in any case if other parameters
                are sharded.
        """
        placed = _places(parameters)
        counted = {name: parameters[name] for name in placed}
        new = [name for name, place in placed.items() if self._placed.get(name) != place]
        if not new:
            return
        is_shared = ranks.size > 1 and (share_out or any(is_sharded(parameter) for parameter in counted.values()))
        if is_shared != self.is_shared:
            new = list(placed)
        shares = divide(ranks if is_shared else Ranks(), {name: counted[name] for name in new})
        self.is_shared = is_shared
        self.shares |= shares
        self._placed |= placed


def divide(ranks: Ranks, parameters: Mapping[str, Tensor]) -> dict[str, IndexRegion]:
    """Divide the entries of parameters among ranks, and return the regions of this rank.

    Ranks that hold the same entries (replicas, or all ranks for a plain tensor) share them out: these entries are
    counted parameter after parameter, and each rank gets one stretch. All ranks have to call this.
    """
    held: dict[str, IndexRegion] = {}
    # All ranks fail or none: a rank that failed alone would leave the others waiting.
    ranks.all_do(lambda: held.update((name, held_share(name, tensor)) for name, tensor in parameters.items()))
    if ranks.size == 1:
        return held
    marks = ranks.each([fingerprint(share.runs) for share in held.values()])
    same = marks == marks[ranks.rank]  # [ranks, parameters]
    replicas: dict[tuple[int, ...], list[str]] = {}
    for name, holders in zip(held, same.T.tolist(), strict=True):
        replicas.setdefault(tuple(rank for rank, is_one in enumerate(holders) if is_one), []).append(name)
    shares = {}
    for holding, names in replicas.items():
        begins = list(itertools.accumulate((held[name].numel for name in names), initial=0))
        at, total = holding.index(ranks.rank), begins[-1]
        first, last = (total * i // len(holding) for i in (at, at + 1))
        for name, begin in zip(names, begins, strict=False):
            shares[name] = held[name].between(first - begin, last - begin)
    return {name: shares[name] for name in held}


def _places(parameters: Mapping[str, Tensor]) -> dict[str, tuple[Any, ...]]:
    """Return the shape and the placement of each parameter that can be recorded."""
    return {
        name: (p.shape, getattr(p, "device_mesh", None), getattr(p, "placements", None))
        for name, p in parameters.items()
        if has_entries(p)
    }
