"""Dates of the checkpoints in a series, from the files or from the numbers in their names.

The rule, for a series of files whose tensors are alike: each of these sources dates some of the files, and the one that
tells most of them apart is taken, the first of equals.

1. Optimizer steps that the file says, or else its name in so many words (``step=100``, ``iter_100``).
2. Epochs that the file or its name says.
3. The only number of a name that begins with ``checkpoint`` or ``ckpt`` or consists of nothing else.
4. The number that varies in the names: ``names.counter``.

A file that this source does not date is taken for step 0 if its name says so (``init``, ``untrained``), and is left out
otherwise (``best``, ``final``). Findings tell what was guessed, and where steps in files contradict their names.
"""

from __future__ import annotations

import re
from collections import Counter as Tally
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from lightning_traj.checkpoints.clock import Clock
from lightning_traj.checkpoints.duplicates import are_equal
from lightning_traj.checkpoints.findings import label
from lightning_traj.checkpoints.formats.checkpoint import Checkpoint
from lightning_traj.checkpoints.formats.opening import folder_and_name
from lightning_traj.checkpoints.names import Counter, Number, counter, is_start, other_counts, parse, settings
from lightning_traj.trajectory import Finding


@dataclass(frozen=True)
class Dates:
    """Dates of checkpoints, as far as they are known.

    Attributes:
        unit: ``"step"``, ``"epoch"``, or ``"number"`` if the names tell neither.
        values: Date of each checkpoint; None if it is not known.
        notes: Findings about guessed dates.
    """

    unit: Literal["step", "epoch", "number"]
    values: tuple[int | float | None, ...]
    notes: tuple[Finding, ...] = ()

    @property
    def known(self) -> list[int]:
        """Indices of the checkpoints whose date is known."""
        return [i for i, value in enumerate(self.values) if value is not None]

    def clock(self, indices: Sequence[int]) -> Clock:
        """Return the dates of some checkpoints, which must all be known."""
        values = tuple(value for i in indices if (value := self.values[i]) is not None)
        return Clock("epoch" if self.unit == "epoch" else "step", values, self.unit == "number")


@dataclass(frozen=True)
class Family:
    """Two or more checkpoints of a folder whose names are alike but for their numbers.

    Attributes:
        name: Common part of the names: words, and numbers that do not vary.
        members: Indices of the checkpoints.
        pattern: The texts around the numbers.
        counter: The number that orders them; None where none can.
    """

    name: str
    members: tuple[int, ...]
    pattern: tuple[str, ...]
    counter: Counter | None


def families(checkpoints: Sequence[Checkpoint]) -> list[Family]:
    """Group checkpoints by their folders and names; those that are alone with theirs are in no family.

    Numbers that are set for a run (``seed0_epoch3``) make families of their own, and so do others where the number that
    orders the files repeats (``model_1_10`` and ``model_2_10``).
    """
    named = checkpoint_names(checkpoints)
    parsed = [parse(name) for _, name in named]
    times = [_written(checkpoint.path) for checkpoint in checkpoints]
    alike: dict[Any, list[int]] = {}
    for i, ((folder, _), (pattern, numbers)) in enumerate(zip(named, parsed, strict=True)):
        alike.setdefault((folder, pattern, *settings([numbers])), []).append(i)
    found = []
    for (folder, pattern, _), members in alike.items():
        rows = [parsed[i][1] for i in members]
        chosen = counter(rows, [times[i] for i in members]) if len(members) > 1 else None
        parts: dict[Any, list[int]] = {}
        repeats = chosen is not None and len(set(chosen.values)) < len(members)
        others = other_counts(rows, chosen.column) if chosen and repeats else [()] * len(members)
        for i, other in zip(members, others, strict=True):
            parts.setdefault(other, []).append(i)
        if max(map(len, parts.values())) == 1:
            parts = {(): members}
        for part in parts.values():
            if len(part) > 1:
                rows = [parsed[i][1] for i in part]
                chosen = counter(rows, [times[i] for i in part])
                found.append(Family(_stem(pattern, rows) or folder.absolute().name, tuple(part), pattern, chosen))
    return found


