"""Sketches of all blocks of a snapshot, from the entries that are on this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from lightning_traj.blocks import Partition
from lightning_traj.sketch import CountSketch, SketchInput
from lightning_traj.tensors import Deferred, IndexRegion, LocalEntries, stretches_of


def sketch_blocks(
    sketch: CountSketch,
    partition: Partition,
    parameters: Mapping[str, Tensor],
    shares: Mapping[str, IndexRegion],
    gone: Callable[[int], Tensor],
    device: torch.device,
) -> Tensor:
    """Sketch every block of the parameters.

    Frozen tensors are sketched like all others, since nothing tells cheaply whether a tensor has changed: fused
    optimizers, ``.data`` and NumPy views change values without moving the version counter, and momentum teachers move
    while ``requires_grad`` is False.

    Args:
        sketch: The sketch that is taken of each block.
        partition: The blocks.
        parameters: Tensors by qualified name.
        shares: Entries of each parameter that count here; all of a parameter that is not named.
        gone: Returns the sketch of a block, by its index, whose parameters have left the model.
        device: Where the sketches go.

    Returns:
        The sketches one after the other: float64 [Σ min(dim, numel)].

    Raises:
        ValueError: a parameter has changed its size.
        UnreadableError: a parameter cannot be read.
    """
    held = partition.held(parameters, shares)
    present = [(block, pieces) for block, pieces in zip(partition.blocks, held, strict=True) if pieces]
    row = sketch.of_blocks([_given(partition.sketch_name(block), block.numel, pieces) for block, pieces in present])
    row = row.to(device)
    if len(present) == len(held):
        return row
    made = iter(torch.split(row, [sketch.length(block.numel) for block, _ in present]))
    return torch.cat([next(made) if pieces else gone(b) for b, pieces in enumerate(held)])


def _given(name: str, numel: int, held: Sequence[LocalEntries | Deferred]) -> SketchInput:
    """Return the entries of a block that are here, as input to its sketch."""
    device = held[0].tensor.device
    if device.type == "mps":  # which has no float64
        device = torch.device("cpu")
        held = [LocalEntries(each.tensor.cpu(), each.share) for each in (each.now() for each in held)]
    # As nearly all are: without the detour over two generators.
    if len(held) == 1 and isinstance(held[0], LocalEntries) and held[0].is_whole:
        return SketchInput(name, numel, device, ((held[0].tensor, 0, None),))
    return SketchInput(name, numel, device, stretches_of(held))
