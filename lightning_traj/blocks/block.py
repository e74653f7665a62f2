"""Blocks, the disjoint pieces of the parameter vector that measures are made for: how they are chosen and grouped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from string import digits

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

Patterns = str | Sequence[str]
Select = str | Callable[["Block"], bool] | None

ATTENTION = ("q", "k", "v")


@dataclass(frozen=True)
class Block:
    """A disjoint piece of the parameter vector.

    Attributes:
        name: The parameter's qualified name, free of wrappers (``_orig_mod.``); of a part of a fused tensor, with the
            part (``h.0.attn.c_attn.weight:q``).
        layer: Path of the module that owns it; empty for a parameter of the root module.
        role: What it does in its layer, one of ``roles.ROLES``; ``"other"`` where that is not known.
        numel: Real entries (a complex entry counts twice).
    """

    name: str
    layer: str
    role: str
    numel: int


def clean_name(name: str) -> str:
    """Parameter name without what ``torch.compile`` puts in: one model, one set of names."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod") if "_orig_mod" in name else name


def has_entries(parameter: Tensor) -> bool:
    """Whether a parameter makes up a block: integer, empty and not yet initialised (lazy) ones do not."""
    if is_lazy(parameter) or not parameter.numel():
        return False
    return parameter.is_floating_point() or parameter.is_complex() or parameter.is_quantized


def real_entries(tensor: Tensor) -> Tensor:
    """The entries of a tensor that make up its block, a view: a complex tensor is seen as pairs of reals."""
    tensor = tensor.detach()
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def flat_range(tensor: Tensor, start: int, stop: int) -> Tensor:
    """The entries ``start … stop`` of a tensor in C order, flat: a view where possible, a copy of them elsewhere."""
    if tensor.is_contiguous():
        return tensor.view(-1)[start:stop]
    row = tensor[0].numel()
    first, last = start // row, (stop - 1) // row
    if last > first + 1:
        head = flat_range(tensor[first], start - first * row, row)
        tail = flat_range(tensor[last], 0, stop - last * row)
        return torch.cat([head, tensor[first + 1 : last].reshape(-1), tail])
    ends = [(i, max(start - i * row, 0), min(stop - i * row, row)) for i in range(first, last + 1)]
    parts = [flat_range(tensor[i], begin, end) for i, begin, end in ends]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def matches(name: str, patterns: Patterns) -> bool:
    """Whether a name is one of the glob patterns, or matches one."""
    return any(name == pattern or fnmatchcase(name, pattern) for pattern in _as_list(patterns))


def is_wanted(names: Iterable[str], include: Patterns | None, exclude: Patterns | None) -> bool:
    """Whether what goes by these names is to be recorded: included by one (None: all are), and excluded by none."""
    names = list(names)
    included = include is None or any(matches(name, include) for name in names)
    return included and not (exclude is not None and any(matches(name, exclude) for name in names))


def check_patterns(argument: str, patterns: Patterns | None, names: Iterable[str]) -> None:
    """Raise where a pattern of ``include`` or ``exclude`` matches no block."""
    names = list(names)
    for pattern in () if patterns is None else _as_list(patterns):
        if not any(matches(name, pattern) for name in names):
            close = get_close_matches(pattern.strip("*"), names, n=3)
            hint = f"close to it: {', '.join(map(repr, close))}; " if close else ""
            raise ValueError(
                f"{argument}={patterns!r}: {pattern!r} matches none of the parameters; {hint}{_listing('name', names)}"
            )


def block_groups(blocks: Sequence[Block]) -> dict[str, list[int]]:
    """Indices of the blocks of everything, of each layer and what contains it, each role and, last, each single block.

    These are the sets whose path length is accumulated as it happens.
    """
    groups: dict[str, list[int]] = {"all": list(range(len(blocks)))}
    for i, block in enumerate(blocks):
        for layer in enclosing(block.layer):
            groups.setdefault(f"layer:{layer}", []).append(i)
    for i, block in enumerate(blocks):
        groups.setdefault(f"role:{block.role}", []).append(i)
    return groups | {f"block:{block.name}": [i] for i, block in enumerate(blocks)}


def group_blocks(blocks: Sequence[Block], by: str, chosen: Iterable[int]) -> dict[str, list[int]]:
    """Indices of the chosen blocks of each group, in the order of the model.

    Args:
        blocks: All blocks of the model.
        chosen: Indices of those to be grouped.
        by: ``"layer"`` (the module), ``"role"``, ``"layer x role"``, ``"depth"`` (``block_units``), ``"depth x role"``
            or ``"block"``. Names of two are joined by a space.

    Raises:
        ValueError: by is something else.
    """
    units = block_units(blocks) if by.startswith("depth") else []
    labels: Mapping[str, Callable[[int], tuple[str, ...]]] = {
        "layer": lambda i: (blocks[i].layer,),
        "role": lambda i: (blocks[i].role,),
        "layer x role": lambda i: (blocks[i].layer, blocks[i].role),
        "depth": lambda i: (units[i],),
        "depth x role": lambda i: (units[i], blocks[i].role),
        "block": lambda i: (blocks[i].name,),
    }
    if by not in labels:
        raise ValueError(f"by={by!r}: pass one of {', '.join(map(repr, labels))}.")
    groups: dict[str, list[int]] = {}
    for i in chosen:
        groups.setdefault(" ".join(labels[by](i)), []).append(i)
    return groups


