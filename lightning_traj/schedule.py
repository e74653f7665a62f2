"""When to take a snapshot: pure functions of the counters of a run, so that a resumed run needs no state of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass


class Schedule(ABC):
    """What a schedule answers. θ_0, the state before the first step, is recorded under every schedule."""

    @abstractmethod
    def due_after_step(self, step: int) -> bool:
        """Whether a snapshot is due right after optimizer step ``step`` (counted from 1)."""

    @abstractmethod
    def due_after_epoch(self, epoch: int) -> bool:
        """Whether a snapshot is due at the end of the epoch that makes ``epoch`` completed ones (counted from 1)."""


@dataclass(frozen=True)
class EveryNEpochs(Schedule):
    """A snapshot at the end of every ``n``-th training epoch.

    Args:
        n: Epochs between two snapshots, at least 1.

    Raises:
        TypeError, ValueError: n is not an integer, or below 1.
    """

    n: int = 1

    def __post_init__(self) -> None:
        _check_interval(type(self).__name__, self.n)

    def due_after_step(self, step: int) -> bool:  # noqa: D102 (see Schedule)
        return False

    def due_after_epoch(self, epoch: int) -> bool:  # noqa: D102
        return epoch % self.n == 0


@dataclass(frozen=True)
class EveryNSteps(Schedule):
    """A snapshot after every ``n``-th optimizer step really taken (with several optimizers, each one's steps count).

    Args:
        n: Optimizer steps between two snapshots, at least 1.

    Raises:
        TypeError, ValueError: n is not an integer, or below 1.
    """

    n: int

    def __post_init__(self) -> None:
        _check_interval(type(self).__name__, self.n)

    def due_after_step(self, step: int) -> bool:  # noqa: D102 (see Schedule)
        return step % self.n == 0

    def due_after_epoch(self, epoch: int) -> bool:  # noqa: D102
        return False


def _check_interval(schedule: str, n: object) -> None:
    if isinstance(n, bool) or not isinstance(n, int):
        raise TypeError(f"{schedule}(n={n!r}): n is no integer; pass a positive int, such as {schedule}(1).")
    if n < 1:
        raise ValueError(f"{schedule}(n={n}): n has to be at least 1; {schedule}(1) takes every one.")
