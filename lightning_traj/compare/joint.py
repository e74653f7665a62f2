"""Joint Gram matrix of the snapshots of several runs, from their saved rows. No weights are needed."""

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
SAME = 1e-6  # relative; rows are saved in float32, and smaller differences count as none
NEAR = 0.01  # fraction of the shorter displacement; closer starts change directions by half a degree at most


@dataclass(frozen=True, eq=False)
class Joint:
    """All N snapshots of several runs of one model, one run after the other.

    Attributes:
        runs: Runs that are compared.
        owner: Index of the run that each snapshot belongs to, int64 [N].
        snapshot: Index of each snapshot in its own run, int64 [N].
        anchored: Gram matrix of the first run's θ_0 and of the displacements of all other snapshots from it, float64
            [N, N]. Differences are taken before they are multiplied.
        starts: Number of the θ_0 that each run starts from, int64 [runs]. Runs with the same θ_0 have the same number;
            that of the first run is 0.
        origins: Number of the origin from which each run is seen, int64 [runs], numbered like `starts`. Runs share an
            origin if they start from the same θ_0, or from points so near each other (``NEAR``) that each may be seen
            from its own.
        start_distances: Distance between the θ_0 of each two runs, over all blocks, float64 [runs, runs]; 0 where they
            are the same.
        counted: Description of the counted blocks, which are all that have changed in one of the runs.
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
        """Return a joint Gram matrix for each origin that two or more runs share."""
        if self.same_origin:
            return [self]
        return [joint_gram(some) for some in self._grouped(self.origins) if len(some) > 1]

    def runs_by_start(self) -> list[list[Run]]:
        """Return the runs that start from each θ_0."""
        return self._grouped(self.starts)

    def _grouped(self, numbers: NDArray[np.int64]) -> list[list[Run]]:
        return [[self.runs[i] for i in np.flatnonzero(numbers == number)] for number in np.unique(numbers)]

    @property
    def gram(self) -> Array:
        """Inner products of all pairs of snapshots, ⟨θ_i, θ_j⟩, float64 [N, N]."""
        return snapshot_gram(self.anchored)

    @property
    def relative(self) -> Array:
        """Inner products of all displacements from the first run's θ_0, float64 [N, N]; rows of that point are zero."""
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
        """Return the cosines between all pairs of snapshots, [N, N]."""
        return measures.trajectory_map(self.gram)

    def relative_map(self) -> Array:
        """Return the cosines between all displacements, each from the θ_0 of its own run, [N, N]; NaN for θ_0 itself.

        Raises:
            ValueError: the runs start from points far from each other. Each of ``by_origin()`` has such a map.
        """
        self._check_origin(relative=True, runs=range(len(self.runs)))
        return measures.trajectory_map(self.displacements)

    def angle(self, i: int, j: int, *, relative: bool = False) -> tuple[float, float]:
        """Return the angle between two snapshots, and its standard error, in degrees.

        Args:
            i: Index of one of the N snapshots.
            j: Index of another snapshot.
            relative: Whether the angle is seen from the θ_0 of the two runs, instead of the origin.

        Raises:
            ValueError: `relative` is True, and the two runs start from points far from each other.
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
        """Return the indices of the snapshots of a run."""
        return np.flatnonzero(self.owner == run)


def joint_gram(runs: Sequence[Run]) -> Joint:
    """Return the joint Gram matrix of all snapshots of several runs, from their saved rows.

    Inner products of sketches of two runs are unbiased if each block has the same random numbers in both, which depend
    on the seed, the sketch dimension and the name of the block. Blocks that are kept whole need no random numbers.

    Raises:
        ValueError: two of the runs can't be compared; the message says why (see ``runs.incomparability_reason``).
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
            apart = rows[first][0] - base  # exactly zero for runs with the same θ_0
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
    """Return a joint Gram matrix for each group of runs that can be compared with each other.

    If the runs of a group start from different θ_0, its matrix is followed by those of its runs that start near each
    other.
    """
    found = [joint_gram([runs[i] for i in group]) for group in comparable(runs) if len(group) > 1]
    return [joint for whole in found for joint in ([whole] if whole.same_origin else [whole, *whole.by_origin()])]


def _starts(runs: Sequence[Run]) -> NDArray[np.int64]:
    """Return the number of the θ_0 that each run starts from, in the order in which they first occur."""
    firsts: list[Run] = []
    starts = []
    for run in runs:
        start = next((i for i, first in enumerate(firsts) if _same_start(first, run)), len(firsts))
        firsts += [run] * (start == len(firsts))
        starts.append(start)
    return np.array(starts, dtype=np.int64)


def _start_distances(runs: Sequence[Run], starts: NDArray[np.int64]) -> Array:
    """Return the distances between the θ_0 of each two runs, over all blocks; 0 where they count as the same."""
    squares = np.zeros((len(runs), len(runs)))
    for name in runs[0].blocks:
        bases = np.stack([block_rows(run, name)[0] for run in runs])
        squares += [((bases - base) ** 2).sum(axis=1) for base in bases]
    distances: Array = np.sqrt(squares)
    distances[starts[:, None] == starts] = 0.0
    return distances


def _origins(runs: Sequence[Run], starts: NDArray[np.int64], distances: Array) -> NDArray[np.int64]:
    """Return the number of each run's origin, which starts share that are the same or near each other."""
    # NaN for a run of a single snapshot, which is then near nothing.
    reach = NEAR * np.array([run.summary["displacement"] for run in runs])
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
    """Return the names of the blocks that have changed in one of the runs, in the order of the first run."""
    moved = [frozenset(run.trajectory.select()) for run in runs]
    chosen = {name for run, its in zip(runs, moved, strict=True) for name, i in run.blocks.items() if i in its}
    return [name for name in runs[0].blocks if name in chosen]


def block_rows(run: Run, name: str) -> Array:
    """Return θ_0 and the displacements of one block, float64 [n, k]."""
    trajectory = run.trajectory
    assert trajectory.sketches is not None
    dim, index = trajectory.provenance.sketch_dim, run.blocks[name]
    sizes = [min(block.numel, dim) for block in trajectory.blocks[: index + 1]]
    end = sum(sizes)
    return trajectory.sketches[:, end - sizes[-1] : end].astype(np.float64)


def pair_gram(a: Array, difference: Array) -> Array:
    """Return the Gram matrix of two vectors, or of each of many pairs, [..., 2, 2]."""
    vectors = np.stack([a, difference], axis=-2)
    gram: Array = vectors @ vectors.swapaxes(-1, -2)
    return gram


def pair_angles(grams: Array, run: Run, names: Sequence[str]) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Return the angles between vectors a and b, their standard errors, and whether a and b are the same.

    Args:
        grams: Gram matrices of a and a − b for each block, [T, blocks, 2, 2]. Small differences are not lost in them.
        run: One of the two runs.
        names: Names of the blocks.

    Returns:
        Angles and errors in degrees, [T], and bool [T].
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
        errors[t] = np.nan_to_num(error)  # NaN for an angle of exactly 0 or 180 degrees
    return angles, errors, same
