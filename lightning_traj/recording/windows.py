"""Windows of consecutive optimizer steps, for oscillation measures. Each takes the memory of three snapshots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lightning_traj.gram import Row, local_grams
from lightning_traj.measures import DISPLACEMENT, PREVIOUS_UPDATE, UPDATE
from lightning_traj.recording.history import thinned
from lightning_traj.recording.packing import pack, unpack

LEAST = 2  # steps: with fewer there is no angle between them


@dataclass(frozen=True, eq=False)
class StepWindows:
    """Windows of consecutive optimizer steps, and what the oscillation of any set of blocks needs of each. Immutable.

    Attributes:
        length: Optimizer steps of a window.
        limit: Largest number of windows that are kept; past it, every second one is dropped.
        sums: ‖u_i‖², ⟨u_i, u_{i−1}⟩ and ‖u_1 + … + u_i‖² of each finished window, block and step i, float64
            [B, 3, length] each, on the device of the rows; zero after a window that was cut short.
        steps: Optimizer steps taken when each window ended.
        counts: Number of steps in each window.
        order: Index of each window among all that were ever finished.
        stride: Every so many finished windows are kept; a power of two.
        due: Whether a window is to begin right before the next step.
        rows: Sketches of the running window: where it began, and the last two; empty while none is running.
        parts: Sums of each step of the running window so far, float64 [B, 3].
    """

    length: int
    limit: int
    sums: tuple[Tensor, ...] = ()
    steps: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()
    order: tuple[int, ...] = ()
    stride: int = 1
    due: bool = False
    rows: tuple[Row, ...] = ()
    parts: tuple[Tensor, ...] = ()

    @property
    def running(self) -> bool:
        """Whether a window has begun, and waits for more steps."""
        return bool(self.rows)

    @property
    def last(self) -> Row | None:
        """Sketches that the running window took in last; None while none is running."""
        return self.rows[1] if self.rows else None

    @property
    def latest(self) -> int:
        """Optimizer steps taken when the newest window ended; 0 before."""
        return self.steps[-1] if self.steps else 0

    def requested(self) -> StepWindows:
        """Return the windows with one that is due, unless one is running that has steps."""
        return self if self.parts else replace(self, due=True)

    def begun(self, row: Row) -> StepWindows:
        """Return the windows with one that begins at these sketches, unless one is running that has steps."""
        return self if self.parts else replace(self, rows=(row, row, row))

    def shifted(self, row: Row) -> StepWindows:
        """Return the windows after something else than a step has moved the parameters to these sketches.

        The steps so far are moved along: lengths, angles and sums of steps stay those of the steps alone.
        """
        start, latest, before = self.rows
        if row.lengths != latest.lengths:  # blocks were added, and the next step ends the window
            return self
        moved = row.flat - latest.flat
        return replace(self, rows=(Row(start.flat + moved, row.lengths), row, Row(before.flat + moved, row.lengths)))

    def with_step(self, row: Row, step: int) -> StepWindows:
        """Return the windows after one more step, whose number is ``step``, has led to these sketches."""
        start, latest, before = self.rows
        if row.lengths != start.lengths:  # blocks were added: there is no difference to take
            return replace(self.ended(step - 1), due=False, rows=())
        local = local_grams(row, start.flat, latest.flat, before.flat)
        pairs = ((UPDATE, UPDATE), (UPDATE, PREVIOUS_UPDATE), (DISPLACEMENT, DISPLACEMENT))
        part = torch.stack([local[:, i, j] for i, j in pairs], dim=1)
        grown = replace(self, due=False, rows=(start, row, latest), parts=(*self.parts, part))
        return grown.ended(step) if len(grown.parts) == self.length else grown

    def ended(self, step: int) -> StepWindows:
        """Return the windows after the running one has ended at ``step`` optimizer steps, shorter than planned or not.

        One that has no steps yet goes on: it begins anew before the next step.
        """
        if not self.parts:
            return self
        if len(self.parts) < LEAST:
            return self.cancelled()
        parts = torch.stack(self.parts, dim=2)
        sums = (*self.sums, torch.nn.functional.pad(parts, (0, self.length - parts.shape[2])))
        steps, counts = (*self.steps, step), (*self.counts, len(self.parts))
        order = (*self.order, self.order[-1] + 1 if self.order else 0)
        keep, stride = thinned(order, self.stride, self.limit)
        return replace(
            self.cancelled(),
            sums=tuple(sums[i] for i in keep),
            steps=tuple(steps[i] for i in keep),
            counts=tuple(counts[i] for i in keep),
            order=tuple(order[i] for i in keep),
            stride=stride,
        )

    def cancelled(self) -> StepWindows:
        """Return the windows without the running one."""
        return replace(self, rows=(), parts=())

    def to(self, device: torch.device) -> StepWindows:
        """Return the windows on a device."""
        return replace(
            self,
            sums=tuple(window.to(device) for window in self.sums),
            rows=tuple(Row(row.flat.to(device), row.lengths) for row in self.rows),
            parts=tuple(part.to(device) for part in self.parts),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return everything as tensors and primitives.

        Finished windows are rounded to float32: their measures are cosines and lengths, which keep seven digits. (Steps
        longer than 1e19 or shorter than 1e-19, whose squares it cannot hold, become undefined.)
        """
        packed = pack(self.sums)
        return {
            "sums": {**packed, "values": packed["values"].float()},
            "steps": list(self.steps),
            "counts": list(self.counts),
            "order": list(self.order),
            "stride": self.stride,
            "due": self.due,
            "rows": [row.flat for row in self.rows],
            "lengths": list(self.rows[0].lengths) if self.rows else [],
            "parts": torch.stack(self.parts) if self.parts else torch.zeros(0),
        }

    @staticmethod
    def from_state(state: Mapping[str, Any], length: int, limit: int) -> StepWindows:
        """Return the windows that ``state_dict`` has put into a state."""
        lengths: Sequence[int] = state["lengths"]
        rows = tuple(Row(flat, tuple(lengths)) for flat in state["rows"])
        parts = tuple(state["parts"])  # one after the other, also where they were saved as a list
        return StepWindows(
            length,
            limit,
            sums=tuple(sums.double() for sums in unpack(state["sums"])),
            steps=tuple(state["steps"]),
            counts=tuple(state["counts"]),
            order=tuple(state["order"]),
            stride=state["stride"],
            due=state.get("due", bool(rows and not parts)),  # older releases began windows early
            rows=rows,
            parts=parts,
        )
