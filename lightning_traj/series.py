"""Paths -> the checkpoints of a run, opened and in order."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lightning_traj.findings import Clock, clock, label
from lightning_traj.formats import SUFFIXES, Checkpoint, CheckpointError, Weights, is_checkpoint, open_checkpoint
from lightning_traj.sources import is_trajectory, natural

Order = Literal["step", "given"]
FOLDERS = ("", "checkpoints")  # where in a folder checkpoints are looked for; Lightning's logs have the second
LEAST = 2
SKIPPED = "skipped: "  # begins the finding of a checkpoint that could not be read


@dataclass(frozen=True)
class Series:
    """Checkpoints of a run in order, n of them.

    Attributes:
        checkpoints: Opened.
        steps: Optimizer steps, int64 [n], increasing; of files that say only epochs, those.
        epochs: Completed epochs, float64 [n]; zeros where nothing is known of them.
        findings: What was left out or guessed, in sentences.
    """

    checkpoints: tuple[Checkpoint, ...]
    steps: NDArray[np.int64]
    epochs: NDArray[np.float64]
    findings: tuple[str, ...]


def find(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The checkpoints that these paths are, or are folders of.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a folder holds no checkpoint.
    """
    found: list[Path] = []
    for path in map(Path, [paths] if isinstance(paths, (str, os.PathLike)) else paths):
        if not path.exists():
            raise FileNotFoundError(f"{path}: there is no such file or folder.")
        folders = [child for child in _children(path) if child.is_dir() and is_checkpoint(child)]
        if is_checkpoint(path) and len(folders) >= LEAST:  # transformers' Trainer puts the last model beside them
            found += folders
            continue
        if path.is_file() or is_checkpoint(path):
            found.append(path)
            continue
        inside = [child for folder in FOLDERS for child in _children(path / folder) if is_checkpoint(child)]
        inside = [child for child in inside if not is_trajectory(child)]  # log folders have those of the run
        if not inside:
            raise ValueError(
                f"{path} holds no checkpoint: neither files that end in {', '.join(SUFFIXES)} nor folders with a model."
            )
        found += inside
    return list(dict.fromkeys(found))


def _children(folder: Path) -> list[Path]:
    return sorted(folder.glob("*"), key=lambda path: natural(path.name))


def open_series(
    paths: Sequence[Path],
    *,
    key: str | None = None,
    weights: Weights = "raw",
    order: Order = "step",
    skip_bad: bool = False,
    skipped: Sequence[str] = (),
) -> Series:
    """Open these checkpoints, and put them in order.

    Args:
        paths: Of checkpoints.
        key: As for ``open_checkpoint``.
        weights: As for ``open_checkpoint``.
        order: ``"step"``, or ``"given"``: as they are.
        skip_bad: Leave out those that cannot be read.
        skipped: What is said of those that have been left out already.

    Raises:
        CheckpointError: one cannot be read.
        ValueError: fewer than two are left, or not all of their steps are known.
    """
    notes, opened = list(skipped), []
    for path in paths:
        try:
            opened.append(open_checkpoint(path, key, weights))
        except CheckpointError as error:
            if not skip_bad:
                raise
            notes.append(f"{SKIPPED}{error}")
    if len(opened) < LEAST:
        why = f" ({len(notes)} could not be read; {notes[0]})" if notes else ""
        raise ValueError(f"{len(opened)} checkpoint(s) to analyse{why}: a trajectory takes two at least.")
    checkpoints, steps, more = _given(opened) if order == "given" else _by_step(opened)
    return Series(tuple(checkpoints), np.array(steps, dtype=np.int64), _epochs(checkpoints, steps), (*notes, *more))


def _given(opened: list[Checkpoint]) -> tuple[list[Checkpoint], list[int], list[str]]:
    when = clock(opened)
    if when is not None and when.increases:
        return opened, list(when.values), _notes(when, opened)
    counted = "steps are not those of the optimizer: checkpoints are counted as given."
    return opened, list(range(len(opened))), [counted, *_backwards(opened)]


def _by_step(opened: list[Checkpoint]) -> tuple[list[Checkpoint], list[int], list[str]]:
    when = clock(opened)
    if when is None:
        unknown = [str(c.path) for c in opened if c.step is None]
        raise ValueError(
            f"{unknown[0]}{f' and {len(unknown) - 1} more' if len(unknown) > 1 else ''}: neither the file nor its "
            "name says at which step it was written; name the files by step (step=1000.pt), or give the paths in "
            'order and say order="given" (--order given).'
        )
    notes = _notes(when, opened)
    # Stable: of the same step, the first that was given comes first.
    dated = sorted(zip(when.values, opened, strict=True), key=lambda pair: pair[0])
    kept: list[tuple[int, Checkpoint]] = []
    for value, checkpoint in dated:
        if kept and kept[-1][0] == value:
            both = f"{label(kept[-1][1])} is taken, {label(checkpoint)} left out"
            notes.append(f"{when.unit} {value:,} occurs twice: {both}.")
        else:
            kept.append((value, checkpoint))
    if len(kept) < LEAST:
        raise ValueError(
            f"all checkpoints are of {when.unit} {kept[0][0]}: a trajectory takes two different ones at least."
        )
    return [checkpoint for _, checkpoint in kept], [value for value, _ in kept], notes


def _notes(when: Clock, opened: Sequence[Checkpoint]) -> list[str]:
    """What the steps are, where they are not the optimizer's."""
    if when.unit == "epoch":
        return ["steps are not known, epochs are: these are what is counted as steps."]
    if when.guessed:
        first = next(c for c in opened if c.step is None)
        return [f"steps are guessed from the numbers of names, such as {label(first)}: they may be epochs."]
    return []


def _backwards(opened: Sequence[Checkpoint]) -> list[str]:
    """Where the given order is not that of time, as far as that is known, or only that of letters."""
    times = [(c.step, c.epoch, c.number) for c in opened]
    for (before, one), (after, other) in pairwise(zip(times, opened, strict=True)):
        for unit, was, then in zip(("step", "epoch", "number"), before, after, strict=True):
            if was is not None and then is not None and then < was:
                return [f"in the order given {label(one)} comes before {label(other)}: {unit} {was:,} before {then:,}."]
    paths = [str(c.path) for c in opened]
    for path, natural_one in zip(paths, sorted(paths, key=natural), strict=True) if paths == sorted(paths) else ():
        if path != natural_one:
            names = f"{Path(path).name} before {Path(natural_one).name}"
            return [f"the order given is that of letters, {names}: is it meant?"]
    return []


def _epochs(checkpoints: Sequence[Checkpoint], steps: Sequence[int]) -> NDArray[np.float64]:
    """Completed epochs, fractional within one; all of them are taken to be of one length."""
    known = [(step, c.epoch) for step, c in zip(steps, checkpoints, strict=True) if c.epoch and step]
    if not known:
        return np.zeros(len(steps))
    per_step = np.float64(known[-1][1] or 0) / known[-1][0]
    epochs = [per_step * step if not c.epoch else c.epoch for step, c in zip(steps, checkpoints, strict=True)]
    return np.array(epochs, dtype=np.float64)
