"""Sketches of all blocks of a snapshot, of what is here of them; those of frozen tensors are not made again."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from lightning_traj.blocks import clean_name, has_entries
from lightning_traj.partition import Partition
from lightning_traj.shards import Held, Share, stretches_of
from lightning_traj.sketch import CountSketch, Given


class Sketches:
    """Makes the sketches of snapshots, one after the other."""

    def __init__(self, sketch: CountSketch) -> None:
        self.sketch = sketch
        # Of frozen blocks: their tensors, the versions of these, and the sketch.
        self._frozen: dict[str, tuple[list[weakref.ref[Tensor]], list[int], Tensor]] = {}

    def forget(self) -> None:
        """Sketch everything anew."""
        self._frozen = {}

    def of(
        self,
        partition: Partition,
        parameters: Mapping[str, Tensor],
        shares: Mapping[str, Share],
        gone: Callable[[int], Tensor],
        device: torch.device,
    ) -> Tensor:
        """The sketches of all blocks, one after the other: float64 [Σ min(dim, numel)].

        Args:
            partition: The blocks.
            parameters: By qualified name.
            shares: Which entries of each count here; all of those that are not named.
            gone: The sketch of a block, by its place, that is no more among the parameters.
            device: Where sketches go.

        Raises:
            ValueError: a parameter has changed its size.
        """
        originals = {clean_name(name): parameter for name, parameter in parameters.items()}
        # Trusted for frozen tensors alone: fused optimizers and .data change values without the counter, and what is
        # made in inference mode has none.
        still = {n for n, p in originals.items() if not p.requires_grad and has_entries(p) and not p.is_inference()}
        known: dict[int, Tensor] = {}
        frozen = {}
        unseen: dict[int, tuple[list[weakref.ref[Tensor]], list[int]]] = {}  # frozen blocks that are sketched now
        held_blocks = partition.held(parameters, shares)
        for b, (block, pieces, held) in enumerate(zip(partition.blocks, partition.pieces, held_blocks, strict=True)):
            if not held:  # taken out of the model: it moves no more
                known[b] = gone(b)
                continue
            if not still or any(piece.parameter not in still for piece in pieces):
                continue
            sources = [originals[piece.parameter] for piece in pieces]
            versions = [source._version for source in sources]
            seen = self._frozen.get(block.name)
            if (
                seen is not None
                and seen[1] == versions
                and all(r() is s for r, s in zip(seen[0], sources, strict=True))
            ):
                frozen[block.name] = seen
                known[b] = seen[2]
            else:
                unseen[b] = [weakref.ref(source) for source in sources], versions
        given = [
            _given(partition.sketch_name(block), block.numel, held)
            for b, (block, held) in enumerate(zip(partition.blocks, held_blocks, strict=True))
            if b not in known
        ]
        row = self.sketch.of_blocks(given).to(device)
        if known or unseen:
            made = iter(torch.split(row, [self.sketch.length(block.numel) for block in given]))
            each = [known[b] if b in known else next(made) for b in range(len(held_blocks))]
            row = torch.cat(each)
            for b, (tensors, versions) in unseen.items():  # a copy, which does not keep the memory of the others
                frozen[partition.blocks[b].name] = tensors, versions, each[b].clone()
        self._frozen = frozen
        return row


def _given(name: str, numel: int, held: Sequence[Held]) -> Given:
    """What is here of a block, for its sketch."""
    device = held[0].tensor.device
    if device.type == "mps":  # which has no float64
        device = torch.device("cpu")
        held = [Held(each.tensor.cpu(), each.share) for each in held]
    if len(held) == 1 and held[0].is_whole:  # as nearly all are: without the detour over two generators
        return Given(name, numel, device, ((held[0].tensor, 0, None),))
    return Given(name, numel, device, stretches_of(held))
