"""What HybridTraining did, and what it saved: events, and how long steps took before and after."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from math import nan
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

LISTED = 12  # events that a table shows, of more the latest


@dataclass(frozen=True)
class Event:
    """A change of some groups of parameters.

    Attributes:
        epoch: Epoch of the event, counted from 0.
        step: Number of optimizer steps taken before.
        what: ``"frozen"``, ``"thawed"`` or ``"moved"``.
        groups: Names of the groups that were changed.
        trained: Number of parameters that are trained from then on.
        why: The condition that held; for a move, the factors and the change of the loss.
    """

    epoch: int
    step: int
    what: str
    groups: tuple[str, ...]
    trained: int
    why: str

    @property
    def listed(self) -> str:
        """Names of the groups in a line; of many, the first ones."""
        return ", ".join(self.groups[:3]) + (f", … ({len(self.groups)})" if len(self.groups) > 3 else "")

    def __str__(self) -> str:
        return (
            f"epoch {self.epoch}, step {self.step:,}: {self.what} {self.listed}; {self.trained:,} trained ({self.why})"
        )


class Timeline:
    """Events, and seconds a step of each epoch.

    An epoch's steps are timed together, from its first batch to the end of its last, validation left out. Nothing waits
    for the device: work that a GPU still has to do then counts towards the next epoch.

    Attributes:
        events: Events in order.
        epochs: Number of each epoch, in order, with seconds a batch and the share of the parameters that were trained;
            the share is NaN where it changed within the epoch.
    """

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.epochs: list[tuple[int, float, float]] = []
        self._began: float | None = None  # this epoch's first batch
        self._seconds = self._paused = 0.0
        self._pause = 0.0
        self._batches = 0
        self._share = 1.0

    def add(self, event: Event) -> None:
        """Note an event, before the first batch of an epoch or between two."""
        self.events.append(event)
        if self._began is not None:
            self._share = nan

    def batch_starts(self, share: Callable[[], float]) -> None:
        """Note that a batch starts; ``share`` returns the share of the parameters that is trained, once an epoch."""
        if self._began is None:
            self._began, self._share, self._paused, self._batches = time.perf_counter(), share(), 0.0, 0

    def batch_ends(self) -> None:
        """Note that a batch has ended."""
        if self._began is not None:
            self._seconds = time.perf_counter() - self._began - self._paused
            self._batches += 1

    def pause(self) -> None:
        """Stop the clock, for validation or anything else that is not training."""
        self._pause = time.perf_counter()

    def go_on(self) -> None:
        """Let the clock run on."""
        self._paused += time.perf_counter() - self._pause

    def epoch_ends(self, epoch: int) -> None:
        """Note that the epoch has ended."""
        if self._began is not None and self._batches:
            self.epochs.append((epoch, self._seconds / self._batches, self._share))
        self._began = None

    def full_step(self) -> float:
        """Return seconds a step with everything trained: median over epochs, without the first; NaN if unknown."""
        return self._typical(frozen=False)

    def frozen_step(self) -> float:
        """Return seconds a step while something was frozen: median over epochs; NaN if unknown."""
        return self._typical(frozen=True)

    def scalars(self) -> dict[str, float]:
        """Return the values of the newest epoch, by tag; NaN where undefined."""
        if not self.epochs:
            return {}
        _, seconds, share = self.epochs[-1]
        full = self.full_step()
        return {"trained_share": share, "step_time": seconds, "step_time_ratio": seconds / full}

    def state_dict(self) -> dict[str, Any]:
        """Return everything as primitives."""
        return {"events": [asdict(event) for event in self.events], "epochs": list(self.epochs)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where ``state_dict`` was taken."""
        self.events = [Event(**{**event, "groups": tuple(event["groups"])}) for event in state["events"]]
        self.epochs = [(epoch, seconds, share) for epoch, seconds, share in state["epochs"]]

    def _typical(self, *, frozen: bool) -> float:
        # The first epoch of a process allocates, compiles and tunes.
        epochs = self.epochs[1:] if len(self.epochs) > 1 and not frozen else self.epochs
        seconds = [seconds for _, seconds, share in epochs if (share < 1 if frozen else share == 1)]
        return median(seconds) if seconds else nan


def timeline_table(timeline: Timeline, trained: int, trainable: int) -> Table:
    """Return a table of the events: time, change, groups, and number of parameters trained from then on."""
    table = Table(
        title=f"Hybrid training: {trained:,} of {trainable:,} parameters are trained at the end", title_justify="left"
    )
    for column in ("epoch", "step"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("event", no_wrap=True)
    table.add_column("what", overflow="fold")
    table.add_column("trained", justify="right", no_wrap=True)
    table.add_column("why", overflow="fold")
    if len(timeline.events) > LISTED:
        table.add_row("…", "", f"{len(timeline.events) - LISTED} more", "", "", "")
    for event in timeline.events[-LISTED:]:
        table.add_row(f"{event.epoch}", f"{event.step:,}", event.what, event.listed, f"{event.trained:,}", event.why)
    return table


def time_saved(timeline: Timeline) -> str:
    """Return a sentence about the time of a step before and after freezing; empty where either is unknown."""
    full, frozen = timeline.full_step(), timeline.frozen_step()
    if full != full or frozen != frozen:
        return ""
    return (
        f"A step took {1e3 * full:.3g} ms with everything trained, and {1e3 * frozen:.3g} ms ({frozen / full:.2f} of "
        "it) while something was frozen: wall-clock of whole epochs, validation left out."
    )


def print_timeline(timeline: Timeline, trained: tuple[int, int]) -> None:
    """Print the table of events, and the time that freezing saved."""
    console = Console()
    console.print(timeline_table(timeline, *trained))
    if line := time_saved(timeline):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
