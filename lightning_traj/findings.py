"""What is wrong with a series of checkpoints, in sentences.

Some of it can be seen before anything is read (``in_files``), some only in the trajectory (``in_trajectory``).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_traj.blocks import flat_range
from lightning_traj.formats import Checkpoint
from lightning_traj.labels import in_words
from lightning_traj.trajectory import Trajectory

MOST = 4  # names in a sentence
REGULAR = 0.6  # share of the gaps between steps that have to be alike for a longer one to be a hole
FAR = 3.0  # times as far from both neighbours as they are from each other
AVERAGED_IN_NAME = re.compile(r"(?:^|[^a-z])(?:ema|swa|averaged?)(?:$|[^a-z])", re.IGNORECASE)
COMPARED = 2**20  # entries that are compared at once
EQUAL = 1e-12  # of the largest squared displacement: snapshots that are closer may be equal, which is then looked up


@dataclass(frozen=True)
class Clock:
    """When checkpoints were written.

    Attributes:
        unit: ``"step"`` or ``"epoch"``.
        values: Of the checkpoints, in their order.
        guessed: Whether some of them are bare numbers of names.
    """

    unit: str
    values: tuple[int, ...]
    guessed: bool = False

    @property
    def increases(self) -> bool:
        """Whether the order is that of time."""
        return all(before < after for before, after in pairwise(self.values))


def clock(checkpoints: Sequence[Checkpoint]) -> Clock | None:
    """When checkpoints were written, all in one unit: steps, else epochs, else numbers; None if not known."""
    for unit, values, guessed in (
        ("step", [c.step for c in checkpoints], False),
        ("epoch", [c.epoch if c.step is None else None for c in checkpoints], False),
        ("step", [c.number if c.step is None else c.step for c in checkpoints], True),
    ):
        known = [value for value in values if value is not None]
        if known and len(known) == len(values):
            return Clock(unit, tuple(known), guessed)
    return None


def in_files(checkpoints: Sequence[Checkpoint], names: Collection[str]) -> list[str]:
    """A late start, averaged weights among raw ones, steps left out, mixed precisions, parameters that come or go.

    Args:
        checkpoints: In order.
        names: Of the parameters.
    """
    when = clock(checkpoints)
    return [*_start(when), *_averaged(checkpoints), *_gaps(when), *_precisions(checkpoints, names)]


def in_trajectory(trajectory: Trajectory, checkpoints: Sequence[Checkpoint], names: Collection[str]) -> list[str]:
    """Checkpoints that hold the same weights, and ones that lie far off the path of their neighbours.

    Args:
        trajectory: Of these checkpoints, none left out.
        checkpoints: In order.
        names: Of the parameters.
    """
    squares = _squared_distances(trajectory)
    return [*_duplicates(squares, checkpoints, names), *_off_the_path(squares, checkpoints)]


def changed_shapes(checkpoints: Sequence[Checkpoint], names: Iterable[str]) -> dict[str, str]:
    """Parameters whose shape is not the same in all checkpoints that have them, each with a sentence."""
    found = {}
    shapes = [checkpoint.shapes for checkpoint in checkpoints]
    for name in names:
        seen: dict[tuple[int, ...], str] = {}
        for checkpoint, tensors in zip(checkpoints, shapes, strict=True):
            if name in tensors:
                seen.setdefault(tuple(tensors[name].shape), label(checkpoint))
        if len(seen) > 1:
            sizes = " and ".join(f"{list(shape)} ({first})" for shape, first in seen.items())
            found[name] = f"{name} changes its shape, and is left out: {sizes}."
    return found


def tied(checkpoints: Sequence[Checkpoint], names: Iterable[str]) -> dict[str, str]:
    """Matrices that are saved twice: {second name: first name}. They hold the same entries in every checkpoint.

    Constant ones (zeros that were never trained, say) are not called tied.
    """
    last = checkpoints[-1]
    alike: dict[tuple[object, ...], list[str]] = {}
    for name in names:
        if name in last.shapes and last.shapes[name].ndim > 1:
            tensor = last.read(name)
            start = _bits(tensor, 0, min(64, tensor.numel())).numpy().tobytes()
            alike.setdefault((tuple(tensor.shape), tensor.dtype, start), []).append(name)
    found = {}
    for members in alike.values():
        firsts: list[str] = []
        for name in members if len(members) > 1 else ():
            if _is_constant(last.read(name)):
                continue
            first = next((first for first in firsts if _tied(checkpoints, first, name)), None)
            if first is None:
                firsts.append(name)
            else:
                found[name] = first
    for checkpoint in checkpoints if found else [last]:
        checkpoint.release()
    return found


def label(checkpoint: Checkpoint) -> str:
    """A checkpoint in a sentence: its name, and its folder's where the name alone says little."""
    path = checkpoint.path
    return path.name if any(c.isdigit() for c in path.name) or path.is_dir() else f"{path.parent.name}/{path.name}"


# Before anything is read ------------------------------------------------------------------------------------


def _start(when: Clock | None) -> list[str]:
    if when is None or not when.increases or (when.unit == "step" and when.values[0] == 0):
        return []
    first = f"{when.unit} {when.values[0]:,}"
    known = "may not be" if when.values[0] == 0 else "is not"  # epoch 0 is the end of the first one in many files
    return [
        f"the first checkpoint is of {first}: what is called θ_0 here {known} initialisation; displacement, relative "
        f"maps, turn and saturation are from {first} on (save one before the first step)."
    ]


