"""The record of a run: steps, blocks and their Gram matrices, and everything that can be asked of them."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_traj import measures
from lightning_traj.blocks import Block, Select, block_groups, group_blocks, select_blocks
from lightning_traj.files import local_copy, replace_atomically
from lightning_traj.measures import (
    FLOAT32,
    MEASURES,
    SelectionState,
    displacement_gram,
    evaluate,
    rounding_errors,
    snapshot_gram,
    standard_errors,
)
from lightning_traj.trajectory.storage import TRAJECTORY

Array = NDArray[np.float64]
FORMAT = "lightning_traj.trajectory"
FORMAT_VERSION = 1
SELECTIONS = 16  # states of selections that are kept, since a log asks for the same ones again and again
ROUNDING = 1e-13  # of its norm: a block that moved less has not moved

__all__ = ["MEASURES", "Trajectory"]


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows of consecutive optimizer steps u_1, …, u_L, W of them.

    Attributes:
        sums: ‖u_i‖², ⟨u_i, u_{i−1}⟩ and ‖u_1 + … + u_i‖² of each window, block and step, float64 [W, B, 3, L].
        steps: Optimizer steps taken when each window ended.
        counts: Steps that each has, at most L.
    """

    sums: Array = field(default_factory=lambda: np.zeros((0, 0, 3, 0)))
    steps: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()

    def of(self, chosen: Sequence[int], index: int) -> Array:
        """The sums of one window over some blocks, [3, its steps]."""
        counted: Array = self.sums[index, chosen].sum(axis=0)[:, : self.counts[index]]
        return counted


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Snapshots θ_0 … θ_T of a run, as inner products by block. n = T + 1 of them are kept.

    Attributes:
        blocks: The blocks, B of them, in the order of the arrays.
        steps: Optimizer steps really taken, int64 [n]; θ_0 is 0.
        epochs: Completed epochs, fractional within one, float64 [n].
        anchored: Gram(θ_0, d_1, …, d_T) of each block with d_t = θ_t − θ_0, float64 [B, n, n].
        local: Gram(θ_t, d_t, u_t, u_{t−1}) of each snapshot and block, float64 [n, B, 4, 4]; u are the updates between
            scheduled snapshots, whether or not their neighbours were kept.
        paths: Path length up to each snapshot, over all that were scheduled, of everything, each layer, role and
            block (``block_groups``), float64 [n, groups].
        windows: Of consecutive optimizer steps, for oscillation.
        settings: How it was recorded: ``snapshot``, ``sketch_dim``, ``seed``, …; plain values.
        sketches: The snapshots' rows, θ_0 first and then displacements, float32 [n, k], where they were kept.
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
            _check_dtype(name, getattr(self, name))  # what could be saved and not be loaded is not made
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} has shape {getattr(self, name).shape}, where {shape} was expected.")

    def __len__(self) -> int:
        return len(self.steps)

    def __repr__(self) -> str:
        return f"Trajectory({len(self)} snapshots, {self.counted()}, {self.settings.get('snapshot')})"

    # What is counted

    def select(self, select: Select = None) -> list[int]:
        """Indices of the blocks that are counted.

        Args:
            select: ``"role:q"``, ``"layer:h.3"`` (that module and all in it), a glob over block names, or a predicate
                over blocks; a bare word is tried as a role, a layer, a glob. None: every block that has changed since
                θ_0 (all of them as long as none has).

        Raises:
            ValueError: nothing is selected; the message lists what there is.
        """
        if select is not None:
            return select_blocks(self.blocks, select)
        changed = np.flatnonzero(self._moved)
        return list(map(int, changed)) or list(range(len(self.blocks)))

    def counted(self, select: Select = None) -> str:
        """What a selection counts, in words: ``"62 of 65 blocks, 271,098 of 272,474 parameters"``."""
        chosen = self.select(select)
        numel = sum(self.blocks[i].numel for i in chosen)
        total = sum(block.numel for block in self.blocks)
        left_out = "".join(
            f"; {name}={self.settings[name]!r}"
            for name in ("include", "exclude")
            if self.settings.get(name) is not None
        )
        if len(chosen) == len(self.blocks):
            return f"all {len(chosen)} blocks, {numel:,} parameters{left_out}"
        return f"{len(chosen)} of {len(self.blocks)} blocks, {numel:,} of {total:,} parameters{left_out}"

    # Matrices and maps

    def gram(self, select: Select = None) -> Array:
        """Gram matrix of the snapshots, G_ij = ⟨θ_i, θ_j⟩, float64 [n, n]."""
        return snapshot_gram(self.state(select).anchored)

    def displacement_gram(self, select: Select = None) -> Array:
        """Gram matrix about θ_0, ⟨θ_i − θ_0, θ_j − θ_0⟩, float64 [n, n]; row and column 0 are zero."""
        return displacement_gram(self.state(select).anchored)

    def map(self, select: Select = None) -> Array:
        """Trajectory map: cosines between all pairs of snapshots, [n, n], in [−1, 1], NaN where undefined."""
        return measures.trajectory_map(self.gram(select))

    def relative_map(self, select: Select = None) -> Array:
        """Relative trajectory map: cosines between displacements from θ_0, [T, T]."""
        return measures.relative_trajectory_map(self.displacement_gram(select))

    def pca(self, select: Select = None) -> tuple[Array, Array]:
        """Principal components of the path: coordinates [n, d] and explained-variance ratios [d]."""
        return measures.pca(self.displacement_gram(select))

    # Scalars

    def state(self, select: Select = None) -> SelectionState:
        """Sums over the selected blocks, from which every measure is evaluated; kept for the next call."""
        chosen = tuple(self.select(select))
        if chosen not in self._states:
            while len(self._states) >= SELECTIONS:
                del self._states[next(iter(self._states))]
            self._states[chosen] = self.state_of(chosen)
        return self._states[chosen]

    def state_of(self, chosen: Sequence[int]) -> SelectionState:
        """Sums over the blocks of these indices. Not to be written to: of a single block they are views."""
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

    def summary(self, select: Select = None) -> dict[str, float]:
        """Every scalar at the newest snapshot, named as the tags without prefix; NaN where undefined yet."""
        return evaluate(self.state(select))

    def standard_errors(self, select: Select = None) -> dict[str, float]:
        """Standard errors of sketched values, of the measures that have one; empty for full snapshots.

        Source: measures.md's SE² = Σ_b 2 tr((F G_b)²)/k; a block that is kept whole adds nothing.
        """
        if self.settings.get("snapshot") != "sketch":
            return {}
        dim = self.settings["sketch_dim"]
        chosen = self.select(select)
        sketched = [i for i in chosen if self.blocks[i].numel > dim]
        return standard_errors(self.state(select), self.anchored[sketched], self.local[-1][sketched], dim)

    def rounding_errors(self, select: Select = None) -> dict[str, float]:
        """Return how far rounding of the parameters may have moved the values of measures, exact ones too.

        Parameters are rounded at each optimizer step, so that a run on other hardware differs, and once more when they
        are stored in a lower precision (see ``measures.rounding``). Measures that are not smooth are left out.
        """
        return rounding_errors(self.state(select), self.settings.get("rounding", FLOAT32))

    def table(self, by: str = "layer", select: Select = None) -> dict[str, dict[str, float]]:
        """The summary of each group of blocks, and how many blocks and parameters it counts.

        Args:
            by: ``"layer"`` (module), ``"role"``, ``"layer x role"``, ``"depth"`` (numbered blocks of the network, such
                as ``h.3``), ``"depth x role"`` or ``"block"``.
            select: What is grouped; None: every block that has changed.

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
        """What ``table`` groups, as selections: {group: predicate over blocks}."""
        grouped = group_blocks(self.blocks, by, self.select(select))
        return {label: {self.blocks[i] for i in members}.__contains__ for label, members in grouped.items()}

    def series(
        self, select: Select = None, names: Iterable[str] = MEASURES, last: int | None = None
    ) -> dict[str, Array]:
        """Scalars at every kept snapshot, as they stood then, float64 [n]; the blocks counted are those of today.

        Args:
            select: What is counted.
            names: Which scalars: all, or a few, which takes less time.
            last: Of the latest so many snapshots only.
        """
        state = self.state(select)
        return {name: MEASURES[name].values(state, last) for name in names}

    # Files

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to a safetensors file (tensors and a JSON header, no pickle), replacing it in one step.

        Args:
            path: Of the file, or a URL that fsspec opens.
        """
        from safetensors.numpy import save_file

        header = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "blocks": [asdict(block) for block in self.blocks],
            "settings": dict(self.settings),
        }
        windows = {
            f"window_{name}": np.array(values, dtype=_TENSORS[f"window_{name}"])
            for name, values in vars(self.windows).items()
        }
        arrays = {**{name: getattr(self, name) for name in _TENSORS if name not in windows}, **windows}
        tensors = {name: np.ascontiguousarray(array) for name, array in arrays.items() if array is not None}
        with replace_atomically(path) as temporary:
            save_file(tensors, temporary, metadata={TRAJECTORY: json.dumps(header)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Trajectory:
        """Read what ``save`` wrote.

        Args:
            path: Of the file, or a URL that fsspec opens.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged, or is no trajectory; it is left as it is.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with local_copy(path) as local, safe_open(local, framework="numpy") as file:
                header = json.loads((file.metadata() or {}).get(TRAJECTORY, "{}"))
                if not isinstance(header, dict) or header.get("format") != FORMAT:
                    raise ValueError("it is a safetensors file, but holds no trajectory")
                if header["version"] > FORMAT_VERSION:
                    raise ValueError(
                        f"its format is {header['version']}, and this release reads up to {FORMAT_VERSION}: "
                        "upgrade lightning-traj"
                    )
                present = set(file.keys())
                tensors = {name: file.get_tensor(name) for name in _TENSORS if name in present}
            blocks = tuple(Block(**block) for block in header["blocks"])
            for name, values in tensors.items():
                _check_dtype(name, values)
            if len(tensors["steps"]) == 0 or not all(isinstance(block.numel, int) for block in blocks):
                raise ValueError("it has no snapshots, or blocks without a size")
            windows = Windows(
                tensors.pop("window_sums"),
                tuple(tensors.pop("window_steps").tolist()),
                tuple(tensors.pop("window_counts").tolist()),
            )
            expected = (len(windows.steps), len(blocks), 3)
            if windows.sums.shape[:3] != expected or len(windows.counts) != len(windows.steps):
                raise ValueError(f"its windows have the shape {windows.sums.shape}")
            settings = dict(header["settings"])
            if settings["snapshot"] == "sketch" and not isinstance(settings["sketch_dim"], int):
                raise ValueError(f"its sketch_dim is {settings['sketch_dim']!r}")
            return cls(blocks=blocks, settings=settings, windows=windows, **tensors)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"path={str(path)!r}: no such file; pass a trajectory.safetensors.") from error
        except (SafetensorError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise ValueError(
                f"path={str(path)!r} cannot be read as a trajectory: {error}. Pass a file that "
                "TrajectoryCallback or Trajectory.save has written; this one was left untouched."
            ) from error

    def to_csv(self, path: str | os.PathLike[str], select: Select = None) -> None:
        """Write ``series`` as CSV: a row a snapshot; step, epoch, and a column a measure, empty where undefined."""
        columns: dict[str, Sequence[Any]] = {"step": self.steps.tolist(), "epoch": self.epochs.tolist()}
        for name, values in self.series(select).items():
            columns[name] = ["" if np.isnan(value) else repr(float(value)) for value in values]
        with replace_atomically(path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))

    def to_numpy(self, path: str | os.PathLike[str], select: Select = None) -> None:
        """Write an .npz of ``steps``, ``epochs``, ``gram``, ``map``, ``relative_map`` and the series, by tag name."""
        arrays = {
            "steps": self.steps,
            "epochs": self.epochs,
            "gram": self.gram(select),
            "map": self.map(select),
            "relative_map": self.relative_map(select),
            **self.series(select),
        }
        with replace_atomically(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    def with_sketches(self, sketches: NDArray[np.float32]) -> Trajectory:
        """The same trajectory with the snapshots' rows, float32 [n, k], to be compared with other runs' rows."""
        return replace(self, sketches=sketches)

    # Inside

    @cached_property
    def _moved(self) -> NDArray[np.bool_]:
        """Whether each block has changed since θ_0, [B]: in a kept snapshot, or between them."""
        norms = np.sqrt(np.maximum(np.diagonal(self.anchored, axis1=1, axis2=2), 0.0))  # ‖θ_0‖, ‖d_1‖, … [B, n]
        # Sketched again on other hardware, a frozen block may differ by roundings.
        least = ROUNDING * norms[:, :1]
        displaced = (norms[:, 1:] > least).any(axis=1)
        walked = (least < self.paths[-1:, -len(self.blocks) :].T).any(axis=1)  # the groups of single blocks come last
        return np.logical_or(displaced, walked)

    def _path(self, chosen: Sequence[int]) -> Array | None:
        """Accumulated path length, where the selection is a group that was accumulated: blocks at rest don't matter."""
        moved = self._moved
        column = self._columns.get(frozenset(i for i in chosen if moved[i]))
        return None if column is None else self.paths[:, column]

    @cached_property
    def _columns(self) -> dict[frozenset[int], int]:
        """Columns of the accumulated path lengths, by the moving blocks that they are of."""
        moved, groups = self._moved, block_groups(self.blocks).values()
        return {frozenset(i for i in members if moved[i]): column for column, members in enumerate(groups)}


def _check_dtype(name: str, values: NDArray[Any]) -> None:
    if values.dtype != _TENSORS[name]:
        raise ValueError(f"{name} holds {values.dtype}, where {_TENSORS[name]} was expected")


_TENSORS = {
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
