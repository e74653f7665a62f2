"""Inner products of a selection of blocks, from which every logged measure is evaluated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lightning_traj.measures.arrays import Array
from lightning_traj.measures.basis import displacement_gram, snapshot_gram
from lightning_traj.measures.direction import DRIFT_WINDOW
from lightning_traj.measures.errors import SpectrumGradients, spectrum_gradients
from lightning_traj.measures.geometry import angle_from_difference, update_length
from lightning_traj.measures.maps import relative_trajectory_map, trajectory_map, update_gram
from lightning_traj.measures.windows import Oscillation, oscillation_of_window


def _no_window(number: int) -> Array:
    raise IndexError(f"there is no window {number}: none was recorded.")


@dataclass(frozen=True, eq=False)
class SelectionState:
    """Sums over the blocks of a selection, for n snapshots; whatever else measures need is computed when first used.

    Attributes:
        steps: Optimizer steps of the snapshots, int64 [n].
        anchored: Gram(θ_0, d_1, …, d_T), [n, n].
        local: Gram(θ_t, d_t, u_t, u_{t−1}) at each snapshot, with updates between scheduled snapshots, [n, 4, 4].
        accumulated_path: Path length up to each snapshot, [n], where it was accumulated for these blocks together.
        window_steps: Optimizer steps taken when each window of consecutive steps u_1, …, u_L ended, ascending.
        window: Function from the number of a window to its ‖u_i‖², ⟨u_i, u_{i−1}⟩ and ‖u_1 + … + u_i‖², [3, L].
    """

    steps: NDArray[np.int64]
    anchored: Array
    local: Array
    accumulated_path: Array | None = None
    window_steps: Sequence[int] = ()
    window: Callable[[int], Array] = _no_window

    def __len__(self) -> int:
        return len(self.steps)

    def first(self, n: int) -> SelectionState:
        """Return the state as it stood after the first `n` snapshots."""
        path = None if self.accumulated_path is None else self.accumulated_path[:n]
        return replace(
            self,
            steps=self.steps[:n],
            anchored=self.anchored[:n, :n],
            local=self.local[:n],
            accumulated_path=path,
        )

    @cached_property
    def gram(self) -> Array:
        """Gram matrix of the snapshots, [n, n]."""
        return snapshot_gram(self.anchored)

    @cached_property
    def relative(self) -> Array:
        """Gram matrix about θ_0, as accurate as differences can be had, [n, n]."""
        return displacement_gram(self.anchored)

    @cached_property
    def map(self) -> Array:
        """Trajectory map, [n, n]."""
        return trajectory_map(self.gram)

    @cached_property
    def relative_map(self) -> Array:
        """Relative trajectory map, [T, T]."""
        return relative_trajectory_map(self.relative)

    @cached_property
    def updates(self) -> Array:
        """Gram matrix of the updates between the snapshots kept, [T, T]."""
        return update_gram(self.relative)

    @cached_property
    def path(self) -> Array:
        """Path length up to each snapshot, [n]: as accumulated, or else through the snapshots that were kept."""
        if self.accumulated_path is not None:
            return self.accumulated_path
        return np.concatenate([np.zeros(min(1, len(self))), np.cumsum(update_length(self.relative))])

    @cached_property
    def recent(self) -> Array:
        """Gram matrix about θ_0 of θ_0 and the newest snapshots, as many as direction drift looks at."""
        near = [0, *range(max(1, len(self) - DRIFT_WINDOW - 1), len(self))]
        return displacement_gram(self.anchored[np.ix_(near, near)])

    @cached_property
    def spectrum_gradients(self) -> SpectrumGradients:
        """Gradients of the measures of the map's spectrum, from one decomposition."""
        return spectrum_gradients(self.gram)

    @cached_property
    def oscillation(self) -> Oscillation:
        """Oscillation in the newest window that had ended by the newest snapshot; undefined where none had."""
        ended = int(np.searchsorted(self.window_steps, self.steps[-1], side="right"))
        return oscillation_of_window(self.window(ended - 1) if ended else np.zeros((3, 0)))

    def norms(self, vector: int) -> Array:
        """Norms of one vector of the local Gram matrices, [n]."""
        norms: Array = np.sqrt(self.local[:, vector, vector])
        return norms

    def angles(self, vector: int, difference: int) -> Array:
        """Angles between a vector of the local Gram matrices and the vector before this difference was added, [n]."""
        local = self.local
        return angle_from_difference(
            local[:, vector, vector], local[:, vector, difference], local[:, difference, difference]
        )
