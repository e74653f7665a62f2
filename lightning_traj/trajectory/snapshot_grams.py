"""The data of a trajectory: steps, blocks and their Gram matrices, and sums over selections of blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_traj.blocks import Block, Select, block_groups, select_blocks
from lightning_traj.measures import SelectionState
from lightning_traj.trajectory.provenance import Provenance

Array = NDArray[np.float64]
SELECTIONS = 16  # states of selections that are kept, since a log asks for the same ones again and again
ROUNDING = 1e-13  # of its norm: a block that moved less has not moved
DTYPES = {
    "steps": "int64",
    "epochs": "float64",
    "anchored": "float64",
    "local": "float64",
    "paths": "float64",
    "window_sums": "float64",
    "window_steps": "int64",
    "window_counts": "int64",
    "sketches": "float32",  # may be missing
}


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows of consecutive optimizer steps u_1, …, u_L, W of them.

    Attributes:
        sums: ‖u_i‖², ⟨u_i, u_{i−1}⟩ and ‖u_1 + … + u_i‖² of each window, block and step, float64 [W, B, 3, L].
        steps: Optimizer steps taken when each window ended.
        counts: Number of steps in each window, at most L.
    """

    sums: Array = field(default_factory=lambda: np.zeros((0, 0, 3, 0)))
    steps: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()

    def of(self, chosen: Sequence[int], index: int) -> Array:
        """Return the sums of one window over some blocks, [3, number of its steps]."""
        counted: Array = self.sums[index, chosen].sum(axis=0)[:, : self.counts[index]]
        return counted


@dataclass(frozen=True, eq=False)
class SnapshotGrams:
    """Snapshots θ_0 … θ_T of a run, as inner products by block; n = T + 1 of them are kept.

    Attributes:
        blocks: The blocks, B of them, in the order of the arrays.
        steps: Optimizer steps really taken, int64 [n]; θ_0 is 0.
        epochs: Completed epochs, fractional within one, float64 [n].
        anchored: Gram(θ_0, d_1, …, d_T) of each block with d_t = θ_t − θ_0, float64 [B, n, n].
        local: Gram(θ_t, d_t, u_t, u_{t−1}) of each snapshot and block, float64 [n, B, 4, 4]; u are the updates between
            scheduled snapshots, whether or not their neighbours were kept.
        paths: Path length up to each snapshot, over all that were scheduled, of everything, each layer, role and
            block (``block_groups``), float64 [n, groups].
        windows: Windows of consecutive optimizer steps, for oscillation.
        settings: How it was recorded: ``snapshot``, ``sketch_dim``, ``seed``, …, as plain values. The attribute
            ``provenance`` has them with types.
        sketches: Rows of the snapshots, θ_0 first and then displacements, float32 [n, k], if they were kept.
    """

    blocks: tuple[Block, ...]
    steps: NDArray[np.int64]
    epochs: Array
    anchored: Array
    local: Array
    paths: Array
    windows: Windows = field(default_factory=Windows)
    settings: Mapping[str, Any] = field(default_factory=dict)
    sketches: NDArray[np.float32] | None = None
    _states: dict[tuple[int, ...], SelectionState] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        b, n, groups = len(self.blocks), len(self.steps), len(block_groups(self.blocks))
        shapes = {
            "steps": (n,),
            "epochs": (n,),
            "anchored": (b, n, n),
            "local": (n, b, 4, 4),
            "paths": (n, groups),
        }
        for name, shape in shapes.items():
            check_dtype(name, getattr(self, name))  # otherwise a file could be saved that cannot be loaded
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} has shape {getattr(self, name).shape}, where {shape} was expected.")

    def __len__(self) -> int:
        return len(self.steps)

    @cached_property
    def provenance(self) -> Provenance:
        """How the trajectory was made, from ``settings``."""
        return Provenance.from_settings(self.settings)

    def select(self, select: Select = None) -> list[int]:
        """Return the indices of the blocks that are counted.

        Args:
            select: ``"role:q"``, ``"layer:h.3"`` (that module and all in it), a glob over block names, or a predicate
                over blocks; a bare word is tried as a role, a layer, a glob. None: every block that has changed since
                θ_0 (all of them as long as none has).

        Raises:
            ValueError: Nothing is selected; the message lists what could be.
        """
        if select is not None:
            return select_blocks(self.blocks, select)
        changed = np.flatnonzero(self._moved)
        return list(map(int, changed)) or list(range(len(self.blocks)))

    def state(self, select: Select = None) -> SelectionState:
        """Return sums over the selected blocks, from which every measure is evaluated; kept for the next call."""
        chosen = tuple(self.select(select))
        if chosen not in self._states:
            while len(self._states) >= SELECTIONS:
                del self._states[next(iter(self._states))]
            self._states[chosen] = self.state_of(chosen)
        return self._states[chosen]

    def state_of(self, chosen: Sequence[int]) -> SelectionState:
        """Return sums over the blocks of these indices; do not write to them: those of a single block are views."""
        first, *others = chosen
        anchored, local = self.anchored[first], self.local[:, first]
        if others:
            anchored, local = anchored.copy(), local.copy()
        for i in others:  # indexing by a list would copy them all
            anchored += self.anchored[i]
            local += self.local[:, i]
        return SelectionState(
            self.steps, anchored, local, self._path(chosen), self.windows.steps, partial(self.windows.of, chosen)
        )

    @cached_property
    def _moved(self) -> NDArray[np.bool_]:
        """Whether each block has changed since θ_0, [B]: in a kept snapshot, or between them."""
        norms = np.sqrt(np.maximum(np.diagonal(self.anchored, axis1=1, axis2=2), 0.0))  # ‖θ_0‖, ‖d_1‖, … [B, n]
        # Sketched again on other hardware, a frozen block may differ by roundings.
        least = ROUNDING * norms[:, :1]
        displaced = (norms[:, 1:] > least).any(axis=1)
        has_path = (least < self.paths[-1:, -len(self.blocks) :].T).any(axis=1)  # groups of single blocks come last
        return np.logical_or(displaced, has_path)

    def _path(self, chosen: Sequence[int]) -> Array | None:
        """Return the accumulated path length of a selection; None if it was not accumulated for this group.

        Blocks that do not move add nothing, so that groups that differ only in them have the same path length.
        """
        moved = self._moved
        column = self._columns.get(frozenset(i for i in chosen if moved[i]))
        return None if column is None else self.paths[:, column]

    @cached_property
    def _columns(self) -> dict[frozenset[int], int]:
        """Columns of the accumulated path lengths, by the moving blocks of each group."""
        moved, groups = self._moved, block_groups(self.blocks).values()
        return {frozenset(i for i in members if moved[i]): column for column, members in enumerate(groups)}


def check_dtype(name: str, values: NDArray[Any]) -> None:
    """Check the dtype of one of the arrays of a trajectory.

    Raises:
        ValueError: It is another one than the file format has.
    """
    if values.dtype != DTYPES[name]:
        raise ValueError(f"{name} holds {values.dtype}, where {DTYPES[name]} was expected")
