"""What a trajectory can be of: the weights, their average, or what the optimizer sees and does at a step.

Each is read as tensors by parameter name, so that blocks, roles and sketches are those of the weights, and one can be
compared with another.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel


class Parameters:
    """The named parameters of a module: sharded ones as shards, also while FSDP2 has whole ones in their place.

    After a forward pass without a backward one, as in validation, a module has plain parameters that nobody trains.
    """

    def __init__(self) -> None:
        self._shards: dict[str, Tensor] = {}
        self._module: weakref.ref[nn.Module] | None = None  # whose they are

    def of(self, module: nn.Module) -> dict[str, Any]:
        """The parameters by name. To be called first when all shards are in their places."""
        if self._module is None or self._module() is not module:
            self._module, self._shards = weakref.ref(module), {}
        parameters: dict[str, Any] = dict(module.named_parameters())
        for name, parameter in parameters.items():
            if hasattr(parameter, "placements"):
                known = self._shards.get(name, parameter)
                # Of tensors that are sharded in two ways, FSDP2 leaves those in their place that are sharded in one.
                if (parameter.device_mesh, parameter.placements) == (known.device_mesh, known.placements):
                    self._shards[name] = parameter
        return {name: self._shards.get(name, parameter) for name, parameter in parameters.items()}


class Quantity(ABC):
    """How a quantity is read.

    Attributes:
        parameters: Those that are trained.
        at_steps: Whether it belongs to an optimizer step (a gradient), and not to the state between steps (weights).
        zero_if_missing: Whether it is zero, and not unchanged, for a parameter that a step is not for.
    """

    at_steps = True
    zero_if_missing = False  # of a parameter that a step is not for

    def __init__(self) -> None:
        self.parameters = Parameters()

    def check(self, trainer: Any, module: nn.Module) -> None:  # noqa: B027 (most have nothing to check)
        """Raise ValueError where this run does not have the quantity; before training."""

    def before_step(self, module: nn.Module, optimizer: Optimizer) -> None:  # noqa: B027
        """Keep what the step is about to change. Called at each closure of a step, of which the first one counts."""

    def forget(self) -> None:  # noqa: B027
        """Forget what was kept for a step that was not taken."""

    def _parameters_of(self, optimizer: Optimizer, module: nn.Module) -> dict[str, nn.Parameter]:
        """The named parameters that an optimizer changes."""
        own = {id(p) for group in optimizer.param_groups for p in group["params"]}
        return {name: p for name, p in self.parameters.of(module).items() if id(p) in own}

    @abstractmethod
    def read(self, trainer: Any, module: nn.Module, optimizer: Optimizer | None) -> dict[str, Tensor]:
        """The quantity by parameter name; for one of a step right after it, of the parameters that it was for."""


class Weights(Quantity):
    """The parameters themselves."""

    at_steps = False

    def read(self, trainer: Any, module: nn.Module, optimizer: Optimizer | None) -> dict[str, Tensor]:  # noqa: D102
        return self.parameters.of(module)


class Average(Quantity):
    """The averaged parameters of Lightning's WeightAveraging (EMA included), or of an AveragedModel in the module."""

    at_steps = False

    def check(self, trainer: Any, module: nn.Module) -> None:  # noqa: D102
        callbacks = list(trainer.callbacks)
        averaging = [i for i, callback in enumerate(callbacks) if _averaged_by(callback) is not None]
        if not averaging and not any(isinstance(child, AveragedModel) for child in module.modules()):
            raise ValueError(
                'track="average": there is no WeightAveraging or EMAWeightAveraging among the callbacks, and no '
                "torch.optim.swa_utils.AveragedModel in the module; add one, or track something else."
            )
        if any(getattr(callback, "track", "") == "average" for callback in callbacks[: max(averaging, default=0)]):
            raise ValueError(
                'track="average" reads the average before it is updated: list the TrajectoryCallback after '
                f"{type(callbacks[averaging[-1]]).__name__} in callbacks=."
            )

    def read(self, trainer: Any, module: nn.Module, optimizer: Optimizer | None) -> dict[str, Tensor]:  # noqa: D102
        for callback in trainer.callbacks:
            if (averaged := _averaged_by(callback)) is not None:  # of the whole LightningModule
                return _anew(averaged.module.named_parameters())
        children = module.named_modules()
        averaged = next(child for _, child in children if isinstance(child, AveragedModel))
        found = dict(averaged.module.named_parameters())
        # An average of a part of the module: by the names that the part's parameters have in the whole.
        own: dict[str, Any] = {name: p.shape for name, p in module.named_parameters() if p is not found.get(name)}
        for prefix in dict.fromkeys(name.rpartition(next(iter(found)))[0] for name in own):
            if all(own.get(prefix + name) == p.shape for name, p in found.items()):
                return _anew((prefix + name, p) for name, p in found.items())
        return _anew(found.items())


