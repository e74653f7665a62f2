"""Names of modules and blocks, made to fit on figures."""

from __future__ import annotations

import re
from collections.abc import Sequence

LONGEST = 24  # letters of the longest name that is written out


def shortened(names: Sequence[str], most: int = LONGEST) -> list[str]:
    """Names without the modules that they all lie in, and without the middle of what is still too long."""
    parts = [name.split(".") for name in names]
    shared = 0
    while len(names) > 1 and all(
        len(some) > shared + 1 and some[shared] == parts[0][shared] and not some[shared + 1][0].isdigit()
        for some in parts
    ):
        shared += 1
    return [cut(".".join(some[shared:]) or "(root)", most) for some in parts]


def cut(name: str, most: int) -> str:
    """A name without its middle, if it has more than so many letters."""
    ends = most // 2
    return name if len(name) <= most else f"{name[: most - ends - 1]}…{name[-ends:]}"


def in_lines(name: str, most: int) -> str:
    """A block's name, in two lines if it is long, and cut only where that isn't enough."""
    if len(name) <= most:
        return name
    dots = [match.end() for match in re.finditer(r"\.(?!\d)", name)] or [most]
    first = min(dots, key=lambda place: abs(2 * place - len(name)))
    return f"{cut(name[:first], most)}\n{cut(name[first:], most)}"


def numbered(names: Sequence[str]) -> tuple[list[str], str]:
    """Names that differ in one number: these numbers, and what they number; others shortened, and nothing."""
    parts = [name.split(".") for name in names]
    if len({len(some) for some in parts}) == 1:
        differing = [place for place, found in enumerate(zip(*parts, strict=True)) if len(set(found)) > 1]
        if len(differing) == 1 and all(some[differing[0]].isdigit() for some in parts):
            pattern = [*parts[0][: differing[0]], "*", *parts[0][differing[0] + 1 :]]
            return [some[differing[0]] for some in parts], ".".join(pattern)
    return shortened(names), ""