def shared_name(checkpoints: Sequence[Checkpoint]) -> str:
    """Return what the names of most of these checkpoints share, for use as the name of their series."""
    listed = families(checkpoints)
    if listed:
        return max(listed, key=lambda family: len(family.members)).name
    folder, name = checkpoint_names(checkpoints)[0]
    return re.sub(r"(?:[^\w.]|_)+", "_", name).strip("_.") or folder.absolute().name


def _stem(pattern: Sequence[str], rows: Sequence[Sequence[Number]]) -> str:
    """Join the words of names and the numbers that do not vary with underscores."""
    columns = [{number.text for number in column} for column in zip(*rows, strict=True)]
    numbers = ["".join(texts) if len(texts) == 1 else " " for texts in columns]
    text = "".join(piece + number for piece, number in zip(pattern, [*numbers, ""], strict=True))
    return re.sub(r"(?:[^\w.]|_)+", "_", text).strip("_.")


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def checkpoint_names(checkpoints: Sequence[Checkpoint]) -> list[tuple[Path, str]]:
    """Return the folder and the name of each checkpoint.

    Names without a number that files share, each of them alone in its folder, have the folder's before them
    (``epoch_1/weights``), and so has the name that all share.
    """
    named = [folder_and_name(c.path) for c in checkpoints]
    in_folder = Tally(folder for folder, _ in named)
    sharing = Tally(name for folder, name in named if in_folder[folder] == 1)

    def is_told_by_folder(folder: Path, name: str) -> bool:
        shared_by_all = sharing[name] == len(named)
        return in_folder[folder] == 1 < sharing[name] and (shared_by_all or not any(map(str.isdigit, name)))

    return [
        (folder.parent, f"{folder.name}/{name}") if is_told_by_folder(folder, name) else (folder, name)
        for folder, name in named
    ]


def dates(checkpoints: Sequence[Checkpoint]) -> Dates:
    """Date checkpoints of one series, by the rule of this module."""
    counted = _by_counter(checkpoints)
    candidates = [
        Dates("step", tuple(c.step for c in checkpoints)),
        Dates("epoch", tuple(c.epoch if c.step is None else None for c in checkpoints)),
        Dates("number", tuple(c.number if c.step is None else 0 if c.step == 0 else None for c in checkpoints)),
        *([counted] if counted else []),
    ]
    best = max(candidates, key=lambda some: len({some.values[i] for i in some.known}))
    notes = best.notes or (*_notes(best, checkpoints), *_contradicted(best, checkpoints))
    return _with_start(replace(best, notes=notes), checkpoints)


def _contradicted(found: Dates, checkpoints: Sequence[Checkpoint]) -> list[Finding]:
    """Say where the steps of files contradict the numbers in their names, as those do that start anew in each epoch."""
    having = [family for family in families(checkpoints) if family.counter is not None]
    if found.unit != "step" or not having:
        return []
    largest = max(having, key=lambda family: len(family.members))
    assert largest.counter is not None
    numbers = dict(zip(largest.members, largest.counter.values, strict=True))
    in_order = sorted((step, number, i) for i, number in numbers.items() if (step := found.values[i]) is not None)
    for (step, number, i), (later, smaller, j) in pairwise(in_order):
        if smaller < number and later > step:
            text = (
                f"the steps in the files contradict the numbers in their names: {label(checkpoints[i])} is of step "
                f"{step:,}, and {label(checkpoints[j])} of step {later:,}. All measures depend on the order, which is "
                'that of the steps: if they start anew in each epoch, name the files in order, with order="given" '
                "(--order given)."
            )
            return [Finding("order", text)]
    return []


def _by_counter(checkpoints: Sequence[Checkpoint]) -> Dates | None:
    """Date the largest family, and others with the same pattern, by the number that varies in their names."""
    having = [family for family in families(checkpoints) if family.counter is not None]
    if not having:
        return None
    largest = max(having, key=lambda family: len(family.members))
    values: list[int | float | None] = [0 if c.step == 0 else None for c in checkpoints]
    for family in having:
        if family.pattern == largest.pattern and family.counter and largest.counter:
            for i, value in zip(family.members, family.counter.values, strict=True):
                values[i] = value
    assert largest.counter is not None
    return Dates(largest.counter.unit, tuple(values), (Finding("guess", _guess(largest, checkpoints)),))


