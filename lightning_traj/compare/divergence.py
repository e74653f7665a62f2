"""Steps at which runs part that start from the same parameters, or nearly the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import acos, degrees

import numpy as np
from numpy.typing import NDArray

from lightning_traj.compare.joint import Array, Joint, block_rows, joint_grams, moved_blocks, pair_angles, pair_gram
from lightning_traj.compare.runs import Run
from lightning_traj.report import summary as report

PARTED = degrees(acos(report.CLOSE))  # degrees, 8.1: directions that differ by more than 1 %


@dataclass(frozen=True, eq=False)
class Parting:
    """Angles ∠(d_t, d'_t) between the displacements of two runs at the same steps.

    The runs start from the same θ_0, or nearly so, and each displacement is from the θ_0 of its own run.

    Attributes:
        names: Names of the two runs.
        steps: Steps at which both runs have a snapshot, without the first, int64 [T].
        angles: Angles in degrees, [T]; NaN while one of the runs has not moved.
        errors: Standard errors of the angles in degrees, [T]; 0 for blocks kept whole.
        same_until: Last step up to which the parameters are the same, to the precision in which rows are saved; None if
            they differ from the start.
        parted: First step at which the angle exceeds ``PARTED`` by more than twice its standard error; None if it never
            does.
    """

    names: tuple[str, str]
    steps: NDArray[np.int64]
    angles: Array
    errors: Array
    same_until: int | None
    parted: int | None

    def __str__(self) -> str:
        pair = f"{self.names[0]} and {self.names[1]}"
        if not len(self.steps):
            return f"{pair}: no snapshots at the same steps after the first."
        same = "nearly the same start"
        if self.same_until is not None:
            same = f"the same parameters up to step {self.same_until:,}"
        if self.same_until == self.steps[-1]:
            return f"{pair}: {same}, the last that both have."
        at = f"the directions from θ_0 differ by more than {PARTED:.1f}°"
        first = " (the first that both have)" if self.parted == self.steps[0] else ""
        parted = f"{at} nowhere" if self.parted is None else f"{at} from step {self.parted:,}{first} on"
        return f"{pair}: {same}; {parted}; {self.at_the_end()} at step {self.steps[-1]:,}."

    def at_the_end(self) -> str:
        """Return the angle at the last common step as text."""
        if not len(self.angles) or np.isnan(self.angles[-1]):
            return "undefined"
        angle, error = float(self.angles[-1]), float(self.errors[-1])
        return report.with_error(angle, error, "°") if error > 0 else f"{angle:.3g}°"


def joint_partings(runs: Sequence[Run]) -> list[tuple[Joint, list[Parting]]]:
    """Return the groups of ``joint_grams``, and for groups with one origin where each two of their runs part."""
    return [(joint, partings(joint) if joint.same_origin else []) for joint in joint_grams(runs)]


def partings(joint: Joint) -> list[Parting]:
    """Return where each two runs part that start from the same θ_0, or from points near each other."""
    pairs = combinations(range(len(joint.runs)), 2)
    return [
        _parting(joint.runs[i], joint.runs[j], bool(joint.starts[i] == joint.starts[j]))
        for i, j in pairs
        if joint.origins[i] == joint.origins[j]
    ]


def _parting(one: Run, other: Run, same_start: bool) -> Parting:
    steps, first, second = np.intersect1d(one.trajectory.steps, other.trajectory.steps, return_indices=True)
    # θ_0 has no direction.
    steps, first, second = (some[(first > 0) & (second > 0)] for some in (steps, first, second))
    names = moved_blocks([one, other])
    grams = np.zeros((len(steps), len(names), 2, 2))
    for b, name in enumerate(names):
        a = block_rows(one, name)[first]
        grams[:, b] = pair_gram(a, a - block_rows(other, name)[second])
    angles, errors, same = pair_angles(grams, one, names)
    differing = np.flatnonzero(~same)
    apart = np.flatnonzero(angles - 2 * errors > PARTED)
    before = steps[: differing[0]] if len(differing) else steps
    same_until = int(before[-1]) if len(before) else int(one.trajectory.steps[0])
    return Parting(
        names=(one.name, other.name),
        steps=steps,
        angles=angles,
        errors=errors,
        same_until=same_until if same_start else None,
        parted=int(steps[apart[0]]) if len(apart) else None,
    )
