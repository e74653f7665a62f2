"""Times at which the checkpoints of a series were written, in steps or epochs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise


@dataclass(frozen=True)
class Clock:
    """Times at which checkpoints were written.

    Attributes:
        unit: ``"step"`` or ``"epoch"``.
        values: Steps or epochs of the checkpoints, in their order.
        guessed: Whether it is only a guess that they are steps, from numbers in names.
    """

    unit: str
    values: tuple[int | float, ...]
    guessed: bool = False

    @property
    def increases(self) -> bool:
        """Whether the checkpoints stand in the order of time."""
        return all(before < after for before, after in pairwise(self.values))

    @property
    def is_whole(self) -> bool:
        """Whether all values are integers, so that they can stand for steps."""
        return all(value == int(value) for value in self.values)

    @property
    def steps(self) -> list[int]:
        """The values as steps; if some are fractional, the places of the checkpoints in the order instead."""
        return [int(value) for value in self.values] if self.is_whole else list(range(len(self.values)))

    def at(self, indices: Sequence[int]) -> Clock:
        """Return the clock of some of the checkpoints."""
        return replace(self, values=tuple(self.values[i] for i in indices))
