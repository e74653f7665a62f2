"""Groups of blocks: by layer, role, depth or attention module."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from string import digits

from lightning_traj.blocks.block import Block
from lightning_traj.blocks.names import enclosing
from lightning_traj.checks import check_choice

ATTENTION = ("q", "k", "v")


def block_groups(blocks: Sequence[Block]) -> dict[str, list[int]]:
    """Return the sets of blocks whose path length is accumulated during training, as indices by label.

    They are all blocks (``"all"``), those of each layer and of each module that contains layers (``"layer:…"``), those
    of each role (``"role:…"``) and, last, each single block (``"block:…"``).
    """
    groups: dict[str, list[int]] = {"all": list(range(len(blocks)))}
    for i, block in enumerate(blocks):
        for layer in enclosing(block.layer):
            groups.setdefault(f"layer:{layer}", []).append(i)
    for i, block in enumerate(blocks):
        groups.setdefault(f"role:{block.role}", []).append(i)
    return groups | {f"block:{block.name}": [i] for i, block in enumerate(blocks)}


def group_blocks(blocks: Sequence[Block], by: str, chosen: Iterable[int]) -> dict[str, list[int]]:
    """Group chosen blocks; return the indices of each group's blocks by its label, in the order of the model.

    Args:
        blocks: All blocks of the model.
        by: ``"layer"`` (the module), ``"role"``, ``"layer x role"``, ``"depth"`` (``block_units``), ``"depth x role"``
            or ``"block"``. Labels of two parts are joined by a space.
        chosen: Indices of the blocks to group.

    Raises:
        ValueError: ``by`` is something else.
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
    check_choice("by", by, labels)
    groups: dict[str, list[int]] = {}
    for i in chosen:
        groups.setdefault(" ".join(labels[by](i)), []).append(i)
    return groups


def block_units(blocks: Sequence[Block]) -> list[str]:
    """Return the unit of depth of each block: the numbered module that the network repeats (``h.3``), or its layer.

    A unit is the outermost module that meets these conditions:

    - Its name ends in a number.
    - It has several layers. Some of them occur in another module of the same name with another number, unless it is the
      only module of that name.
    - It does not consist of numbered modules only: with stages of blocks, as in ``stages.0.2.conv``, ``stages.0.2`` is
      a unit and ``stages.0`` is not.

    If nearly all layers of such a module lie in inner modules that repeat in turn, as in a stage that begins with a
    pooling layer, these inner modules are the units, unless they are experts.
    """
    inside: dict[str, set[str]] = {}  # module -> its layers, by their path within it
    for block in blocks:
        for module in enclosing(block.layer):
            inside.setdefault(module, set()).add(block.layer[len(module) + 1 :])
    alike: dict[tuple[str, str], int] = {}  # (name without its number, layer) -> number of modules that have the layer
    named: dict[str, int] = {}  # name without its number -> number of modules
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
    """Return the indices of q, k and v blocks by attention module and role, for modules that have all three."""
    by_layer: dict[str, dict[str, list[int]]] = {}
    for i, block in enumerate(blocks):
        if block.role in ATTENTION:
            by_layer.setdefault(block.layer, {}).setdefault(block.role, []).append(i)
    attention: dict[str, dict[str, list[int]]] = {}
    for layer, roles in by_layer.items():
        # Separate projections are layers of their own; the attention module is their parent.
        path = layer if set(roles) == set(ATTENTION) else layer.rpartition(".")[0]
        for role, indices in roles.items():
            attention.setdefault(path, {}).setdefault(role, []).extend(indices)
    return {
        path: {role: roles[role] for role in ATTENTION}
        for path, roles in attention.items()
        if set(roles) == set(ATTENTION)
    }
