"""The snapshots of several runs together, as inner products of their saved rows: no weights are needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lightning_traj import measures
from lightning_traj.compare.runs import Run, comparable, incomparability_reason
from lightning_traj.measures import difference_angle_gradient, displacement_gram, snapshot_gram, standard_error

Array = NDArray[np.float64]
SAME = 1e-6  # of their length: rows are kept in float32, and what differs by less is the same
NEAR = 0.01  # of the shorter displacement: from starts that are closer, directions differ by half a degree at most


@dataclass(frozen=True, eq=False)
class Joint:
    """All snapshots of runs of one model, N of them, one run after the other.

    Attributes:
        runs: The runs.
        owner: Which run each snapshot is of, int64 [N].
        snapshot: Which of that run's it is, int64 [N].
        anchored: Gram matrix of the first run's θ_0 and, from it, the displacements of all others, float64 [N, N]:
            differences are taken before they are multiplied.
        starts: Which θ_0 each run starts from, int64 [runs]: runs that start from the same have the same number, the
            first run's is 0.
        origins: Which runs can be seen from one origin, int64 [runs]: those that start from the same θ_0, or from
            points so near each other (``NEAR``) that each may be seen from its own. Numbered as the starts are.
        start_distances: Distance between the θ_0 of each two runs, over all blocks, float64 [runs, runs]; 0 where they
            are the same.
        counted: What is counted, in words: every block that has changed in one of the runs.
    """

    runs: tuple[Run, ...]
    owner: NDArray[np.int64]
    snapshot: NDArray[np.int64]
    anchored: Array
    starts: NDArray[np.int64]
    origins: NDArray[np.int64]
    start_distances: Array
    counted: str

    @property
    def same_start(self) -> bool:
        """Whether all runs start from the same θ_0."""
        return not self.starts.any()

    @property
    def same_origin(self) -> bool:
        """Whether all runs start from the same θ_0, or from points that are near each other."""
        return not self.origins.any()

    def by_origin(self) -> list[Joint]:
        """Return the joint matrices of runs that can be seen from one origin, of each two or more that share it."""
        if self.same_origin:
            return [self]
        return [joint_gram(some) for some in self._grouped(self.origins) if len(some) > 1]

    def runs_by_start(self) -> list[list[Run]]:
        """The runs that start from each θ_0."""
        return self._grouped(self.starts)

    def _grouped(self, numbers: NDArray[np.int64]) -> list[list[Run]]:
        return [[self.runs[i] for i in np.flatnonzero(numbers == number)] for number in np.unique(numbers)]

    @property
    def gram(self) -> Array:
        """Inner products of all pairs of snapshots, ⟨θ_i, θ_j⟩, float64 [N, N]."""
        return snapshot_gram(self.anchored)

    @property
    def relative(self) -> Array:
        """The same of displacements from the first run's θ_0; rows of that point are zero."""
        return displacement_gram(self.anchored)

    @cached_property
    def displacements(self) -> Array:
        """Inner products of all displacements, each from the θ_0 of its own run, float64 [N, N]."""
        if self.same_start:
            return self.relative
        total = np.zeros((len(self.owner), len(self.owner)))
        for name in moved_blocks(self.runs):
            stacked = np.concatenate([block_rows(run, name) for run in self.runs])
            stacked[self.snapshot == 0] = 0.0
            total += stacked @ stacked.T
        return total

    def map(self) -> Array:
        """Cosines between all pairs of snapshots, [N, N]."""
        return measures.trajectory_map(self.gram)

    def relative_map(self) -> Array:
        """Cosines between all displacements, each from the θ_0 of its own run, [N, N]; NaN for θ_0 itself.

        Raises:
            ValueError: the runs start from points far from each other; each of ``by_origin()`` has such a map.
        """
        self._check_origin(relative=True, runs=range(len(self.runs)))
        return measures.trajectory_map(self.displacements)

    def angle(self, i: int, j: int, *, relative: bool = False) -> tuple[float, float]:
        """Angle between two snapshots, and its standard error, in degrees.

        Args:
            i: Which of the N snapshots.
            j: The other.
            relative: As seen from the θ_0 of their runs, instead of the origin.

        Raises:
            ValueError: relative, and their runs start from points far from each other.
        """
        owners = self.owner[[i, j]].tolist()
        self._check_origin(relative, owners)
        same_start = len(set(self.starts[owners])) == 1
        names, runs = moved_blocks(self.runs), [self.runs[owner] for owner in owners]
        grams = np.zeros((1, len(names), 2, 2))
        for b, name in enumerate(names):
            rows = [block_rows(run, name) for run in runs]
            (base, a), (other, its) = (
                (some[0], some[snapshot] * bool(snapshot))
                for some, snapshot in zip(rows, self.snapshot[[i, j]].tolist(), strict=True)
            )
            difference = a - its if same_start or relative else (base - other) + (a - its)
            grams[0, b] = pair_gram(a if relative else base + a, difference)
        angles, errors, _ = pair_angles(grams, runs[0], names)
        return float(angles[0]), float(errors[0])

    def _check_origin(self, relative: bool, runs: Sequence[int]) -> None:
        if relative and len(set(self.origins[list(runs)])) > 1:
            raise ValueError("runs: they start from different parameters, so there is no common θ_0 to look from.")

    def rows_of(self, run: int) -> NDArray[np.int64]:
        """Where the snapshots of a run are."""
        return np.flatnonzero(self.owner == run)


