"""Flaws of a series of checkpoints.

Some can be seen before anything is read (``in_files``), others only in the trajectory (``in_trajectory``).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from lightning_traj.checkpoints.clock import Clock
from lightning_traj.checkpoints.duplicates import same_weights
from lightning_traj.checkpoints.formats.checkpoint import Checkpoint
from lightning_traj.checkpoints.formats.weight_folders import one_of_several
from lightning_traj.checkpoints.names import is_start
from lightning_traj.text import join_names
from lightning_traj.trajectory import Finding, Trajectory

MOST = 4  # names in a sentence
REGULAR = 0.6  # share of the gaps between steps that have to be alike for a longer one to be a hole
FAR = 3.0  # times as far from both neighbours as they are from each other
AVERAGED_IN_NAME = re.compile(r"(?:^|[^a-z])(?:ema|swa|averaged?)(?:$|[^a-z])", re.IGNORECASE)
_AT_MOST = {"extent": "these are from each other", "longest": "any two neighbours are from each other"}
EQUAL = 1e-12  # of the largest squared displacement: snapshots that are closer may be equal, which is then looked up


def in_files(checkpoints: Sequence[Checkpoint], names: Collection[str], when: Clock | None) -> list[Finding]:
    """Find a late start, averaged weights among raw ones, gaps, mixed precisions, and parameters that come or go.

    Args:
        checkpoints: Checkpoints of a series, in order.
        names: Names of the parameters.
        when: When the checkpoints were written; None if that is not known.
    """
    return [
        *_start(when, checkpoints[0].path.stem),
        *_averaged(checkpoints),
        *_gaps(when),
        *_precisions(checkpoints, names),
    ]


def in_trajectory(trajectory: Trajectory, checkpoints: Sequence[Checkpoint], names: Collection[str]) -> list[Finding]:
    """Find checkpoints that hold the same weights, and ones that lie far off the path of their neighbours.

    Args:
        trajectory: Trajectory of these checkpoints, none left out.
        checkpoints: Checkpoints of a series, in order.
        names: Names of the parameters.
    """
    squares = _squared_distances(trajectory)
    return [*_duplicates(squares, checkpoints, names), *_off_the_path(squares, trajectory.steps, checkpoints)]


def objects_left_out(checkpoints: Sequence[Checkpoint]) -> list[Finding]:
    """Count the objects in the files that were not read, by class; empty if there are none."""
    counts: Counter[str] = Counter()
    for checkpoint in checkpoints:
        counts.update(checkpoint.objects)
    if not counts:
        return []
    objects = f"{counts.total():,} object{'s' if counts.total() > 1 else ''}"
    classes = f"{len(counts)} class{'es' if len(counts) > 1 else ''}"
    kinds = join_names([kind for kind, _ in counts.most_common()], MOST)
    were = "were" if counts.total() > 1 else "was"
    return [Finding("objects", f"{objects} of {classes} beside the tensors {were} left out: {kinds}.")]


def unread_tensors(checkpoints: Sequence[Checkpoint]) -> list[Finding]:
    """Name the tensors in state dicts that cannot be read, such as quantised ones."""
    unread: dict[str, str] = {}
    for checkpoint in checkpoints:
        unread |= checkpoint.unread
    if not unread:
        return []
    kinds = join_names(sorted(set(unread.values())), MOST)
    return [Finding("parameters", f"{_listed(list(unread))} left out: tensors of {kinds} cannot be read.")]


def changed_shapes(checkpoints: Sequence[Checkpoint], names: Iterable[str]) -> dict[str, Finding]:
    """Find parameters whose shape is not the same in all checkpoints that have them."""
    found = {}
    shapes = [checkpoint.shapes for checkpoint in checkpoints]
    for name in names:
        seen: dict[tuple[int, ...], str] = {}
        for checkpoint, tensors in zip(checkpoints, shapes, strict=True):
            if name in tensors:
                seen.setdefault(tuple(tensors[name].shape), label(checkpoint))
        if len(seen) > 1:
            sizes = " and ".join(f"{list(shape)} ({first})" for shape, first in seen.items())
            found[name] = Finding("parameters", f"{name} changes its shape, and is left out: {sizes}.")
    return found


def label(checkpoint: Checkpoint) -> str:
    """Return what a sentence calls a checkpoint: its name, and its folder's if the name alone says little."""
    path = checkpoint.path
    says_enough = any(letter.isdigit() for letter in path.name) and not one_of_several(path)
    return path.name if says_enough or path.is_dir() else f"{path.parent.name}/{path.name}"


# Before anything is read ------------------------------------------------------------------------------------


def _start(when: Clock | None, first_name: str) -> list[Finding]:
    if when is None or not when.increases:
        return []
    if when.values[0] == 0 and (when.unit == "step" or is_start(first_name)):
        return []
    first = f"{when.unit} {when.values[0]:,}"
    known = "may not be" if when.values[0] == 0 else "is not"  # epoch 0 is the end of the first one in many files
    return [
        Finding(
            "start",
            f"the first checkpoint is of {first}: what is called θ_0 here {known} initialisation; displacement, "
            f"relative maps, turn and saturation are from {first} on (save one before the first step).",
        )
    ]


