"""The snapshots of several runs together, as inner products of their saved rows: no weights are needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import acos, degrees

import numpy as np
from numpy.typing import NDArray

from lightning_traj import measures, uncertainty
from lightning_traj.gram import displacement_gram, snapshot_gram
from lightning_traj.report import CLOSE, with_error
from lightning_traj.runs import Run, comparable, why_apart

Array = NDArray[np.float64]
SAME = 1e-6  # of their length: rows are kept in float32, and what differs by less is the same
PARTED = degrees(acos(CLOSE))  # degrees: directions that differ by more than 1 %


@dataclass(frozen=True, eq=False)
class Joint:
    """All snapshots of runs of one model, N of them, one run after the other.

    Attributes:
        runs: The runs.
        owner: Which run each snapshot is of, int64 [N].
        snapshot: Which of that run's it is, int64 [N].
        anchored: Gram matrix of the first run's θ_0 and, from it, the displacements of all others, float64 [N, N]:
            differences are taken before they are multiplied.
        same_start: Whether all runs start from the same θ_0.
        counted: What is counted, in words: every block that has changed in one of the runs.
    """

    runs: tuple[Run, ...]
    owner: NDArray[np.int64]
    snapshot: NDArray[np.int64]
    anchored: Array
    same_start: bool
    counted: str

    @property
    def gram(self) -> Array:
        """Inner products of all pairs of snapshots, ⟨θ_i, θ_j⟩, float64 [N, N]."""
        return snapshot_gram(self.anchored)

    @property
    def relative(self) -> Array:
        """The same of displacements from the first run's θ_0; rows of that point are zero."""
        return displacement_gram(self.anchored)

    def map(self) -> Array:
        """Cosines between all pairs of snapshots, [N, N]."""
        return measures.trajectory_map(self.gram)

    def relative_map(self) -> Array:
        """Cosines between all displacements from the common θ_0, [N, N]; NaN for θ_0 itself.

        Raises:
            ValueError: the runs start from different points.
        """
        if not self.same_start:
            raise ValueError("runs: they start from different parameters, so there is no common θ_0 to look from.")
        return measures.trajectory_map(self.relative)

    def rows_of(self, run: int) -> NDArray[np.int64]:
        """Where the snapshots of a run are."""
        return np.flatnonzero(self.owner == run)


@dataclass(frozen=True, eq=False)
class Parting:
    """How two runs from the same θ_0 part: ∠(d_t, d'_t) of their displacements at the same steps.

    Attributes:
        names: Of the runs.
        steps: Steps at which both have a snapshot, without the first, int64 [T].
        angles: In degrees, [T]; NaN while one of them has not moved.
        errors: Their standard errors, in degrees, [T]; 0 for blocks kept whole.
        same_until: The last step up to which their parameters are the same, to the precision of what is kept.
        parted: The first step at which the angle exceeds ``PARTED`` (their cosine is below 0.99) by more than twice its
            standard error; None where it never does.
    """

    names: tuple[str, str]
    steps: NDArray[np.int64]
    angles: Array
    errors: Array
    same_until: int
    parted: int | None

    def __str__(self) -> str:
        pair = f"{self.names[0]} and {self.names[1]}"
        if not len(self.steps):
            return f"{pair}: no snapshots at the same steps after the first."
        same = f"the same parameters up to step {self.same_until:,}"
        if self.same_until == self.steps[-1]:
            return f"{pair}: {same}, the last that both have."
        at = f"the directions from θ_0 differ by more than {PARTED:.1f}°"
        first = " (the first that both have)" if self.parted == self.steps[0] else ""
        parted = f"{at} nowhere" if self.parted is None else f"{at} from step {self.parted:,}{first} on"
        return f"{pair}: {same}; {parted}; {self.at_the_end()} at step {self.steps[-1]:,}."

    def at_the_end(self) -> str:
        """The angle at the last common step."""
        if not len(self.angles) or np.isnan(self.angles[-1]):
            return "undefined"
        angle, error = float(self.angles[-1]), float(self.errors[-1])
        return with_error(angle, error, "°") if error > 0 else f"{angle:.3g}°"


