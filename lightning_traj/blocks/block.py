"""Blocks, the disjoint pieces of the parameter vector for which measures are computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_traj.blocks.names import enclosing


@dataclass(frozen=True)
class Block:
    """A disjoint piece of the parameter vector.

    Attributes:
        name: Qualified name of the parameter, free of wrappers (``_orig_mod.``). A part of a fused tensor is named
            after the tensor and the part (``h.0.attn.c_attn.weight:q``).
        layer: Path of the module that owns the parameter; empty for a parameter of the root module.
        role: Function of the parameter in its layer, one of ``ROLES``; ``"other"`` if it is not known.
        numel: Number of real entries; a complex entry counts twice.
    """

    name: str
    layer: str
    role: str
    numel: int


def merged(name: str, members: Sequence[Block]) -> Block:
    """Return one block in place of several.

    Its layer is the innermost module that contains them all. Its role is theirs if it is the same for all weights,
    whatever their biases are, and ``"other"`` otherwise.
    """
    roles = {block.role for block in members if block.role != "bias"} or {"bias"}
    shared = [module for module in enclosing(members[0].layer) if all(module in enclosing(b.layer) for b in members)]
    return Block(
        name=name,
        layer=shared[-1] if shared else "",
        role=roles.pop() if len(roles) == 1 else "other",
        numel=sum(block.numel for block in members),
    )
