"""Decisions how often to log: all logs together stay cheap beside training."""

from __future__ import annotations


class Pace:
    """Decides when to log, and when to draw along with it, from counts of batches and snapshots.

    Within an epoch, logs come no more often than Lightning's own and become ever rarer. Pictures follow when the
    snapshots have doubled, or at the end of an epoch; those by layer and role, which take three times as long to draw
    as the others, when there are a third more.
    """

    def __init__(self) -> None:
        self._batches = 0  # at the last log
        self.restart()

    def restart(self) -> None:
        """Start anew, with an empty trajectory."""
        self._logged = 0  # scheduled snapshots at the last log
        self._window_end = 0  # step at which the newest window ended then
        self._drawn = 0  # scheduled snapshots when pictures were drawn last
        self._layers_drawn = 0  # and when those by layer and role were

    def start(self, batches: int) -> None:
        """Count batches from here on, at the start of a fit or at a log."""
        self._batches = batches

    def skip(self, scheduled: int) -> None:
        """Count the snapshots taken so far as logged."""
        self._logged = scheduled

    def is_due_in_epoch(self, scheduled: int, batches: int, interval: int) -> bool:
        """Return whether a log is due after a batch.

        Args:
            scheduled: Snapshots taken.
            batches: Batches that have stepped.
            interval: Batches between two of Lightning's own logs; 0 for none.
        """
        new = scheduled - self._logged
        return bool(interval and batches - self._batches >= interval and new and 16 * new >= scheduled)

    def is_due_after_epoch(self, scheduled: int, window_end: int) -> bool:
        """Return whether a log is due at the end of an epoch, with the newest window that ended at a step."""
        return scheduled > self._logged or window_end > self._window_end

    def have_doubled(self, scheduled: int) -> bool:
        """Return whether there are twice as many snapshots as when pictures were drawn last."""
        return scheduled >= 2 * self._drawn

    def log(self, scheduled: int, window_end: int) -> None:
        """Count the snapshots and windows so far as logged."""
        self._logged, self._window_end = scheduled, window_end

    def draw_now(self) -> bool:
        """Return whether this log has something new to draw; it then counts as drawn."""
        new = self._logged > self._drawn
        if new:
            self._drawn = self._logged
        return new

    def draw_layers_now(self, least: float = 0) -> bool:
        """Return whether this share of the snapshots is new to the pictures by layer; they then count as drawn."""
        new = self._logged - self._layers_drawn
        if not new or new < least * self._logged:
            return False
        self._layers_drawn = self._logged
        return True
