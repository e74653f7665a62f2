"""Schedules of snapshots: pure functions of the counters of a run, so that a resumed run needs no state of them.

Steps are optimizer steps really taken: neither batches that only accumulate gradients nor skipped steps count, and
with several optimizers each one's steps do. Where several steps are noticed together (see ``StepCounter``), a snapshot
that is due at one of them is taken at the last.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from operator import index

from lightning_traj.checks import check_int


class Schedule(ABC):
    """Base of all schedules. θ_0, the state before the first step, is recorded under every schedule.

    Schedules are joined by ``|``: ``EveryNEpochs(1) | LogSpaced(1000)`` is due whenever one of them is.
    Where several processes train together, all of them must get the same answers, since they add up their parts of each
    snapshot.
    """

    @abstractmethod
    def due_after_step(self, step: int) -> bool:
        """Return whether a snapshot is due right after optimizer step ``step`` (counted from 1)."""

    @abstractmethod
    def due_after_epoch(self, epoch: int) -> bool:
        """Return whether a snapshot is due at the end of epoch ``epoch`` (counted from 1)."""

    def due_after_steps(self, step: int, number: int) -> bool:
        """Return whether a snapshot is due at one of the ``number`` optimizer steps up to ``step``."""
        return any(self.due_after_step(s) for s in range(step - number + 1, step + 1))

    def begins_by(self, steps: float, epochs: float) -> bool:
        """Return whether it can ever be due in a run of at most this many steps and epochs, as far as it can tell."""
        return True

    def __or__(self, other: object) -> Schedule:
        if not isinstance(other, Schedule):
            raise TypeError(f"{self!r} | {other!r}: the right side is not a schedule; join schedules with schedules.")
        return Union((self, other))


@dataclass(frozen=True)
class EveryNEpochs(Schedule):
    """A snapshot at the end of every ``n``-th training epoch.

    Args:
        n: Epochs between two snapshots, at least 1.

    Raises:
        TypeError, ValueError: The number is not an integer, or below 1.
    """

    n: int = 1

    def __post_init__(self) -> None:
        check_int("n", self.n, least=1, owner=type(self).__name__)

    def due_after_step(self, step: int) -> bool:  # noqa: D102 (see Schedule)
        return False

    def due_after_epoch(self, epoch: int) -> bool:  # noqa: D102
        return epoch % self.n == 0


@dataclass(frozen=True)
class EveryNSteps(Schedule):
    """A snapshot after every ``n``-th optimizer step.

    Args:
        n: Optimizer steps between two snapshots, at least 1.

    Raises:
        TypeError, ValueError: The number is not an integer, or below 1.
    """

    n: int

    def __post_init__(self) -> None:
        check_int("n", self.n, least=1, owner=type(self).__name__)

    def due_after_step(self, step: int) -> bool:  # noqa: D102 (see Schedule)
        return step % self.n == 0

    def due_after_epoch(self, epoch: int) -> bool:  # noqa: D102
        return False


@dataclass(frozen=True)
class LogSpaced(Schedule):
    """A snapshot after steps 1, base, base², … up to ``cap``, and after every ``cap``-th step from there.

    ``LogSpaced(1000)`` are the steps of Pythia's checkpoints: 1, 2, 4, …, 512, 1000, 2000, 3000, …

    Args:
        cap: Step at which linear spacing begins, and its interval; at least 1.
        base: Ratio of consecutive steps before that, an integer of at least 2.

    Raises:
        TypeError, ValueError: An argument is not an integer, or too small.
    """

    cap: int = 1000
    base: int = 2

    def __post_init__(self) -> None:
        check_int("cap", self.cap, least=1, owner=type(self).__name__)
        check_int("base", self.base, least=2, owner=type(self).__name__)

    def due_after_step(self, step: int) -> bool:  # noqa: D102 (see Schedule)
        if step >= self.cap:
            return step % self.cap == 0
        while step % self.base == 0 and step > 1:
            step //= self.base
        return step == 1

    def due_after_epoch(self, epoch: int) -> bool:  # noqa: D102
        return False


class _Listed(Schedule):
    """Base of schedules whose only field lists the counts at which they are due."""

    def __post_init__(self) -> None:
        ((name, values),) = vars(self).items()
        object.__setattr__(self, name, _listed(type(self).__name__, name, values))


@dataclass(frozen=True)
class AtSteps(_Listed):
    """A snapshot after each of the listed optimizer steps.

    Args:
        steps: Numbers of the steps, counted from 1, in any order; at least one.

    Raises:
        TypeError, ValueError: The steps are not a list of integers, are empty, or include one below 1.
    """

    steps: Iterable[int]

    def due_after_step(self, step: int) -> bool:  # noqa: D102 (see Schedule)
        return step in self.steps

    def due_after_epoch(self, epoch: int) -> bool:  # noqa: D102
        return False

    def begins_by(self, steps: float, epochs: float) -> bool:  # noqa: D102
        return min(self.steps) <= steps


@dataclass(frozen=True)
class AtEpochs(_Listed):
    """A snapshot at the end of each of the listed epochs.

    Args:
        epochs: Numbers of the epochs, counted from 1, in any order; at least one.

    Raises:
        TypeError, ValueError: The epochs are not a list of integers, are empty, or include one below 1.
    """

    epochs: Iterable[int]

    def due_after_step(self, step: int) -> bool:  # noqa: D102 (see Schedule)
        return False

    def due_after_epoch(self, epoch: int) -> bool:  # noqa: D102
        return epoch in self.epochs

    def begins_by(self, steps: float, epochs: float) -> bool:  # noqa: D102
        return min(self.epochs) <= epochs


@dataclass(frozen=True)
class Union(Schedule):
    """Schedules joined by ``|``: due whenever one of them is."""

    schedules: tuple[Schedule, ...]

    def __post_init__(self) -> None:
        members = [m for s in self.schedules for m in (s.schedules if isinstance(s, Union) else (s,))]
        unique = {repr(member): member for member in members}  # in an order of their own: a | b is b | a
        object.__setattr__(self, "schedules", tuple(unique[words] for words in sorted(unique)))

    def due_after_step(self, step: int) -> bool:  # noqa: D102 (see Schedule)
        return any(schedule.due_after_step(step) for schedule in self.schedules)

    def due_after_epoch(self, epoch: int) -> bool:  # noqa: D102
        return any(schedule.due_after_epoch(epoch) for schedule in self.schedules)

    def begins_by(self, steps: float, epochs: float) -> bool:  # noqa: D102
        return any(schedule.begins_by(steps, epochs) for schedule in self.schedules)

    def __repr__(self) -> str:
        return " | ".join(map(repr, self.schedules))


def _listed(schedule: str, argument: str, values: object) -> tuple[int, ...]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"{schedule}({argument}={values!r}): pass a list of integers, such as {schedule}([1, 10]).")
    listed = [index(x) if hasattr(x, "__index__") and not isinstance(x, bool) else x for x in values]  # NumPy's too
    for value in listed:
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{schedule}({argument}=…): {value!r} is not an integer; pass a list of integers.")
        if value < 1:
            raise ValueError(f"{schedule}({argument}=…): {value} is below 1, and the first one is 1.")
    if not listed:
        raise ValueError(f"{schedule}({argument}={values!r}) is never due: name at least one.")
    return tuple(sorted(set(listed)))


def is_due_within_epochs(schedule: Schedule) -> bool:
    """Return whether a schedule can be due before an epoch ends; a schedule of the user's own is assumed to be."""
    if isinstance(schedule, Union):
        return any(map(is_due_within_epochs, schedule.schedules))
    return not isinstance(schedule, EveryNEpochs | AtEpochs)


def limit(value: int | None) -> float:
    """Return a limit of the Trainer, ``max_steps`` or ``max_epochs``, as a number: infinite for None and -1."""
    return inf if value is None or value == -1 else value