def joint_gram(runs: Sequence[Run]) -> Joint:
    """All snapshots of several runs in one Gram matrix, from their saved rows.

    Sketches of two runs have unbiased inner products if each block has the same random numbers in both: the same seed,
    sketch dimension and name. Blocks that are kept whole need no random numbers.

    Raises:
        ValueError: two of them can't be compared; the message says why (see ``runs.incomparability_reason``).
    """
    for other in runs[1:]:
        if why := incomparability_reason(runs[0], other):
            raise ValueError(f"runs: {runs[0].name} and {other.name} cannot be compared: {why}.")
    owner = np.concatenate([np.full(len(run.trajectory), i) for i, run in enumerate(runs)])
    anchored, starts = np.zeros((len(owner), len(owner))), _starts(runs)
    distances = _start_distances(runs, starts)
    names = moved_blocks(runs)
    firsts = [starts.tolist().index(start) for start in starts]
    for name in names:
        rows = [block_rows(run, name) for run in runs]
        base = rows[0][0]
        vectors = []
        for first, some in zip(firsts, rows, strict=True):
            apart = rows[first][0] - base  # exactly zero where they start from the same
            vectors.append(np.concatenate([apart[None], apart + some[1:]]))
        stacked = np.concatenate(vectors)  # [N, k]
        stacked[0] = base
        anchored += stacked @ stacked.T
    numel = sum(runs[0].trajectory.blocks[runs[0].blocks[name]].numel for name in names)
    return Joint(
        runs=tuple(runs),
        owner=owner,
        snapshot=np.concatenate([np.arange(len(run.trajectory)) for run in runs]),
        anchored=anchored,
        starts=starts,
        origins=_origins(runs, starts, distances),
        start_distances=distances,
        counted=f"{len(names)} of {len(runs[0].blocks)} blocks, {numel:,} parameters: all that changed in a run",
    )


def joint_grams(runs: Sequence[Run]) -> list[Joint]:
    """The joint Gram matrices of all runs that can be compared with another.

    Where such runs start from different θ_0, the one of them all is followed by those of runs that start near each
    other.
    """
    found = [joint_gram([runs[i] for i in group]) for group in comparable(runs) if len(group) > 1]
    return [joint for whole in found for joint in ([whole] if whole.same_origin else [whole, *whole.by_origin()])]


def _starts(runs: Sequence[Run]) -> NDArray[np.int64]:
    """Which θ_0 each run starts from, counted in the order of the runs."""
    firsts: list[Run] = []
    starts = []
    for run in runs:
        start = next((i for i, first in enumerate(firsts) if _same_start(first, run)), len(firsts))
        firsts += [run] * (start == len(firsts))
        starts.append(start)
    return np.array(starts, dtype=np.int64)


