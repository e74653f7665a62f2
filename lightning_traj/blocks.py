"""Named parameters -> ordered, disjoint blocks: the pieces of the parameter vector that measures are made for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

Patterns = str | Sequence[str]
Select = str | Callable[["Block"], bool] | None


@dataclass(frozen=True)
class Block:
    """A disjoint piece of the parameter vector.

    Attributes:
        name: The parameter's qualified name, free of wrappers (``_orig_mod.``).
        layer: Path of the module that owns it; empty for a parameter of the root module.
        role: What it does in its layer; ``"other"`` where that is not known.
        numel: Real entries (a complex entry counts twice).
    """

    name: str
    layer: str
    role: str
    numel: int


def clean_name(name: str) -> str:
    """Parameter name without what ``torch.compile`` puts in: one model, one set of names."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def block_entries(parameter: Tensor) -> Tensor | None:
    """The real floating-point entries of a parameter that make up its block, or None where it has none.

    Integer, empty and not yet initialised (lazy) parameters have none; a complex tensor is seen as pairs of reals.
    """
    if is_lazy(parameter) or parameter.numel() == 0:
        return None
    parameter = parameter.detach()
    if parameter.is_complex():
        return torch.view_as_real(parameter.resolve_conj())
    return parameter if parameter.is_floating_point() else None


def make_block(name: str, entries: Tensor) -> Block:
    """The block of one parameter tensor."""
    return Block(name=name, layer=name.rpartition(".")[0], role="other", numel=entries.numel())


def matches(name: str, patterns: Patterns) -> bool:
    """Whether a block's name matches one of the glob patterns."""
    return any(fnmatchcase(name, pattern) for pattern in _as_list(patterns))


def is_wanted(name: str, include: Patterns | None, exclude: Patterns | None) -> bool:
    """Whether a block of this name is to be recorded: included (None: all are), and not excluded."""
    return (include is None or matches(name, include)) and (exclude is None or not matches(name, exclude))


def check_patterns(argument: str, patterns: Patterns | None, names: Iterable[str]) -> None:
    """Raise where a pattern of ``include`` or ``exclude`` matches no block."""
    names = list(names)
    for pattern in () if patterns is None else _as_list(patterns):
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(
                f"{argument}={patterns!r}: {pattern!r} matches none of the parameters; {_listing('name', names)}"
            )


def block_groups(blocks: Sequence[Block]) -> dict[str, list[int]]:
    """Indices of the blocks of everything, of each layer, each role and, last, each single block.

    These are the sets whose path length is accumulated as it happens.
    """
    groups: dict[str, list[int]] = {"all": list(range(len(blocks)))}
    for i, block in enumerate(blocks):
        groups.setdefault(f"layer:{block.layer}", []).append(i)
    for i, block in enumerate(blocks):
        groups.setdefault(f"role:{block.role}", []).append(i)
    return groups | {f"block:{block.name}": [i] for i, block in enumerate(blocks)}


def select_blocks(blocks: Sequence[Block], select: Select) -> list[int]:
    """Indices of the blocks that ``select`` names.

    Args:
        blocks: The blocks to choose from.
        select: ``"role:q"``, ``"layer:h.3"``, a glob over block names, or a predicate over blocks; a bare word is
            tried as an exact role, then as an exact layer, then as a glob. None selects all.

    Raises:
        ValueError: nothing is selected; the message lists what there is.
        TypeError: select is neither a string, a predicate nor None.
    """
    if select is None:
        return list(range(len(blocks)))
    if callable(select):
        chosen = [i for i, block in enumerate(blocks) if select(block)]
    elif isinstance(select, str):
        chosen = _select_by_text(blocks, select)
    else:
        raise TypeError(f'select={select!r}: pass "role:…", "layer:…", a glob over block names, or a predicate.')
    if not chosen:
        known = {
            "role": (block.role for block in blocks),
            "layer": (block.layer for block in blocks),
            "name": (block.name for block in blocks),
        }
        listing = "; ".join(_listing(kind, values) for kind, values in known.items())
        raise ValueError(f"select={select!r} matches none of {len(blocks)} blocks; {listing}")
    return chosen


def _select_by_text(blocks: Sequence[Block], select: str) -> list[int]:
    kind, _, value = select.partition(":")
    tests: Mapping[str, Callable[[Block], bool]] = {
        "role": lambda block: block.role == value,
        "layer": lambda block: block.layer == value,
    }
    if kind in tests and ":" in select:
        return [i for i, block in enumerate(blocks) if tests[kind](block)]
    for test in (
        lambda block: block.role == select,
        lambda block: block.layer == select,
        lambda block: fnmatchcase(block.name, select),
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
