"""Groups of parameters that are frozen and thawed together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from lightning_traj.blocks import Block, Partition, clean_name, group_blocks, select_blocks

Train = str | Sequence[str] | Callable[[Block], bool]
Unit = Literal["model", "layer", "depth"]
UNITS = ("model", "layer", "depth")
MODEL = "model"  # the one group of by="model"


@dataclass(frozen=True)
class Group:
    """Parameters that are frozen and thawed together.

    Attributes:
        parameters: Clean names of the parameters.
        blocks: Names of the blocks that a trajectory has of them.
    """

    parameters: tuple[str, ...]
    blocks: frozenset[str]

    def has(self, block: Block) -> bool:
        """Return whether a block of a trajectory belongs to this group."""
        return block.name in self.blocks


def grouped_parameters(
    parameters: Mapping[str, nn.Parameter], module: nn.Module, train: Train, by: Unit
) -> dict[str, Group]:
    """Return the groups that can be frozen, in the order of the model.

    Args:
        parameters: Parameters of the module, by first name.
        module: The module; the types of its parts tell the roles of parameters.
        train: Selection of the parameters that are always trained: ``"norm"``, ``"bias"`` or another role,
            ``"layer:…"``, a glob over names, a list of these, or a predicate over blocks.
        by: One group (``"model"``), or one for each layer or numbered block (``"depth"``) of the model.

    Raises:
        ValueError: The selection matches nothing or everything, or only parts of a parameter.
    """
    partition = Partition().extended(parameters, module)
    blocks = partition.blocks
    chosen: set[int] = set()
    for select in [train] if isinstance(train, str) or callable(train) else train:
        if select == "norm" and not any(block.role == "norm" for block in blocks):
            raise ValueError(
                f"train={train!r}: the model has no normalisation layer with parameters; choose the parameters "
                f"to train by another role, of {', '.join(sorted({block.role for block in blocks}))}, or by patterns."
            )
        chosen.update(select_blocks(blocks, select, "train"))
    names = [pieces[0].parameter for pieces in partition.pieces]  # a block is a tensor, or a part of one
    trained = {names[i] for i in chosen}
    others = [i for i in range(len(blocks)) if i not in chosen]
    if torn := [names[i] for i in others if names[i] in trained]:
        raise ValueError(
            f"train={train!r}: of the fused tensor {torn[0]!r} it chooses some parts and not others; tensors are "
            "frozen as a whole: choose all of its parts or none."
        )
    if not others:
        raise ValueError(f"train={train!r} chooses all {len(blocks)} blocks of the model: nothing would be frozen.")
    members = {MODEL: others} if by == MODEL else group_blocks(blocks, by, others)
    return {
        label: Group(tuple(dict.fromkeys(names[i] for i in indices)), frozenset(blocks[i].name for i in indices))
        for label, indices in members.items()
    }


def current_parameters(module: nn.Module, aliases: Mapping[str, str]) -> dict[str, nn.Parameter]:
    """Return the parameters that a module has right now: under FSDP2 after validation, the unsharded ones.

    Args:
        module: The module.
        aliases: First names of parameters by the clean names that they have now, where these differ.

    Returns:
        Parameters by clean first name.
    """
    named = ((clean_name(name), parameter) for name, parameter in module.named_parameters())
    return {aliases.get(name, name): parameter for name, parameter in named}
