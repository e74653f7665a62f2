"""Entries of all blocks that are on this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from lightning_traj.blocks.block import Block
from lightning_traj.blocks.names import clean_name
from lightning_traj.blocks.piece import Piece
from lightning_traj.tensors import Deferred, IndexRegion, LocalEntries, has_entries, local_tensor, whole

Place = tuple[Sequence[int], IndexRegion]  # shape of a parameter, and the region of it that is on this process


class Holdings:
    """Finds the local entries of blocks, and remembers their regions for as long as parameters stay where they are.

    Args:
        blocks: The blocks.
        pieces: Pieces of each block.
    """

    def __init__(self, blocks: Sequence[Block], pieces: Sequence[Sequence[Piece]]) -> None:
        self._blocks, self._pieces = blocks, pieces
        self._regions: dict[int, tuple[list[Place], list[IndexRegion]]] = {}  # by block: its parameters, its pieces

    def find(
        self, parameters: Mapping[str, Tensor], shares: Mapping[str, IndexRegion]
    ) -> list[list[LocalEntries | Deferred]]:
        """Return the local entries of each block, piece by piece; empty for a block that lacks one of its parameters.

        Args:
            parameters: Readable tensors by qualified name.
            shares: Region of each parameter that is on this process. Parameters without one are here as a whole.

        Raises:
            ValueError: A parameter has changed its size.
        """
        here: dict[str, tuple[Tensor, Place, Tensor]] = {}
        for name, tensor in parameters.items():
            if has_entries(tensor):
                place = tensor.shape, shares.get(name) or whole(tensor.shape)
                here[clean_name(name)] = tensor, place, local_tensor(tensor).detach()  # detached, views are cheaper
        listed: list[list[LocalEntries | Deferred]] = []
        for b, pieces in enumerate(self._pieces):
            found = [here[piece.parameter] for piece in pieces if piece.parameter in here]
            if len(found) < len(pieces):
                listed.append([])
                continue
            places = [place for _, place, _ in found]
            if b not in self._regions or self._regions[b][0] != places:
                self._regions[b] = places, self._regions_of(b, [tensor for tensor, *_ in found], places)
            each = zip(pieces, found, self._regions[b][1], strict=True)
            listed.append([piece.held(local, share, own) for piece, (_, (_, share), local), own in each])
        return listed

    def _regions_of(self, b: int, tensors: Sequence[Tensor], places: Sequence[Place]) -> list[IndexRegion]:
        """Return the local region of each piece of a block."""
        block, pieces = self._blocks[b], self._pieces[b]
        if (numel := sum(piece.numel(tensor) for piece, tensor in zip(pieces, tensors, strict=True))) != block.numel:
            raise ValueError(f"parameter {block.name!r} had {block.numel} entries and now has {numel}.")
        for piece, tensor in zip(pieces, tensors, strict=True):
            if piece.layout is not None:
                piece.layout.check(piece.parameter, tensor.shape)
        each = zip(pieces, tensors, places, strict=True)
        return [piece.share_of(share, tensor.is_complex()) for piece, tensor, (_, share) in each]
