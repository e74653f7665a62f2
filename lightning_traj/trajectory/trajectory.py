"""The record of a run, and the questions that it answers: maps, measures, series and tables."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lightning_traj import measures
from lightning_traj.blocks import Block, Select, group_blocks
from lightning_traj.measures import (
    MEASURES,
    displacement_gram,
    evaluate,
    rounding_errors,
    snapshot_gram,
    standard_errors,
)
from lightning_traj.trajectory.export import write_csv, write_npz
from lightning_traj.trajectory.snapshot_grams import Array, SnapshotGrams
from lightning_traj.trajectory.storage import read_trajectory, write_trajectory


@dataclass(frozen=True, eq=False)
class Trajectory(SnapshotGrams):
    """Snapshots θ_0 … θ_T of a run, and the measures of its path.

    ``SnapshotGrams`` has the data, and lists the attributes.
    """

    def __repr__(self) -> str:
        return f"Trajectory({len(self)} snapshots, {self.counted()}, {self.provenance.snapshot})"

    def counted(self, select: Select = None) -> str:
        """Describe what a selection counts: ``"62 of 65 blocks, 271,098 of 272,474 parameters"``."""
        chosen = self.select(select)
        numel = sum(self.blocks[i].numel for i in chosen)
        total = sum(block.numel for block in self.blocks)
        patterns = {"include": self.provenance.include, "exclude": self.provenance.exclude}
        left_out = "".join(f"; {name}={given!r}" for name, given in patterns.items() if given is not None)
        if len(chosen) == len(self.blocks):
            return f"all {len(chosen)} blocks, {numel:,} parameters{left_out}"
        return f"{len(chosen)} of {len(self.blocks)} blocks, {numel:,} of {total:,} parameters{left_out}"

    # Matrices and maps

    def gram(self, select: Select = None) -> Array:
        """Return the Gram matrix of the snapshots, G_ij = ⟨θ_i, θ_j⟩, float64 [n, n]."""
        return snapshot_gram(self.state(select).anchored)

    def displacement_gram(self, select: Select = None) -> Array:
        """Return the Gram matrix about θ_0, ⟨θ_i − θ_0, θ_j − θ_0⟩, float64 [n, n]; row and column 0 are zero."""
        return displacement_gram(self.state(select).anchored)

    def map(self, select: Select = None) -> Array:
        """Return the trajectory map: cosines between all pairs of snapshots, [n, n]; NaN where undefined."""
        return measures.trajectory_map(self.gram(select))

    def relative_map(self, select: Select = None) -> Array:
        """Return the relative trajectory map: cosines between displacements from θ_0, [T, T]."""
        return measures.relative_trajectory_map(self.displacement_gram(select))

    def pca(self, select: Select = None) -> tuple[Array, Array]:
        """Return the principal components of the path: coordinates [n, d] and explained-variance ratios [d]."""
        return measures.pca(self.displacement_gram(select))

    # Scalars

    def summary(self, select: Select = None) -> dict[str, float]:
        """Return every scalar at the newest snapshot, named as the tags without prefix; NaN where undefined yet."""
        return evaluate(self.state(select))

    def standard_errors(self, select: Select = None) -> dict[str, float]:
        """Return standard errors of sketched values, of the measures that have one; empty for full snapshots.

        SE² = Σ_b 2 tr((F G_b)²)/k, see ``measures.standard_errors``; a block that is kept whole adds nothing.
        """
        if not self.provenance.is_sketched:
            return {}
        dim = self.provenance.sketch_dim
        chosen = self.select(select)
        sketched = [i for i in chosen if self.blocks[i].numel > dim]
        return standard_errors(self.state(select), self.anchored[sketched], self.local[-1][sketched], dim)

    def rounding_errors(self, select: Select = None) -> dict[str, float]:
        """Return how far rounding of the parameters may have moved the values of measures, exact ones too.

        Parameters are rounded at each optimizer step, so that a run on other hardware differs, and once more when they
        are stored in a lower precision (see ``measures.rounding``). Measures that are not smooth are left out.
        """
        return rounding_errors(self.state(select), self.provenance.rounding)

    def table(self, by: str = "layer", select: Select = None) -> dict[str, dict[str, float]]:
        """Return the summary of each group of blocks, with the numbers of blocks and parameters that it counts.

        Args:
            by: ``"layer"`` (module), ``"role"``, ``"layer x role"``, ``"depth"`` (numbered blocks of the network, such
                as ``h.3``), ``"depth x role"`` or ``"block"``.
            select: Blocks to group, as for ``select``; None: every block that has changed.

        Returns:
            {group: {"blocks": …, "numel": …, measure: value, …}} in the order of the model, NaN where undefined.
        """
        rows = {}
        for label, members in self.groups(by, select).items():
            chosen = self.select(members)
            numel = sum(self.blocks[i].numel for i in chosen)
            rows[label] = {"blocks": len(chosen), "numel": numel, **self.summary(members)}
        return rows

    def groups(self, by: str, select: Select = None) -> dict[str, Callable[[Block], bool]]:
        """Return the groups of ``table`` as selections: {group: predicate over blocks}."""
        grouped = group_blocks(self.blocks, by, self.select(select))
        return {label: {self.blocks[i] for i in members}.__contains__ for label, members in grouped.items()}

    def series(
        self, select: Select = None, names: Iterable[str] = MEASURES, last: int | None = None
    ) -> dict[str, Array]:
        """Return scalars as they stood at every kept snapshot, float64 [n]; the blocks counted are those of today.

        Args:
            select: Blocks to count, as for ``select``.
            names: Tags of the measures: all, or a few, which takes less time.
            last: Number of the latest snapshots to evaluate; None for all.
        """
        state = self.state(select)
        return {name: MEASURES[name].values(state, last) for name in names}

    # Files

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to a safetensors file (tensors and a JSON header, no pickle), replacing it in one step.

        Args:
            path: Path of the file, or a URL that fsspec opens.
        """
        write_trajectory(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Trajectory:
        """Read what ``save`` wrote.

        Args:
            path: Path of the file, or a URL that fsspec opens.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is damaged, or holds no trajectory; it is left as it is.
        """
        from safetensors import SafetensorError

        try:
            return cls(**read_trajectory(path))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"path={str(path)!r}: no such file; pass a trajectory.safetensors.") from error
        except (SafetensorError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise ValueError(
                f"path={str(path)!r} cannot be read as a trajectory: {error}. Pass a file that "
                "TrajectoryCallback or Trajectory.save has written; this one was left untouched."
            ) from error

    def to_csv(self, path: str | os.PathLike[str], select: Select = None) -> None:
        """Write ``series`` as CSV: a row a snapshot; step, epoch, and a column a measure, empty where undefined."""
        write_csv(self, path, select)

    def to_numpy(self, path: str | os.PathLike[str], select: Select = None) -> None:
        """Write an .npz of ``steps``, ``epochs``, ``gram``, ``map``, ``relative_map`` and the series, by tag."""
        write_npz(self, path, select)

    def with_sketches(self, sketches: NDArray[np.float32]) -> Trajectory:
        """Return the same trajectory with rows of the snapshots, float32 [n, k], for comparison with other runs."""
        return replace(self, sketches=sketches)