def _averaged(checkpoints: Sequence[Checkpoint]) -> list[str]:
    averaged = [label(c) for c in checkpoints if c.averaged or AVERAGED_IN_NAME.search(c.path.name)]
    if not averaged or len(averaged) == len(checkpoints):
        return []
    return [f"{_listed(averaged)} averaged weights among raw ones: angles to and from them say nothing of training."]


def _gaps(when: Clock | None) -> list[str]:
    if when is None or not when.increases or len(when.values) < 4:
        return []
    gaps = np.diff(when.values).tolist()
    usual, count = Counter(gaps).most_common(1)[0]
    if count < REGULAR * len(gaps):
        return []
    apart = f"{usual:,} {when.unit}{'s' if usual > 1 else ''} apart"
    return [
        f"no checkpoint between {when.unit} {before:,} and {after:,}, where others are {apart}."
        for before, after in pairwise(when.values)
        if after - before > usual and (after - before) % usual == 0
    ]


def _precisions(checkpoints: Sequence[Checkpoint], names: Collection[str]) -> list[str]:
    found = []
    counts: dict[str, list[str]] = {}
    everywhere = set(names)
    for checkpoint in checkpoints:
        shapes = checkpoint.shapes
        dtypes = sorted({str(shapes[name].dtype).removeprefix("torch.") for name in names if name in shapes})
        counts.setdefault(" and ".join(dtypes), []).append(label(checkpoint))
        everywhere &= set(shapes)
    if len(counts) > 1:
        parts = "; ".join(f"{dtypes} in {in_words(which, MOST)}" for dtypes, which in counts.items())
        found.append(f"precisions are mixed: {parts}. Rounding adds to the updates between them.")
    if partly := [name for name in names if name not in everywhere]:
        found.append(
            f"{_listed(partly)} not in every checkpoint: where missing, taken as in the one before, or as at first."
        )
    return found


# In the trajectory ------------------------------------------------------------------------------------------


def _squared_distances(trajectory: Trajectory) -> NDArray[np.float64]:
    """‖θ_i − θ_j‖² over all blocks, [n, n]; 0 where rounding leaves no more than a guess."""
    gram = trajectory.displacement_gram(lambda _: True)
    norms = np.diag(gram)
    distances: NDArray[np.float64] = norms[:, None] + norms[None, :] - 2 * gram
    return np.where(distances > EQUAL * norms.max(), distances, 0.0)


def _duplicates(squares: NDArray[np.float64], checkpoints: Sequence[Checkpoint], names: Collection[str]) -> list[str]:
    groups: list[list[int]] = []
    for j in range(len(checkpoints)):
        for group in groups:
            if squares[group[0], j] == 0 and _same(checkpoints[group[0]], checkpoints[j], names):
                group.append(j)
                break
        else:
            groups.append([j])
    return [
        f"{in_words([label(checkpoints[i]) for i in group], MOST)} hold exactly the same weights."
        for group in groups
        if len(group) > 1
    ]


def _off_the_path(squares: NDArray[np.float64], checkpoints: Sequence[Checkpoint]) -> list[str]:
    found = []
    for i in range(1, len(checkpoints) - 1):
        near = min(squares[i - 1, i], squares[i, i + 1])
        if near > FAR**2 * squares[i - 1, i + 1] > 0:
            ratio = np.sqrt(near / squares[i - 1, i + 1])
            found.append(
                f"{label(checkpoints[i])} lies off the path: it is {ratio:.3g} times as far from its neighbours as "
                "they are from each other. It may be averaged, damaged, or of another run."
            )
    return found


def _same(one: Checkpoint, other: Checkpoint, names: Collection[str]) -> bool:
    shared = [name for name in names if name in one.shapes]
    return all(name in other.shapes and _equal(one, name, other, name) for name in shared)


def _tied(checkpoints: Sequence[Checkpoint], first: str, other: str) -> bool:
    having = [checkpoint for checkpoint in checkpoints if {first, other} <= checkpoint.shapes.keys()]
    return all(_equal(checkpoint, first, checkpoint, other) for checkpoint in reversed(having))


def _equal(one: Checkpoint, name: str, other: Checkpoint, other_name: str) -> bool:
    """Bit by bit: where damaged ones hold NaN, too."""
    first, second = one.read(name), other.read(other_name)
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    if first.data_ptr() == second.data_ptr() and first.stride() == second.stride():
        return True  # torch.save writes what is shared once
    return all(torch.equal(_bits(first, *part), _bits(second, *part)) for part in _parts(first.numel()))


def _is_constant(tensor: Tensor) -> bool:
    first = _bits(tensor, 0, 1)
    return all(bool((_bits(tensor, *part).view(-1, len(first)) == first).all()) for part in _parts(tensor.numel()))


def _bits(tensor: Tensor, start: int, stop: int) -> Tensor:
    entries = flat_range(tensor, start, stop).resolve_conj().resolve_neg()
    return entries.contiguous().as_strided((len(entries),), (1,)).view(torch.uint8)  # a single entry has any stride


def _parts(size: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + COMPARED, size)) for start in range(0, size, COMPARED))


def _listed(names: Sequence[str]) -> str:
    return f"{in_words(names, MOST)} {'is' if len(names) == 1 else 'are'}"
