"""Named parameters as ordered, disjoint blocks: layers, roles, parts of fused tensors, shards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_traj.lazy import lazy_exports

if TYPE_CHECKING:
    from lightning_traj.blocks.block import ATTENTION as ATTENTION
    from lightning_traj.blocks.block import Block as Block
    from lightning_traj.blocks.block import Patterns as Patterns
    from lightning_traj.blocks.block import Select as Select
    from lightning_traj.blocks.block import attention_layers as attention_layers
    from lightning_traj.blocks.block import block_groups as block_groups
    from lightning_traj.blocks.block import clean_name as clean_name
    from lightning_traj.blocks.block import enclosing as enclosing
    from lightning_traj.blocks.block import flat_range as flat_range
    from lightning_traj.blocks.block import group_blocks as group_blocks
    from lightning_traj.blocks.block import has_entries as has_entries
    from lightning_traj.blocks.block import select_blocks as select_blocks
    from lightning_traj.blocks.fused import FusedLayout as FusedLayout
    from lightning_traj.blocks.fused import as_layouts as as_layouts
    from lightning_traj.blocks.partition import GRANULARITIES as GRANULARITIES
    from lightning_traj.blocks.partition import Granularity as Granularity
    from lightning_traj.blocks.partition import Partition as Partition
    from lightning_traj.blocks.partition import Piece as Piece
    from lightning_traj.blocks.partition import piece_from_state as piece_from_state
    from lightning_traj.blocks.partition import plain_patterns as plain_patterns
    from lightning_traj.blocks.partition import root_of as root_of
    from lightning_traj.blocks.reading import UnreadableError as UnreadableError
    from lightning_traj.blocks.reading import is_ordinary as is_ordinary
    from lightning_traj.blocks.reading import read as read
    from lightning_traj.blocks.reading import unreadable_reason as unreadable_reason
    from lightning_traj.blocks.roles import ROLES as ROLES
    from lightning_traj.blocks.shares import Deferred as Deferred
    from lightning_traj.blocks.shares import IndexRegion as IndexRegion
    from lightning_traj.blocks.shares import Interval as Interval
    from lightning_traj.blocks.shares import LocalEntries as LocalEntries
    from lightning_traj.blocks.shares import held_share as held_share
    from lightning_traj.blocks.shares import is_sharded as is_sharded
    from lightning_traj.blocks.shares import local_tensor as local_tensor
    from lightning_traj.blocks.shares import stretches_of as stretches_of
    from lightning_traj.blocks.shares import strides_of as strides_of
    from lightning_traj.blocks.shares import whole as whole

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "block": (
            "ATTENTION",
            "Block",
            "Patterns",
            "Select",
            "attention_layers",
            "block_groups",
            "clean_name",
            "enclosing",
            "flat_range",
            "group_blocks",
            "has_entries",
            "select_blocks",
        ),
        "fused": ("FusedLayout", "as_layouts"),
        "partition": (
            "GRANULARITIES",
            "Granularity",
            "Partition",
            "Piece",
            "piece_from_state",
            "plain_patterns",
            "root_of",
        ),
        "reading": ("UnreadableError", "is_ordinary", "read", "unreadable_reason"),
        "roles": ("ROLES",),
        "shares": (
            "Deferred",
            "LocalEntries",
            "Interval",
            "IndexRegion",
            "held_share",
            "is_sharded",
            "local_tensor",
            "stretches_of",
            "strides_of",
            "whole",
        ),
    },
)
