"""This process among those that record together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_traj.distributed import Ownership, Ranks
from lightning_traj.files import Picklable

NamedTensors = Mapping[str, Tensor]  # by qualified name
Read = Callable[[], NamedTensors]  # returns the parameters, or raises why they cannot be read on this rank


@dataclass
class Process(Picklable, transient={"ownership": Ownership}):
    """This process among those that record together, and where it computes.

    Attributes:
        ranks: The processes.
        ownership: Entries of the parameters that this process answers for.
        device: Device of sketches and Gram matrices.
        storage: Device that keeps sketches and Gram matrices, if it is not ``device``.
    """

    ranks: Ranks = field(default_factory=Ranks)
    ownership: Ownership = field(default_factory=Ownership)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    storage: torch.device | None = None

    def filled(self, numel: int, value: float) -> Tensor:
        """Return a float64 tensor [numel] with this value on the device."""
        return torch.full((numel,), value, dtype=torch.float64, device=self.device)


def read_now(read: Read) -> Read:
    """Read the parameters now, and return a function that returns them, or raises what reading has raised.

    What this rank cannot read must not keep it from meeting the others, which wait for it; it raises when it is asked.
    """
    try:
        parameters = read()
    except Exception as error:
        return failing(error)
    return lambda: parameters


def failing(error: Exception) -> Read:
    """Return a function that raises the error."""

    def read() -> NamedTensors:
        raise error

    return read