def joint_gram(runs: Sequence[Run]) -> Joint:
    """All snapshots of several runs in one Gram matrix, from their saved rows.

    Sketches of two runs have unbiased inner products if each block has the same random numbers in both: the same seed,
    sketch dimension and name. Blocks that are kept whole need no random numbers.

    Raises:
        ValueError: two of them can't be compared; the message says why (see ``runs.why_apart``).
    """
    for other in runs[1:]:
        if why := why_apart(runs[0], other):
            raise ValueError(f"runs: {runs[0].name} and {other.name} cannot be compared: {why}.")
    owner = np.concatenate([np.full(len(run.trajectory), i) for i, run in enumerate(runs)])
    anchored, same = np.zeros((len(owner), len(owner))), True
    names = _counted(runs)
    for name in names:
        rows = [_rows(run, name) for run in runs]
        base = rows[0][0]
        vectors = []
        for some in rows:
            apart = some[0] - base
            if np.abs(apart).max(initial=0.0) <= SAME * np.abs(base).max(initial=0.0):
                apart = np.zeros_like(base)
            same = same and not apart.any()
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
        same_start=same,
        counted=f"{len(names)} of {len(runs[0].blocks)} blocks, {numel:,} parameters: all that changed in a run",
    )


def joint_grams(runs: Sequence[Run]) -> list[Joint]:
    """The joint Gram matrices of all runs that can be compared with another."""
    return [joint_gram([runs[i] for i in group]) for group in comparable(runs) if len(group) > 1]


def partings(joint: Joint) -> list[Parting]:
    """Where each two of the runs part; none where they don't start from the same θ_0."""
    if not joint.same_start:
        return []
    return [_parting(one, other) for one, other in combinations(joint.runs, 2)]


# Inside -----------------------------------------------------------------------------------------------------


def _counted(runs: Sequence[Run]) -> list[str]:
    """Names of the blocks that have changed in one of the runs, in the order of the first."""
    moved = [frozenset(run.trajectory.select()) for run in runs]
    chosen = {name for run, its in zip(runs, moved, strict=True) for name, i in run.blocks.items() if i in its}
    return [name for name in runs[0].blocks if name in chosen]


def _rows(run: Run, name: str) -> Array:
    """θ_0 and the displacements of one block, float64 [n, k]."""
    trajectory = run.trajectory
    assert trajectory.sketches is not None
    dim, index = trajectory.settings["sketch_dim"], run.blocks[name]
    sizes = [min(block.numel, dim) for block in trajectory.blocks[: index + 1]]
    end = sum(sizes)
    return trajectory.sketches[:, end - sizes[-1] : end].astype(np.float64)


def _parting(one: Run, other: Run) -> Parting:
    steps, first, second = np.intersect1d(one.trajectory.steps, other.trajectory.steps, return_indices=True)
    # θ_0 has no direction.
    steps, first, second = (some[(first > 0) & (second > 0)] for some in (steps, first, second))
    names = _counted([one, other])
    grams = np.zeros((len(steps), len(names), 2, 2))  # of d and d − d', by block
    for b, name in enumerate(names):
        a = _rows(one, name)[first]
        vectors = np.stack([a, a - _rows(other, name)[second]], axis=1)  # [T, 2, k]
        grams[:, b] = vectors @ vectors.swapaxes(1, 2)
    total = grams.sum(axis=1)
    same = total[:, 1, 1] <= SAME**2 * total[:, 0, 0]
    angles = measures.angle_from_difference(total[:, 0, 0], total[:, 0, 1], total[:, 1, 1])
    angles[same & ~np.isnan(angles)] = 0.0
    sketched = [b for b, name in enumerate(names) if one.sketched_as(one.trajectory.blocks[one.blocks[name]])]
    errors = np.zeros(len(steps))
    for t in np.flatnonzero(~same & ~np.isnan(angles)):
        gradient = uncertainty.difference_angle_gradient(total[t], 0, 1)
        error = uncertainty.standard_error(gradient, grams[t, sketched], one.trajectory.settings["sketch_dim"])
        errors[t] = np.nan_to_num(error)  # an angle of exactly 0 or 180 degrees
    differing = np.flatnonzero(~same)
    apart = np.flatnonzero(angles - 2 * errors > PARTED)
    before = steps[: differing[0]] if len(differing) else steps
    return Parting(
        names=(one.name, other.name),
        steps=steps,
        angles=angles,
        errors=errors,
        same_until=int(before[-1]) if len(before) else int(one.trajectory.steps[0]),
        parted=int(steps[apart[0]]) if len(apart) else None,
    )
