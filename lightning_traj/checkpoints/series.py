"""Paths -> the checkpoints of a run, opened and in order."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lightning_traj.checkpoints.clock import Clock
from lightning_traj.checkpoints.duplicates import are_equal
from lightning_traj.checkpoints.findings import label
from lightning_traj.checkpoints.formats.checkpoint import Checkpoint, Weights
from lightning_traj.checkpoints.formats.errors import CheckpointError, NoWeights, with_skip_bad
from lightning_traj.checkpoints.formats.opening import folder_and_name, open_checkpoint
from lightning_traj.checkpoints.grouping import by_tensors, series_by_name, several_series, unify_names
from lightning_traj.checkpoints.names import is_end, is_negative, is_start
from lightning_traj.checkpoints.ordering import Dates, checkpoint_names, dates, shared_name, split_runs
from lightning_traj.checkpoints.parameters import parameter_count
from lightning_traj.checkpoints.paths import LEAST
from lightning_traj.tensors import has_entries
from lightning_traj.text import join_names
from lightning_traj.trajectory import Finding

Order = Literal["step", "given"]
MOST = 4  # names in a sentence


@dataclass(frozen=True)
class Series:
    """Checkpoints of a run in order, n of them.

    Attributes:
        checkpoints: The opened checkpoints.
        steps: Optimizer steps, int64 [n], increasing; epochs if the files have only those; 0 to n - 1 if only the order
            is known.
        epochs: Completed epochs, float64 [n]; zeros if they are not known.
        findings: Findings about files that were left out, and dates that were guessed.
        clock: Time at which each checkpoint was written; None if only their order is known.
    """

    checkpoints: tuple[Checkpoint, ...]
    steps: NDArray[np.int64]
    epochs: NDArray[np.float64]
    findings: tuple[Finding, ...]
    clock: Clock | None = None


def open_series(
    paths: Sequence[Path],
    *,
    key: str | None = None,
    weights: Weights = "raw",
    order: Order = "step",
    series: str | None = None,
    partial: bool = False,
    skip_bad: bool = False,
    skipped: Sequence[Finding] = (),
    explicit: Collection[Path] | None = None,
) -> Series:
    """Open these checkpoints, group them into series, and put the one that is asked for in order.

    Args:
        paths: Paths of checkpoints.
        key: Where in a file the state dict is nested, as for ``open_checkpoint``.
        weights: Raw or averaged weights, as for ``open_checkpoint``.
        order: ``"step"``, or ``"given"``: as the paths are.
        series: Name of the series, where there are several.
        partial: Whether to take all files for one series, however little they share.
        skip_bad: Leave out checkpoints that cannot be read.
        skipped: Findings about checkpoints that have been left out already.
        explicit: Paths that were named one by one, and not found in a folder; None if all were. In the given order they
            are never left out.

    Raises:
        CheckpointError: A checkpoint cannot be read.
        SeveralSeries: There are several series, and none is picked.
        ValueError: Fewer than two checkpoints are left, or their order is not known.
    """
    opened, notes = _open(paths, key, weights, skip_bad, skipped)
    found, strays = _series_in(opened, order, partial, explicit)
    if len(found) > 1 or (series is not None and series not in found):
        if series not in found:
            raise several_series(found, [parameter_count(members[-1]) for members in found.values()], series)
        others = [name for name in found if name != series]
        text = f"of {len(found)} series this is {series}; the others are {join_names(others, MOST)}."
        notes.append(Finding("left out", text))
    members = found[next(iter(found)) if series is None else series]
    notes += _left_out_strays(strays, members)
    _check_count(members)
    if order == "given":
        checkpoints, steps, clock, more = _given(members, explicit)
    else:
        checkpoints, steps, clock, more = _by_step(members)
    notes += unify_names(checkpoints)
    epochs = _epochs(checkpoints, steps, clock)
    return Series(tuple(checkpoints), np.array(steps, dtype=np.int64), epochs, (*notes, *more), clock)


def series_in(
    paths: Sequence[Path],
    *,
    key: str | None = None,
    weights: Weights = "raw",
    order: Order = "step",
    partial: bool = False,
    skip_bad: bool = False,
    explicit: Collection[Path] | None = None,
) -> list[str]:
    """Return the names of the series that these checkpoints make up; arguments as for ``open_series``."""
    opened, _ = _open(paths, key, weights, skip_bad, ())
    return list(_series_in(opened, order, partial, explicit)[0])


def _open(
    paths: Sequence[Path], key: str | None, weights: Weights, skip_bad: bool, skipped: Sequence[Finding]
) -> tuple[list[Checkpoint], list[Finding]]:
    notes, opened = list(skipped), []
    failed: CheckpointError | None = None
    for path in paths:
        try:
            opened.append(open_checkpoint(path, key, weights))
        except CheckpointError as error:
            if isinstance(error.__cause__, NoWeights):
                notes.append(Finding("left out", f"{path.name} is left out: {error.__cause__}."))
            elif skip_bad:
                notes.append(unread(error))
            else:
                failed = failed or error
    if failed is not None:
        raise with_skip_bad(failed) if opened else failed
    weighty = [c for c in opened if any(map(has_entries, c.shapes.values()))]
    if 0 < len(weighty) < len(opened):
        notes += [
            Finding("left out", f"{label(c)} is left out: it holds no floating-point tensors.")
            for c in opened
            if c not in weighty
        ]
        opened = weighty
    _check_count(opened, notes)
    return opened, notes


def unread(error: CheckpointError) -> Finding:
    """Return the finding for a checkpoint that could not be read."""
    return Finding("unreadable", f"skipped: {error}")


def check_finite(finite: int, n: int) -> None:
    """Check that enough of n checkpoints are finite for a trajectory.

    Raises:
        ValueError: There are fewer than two.
    """
    if finite < LEAST:
        raise ValueError(f"{finite} of {n} checkpoints are finite: two are needed.")


def _check_count(opened: Sequence[Checkpoint], notes: Sequence[Finding] = ()) -> None:
    if len(opened) < LEAST:
        why = f" ({len(notes)} could not be read; {notes[0]})" if notes else ""
        raise ValueError(f"{len(opened)} checkpoint(s) to analyse{why}: a trajectory takes two at least.")


def _series_in(
    opened: Sequence[Checkpoint], order: Order, partial: bool, explicit: Collection[Path] | None
) -> tuple[dict[str, list[Checkpoint]], list[Checkpoint]]:
    """Return series by name, and lone files: those whose tensors no other file has, if there are series at all."""
    groups = [list(range(len(opened)))] if partial else by_tensors(opened)
    groups = [[group[i] for i in run] for group in groups for run in _runs([opened[i] for i in group], order, explicit)]
    strays = [group[0] for group in groups if len(group) == 1] if any(len(group) > 1 for group in groups) else []
    kept = [[opened[i] for i in group] for group in groups if group[0] not in strays]
    return series_by_name(kept, [shared_name(group) for group in kept]), [opened[i] for i in strays]


def _runs(checkpoints: Sequence[Checkpoint], order: Order, explicit: Collection[Path] | None) -> list[list[int]]:
    """Split checkpoints with the same tensors into runs; an order that is given joins files and folders."""
    together = [list(range(len(checkpoints)))]
    if order == "given" and (explicit is None or any(c.path in explicit for c in checkpoints)):
        return together
    runs = split_runs(checkpoints)
    folders = [{folder_and_name(checkpoints[i].path)[0] for i in run} for run in runs]
    in_one_folder = any(one & other for one, other in combinations(folders, 2))
    return runs if order == "step" or in_one_folder else together


def _left_out_strays(strays: Sequence[Checkpoint], members: Sequence[Checkpoint]) -> list[Finding]:
    if not strays:
        return []
    listed = join_names([label(stray) for stray in strays], MOST)
    holds, is_are = ("holds", "is") if len(strays) == 1 else ("hold", "are")
    text = f"{listed} {holds} other tensors than {label(members[0])} and the like, and {is_are} left out."
    return [Finding("left out", text)]


def _given(
    opened: list[Checkpoint], explicit: Collection[Path] | None
) -> tuple[list[Checkpoint], list[int], Clock | None, list[Finding]]:
    notes: list[Finding] = []
    if explicit is not None and len(known := dates(opened).known) >= LEAST:
        left = [c for i, c in enumerate(opened) if i not in known and c.path not in explicit]
        opened = [c for c in opened if c not in left]
        notes = _undated(left)
    _check_count(opened)
    found = dates(opened)
    if len(found.known) == len(opened) and (clock := found.clock(found.known)).increases and clock.is_whole:
        return opened, clock.steps, clock, [*notes, *found.notes]
    counted = Finding("guess", "steps are not those of the optimizer: checkpoints are counted as given.")
    return opened, list(range(len(opened))), None, [*_contradictions(found, opened), counted, *notes]


def _by_step(opened: list[Checkpoint]) -> tuple[list[Checkpoint], list[int], Clock, list[Finding]]:
    negative = [c for c in opened if is_negative(folder_and_name(c.path)[1]) and c.step is None]
    opened = [c for c in opened if c not in negative]
    _check_count(opened)
    found = dates(opened)
    unknown = [c for i, c in enumerate(opened) if i not in found.known]
    if unknown and len(found.known) < LEAST:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise ValueError(
            f"{unknown[0].path}{more}: neither the file nor its name says at which step it was written; name the files "
            'by step (step=1000.pt), or give the paths in order and say order="given" (--order given).'
        )
    clock, dated = found.clock(found.known), [opened[i] for i in found.known]
    notes = [*found.notes, *_undated(unknown)]
    notes += [Finding("left out", f"{label(c)} is left out: the number in its name is negative.") for c in negative]
    numbered = [any(map(str.isdigit, folder_and_name(c.path)[1])) for c in dated]
    # Of the same step, the first that has a number in its name comes first, or else the first that was given.
    by_time = sorted(range(len(dated)), key=lambda i: (clock.values[i], not numbered[i], i))
    kept: list[int] = []
    for i in by_time:
        if kept and clock.values[kept[-1]] == clock.values[i]:
            both = f"{label(dated[kept[-1]])} is taken, {label(dated[i])} left out"
            unlike = is_start(folder_and_name(dated[i].path)[1]) and not are_equal(dated[kept[-1]], dated[i])
            more = ", though their weights differ" if unlike else ""
            notes.append(Finding("left out", f"{clock.unit} {clock.values[i]:,} occurs twice: {both}{more}."))
        else:
            kept.append(i)
    if len(kept) < LEAST:
        raise ValueError(
            f"all checkpoints are of {clock.unit} {clock.values[kept[0]]}: a trajectory takes two different ones at "
            "least."
        )
    clock = clock.at(kept)
    if not clock.is_whole:
        notes.append(Finding("guess", "epochs are fractional: checkpoints are counted instead of steps."))
    return [dated[i] for i in kept], clock.steps, clock, notes


def _undated(left_out: Sequence[Checkpoint]) -> list[Finding]:
    if not left_out:
        return []
    listed, is_are = join_names([label(c) for c in left_out], MOST), "is" if len(left_out) == 1 else "are"
    unlike = all(any(map(str.isdigit, folder_and_name(c.path)[1])) for c in left_out)
    why = "neither a file nor its name says when it was written, as others do"
    if unlike:
        why = "no date is known that goes with those of the others"
    text = (
        f"{listed} {is_are} left out: {why}. To have all "
        'files counted, name them one by one in their order, with order="given" (--order given).'
    )
    return [Finding("left out", text)]


def _contradictions(found: Dates, opened: Sequence[Checkpoint]) -> list[Finding]:
    """Say where the given order contradicts what the files or their names say, since every measure depends on it."""
    known, names = found.known, checkpoint_names(opened)
    in_folders = [[i for i in known if names[i][0] == folder] for folder in {folder for folder, _ in names}]
    pairs = [pair for indices in in_folders for pair in pairwise(indices)]
    wrong = sorted((i, j) for i, j in pairs if (found.values[j] or 0) < (found.values[i] or 0))
    ends = [i for i, (_, name) in enumerate(names) if i not in known and is_end(name) and any(j > i for j in known)]
    if wrong:
        i, j = wrong[0]
        values = f"{found.unit} {found.values[i]:,} before {found.values[j]:,}"
        said = f"{label(opened[i])} comes before {label(opened[j])}, {values}"
    elif ends:
        said = f"{label(opened[ends[0]])} comes before {label(opened[ends[0] + 1])}"
    else:
        return []
    text = (
        f"the order given contradicts the numbers in names: {said}. All measures depend on the order: leave out "
        'order="given" (--order given), or name the files one by one in the order in which they were written.'
    )
    return [Finding("order", text)]


def _epochs(checkpoints: Sequence[Checkpoint], steps: Sequence[int], clock: Clock | None) -> NDArray[np.float64]:
    """Return completed epochs, fractional within one; all of them are taken to be of one length."""
    if clock is not None and clock.unit == "epoch":
        return np.array(clock.values, dtype=np.float64)
    known = [(step, c.epoch) for step, c in zip(steps, checkpoints, strict=True) if c.epoch and step]
    if not known:
        return np.zeros(len(steps))
    per_step = np.float64(known[-1][1] or 0) / known[-1][0]
    epochs = [per_step * step if not c.epoch else c.epoch for step, c in zip(steps, checkpoints, strict=True)]
    return np.array(epochs, dtype=np.float64)
