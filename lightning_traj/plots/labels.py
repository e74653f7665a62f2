"""Names of modules and blocks, made to fit on figures."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations, pairwise

from lightning_traj.text import cut

LONGEST = 24  # letters of the longest name that is written out


def shortened(names: Sequence[str], most: int = LONGEST) -> list[str]:
    """Different names without the modules that they all lie in, and without the middle of what is still too long.

    They stay different, and keep all their numbers, even if that takes more than ``most`` letters.
    """
    parts = [name.split(".") for name in names]
    shared = 0
    while len(names) > 1 and all(
        len(some) > shared + 1
        and some[shared] == parts[0][shared]
        and not some[shared + 1][:1].isdigit()
        and not re.search(r"\d", some[shared])
        for some in parts
    ):
        shared += 1
    return apart([".".join(some[shared:]) or "(root)" for some in parts], cut, most)


def apart(names: Sequence[str], short: Callable[[str, int], str], most: int) -> list[str]:
    """Different names made ``short``, to so many letters, or to more where they would be the same."""
    labels = [short(name, most) for name in names]
    count = Counter(labels)
    alike = [i for i, label in enumerate(labels) if count[label] > 1]
    if alike and most < max(len(names[i]) for i in alike):
        for i, longer in zip(alike, apart([names[i] for i in alike], short, most + 2), strict=True):
            labels[i] = longer
    return labels


def in_lines(name: str, most: int) -> str:
    """A block's name, in two or three lines if it is long, and cut only where that isn't enough."""
    if len(name) <= most:
        return name
    dots = [match.end() for match in re.finditer(r"\.(?!\d)", name)] or [most]
    for breaks in range(1, min(2, len(dots)) + 1):
        ways = ([0, *places, len(name)] for places in combinations(dots, breaks))
        lines = min(([name[i:j] for i, j in pairwise(way)] for way in ways), key=lambda lines: max(map(len, lines)))
        if max(map(len, lines)) <= most:
            break
    return "\n".join(cut(line, most) for line in lines)


def stacks_of(names: Sequence[str]) -> dict[str, dict[str, int]]:
    """Indices of names that differ in numbers alone, by the name with a star for these, and by the numbers.

    The number of the last module isn't one of them unless it is all of its name: ``attn1`` and ``attn2`` of a block
    are different things.
    """
    groups: dict[str, list[tuple[list[str], int]]] = {}
    for i, name in enumerate(names):
        pieces = re.split(r"(\d+(?=.*\.)|(?<=\.)\d+$|^\d+$)", name)
        pattern = "*".join(pieces[::2])
        groups.setdefault(pattern, []).append((pieces, i))
    found: dict[str, dict[str, int]] = {}
    for members in groups.values():
        varying = [place for place in range(1, len(members[0][0]), 2) if len({p[place] for p, _ in members}) > 1]
        pattern = "".join("*" if place in varying else piece for place, piece in enumerate(members[0][0]))
        found[pattern] = {".".join(pieces[place] for place in varying): i for pieces, i in members}
    return found