def _guess(family: Family, checkpoints: Sequence[Checkpoint]) -> str:
    chosen = family.counter
    assert chosen is not None
    first = checkpoints[family.members[0]]
    where = f"{chosen.example} in {label(first)}"
    if chosen.ranked:
        return f"the names give the order (such as {where}), but no steps: checkpoints are counted from 0."
    counts = {"step": "steps", "epoch": "epochs", "number": "steps, though they may be epochs"}[chosen.unit]
    among = "the one of several numbers in the names that counts best" if chosen.others else "the number in the names"
    return f"the order is that of {among}, such as {where}; it is taken to count {counts}."


def _notes(found: Dates, checkpoints: Sequence[Checkpoint]) -> tuple[Finding, ...]:
    if found.unit == "epoch":
        return (Finding("guess", "steps are not known, epochs are: these are counted as steps."),)
    if found.unit == "number" and (guessed := [c for c in checkpoints if c.step is None and c.number is not None]):
        example = label(guessed[0])
        text = f"steps are guessed from the numbers of names, such as {example}: they may be epochs."
        return (Finding("guess", text),)
    return ()


def _with_start(found: Dates, checkpoints: Sequence[Checkpoint]) -> Dates:
    """Return the dates with 0 for undated files that are called ``init`` or the like."""
    if not found.known:
        return found
    named = checkpoint_names(checkpoints)
    starts = [i for i, value in enumerate(found.values) if value is None and is_start(named[i][1])]
    if not starts:
        return found
    values, notes = list(found.values), list(found.notes)
    first = label(checkpoints[starts[0]])
    if found.unit != "step" and 0 in values and not are_equal(checkpoints[values.index(0)], checkpoints[starts[0]]):
        values = [None if value is None else value + 1 for value in values]  # epoch 0 was the first one
        text = f"{first} is taken for step 0, and the others are counted from 1: one of them is called 0."
    else:
        text = f"{first} is taken for step 0, as its name says."
    notes.append(Finding("guess", text))
    for i in starts:
        values[i] = 0
    return replace(found, values=tuple(values), notes=tuple(notes))


def split_runs(checkpoints: Sequence[Checkpoint]) -> list[list[int]]:
    """Split checkpoints with the same tensors into runs, by their names.

    Two families of names are of several runs, or of a run and its average, if they repeat a date with other weights, or
    if nothing dates both alike (``G_10.pth`` and ``D_10.pth``). A file of no family goes with the one that its name
    recalls, or else with the largest.

    Returns:
        Indices of the checkpoints of each run.
    """
    listed = families(checkpoints)
    if len(listed) < 2:
        return [list(range(len(checkpoints)))]
    together = dates(checkpoints).values
    own = [
        {
            value: i
            for i, value in zip(family.members, dates([checkpoints[i] for i in family.members]).values, strict=True)
        }
        for family in listed
    ]
    found: list[list[int]] = []  # of families
    for f, family in enumerate(listed):
        for run in found:
            if any(_is_one_run(checkpoints, together, family, listed[g], own[f], own[g]) for g in run):
                run.append(f)
                break
        else:
            found.append([f])
    members = [[i for f in run for i in listed[f].members] for run in found]
    sizes = [len(some) for some in members]
    named = checkpoint_names(checkpoints)
    for i in sorted(set(range(len(checkpoints))).difference(*members)):
        recalled = [max(len(listed[f].name) if listed[f].name in named[i][1] else 0 for f in run) for run in found]
        members[max(range(len(found)), key=lambda r: (recalled[r], sizes[r], -r))].append(i)
    return [sorted(some) for some in members]


def _is_one_run(
    checkpoints: Sequence[Checkpoint],
    together: Sequence[int | float | None],
    one: Family,
    other: Family,
    ones: Mapping[int | float | None, int],
    others: Mapping[int | float | None, int],
) -> bool:
    if shared := [value for value in ones if value is not None and value in others]:
        last = max(shared)
        return are_equal(checkpoints[ones[last]], checkpoints[others[last]])
    is_dated = [any(together[i] is not None for i in family.members) for family in (one, other)]
    return all(is_dated) or not (
        any(value is not None for value in ones) and any(value is not None for value in others)
    )