def block_units(blocks: Sequence[Block]) -> list[str]:
    """The unit of depth that each block lies in: the numbered module that a network repeats (``h.3``), or its layer.

    It is the outermost module whose name ends in a number, that has several layers, some of them as in another module
    of that name but for the number (unless it is the only one), and that is not just numbered modules itself: in
    ``stages.0.2.conv`` with stages of blocks, ``stages.0`` is none and ``stages.0.2`` is one. Where nearly all of its
    layers lie in modules that are alike in turn, as in a stage that begins with a pooling layer, these are the units,
    unless they are experts.
    """
    inside: dict[str, set[str]] = {}  # module -> layers in it, relative to it
    for block in blocks:
        for module in enclosing(block.layer):
            inside.setdefault(module, set()).add(block.layer[len(module) + 1 :])
    alike: dict[tuple[str, str], int] = {}  # name but for the number, layer in it -> how many modules have it
    named: dict[str, int] = {}  # name but for the number -> how many modules
    for module, layers in inside.items():
        named[module.rstrip(digits)] = named.get(module.rstrip(digits), 0) + 1
        for layer in layers:
            key = module.rstrip(digits), layer
            alike[key] = alike.get(key, 0) + 1

    def is_unit(module: str) -> bool:
        layers, stem = inside[module], module.rstrip(digits)
        repeated = any(alike[stem, layer] > 1 for layer in layers) or (named[stem] == 1 and stem.endswith("."))
        only_numbered = all(layer.partition(".")[0].isdigit() for layer in layers)
        return stem != module and len(layers) > 1 and repeated and not only_numbered

    units = {module for module in inside if is_unit(module)}

    def unit(layer: str) -> str:
        candidates = [module for module in enclosing(layer) if module in units]
        if len(candidates) > 1:
            outer, inner = candidates[:2]
            within = [
                x for x in inside[outer] if any(m in units for m in enclosing(f"{outer}.{x}") if len(m) > len(outer))
            ]
            repeated = sum(alike[inner.rstrip(digits), x] > 1 for x in inside[inner])  # within this outer one
            nearly_all = len(within) > 0.6 * len(inside[outer]) and repeated > 0.5 * len(inside[inner])
            if nearly_all and "expert" not in inner:
                return inner
        return candidates[0] if candidates else layer

    found = {layer: unit(layer) for layer in {block.layer for block in blocks}}
    return [found[block.layer] for block in blocks]


def attention_layers(blocks: Sequence[Block]) -> dict[str, dict[str, list[int]]]:
    """Indices of the q, k and v blocks of each attention module that has all three: {path: {role: indices}}."""
    by_layer: dict[str, dict[str, list[int]]] = {}
    for i, block in enumerate(blocks):
        if block.role in ATTENTION:
            by_layer.setdefault(block.layer, {}).setdefault(block.role, []).append(i)
    attention: dict[str, dict[str, list[int]]] = {}
    for layer, roles in by_layer.items():
        # Separate projections are layers of their own, side by side in the attention module.
        path = layer if set(roles) == set(ATTENTION) else layer.rpartition(".")[0]
        for role, indices in roles.items():
            attention.setdefault(path, {}).setdefault(role, []).extend(indices)
    return {
        path: {role: roles[role] for role in ATTENTION}
        for path, roles in attention.items()
        if set(roles) == set(ATTENTION)
    }


def select_blocks(blocks: Sequence[Block], select: Select, argument: str = "select") -> list[int]:
    """Indices of the blocks that ``select`` names.

    Args:
        blocks: The blocks to choose from.
        select: ``"role:q"``, ``"layer:h.3"`` (that module and all in it), a glob over block names, or a predicate over
            blocks; a bare word is tried as a role, then as a layer, then as a glob. None selects all.
        argument: Its name in messages.

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
        # A part goes by the name of its parameter too: "*.weight" has all weights, fused or not.
        lambda block: matches(block.name, select) or matches(block.name.rpartition(":")[0], select),
    ):
        if chosen := [i for i, block in enumerate(blocks) if test(block)]:
            return chosen
    return []


def enclosing(layer: str) -> list[str]:
    """A layer and the modules that it lies in, from the outside: h, h.3, h.3.attn."""
    parts = layer.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def _as_list(patterns: Patterns) -> Sequence[str]:
    return [patterns] if isinstance(patterns, str) else patterns


def _listing(kind: str, values: Iterable[str], limit: int = 12) -> str:
    unique = list(dict.fromkeys(repr(value) for value in values))
    more = f", … ({len(unique)} in all)" if len(unique) > limit else ""
    return f"{kind}s: {', '.join(unique[:limit])}{more}"