def _start_distances(runs: Sequence[Run], starts: NDArray[np.int64]) -> Array:
    """Distances between the θ_0 of each two runs, over all blocks; 0 where they count as the same."""
    squares = np.zeros((len(runs), len(runs)))
    for name in runs[0].blocks:
        bases = np.stack([block_rows(run, name)[0] for run in runs])
        squares += [((bases - base) ** 2).sum(axis=1) for base in bases]
    distances: Array = np.sqrt(squares)
    distances[starts[:, None] == starts] = 0.0
    return distances


def _origins(runs: Sequence[Run], starts: NDArray[np.int64], distances: Array) -> NDArray[np.int64]:
    """Which starts are the same or near each other, numbered in the order of the runs."""
    reach = NEAR * np.array([run.summary["displacement"] for run in runs])  # NaN of a single snapshot is near nothing
    near = (starts[:, None] == starts) | (distances <= np.minimum(reach[:, None], reach))
    firsts: list[int] = []
    origins = []
    for i in range(len(runs)):
        number = next((number for number, first in enumerate(firsts) if near[first, i]), len(firsts))
        firsts += [i] * (number == len(firsts))
        origins.append(number)
    return np.array(origins, dtype=np.int64)


def _same_start(one: Run, other: Run) -> bool:
    pairs = ((block_rows(one, name)[0], block_rows(other, name)[0]) for name in one.blocks)
    return all(np.abs(a - b).max(initial=0.0) <= SAME * np.abs(a).max(initial=0.0) for a, b in pairs)


# Rows, block by block, and pairs of them ---------------------------------------------------------------------


def moved_blocks(runs: Sequence[Run]) -> list[str]:
    """Names of the blocks that have changed in one of the runs, in the order of the first."""
    moved = [frozenset(run.trajectory.select()) for run in runs]
    chosen = {name for run, its in zip(runs, moved, strict=True) for name, i in run.blocks.items() if i in its}
    return [name for name in runs[0].blocks if name in chosen]


def block_rows(run: Run, name: str) -> Array:
    """θ_0 and the displacements of one block, float64 [n, k]."""
    trajectory = run.trajectory
    assert trajectory.sketches is not None
    dim, index = trajectory.provenance.sketch_dim, run.blocks[name]
    sizes = [min(block.numel, dim) for block in trajectory.blocks[: index + 1]]
    end = sum(sizes)
    return trajectory.sketches[:, end - sizes[-1] : end].astype(np.float64)


def pair_gram(a: Array, difference: Array) -> Array:
    """Gram matrices of two vectors or of many pairs of them, [..., 2, 2]."""
    vectors = np.stack([a, difference], axis=-2)
    gram: Array = vectors @ vectors.swapaxes(-1, -2)
    return gram


def pair_angles(grams: Array, run: Run, names: Sequence[str]) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Angles between a and b and their standard errors, in degrees, and whether they are the same vector.

    From Gram matrices [T, blocks, 2, 2] of a and a − b: however small a difference is, it is not lost.
    """
    total = grams.sum(axis=1)
    same = total[:, 1, 1] <= SAME**2 * total[:, 0, 0]
    angles = measures.angle_from_difference(total[:, 0, 0], total[:, 0, 1], total[:, 1, 1])
    angles[same & ~np.isnan(angles)] = 0.0
    sketched = [b for b, name in enumerate(names) if run.sketched_as(run.trajectory.blocks[run.blocks[name]])]
    errors = np.zeros(len(grams))
    for t in np.flatnonzero(~same & ~np.isnan(angles)):
        gradient = difference_angle_gradient(total[t], 0, 1)
        error = standard_error(gradient, grams[t, sketched], run.trajectory.provenance.sketch_dim)
        errors[t] = np.nan_to_num(error)  # an angle of exactly 0 or 180 degrees
    return angles, errors, same