class _OfAStep(Quantity):
    """What needs something kept from before the step: of its first closure, until it is read or the step left out."""

    zero_if_missing = True

    def __init__(self) -> None:
        super().__init__()
        self._kept: dict[str, Tensor] = {}

    @abstractmethod
    def keep(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """Copies of what is needed of the parameters that the step is for."""

    def before_step(self, module: nn.Module, optimizer: Optimizer) -> None:
        if not self._kept:
            self._kept = self.keep(self._parameters_of(optimizer, module))

    def forget(self) -> None:
        self._kept = {}

    def read(self, trainer: Any, module: nn.Module, optimizer: Optimizer | None) -> dict[str, Tensor]:
        kept, self._kept = self._kept, {}
        return kept


class Gradient(_OfAStep):
    """The gradient just before the step: accumulated and unscaled, before Lightning clips it."""

    def keep(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:  # noqa: D102
        gradients = {name: _added_up(p.grad) for name, p in parameters.items() if p.grad is not None}
        # Copies: some optimizers use the memory of the gradient.
        return {name: g.detach().to_dense().clone() for name, g in gradients.items()}


class Update(_OfAStep):
    """The optimizer's update: the parameters after the step less those before."""

    def keep(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:  # noqa: D102
        return {name: p.detach().clone() for name, p in parameters.items()}

    def read(self, trainer: Any, module: nn.Module, optimizer: Optimizer | None) -> dict[str, Tensor]:  # noqa: D102
        before, now = super().read(trainer, module, optimizer), self.parameters.of(module)
        # In float64: of nearly equal numbers, one in float32 would keep few digits.
        return {name: now[name].detach().double() - p.double() for name, p in before.items() if name in now}


class Moment(Quantity):
    """A running moment of the gradient, as the optimizer keeps it."""

    def __init__(self, name: str, states: Iterable[str]) -> None:
        super().__init__()
        self.name, self.states = name, tuple(states)

    def check(self, trainer: Any, module: nn.Module) -> None:  # noqa: D102
        for optimizer in trainer.optimizers:
            if not any(self._is_kept(group) for group in optimizer.param_groups) and not _has(optimizer, self.states):
                raise ValueError(
                    f"track={self.name!r}: {type(optimizer).__name__} keeps no such moment; use an optimizer that does "
                    "(AdamW has both, SGD with momentum the first), or track something else."
                )

    def read(self, trainer: Any, module: nn.Module, optimizer: Optimizer | None) -> dict[str, Tensor]:  # noqa: D102
        assert optimizer is not None
        found = {}
        for name, p in self._parameters_of(optimizer, module).items():
            for state in self.states:
                if isinstance(value := optimizer.state.get(p, {}).get(state), Tensor) and value.shape == p.shape:
                    found[name] = value
                    break
        return _anew(found.items())

    def _is_kept(self, group: Mapping[str, Any]) -> bool:
        if "betas" in group:
            return True
        if self.name == "first_moment":
            return bool(group.get("momentum", 0))
        return "centered" in group or "lr_decay" in group or "rho" in group  # RMSprop, Adagrad, Adadelta


def quantity(track: str) -> Quantity:
    """The quantity of this name, one of ``QUANTITIES``."""
    return _MAKERS[track]()


_MAKERS: dict[str, Callable[[], Quantity]] = {
    "weights": Weights,
    "average": Average,
    "gradient": Gradient,
    "update": Update,
    "first_moment": lambda: Moment("first_moment", ("exp_avg", "momentum_buffer")),
    "second_moment": lambda: Moment("second_moment", ("exp_avg_sq", "square_avg", "sum")),
}
QUANTITIES = tuple(_MAKERS)


def zeros_like(tensor: Tensor) -> Tensor:
    """Zeros of its shape and placement: of a plain tensor without its memory."""
    if hasattr(tensor, "placements"):
        return torch.zeros_like(tensor, requires_grad=False)
    return tensor.new_zeros(()).expand(tensor.shape)


def _added_up(gradient: Any) -> Tensor:
    """A gradient that is not left in partial sums, as under sequence parallelism: these are added over processes."""
    if any(placement.is_partial() for placement in getattr(gradient, "placements", ())):
        from torch.distributed.tensor import Replicate

        placements = [Replicate() if placement.is_partial() else placement for placement in gradient.placements]
        gradient = gradient.redistribute(placements=placements)  # as the optimizer is about to do
    found: Tensor = gradient
    return found


def _anew(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """As tensor objects that nobody has seen: these do not require gradients, and yet they change."""
    return {name: tensor if is_lazy(tensor) else tensor.detach() for name, tensor in tensors}


def _averaged_by(callback: Any) -> AveragedModel | None:
    """The averaged model of Lightning's WeightAveraging, of either package."""
    averaged = getattr(callback, "_average_model", None)
    return averaged if isinstance(averaged, AveragedModel) else None


def _has(optimizer: Optimizer, states: Iterable[str]) -> bool:
    """Whether the optimizer, restored or of an unusual kind, has one of these states already."""
    return any(state in values for values in optimizer.state.values() for state in states)
