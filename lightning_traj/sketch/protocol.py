"""The contract that every sketch keeps, and the form in which it is given the entries of a block."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor


class SketchInput(NamedTuple):
    """Locally available entries of one block.

    Attributes:
        name: Name of the block, which selects its random numbers.
        numel: Number of entries of the whole block.
        device: Device of the entries.
        stretches: Real entries, piece by piece. Each piece is a tensor with the position in the block of its first
            entry, or with an index of the positions of all its entries (the position is then ignored). A process that
            holds nothing of the block gives no piece.
    """

    name: str
    numel: int
    device: torch.device
    stretches: Iterable[tuple[Tensor, int, Tensor | None]]


@runtime_checkable
class Sketch(Protocol):
    """A seeded linear map S from the entries of a block to a short row.

    - It is linear, so sketches of disjoint parts of a block add up to the sketch of the block.
    - It is a function of its seed, its dim, and the name and values of the block: the same in every process.
    - ⟨Sa, Sb⟩ estimates ⟨a, b⟩ without bias, with a standard error of about √((‖a‖²‖b‖² + ⟨a, b⟩²) / dim) or less.
      ``measures.standard_error`` relies on that.
    - A block of at most ``dim`` entries is kept whole and has no error.

    Attributes:
        dim: Length of the sketch of a long block.
        seed: Seed of the random numbers. Sketches are comparable only if they share seed and dim.
    """

    dim: int
    seed: int

    def length(self, numel: int) -> int:
        """Return the length of the sketch of a block of `numel` entries."""
        ...

    def of_blocks(self, blocks: Sequence[SketchInput]) -> Tensor:
        """Sketch several blocks.

        Returns:
            The sketches one after the other: float64 [Σ length(numel)], on the device of the first block.
        """
        ...
