"""Pieces of blocks: whole parameters, or parts of fused ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from lightning_traj.blocks.fused import FusedLayout
from lightning_traj.tensors import Deferred, IndexRegion, LocalEntries, has_entries, is_ordinary, real_entries, whole


@dataclass(frozen=True)
class Piece:
    """Entries of a block: a parameter, or a part of a fused one.

    Attributes:
        parameter: Clean name of the parameter.
        part: Role of the part; empty for a whole parameter.
        layout: Layout of the fused parameter; None for a whole parameter.
    """

    parameter: str
    part: str = ""
    layout: FusedLayout | None = None

    def numel(self, parameter: Tensor) -> int:
        """Return the number of the piece's real entries; 0 if the parameter has none (yet)."""
        if not has_entries(parameter):
            return 0
        numel = parameter.numel() * (2 if parameter.is_complex() else 1)
        return numel if self.layout is None else numel * self.layout.parts[self.part] // sum(self.layout.parts.values())

    def share_of(self, share: IndexRegion, is_complex: bool) -> IndexRegion:
        """Return the region of the piece's real entries that a region of the parameter contains."""
        if self.layout is not None:
            is_whole, size = share.is_whole, share.shape[self.layout.axis]
            share = share.of_part(self.layout.axis, *self.layout.interval(size, self.part))
            share = whole(share.shape) if is_whole else share  # of a whole parameter, ``entries`` gives a view
        return share.as_real() if is_complex else share

    def entries(self, local: Tensor, share: IndexRegion) -> Tensor:
        """Return a view of the local part of a parameter that has the piece's real entries, and possibly others.

        Args:
            local: Local part of the parameter.
            share: Region of the parameter that it holds.
        """
        if self.layout is not None and share.is_whole:
            local = self.layout.part(local, self.part)
        return real_entries(local) if local.is_complex() else local

    def held(self, local: Tensor, share: IndexRegion, own: IndexRegion) -> LocalEntries | Deferred:
        """Return the piece's local entries.

        Args:
            local: Local part of the parameter.
            share: Region of the parameter that it holds.
            own: Region of the piece's real entries, from ``share_of``.
        """
        if is_ordinary(local):
            return LocalEntries(self.entries(local, share), own)
        return Deferred(local, own, self.parameter, partial(self.entries, share=share))


def piece_from_state(state: Mapping[str, Any]) -> Piece:
    """Return a piece from the plain values that ``dataclasses.asdict`` made of it."""
    layout = state["layout"]
    return Piece(state["parameter"], state["part"], None if layout is None else FusedLayout(**layout))
