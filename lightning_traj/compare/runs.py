"""Runs to compare: how they are found on disk and named, and which of them are comparable."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_traj.blocks import Block
from lightning_traj.checkpoints import hyperparameters_beside, labelled
from lightning_traj.files import as_place, files_in, local_copy
from lightning_traj.text import join_names
from lightning_traj.trajectory import Trajectory, is_trajectory

_USUAL = re.compile(r"version_\d+|trajectory")  # usual names of a run's folder (Lightning's loggers) and file
_LISTED = 4  # blocks that a sentence names at most


@dataclass(frozen=True, eq=False)
class Run:
    """Trajectory of one run of a comparison, with its name and hyperparameters.

    Attributes:
        name: Name that distinguishes the run from the others.
        path: Path or URL of the trajectory file.
        trajectory: Trajectory of the run.
        hyperparameters: Hyperparameters from beside the file or from the checkpoints; nested ones as ``a/b``.
        rename: Prefixes of block names, and their replacements.
    """

    name: str
    path: Path | str
    trajectory: Trajectory
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    rename: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def blocks(self) -> dict[str, int]:
        """Indices of the blocks by the names under which other runs know them.

        They are the renamed names without the prefix that all parameters of the model share (``net.``).
        """
        names = [self.known_as(block.name) for block in self.trajectory.blocks]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(
                f"rename={dict(self.rename)!r} gives two blocks of {self.name} the name {twice!r}: "
                "rename to a prefix that is free."
            )
        return {name: i for i, name in enumerate(names)}

    @cached_property
    def summary(self) -> dict[str, float]:
        """Newest values of all measures."""
        return self.trajectory.summary()

    @cached_property
    def errors(self) -> dict[str, float]:
        """Standard errors of the newest values, of measures that have one."""
        return self.trajectory.standard_errors()

    @cached_property
    def rounding_errors(self) -> dict[str, float]:
        """Distances by which rounding of the parameters may have moved the values, for measures that are smooth."""
        return self.trajectory.rounding_errors()

    @cached_property
    def series(self) -> dict[str, NDArray[np.float64]]:
        """Values of all measures at every snapshot."""
        return self.trajectory.series()

    def known_as(self, name: str) -> str:
        """Return the renamed name of a block or a module without the prefix that all parameters share."""
        return self.renamed(name).removeprefix(self.renamed(self._root))

    def sketched_as(self, block: Block) -> tuple[str, int, int] | None:
        """Return name, seed and sketch length, which decide a block's random numbers; None for a block kept whole."""
        provenance = self.trajectory.provenance
        if block.numel <= provenance.sketch_dim:
            return None
        return block.name.removeprefix(self._root), provenance.seed, provenance.sketch_dim

    @property
    def _root(self) -> str:
        return self.trajectory.provenance.root

    def renamed(self, name: str) -> str:
        """Return the name of a block or a module, renamed."""
        prefixes = [prefix for prefix in self.rename if name.startswith(prefix)]
        if not prefixes:
            return name
        longest = max(prefixes, key=len)
        return self.rename[longest] + name[len(longest) :]


def load_runs(paths: Sequence[str | PathLike[str]], *, rename: Mapping[str, str] | None = None) -> list[Run]:
    """Load the trajectories of several runs.

    Args:
        paths: Trajectory file of each run, or a folder that holds one, itself or in a folder ``version_*``. URLs that
            fsspec opens work too.
        rename: Prefixes of block names and their replacements, such as ``{"net.": "model."}``. Blocks with the same
            name after that are the same. The prefix that all parameters of a model share is ignored anyway.

    Runs with the names of loggers (``version_1``) are also named after what differs: ``version_1 (lr=0.02)``.
    Hyperparameters come from a ``hparams.yaml`` beside the file or in the folder above, or else from the checkpoints of
    the trajectory.

    Raises:
        FileNotFoundError: a file does not exist, or a folder holds no trajectory.
        ValueError: fewer than two runs, the same run twice, several trajectories in a folder, a damaged file, or a
            renaming that matches no block.
    """
    if len(paths) < 2:
        given = repr(str(paths[0])) if paths else "none"
        raise ValueError(f"paths: compare takes at least two runs, and was given {given}; name another.")
    given_as = [as_place(path) for path in paths]
    files = [find_trajectory(path) for path in given_as]
    resolved: dict[PurePath, Path | str] = {}
    for path, file in zip(given_as, files, strict=True):
        target = file.resolve() if isinstance(file, Path) else PurePath(file)
        if target in resolved:
            raise ValueError(
                f"paths: {str(resolved[target])!r} and {str(path)!r} are the same run, {file}: name each once."
            )
        resolved[target] = path
    rename = dict(rename or {})
    trajectories = [Trajectory.load(file) for file in files]
    chosen = [
        hyperparameters_beside(file) or (source.hyperparameters if (source := trajectory.provenance.source) else {})
        for file, trajectory in zip(files, trajectories, strict=True)
    ]
    names = names_of(list(resolved))
    if any(_USUAL.fullmatch(name) for name in names):
        names = labelled(names, chosen)
    runs = [
        Run(name, file, trajectory, its, rename)
        for name, file, trajectory, its in zip(names, files, trajectories, chosen, strict=True)
    ]
    for prefix in rename:
        if not any(block.name.startswith(prefix) for run in runs for block in run.trajectory.blocks):
            some = ", ".join(repr(run.trajectory.blocks[0].name) for run in runs)
            raise ValueError(f"rename={rename!r}: no block's name begins with {prefix!r}; there are {some}, ….")
    for run in runs:
        _ = run.blocks  # raise now if a renaming makes two names equal
        _check_rows(run)
    return runs


