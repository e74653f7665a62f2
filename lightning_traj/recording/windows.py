"""Windows of consecutive optimizer steps, each in the memory of three snapshots: on and on, or back and forth?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_traj.gram import Row, local_grams
from lightning_traj.measures import DISPLACEMENT, PREVIOUS_UPDATE, UPDATE
from lightning_traj.recording.packing import pack, unpack
from lightning_traj.recording.thinning import thinned

LEAST = 2  # steps: with fewer there is no angle between them


class StepWindows:
    """Windows of consecutive optimizer steps; of each, what is needed to tell oscillation in any set of blocks.

    Args:
        length: Optimizer steps of a window.
        limit: Windows kept; past that, every second one is dropped.

    Attributes:
        sums: ‖u_i‖², ⟨u_i, u_{i−1}⟩ and ‖u_1 + … + u_i‖² of each finished window, block and step i, float64
            [B, 3, length] each, on the device of the rows; zero after a window that was cut short.
        steps: Optimizer steps taken when each window ended.
        counts: Steps that each has.
        due: Whether a window is to begin right before the next step.
    """

    def __init__(self, length: int, limit: int) -> None:
        self.length, self.limit = length, limit
        self.sums: list[Tensor] = []
        self.steps: list[int] = []
        self.counts: list[int] = []
        self.order: list[int] = []
        self.stride = 1
        self.due = False
        self._rows: list[Row] = []  # of the running window: where it began, the last two
        self._parts: list[Tensor] = []  # of its steps so far, [B, 3]
        self._landed: dict[int, NDArray[np.float64]] = {}  # sums on the host, by order

    @property
    def running(self) -> bool:
        """Whether a window has begun, and waits for more steps."""
        return bool(self._rows)

    @property
    def has_steps(self) -> bool:
        """Whether a window is running that has steps already."""
        return bool(self._parts)

    @property
    def last(self) -> Row | None:
        """What the running window took in last, if one runs."""
        return self._rows[1] if self._rows else None

    @property
    def latest(self) -> int:
        """Optimizer steps taken when the newest window ended; 0 before."""
        return self.steps[-1] if self.steps else 0

    def begin(self, row: Row) -> None:
        """Begin a window at the parameters whose sketches these are; not while one runs that has steps already."""
        if not self.has_steps:
            self._rows = [row] * 3

    def shift(self, row: Row) -> None:
        """Take in where something else than a step has moved the parameters before the next one.

        The steps so far are moved along: lengths, angles and sums of steps stay those of the steps alone.
        """
        start, latest, before = self._rows
        if row.lengths == latest.lengths:  # else blocks were added, and the next step ends the window
            moved = row.flat - latest.flat
            self._rows = [Row(start.flat + moved, row.lengths), row, Row(before.flat + moved, row.lengths)]

    def add(self, row: Row, step: int) -> None:
        """Take in the parameters after the next step."""
        self.due = False
        start, latest, before = self._rows
        if row.lengths != start.lengths:  # blocks were added: there is no difference to take
            self.end(step - 1)
            self._rows = []
            return
        local = local_grams(row, start.flat, latest.flat, before.flat)
        pairs = ((UPDATE, UPDATE), (UPDATE, PREVIOUS_UPDATE), (DISPLACEMENT, DISPLACEMENT))
        self._parts.append(torch.stack([local[:, i, j] for i, j in pairs], dim=1))
        self._rows = [start, row, latest]
        if len(self._parts) == self.length:
            self.end(step)

    def end(self, step: int) -> None:
        """End the running window, after ``step`` optimizer steps in all, even if it is shorter than planned.

        One that has no steps yet goes on: it begins anew before the next one.
        """
        if not self._parts:
            return
        if len(self._parts) >= LEAST:
            parts = torch.stack(self._parts, dim=2)
            self.sums.append(torch.nn.functional.pad(parts, (0, self.length - parts.shape[2])))
            self.steps.append(step)
            self.counts.append(len(self._parts))
            self.order.append(self.order[-1] + 1 if self.order else 0)
            keep, self.stride = thinned(self.order, self.stride, self.limit)
            for attribute in ("sums", "steps", "counts", "order"):
                setattr(self, attribute, [getattr(self, attribute)[i] for i in keep])
        self.cancel()

    def cancel(self) -> None:
        """Forget the running window."""
        self._rows, self._parts = [], []

    def fresh(self) -> list[Tensor]:
        """The sums that are not on the host yet."""
        return [window for window, order in zip(self.sums, self.order, strict=True) if order not in self._landed]

    def landed(self, windows: Sequence[NDArray[np.float64]]) -> None:
        """Take note of what ``fresh`` gave, now on the host: NaN in a block where one of its steps is not finite."""
        fresh = [order for order in self.order if order not in self._landed]
        defined = [np.where(np.isfinite(sums).all(axis=(1, 2), keepdims=True), sums, np.nan) for sums in windows]
        landed = {**self._landed, **dict(zip(fresh, defined, strict=True))}
        self._landed = {order: landed[order] for order in self.order}

    def on_host(self, blocks: int) -> NDArray[np.float64]:
        """All sums, [W, blocks, 3, length]; blocks that came later have taken no steps in earlier windows."""
        stacked = np.zeros((len(self.order), blocks, 3, self.length))
        for i, order in enumerate(self.order):
            stacked[i, : len(self._landed[order])] = self._landed[order]
        return stacked

    def state_dict(self) -> dict[str, Any]:
        """Everything, as tensors and primitives.

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
            "rows": [row.flat for row in self._rows],
            "lengths": list(self._rows[0].lengths) if self._rows else [],
            "parts": torch.stack(self._parts) if self._parts else torch.zeros(0),
        }

    def to(self, device: torch.device) -> None:
        """Move to where the rows are going to be."""
        self.sums = [window.to(device) for window in self.sums]
        self._rows = [Row(row.flat.to(device), row.lengths) for row in self._rows]
        self._parts = [part.to(device) for part in self._parts]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken."""
        self.sums = [sums.double() for sums in unpack(state["sums"])]
        self.steps, self.counts, self.order = (list(state[name]) for name in ("steps", "counts", "order"))
        self.stride = state["stride"]
        self._rows = [Row(flat, tuple(state["lengths"])) for flat in state["rows"]]
        self._parts = list(state["parts"])  # one after the other, also where they were saved as a list
        self.due = state.get("due", bool(self._rows and not self._parts))  # older ones began windows early
        self._landed = {}
