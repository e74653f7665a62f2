"""Selections of blocks: by role, by layer, by name, by glob patterns, or by a predicate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from lightning_traj.blocks.block import Block
from lightning_traj.blocks.names import enclosing

Patterns = str | Sequence[str]
Select = str | Callable[[Block], bool] | None


def matches(name: str, patterns: Patterns) -> bool:
    """Whether a name equals one of the glob patterns, or matches one."""
    return any(name == pattern or fnmatchcase(name, pattern) for pattern in _as_list(patterns))


def is_wanted(names: Iterable[str], include: Patterns | None, exclude: Patterns | None) -> bool:
    """Whether something with these names is recorded: it is included by one of them, and excluded by none.

    Args:
        names: Names of one parameter or part.
        include: Patterns of names to record. None includes all.
        exclude: Patterns of names to leave out.
    """
    names = list(names)
    included = include is None or any(matches(name, include) for name in names)
    return included and not (exclude is not None and any(matches(name, exclude) for name in names))


def check_is_patterns(argument: str, patterns: object) -> None:
    """Raise TypeError unless the value of an argument is a pattern, a sequence of patterns, or None."""
    listed = [] if patterns is None else [patterns] if isinstance(patterns, str | bytes) else patterns
    # Any sequence is accepted, since OmegaConf has lists of its own.
    if not isinstance(listed, Sequence) or not all(isinstance(pattern, str) for pattern in listed):
        raise TypeError(f'{argument}={patterns!r}: pass a glob pattern such as "*.weight", a list of them, or None.')


def check_patterns(argument: str, patterns: Patterns | None, names: Iterable[str]) -> None:
    """Raise ValueError if a pattern matches no name.

    Args:
        argument: Name of the argument that holds the patterns, for the message.
        patterns: Glob patterns.
        names: All names that patterns can match.
    """
    names = list(names)
    for pattern in () if patterns is None else _as_list(patterns):
        if not any(matches(name, pattern) for name in names):
            close = get_close_matches(pattern.strip("*"), names, n=3)
            hint = f"close to it: {', '.join(map(repr, close))}; " if close else ""
            raise ValueError(
                f"{argument}={patterns!r}: {pattern!r} matches none of the parameters; {hint}{_listing('name', names)}"
            )


def plain_patterns(patterns: Patterns | None) -> str | list[str] | None:
    """Return patterns as a str, a list or None, whatever kind of sequence they are."""
    return patterns if patterns is None or isinstance(patterns, str) else list(patterns)


def select_blocks(blocks: Sequence[Block], select: Select, argument: str = "select") -> list[int]:
    """Return the indices of the selected blocks.

    Args:
        blocks: The blocks to choose from.
        select: ``"role:q"``, ``"layer:h.3"`` (that module and all in it), a glob over block names, or a predicate over
            blocks. A bare word is tried as a role, then as a layer, then as a glob. None selects all blocks.
        argument: Name of the argument in error messages.

    Raises:
        ValueError: No block is selected; the message lists the roles, layers and names.
        TypeError: ``select`` is neither a string, a predicate nor None.
    """
    if select is None:
        return list(range(len(blocks)))
    if callable(select):
        chosen = [i for i, block in enumerate(blocks) if select(block)]
    elif isinstance(select, str):
        chosen = _select_by_text(blocks, select)
    else:
        raise TypeError(f'{argument}={select!r}: pass "role:…", "layer:…", a glob over block names, or a predicate.')
    if not chosen:
        known = {
            "role": (block.role for block in blocks),
            "layer": (block.layer for block in blocks),
            "name": (block.name for block in blocks),
        }
        listing = "; ".join(_listing(kind, values) for kind, values in known.items())
        raise ValueError(f"{argument}={select!r} matches none of {len(blocks)} blocks; {listing}")
    return chosen


def _select_by_text(blocks: Sequence[Block], select: str) -> list[int]:
    kind, _, value = select.partition(":")
    tests: Mapping[str, Callable[[Block], bool]] = {
        "role": lambda block: block.role == value,
        "layer": lambda block: value in enclosing(block.layer),
    }
    if kind in tests and ":" in select:
        return [i for i, block in enumerate(blocks) if tests[kind](block)]
    for test in (
        lambda block: block.role == select,
        lambda block: select in enclosing(block.layer),
        # A part also has the name of its parameter: "*.weight" selects all weights, fused or not.
        lambda block: matches(block.name, select) or matches(block.name.rpartition(":")[0], select),
    ):
        if chosen := [i for i, block in enumerate(blocks) if test(block)]:
            return chosen
    return []


def _as_list(patterns: Patterns) -> Sequence[str]:
    return [patterns] if isinstance(patterns, str) else patterns


def _listing(kind: str, values: Iterable[str], limit: int = 12) -> str:
    unique = list(dict.fromkeys(repr(value) for value in values))
    more = f", … ({len(unique)} in all)" if len(unique) > limit else ""
    return f"{kind}s: {', '.join(unique[:limit])}{more}"
