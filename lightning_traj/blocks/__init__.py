"""Named parameters as ordered, disjoint blocks, with their layers and roles."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_traj import lazy_exports

if TYPE_CHECKING:
    from lightning_traj.blocks.block import Block as Block
    from lightning_traj.blocks.fused import FusedLayout as FusedLayout
    from lightning_traj.blocks.grouping import ATTENTION as ATTENTION
    from lightning_traj.blocks.grouping import attention_layers as attention_layers
    from lightning_traj.blocks.grouping import block_groups as block_groups
    from lightning_traj.blocks.grouping import group_blocks as group_blocks
    from lightning_traj.blocks.names import clean_name as clean_name
    from lightning_traj.blocks.names import enclosing as enclosing
    from lightning_traj.blocks.names import root_of as root_of
    from lightning_traj.blocks.partition import Partition as Partition
    from lightning_traj.blocks.piece import Piece as Piece
    from lightning_traj.blocks.piece import piece_from_state as piece_from_state
    from lightning_traj.blocks.roles import ROLES as ROLES
    from lightning_traj.blocks.rules import BlockRules as BlockRules
    from lightning_traj.blocks.rules import Granularity as Granularity
    from lightning_traj.blocks.selection import Patterns as Patterns
    from lightning_traj.blocks.selection import Select as Select
    from lightning_traj.blocks.selection import select_blocks as select_blocks

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "block": ("Block",),
        "fused": ("FusedLayout",),
        "grouping": ("ATTENTION", "attention_layers", "block_groups", "group_blocks"),
        "names": ("clean_name", "enclosing", "root_of"),
        "partition": ("Partition",),
        "piece": ("Piece", "piece_from_state"),
        "roles": ("ROLES",),
        "rules": ("BlockRules", "Granularity"),
        "selection": ("Patterns", "Select", "select_blocks"),
    },
)
