"""Shortening names of modules and blocks so that they fit on figures."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations, pairwise

from lightning_traj.text import cut

LONGEST = 24  # letters; longer names are cut


def shortened(names: Sequence[str], most: int = LONGEST) -> list[str]:
    """Return names without the modules that contain all of them, and cut in the middle if they are still too long.

    Different names stay different, and keep all their numbers, even if that takes more than `most` letters.
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
    """Return names shortened to `most` letters by the function `short`, or to more where they would become the same."""
    labels = [short(name, most) for name in names]
    count = Counter(labels)
    alike = [i for i, label in enumerate(labels) if count[label] > 1]
    if alike and most < max(len(names[i]) for i in alike):
        for i, longer in zip(alike, apart([names[i] for i in alike], short, most + 2), strict=True):
            labels[i] = longer
    return labels


def in_lines(name: str, most: int) -> str:
    """Return the name of a block in up to three lines of `most` letters each; parts that are longer are cut."""
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
    """Return the indices of names, grouped into stacks of names that differ only in numbers.

    A number at the end of the last module counts only if it is the whole name of that module, because ``attn1`` and
    ``attn2`` of a block are different things.

    Returns:
        {name with a star for each number that differs: {numbers that differ: index}}.
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