def find_trajectory(path: Path | str) -> Path | str:
    """Return the trajectory file of a path: itself, or the only one in a folder or in its folders ``version_*``.

    Raises:
        FileNotFoundError, ValueError: as ``load_runs``.
    """
    with suppress(FileNotFoundError), local_copy(path):
        return path
    for pattern in ("*.safetensors", "version_*/*.safetensors"):
        try:
            found = [file for file in files_in(path, pattern) if _is_trajectory(file)]
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"path={str(path)!r}: no such file or folder; pass a trajectory file or a log folder."
            ) from error
        if len(found) > 1:
            listed = ", ".join(str(file) for file in found[:8]) + (", …" if len(found) > 8 else "")
            raise ValueError(
                f"path={str(path)!r} holds {len(found)} trajectories: {listed}; name the one that is meant."
            )
        if found:
            return found[0]
    raise FileNotFoundError(
        f"path={str(path)!r} holds no trajectory, nor do folders version_* in it: pass a log folder of a run with "
        "TrajectoryCallback, or the trajectory file itself."
    )


def names_of(files: Sequence[PurePath]) -> list[str]:
    """Return short names that distinguish files: one part of their paths if that suffices, or all parts that differ."""
    parts = [[*file.parts[:-1], file.stem] for file in files]
    # A number says less than the folder that contains it.
    informative = [[part for part in some if not _USUAL.fullmatch(part)] for some in parts]
    for some in (informative, parts):
        for level in zip(*map(reversed, some), strict=False):
            if len(set(level)) == len(files):
                return list(level)
    depth = min(map(len, parts))
    while depth > 1 and len({some[0] for some in parts}) == 1:
        parts, depth = [some[1:] for some in parts], depth - 1
    while depth > 1 and len({some[-1] for some in parts}) == 1:
        parts, depth = [some[:-1] for some in parts], depth - 1
    names = ["/".join(some) for some in parts]
    return names if len(set(names)) == len(files) else list(map(str, files))  # they differ only in their suffixes


# Comparability ----------------------------------------------------------------------------------------------


def incomparability_reason(one: Run, other: Run) -> str:
    """Return why the snapshots of two runs have no inner products, as text; empty if they have."""
    for run in (one, other):
        if not run.trajectory.provenance.is_sketched:
            remedy = "record it with snapshot='sketch', or analyze its checkpoints with --sketch"
            return f"{run.name} has full snapshots, which are not in its trajectory file: {remedy}"
        if run.trajectory.sketches is None:
            return f"the file of {run.name} holds no rows of its snapshots, which are saved when training ends"
    first_made, other_made = (run.trajectory.provenance for run in (one, other))
    for name, words in (("track", "the runs tracked different quantities"), ("blocks", "blocks were made otherwise")):
        if (ours := getattr(first_made, name)) != (theirs := getattr(other_made, name)):
            return f"{words}: {name}={ours!r} and {theirs!r}"
    for run, its in ((one, other), (other, one)):
        if alone := [name for name in run.blocks if name not in its.blocks]:
            listed = join_names([*map(repr, alone)], _LISTED)
            hint = "" if set(run.blocks) & set(its.blocks) else "; where names differ in a prefix alone, rename it"
            return f"another model: {run.name} alone has {listed}{hint}"
    for name in one.blocks:
        a, b = (run.trajectory.blocks[run.blocks[name]] for run in (one, other))
        if a.numel != b.numel:
            return f"another model: {name!r} has {a.numel:,} parameters in {one.name} and {b.numel:,} in {other.name}"
        if (first := one.sketched_as(a)) != (second := other.sketched_as(b)):
            for setting in ("seed", "sketch_dim"):
                if (ours := getattr(first_made, setting)) != (theirs := getattr(other_made, setting)):
                    return f"sketched with {setting}={ours} and {theirs}"
            names = [sketched[0] if sketched else name for sketched in (first, second)]
            return f"{name!r} was sketched as {names[0]!r} and as {names[1]!r}, with other random numbers"
    return ""


def comparable(runs: Sequence[Run]) -> list[list[int]]:
    """Return the indices of the runs in groups of comparable runs, in the order of the runs."""
    groups: list[list[int]] = []
    for i, run in enumerate(runs):
        group = next((group for group in groups if not incomparability_reason(runs[group[0]], run)), None)
        if group is None:
            groups.append([i])
        else:
            group.append(i)
    return groups


def left_out(runs: Sequence[Run]) -> list[str]:
    """Return sentences that say which pairs of runs can't be compared, and why."""
    sentences = []
    for i, one in enumerate(runs):
        reasons: dict[str, list[str]] = {}
        for other in runs[i + 1 :]:
            if why := incomparability_reason(one, other):
                reasons.setdefault(why, []).append(other.name)
        sentences += [f"{one.name} with {join_names(others)}: {why}." for why, others in reasons.items()]
    return sentences


# Inside -----------------------------------------------------------------------------------------------------


def _is_trajectory(file: Path | str) -> bool:
    if PurePath(file).name.startswith("."):
        return False
    with local_copy(file) as copy:
        return is_trajectory(copy)


def _check_rows(run: Run) -> None:
    trajectory = run.trajectory
    if trajectory.sketches is None or not trajectory.provenance.is_sketched:
        return
    dim = trajectory.provenance.sketch_dim
    expected = (len(trajectory), sum(min(block.numel, dim) for block in trajectory.blocks))
    if (shape := trajectory.sketches.shape) != expected:
        raise ValueError(
            f"path={str(run.path)!r} holds rows of the shape {shape}, not {expected}: it is damaged; leave it out."
        )
