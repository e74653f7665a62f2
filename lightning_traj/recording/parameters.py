"""The named parameters of a module that is being trained."""

from __future__ import annotations

import weakref
from types import NoneType
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_traj.files import Picklable
from lightning_traj.recording.first_names import FirstNames


class Parameters(Picklable, transient={"_shards": dict, "_module": NoneType, "_optimized": dict}):
    """The named parameters of a module: sharded ones as shards, also while FSDP2 has whole ones in their place.

    After a forward pass without a backward one, as in validation, such a module has plain parameters that nobody
    trains.

    Attributes:
        names: First names of the parameters, which their blocks keep.
    """

    def __init__(self) -> None:
        self.names = FirstNames()
        self._shards: dict[str, Tensor] = {}
        self._module: weakref.ref[nn.Module] | None = None  # whose parameters they are
        self._optimized: dict[int, list[int]] = {}  # identities of the tensors of each optimizer, at its latest step

    def of(self, module: nn.Module) -> dict[str, Any]:
        """Return the parameters by first name. The first call has to come when all shards are in their places."""
        if self._module is None or self._module() is not module:
            if self._module is not None:
                self.names.restart({})
            self._module, self._shards = weakref.ref(module), {}
        parameters: dict[str, Any] = dict(module.named_parameters())
        for name, parameter in parameters.items():
            if hasattr(parameter, "placements"):
                known = self._shards.get(name, parameter)
                # In the place of a tensor that is sharded in two ways, FSDP2 puts one that is sharded in one way.
                if (parameter.device_mesh, parameter.placements) == (known.device_mesh, known.placements):
                    self._shards[name] = parameter
        return self.names.of({name: self._shards.get(name, parameter) for name, parameter in parameters.items()})

    def follow(self, module: nn.Module, optimizer: Optimizer) -> None:
        """Look at the parameters right before a step, if the optimizer has others than at its latest step.

        New tensors can only be compared now with those that they continue: the step changes their values.
        """
        held = [id(p) for group in optimizer.param_groups for p in group["params"]]
        if self._optimized.get(id(optimizer)) != held:
            self._optimized[id(optimizer)] = held
            self.of(module)

    def release(self) -> None:
        """Let go of the tensors when a run is over."""
        self.names.release()
        self._optimized = {}