def _averaged(checkpoints: Sequence[Checkpoint]) -> list[Finding]:
    averaged = [label(c) for c in checkpoints if c.averaged or AVERAGED_IN_NAME.search(c.path.name)]
    if not averaged or len(averaged) == len(checkpoints):
        return []
    listed = _listed(averaged)
    text = f"{listed} averaged weights among raw ones: angles to and from them say nothing of training."
    return [Finding("average", text)]


def _gaps(when: Clock | None) -> list[Finding]:
    if when is None or not when.increases or len(when.values) < 4:
        return []
    gaps = np.diff(when.values).tolist()
    usual, count = Counter(gaps).most_common(1)[0]
    if count < REGULAR * len(gaps):
        return []
    apart = f"{usual:,} {when.unit}{'s' if usual > 1 else ''} apart"
    return [
        Finding("gap", f"no checkpoint between {when.unit} {before:,} and {after:,}, where others are {apart}.")
        for before, after in pairwise(when.values)
        if after - before > usual and (after - before) % usual == 0
    ]


def _precisions(checkpoints: Sequence[Checkpoint], names: Collection[str]) -> list[Finding]:
    found = []
    counts: dict[str, list[str]] = {}
    everywhere = set(names)
    for checkpoint in checkpoints:
        shapes = checkpoint.shapes
        dtypes = sorted({str(shapes[name].dtype).removeprefix("torch.") for name in names if name in shapes})
        counts.setdefault(" and ".join(dtypes), []).append(label(checkpoint))
        everywhere &= set(shapes)
    if len(counts) > 1:
        parts = "; ".join(f"{dtypes} in {join_names(which, MOST)}" for dtypes, which in counts.items())
        text = f"precisions are mixed: {parts}. Rounding adds to the updates between them."
        found.append(Finding("precision", text))
    if partly := [name for name in names if name not in everywhere]:
        text = f"{_listed(partly)} not in every checkpoint: where missing, taken as in the one before, or as at first."
        found.append(Finding("missing", text))
    return found


# In the trajectory ------------------------------------------------------------------------------------------


def _squared_distances(trajectory: Trajectory) -> NDArray[np.float64]:
    """Return ‖θ_i − θ_j‖² over all blocks, [n, n]; 0 where rounding leaves no more than a guess."""
    gram = trajectory.displacement_gram(lambda _: True)
    norms = np.diag(gram)
    distances: NDArray[np.float64] = norms[:, None] + norms[None, :] - 2 * gram
    return np.where(distances > EQUAL * norms.max(), distances, 0.0)


def _duplicates(
    squares: NDArray[np.float64], checkpoints: Sequence[Checkpoint], names: Collection[str]
) -> list[Finding]:
    return [
        Finding(
            "duplicate", f"{join_names([label(checkpoints[i]) for i in group], MOST)} hold exactly the same weights."
        )
        for group in same_weights(checkpoints, squares == 0, names)
    ]


def _off_the_path(
    squares: NDArray[np.float64], steps: NDArray[np.int64], checkpoints: Sequence[Checkpoint]
) -> list[Finding]:
    found = []
    for i in range(1, len(checkpoints) - 1):
        near = min(squares[i - 1, i], squares[i, i + 1])
        if near > FAR**2 * squares[i - 1, i + 1] > 0:
            ratio = np.sqrt(near / squares[i - 1, i + 1])
            text = (
                f"{label(checkpoints[i])} lies off the path: it is {ratio:.3g} times as far from its neighbours as "
                "they are from each other. It may be averaged, damaged, or of another run."
            )
            found.append(Finding("off the path", text))
    return found + _ends_off_the_path(squares, steps, checkpoints)


def _ends_off_the_path(
    squares: NDArray[np.float64], steps: NDArray[np.int64], checkpoints: Sequence[Checkpoint]
) -> list[Finding]:
    """Say if the first or the last checkpoint is far from all others.

    The first one is compared with the largest distance between any two of the others, since training often moves fast
    at its beginning; the last one with the longest update before it. Where more steps lie between an end and its
    neighbour than in what it is compared with, its distance may be larger by that factor.
    """
    n = len(checkpoints)
    if n < 4:  # two or three say too little of what is usual
        return []
    found = []
    for end, others, reference in ((0, slice(1, None), "extent"), (n - 1, slice(None, -1), "longest")):
        rest = squares[others, others]
        near = squares[end, others].min()
        usual = rest.max() if reference == "extent" else np.diagonal(rest, 1).max()
        beside = 1 if end == 0 else n - 2
        span = steps[others]
        between = span[-1] - span[0] if reference == "extent" else np.diff(span).max()
        allowed = max(1.0, float(abs(steps[end] - steps[beside])) / max(1, int(between)))
        if near > (FAR * allowed) ** 2 * usual > 0:
            which = "first" if end == 0 else "last"
            ratio = np.sqrt(near / usual)
            text = (
                f"{label(checkpoints[end])}, the {which} checkpoint, lies off the path: it is {ratio:.3g} times as far "
                f"from all others as {_AT_MOST[reference]}. It may be averaged, damaged, or of another run."
            )
            found.append(Finding("off the path", text))
    return found


def _listed(names: Sequence[str]) -> str:
    return f"{join_names(names, MOST)} {'is' if len(names) == 1 else 'are'}"
