"""Entries of tensors: how they are read, and which of a sharded tensor are on this process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_traj import lazy_exports

if TYPE_CHECKING:
    from lightning_traj.tensors.entries import flat_range as flat_range
    from lightning_traj.tensors.entries import has_entries as has_entries
    from lightning_traj.tensors.entries import real_entries as real_entries
    from lightning_traj.tensors.local_entries import Deferred as Deferred
    from lightning_traj.tensors.local_entries import LocalEntries as LocalEntries
    from lightning_traj.tensors.local_entries import stretches_of as stretches_of
    from lightning_traj.tensors.overlapping import overlaps as overlaps
    from lightning_traj.tensors.placements import held_share as held_share
    from lightning_traj.tensors.placements import is_sharded as is_sharded
    from lightning_traj.tensors.placements import local_tensor as local_tensor
    from lightning_traj.tensors.reading import UnreadableError as UnreadableError
    from lightning_traj.tensors.reading import is_ordinary as is_ordinary
    from lightning_traj.tensors.reading import read as read
    from lightning_traj.tensors.reading import unreadable_reason as unreadable_reason
    from lightning_traj.tensors.regions import IndexRegion as IndexRegion
    from lightning_traj.tensors.regions import whole as whole

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "entries": ("flat_range", "has_entries", "real_entries"),
        "local_entries": ("Deferred", "LocalEntries", "stretches_of"),
        "overlapping": ("overlaps",),
        "placements": ("held_share", "is_sharded", "local_tensor"),
        "reading": ("UnreadableError", "is_ordinary", "read", "unreadable_reason"),
        "regions": ("IndexRegion", "whole"),
    },
)
