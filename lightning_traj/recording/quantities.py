"""What a trajectory can be of: the weights, their average, or what the optimizer sees and does at a step.

Each is read as tensors by parameter name, so that blocks, roles and sketches are those of the weights, and one can be
compared with another.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from lightning_traj.blocks import has_entries, is_ordinary, is_sharded, local_tensor, read, unreadable_reason
from lightning_traj.files import Picklable
from lightning_traj.recording.first_names import FirstNames
from lightning_traj.recording.steps import with_inner


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
        self._module: weakref.ref[nn.Module] | None = None  # whose they are
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
                # Of tensors that are sharded in two ways, FSDP2 leaves those in their place that are sharded in one.
                if (parameter.device_mesh, parameter.placements) == (known.device_mesh, known.placements):
                    self._shards[name] = parameter
        return self.names.of({name: self._shards.get(name, parameter) for name, parameter in parameters.items()})

    def follow(self, module: nn.Module, optimizer: Optimizer) -> None:
        """Look at the parameters if the optimizer has others than at its latest step; right before its step.

        New tensors can only now be compared with those that they continue: after the step they have other values.
        """
        held = [id(p) for group in optimizer.param_groups for p in group["params"]]
        if self._optimized.get(id(optimizer)) != held:
            self._optimized[id(optimizer)] = held
            self.of(module)

    def release(self) -> None:
        """Let go of the tensors: a run is over."""
        self.names.release()
        self._optimized = {}


class Quantity(ABC):
    """A quantity of the parameters, and how it is read.

    Attributes:
        parameters: Those that are trained.
        at_steps: Whether it belongs to an optimizer step (a gradient), and not to the state between steps (weights).
        zero_if_missing: Whether it is zero, and not unchanged, for a parameter whose optimizer took a step without it.
        left_out: Parameters whose quantity cannot be read, with the reason.
    """

    at_steps = True
    zero_if_missing = False

    def __init__(self) -> None:
        self.parameters = Parameters()
        self.left_out: dict[str, str] = {}
        self._trained: set[str] = set()

    def restart_names(self, aliases: Mapping[str, str], shapes: Mapping[str, Sequence[int] | None]) -> None:
        """Begin with the names that parameters have now, or go on from the aliases and shapes of an earlier run."""
        self.parameters.names.restart(aliases, shapes)

    def release(self) -> None:
        """Let go of the parameters: a run is over."""
        self.parameters.release()

    def check(self, trainer: Any, module: nn.Module) -> None:  # noqa: B027 (most have nothing to check)
        """Raise ValueError where this run does not have the quantity; before training."""

    def begin(self, module: nn.Module) -> None:
        """Begin a run: forget what was kept, and note which parameters are trained."""
        self.clear()
        self.left_out = {}
        # Later, Lightning's toggle_optimizer() hides the parameters of the other optimizers while one of them steps.
        self._trained = {name for name, p in self.parameters.of(module).items() if p.requires_grad}

    def before_step(self, module: nn.Module, optimizer: Optimizer, has_gradients: bool = True) -> None:  # noqa: B027
        """Keep what an optimizer's step is about to change; right before it, with its gradients there or not yet."""

    def after_step(self, module: nn.Module, optimizer: Optimizer) -> None:  # noqa: B027
        """Keep the quantity of a step that an optimizer has just taken; not needed of steps that are not recorded."""

    def forget(self) -> None:  # noqa: B027
        """Forget what was kept for a step that was not taken."""

    def clear(self) -> None:  # noqa: B027
        """Forget everything kept of this run's steps."""

    @abstractmethod
    def read(self, trainer: Any, module: nn.Module) -> dict[str, Tensor]:
        """The quantity by parameter name; one of steps right after a step, each parameter's of its own optimizer."""

    def waiting(self, trainer: Any, module: nn.Module) -> set[str]:
        """Names of the trained parameters whose optimizer has not taken a step yet."""
        optimizers = [optimizer for optimizer in trainer.optimizers if not self._has_stepped(optimizer)]
        names = {name for optimizer in optimizers for name in self._parameters_of(optimizer, module)}
        return names & self._trained

    def _has_stepped(self, optimizer: Optimizer) -> bool:
        return True

    def _parameters_of(self, optimizer: Optimizer, module: nn.Module) -> dict[str, nn.Parameter]:
        """The named parameters that an optimizer changes, and that have entries to be recorded."""
        own = {id(p) for group in optimizer.param_groups for p in group["params"]}
        return {name: p for name, p in self.parameters.of(module).items() if id(p) in own and has_entries(p)}


class Weights(Quantity):
    """The parameters themselves."""

    at_steps = False

    def read(self, trainer: Any, module: nn.Module) -> dict[str, Tensor]:  # noqa: D102
        return self.parameters.of(module)


class Average(Quantity):
    """The averaged parameters of Lightning's WeightAveraging (EMA included), or of an AveragedModel in the module."""

    at_steps = False

    def __init__(self) -> None:
        super().__init__()
        self._averaged = Parameters()  # a copy of the module, whose parameters are renamed apart from its own

    def restart_names(self, aliases: Mapping[str, str], shapes: Mapping[str, Sequence[int] | None]) -> None:  # noqa: D102
        super().restart_names(aliases, shapes)
        self._averaged.names.restart(aliases, shapes)

    def release(self) -> None:  # noqa: D102
        super().release()
        self._averaged.release()

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

    def read(self, trainer: Any, module: nn.Module) -> dict[str, Tensor]:  # noqa: D102
        for callback in trainer.callbacks:
            if (averaged := _averaged_by(callback)) is not None:  # of the whole LightningModule
                return self._averaged.of(averaged.module)
        children = module.named_modules()
        averaged = next(child for _, child in children if isinstance(child, AveragedModel))
        found: dict[str, Tensor] = self._averaged.of(averaged.module)
        # An average of a part of the module: by the names that the part's parameters have in the whole, or had when
        # the average was made of it.
        present = self.parameters.of(module) | dict(module.named_parameters())
        own: dict[str, Any] = {name: p.shape for name, p in present.items() if p is not found.get(name)}
        for prefix in dict.fromkeys(name.rpartition(next(iter(found)))[0] for name in own):
            if all(own.get(prefix + name) == p.shape for name, p in found.items()):
                return {prefix + name: p for name, p in found.items()}
        return found


class _OfAStep(Quantity):
    """A quantity of each optimizer's latest step.

    With one optimizer, only steps that are recorded are looked at. With several, each step is, and the quantity of each
    optimizer's latest one is kept until its next: it is recorded when another optimizer's step is due. That takes as
    much memory as the gradients, or as the updates in float64.
    """

    zero_if_missing = True

    def __init__(self) -> None:
        super().__init__()
        self._before: dict[Optimizer, dict[str, Tensor] | Exception] = {}  # kept for the coming step
        self._latest: dict[Optimizer, dict[str, Tensor] | Exception] = {}  # of the latest step

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_before": {}, "_latest": {}}  # optimizers stay where they are

    @abstractmethod
    def keep(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """Copies of what is needed of the parameters that the step is for."""

    @abstractmethod
    def finish(self, before: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """The quantity of a step, from what was kept before it and the parameters after it."""

    def before_step(self, module: nn.Module, optimizer: Optimizer, has_gradients: bool = True) -> None:
        self._before[optimizer] = _or_failure(lambda: self.keep(self._parameters_of(optimizer, module)))

    def after_step(self, module: nn.Module, optimizer: Optimizer) -> None:
        before = self._before.pop(optimizer, None)
        self._latest.pop(optimizer, None)  # the one that stepped last comes last
        self._latest[optimizer] = _or_failure(lambda: self._finish(before, module, optimizer))

    def _finish(
        self, before: dict[str, Tensor] | Exception | None, module: nn.Module, optimizer: Optimizer
    ) -> dict[str, Tensor]:
        if isinstance(before, Exception):
            raise before
        parameters = self._parameters_of(optimizer, module)
        return self.finish(self.keep_late(parameters) if before is None else before, parameters)

    def keep_late(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """What can still be had after a step that was not announced."""
        return {}

    def forget(self) -> None:
        self._before = {}

    def clear(self) -> None:
        self._before, self._latest = {}, {}

    def read(self, trainer: Any, module: nn.Module) -> dict[str, Tensor]:
        held, is_alone = set(map(id, trainer.optimizers)), len(trainer.optimizers) == 1
        latest = {optimizer: kept for optimizer, kept in self._latest.items() if id(optimizer) in held}
        self._latest = {optimizer: {} if is_alone else kept for optimizer, kept in latest.items()}
        found: dict[str, Tensor] = {}
        for kept in latest.values():
            if isinstance(kept, Exception):
                raise kept
            found |= kept
        return found

    def _has_stepped(self, optimizer: Optimizer) -> bool:
        return optimizer in self._latest


class Gradient(_OfAStep):
    """The gradient just before the step: accumulated and unscaled, before Lightning clips it.

    After a step that nothing announced (see ``StepCounter``), it is what the step has left.
    """

    def before_step(self, module: nn.Module, optimizer: Optimizer, has_gradients: bool = True) -> None:  # noqa: D102
        if has_gradients:
            super().before_step(module, optimizer)

    def keep(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:  # noqa: D102
        gradients = {name: _added_up(p.grad) for name, p in parameters.items() if p.grad is not None}
        # Copies: some optimizers use the memory of the gradient.
        return {name: _values(g).clone() for name, g in gradients.items()}

    def keep_late(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:  # noqa: D102
        return self.keep(parameters)

    def finish(self, before: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:  # noqa: D102
        return dict(before)


class Update(_OfAStep):
    """The optimizer's update: the parameters after the step less those before."""

    def keep(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:  # noqa: D102
        return {name: _values(p).clone() for name, p in parameters.items() if not unreadable_reason(local_tensor(p))}

    def finish(self, before: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:  # noqa: D102
        # In float64: of nearly equal numbers, one in float32 would keep few digits.
        return {n: _widened(_values(parameters[n])) - _widened(p) for n, p in before.items() if n in parameters}


class Moment(Quantity):
    """A running moment of the gradient, as the optimizers keep it."""

    def __init__(self, name: str, states: Iterable[str]) -> None:
        super().__init__()
        self.name, self.states = name, tuple(states)

    def check(self, trainer: Any, module: nn.Module) -> None:  # noqa: D102
        for optimizer in trainer.optimizers:
            everyone = with_inner(optimizer)
            inner = everyone[1:] or everyone  # a wrapper shows the settings of what it wraps, and keeps no moments
            if not any(map(self._is_kept, inner)) and not any(_has(each, self.states) for each in everyone):
                raise ValueError(
                    f"track={self.name!r}: {type(optimizer).__name__} keeps no such moment; use an optimizer that does "
                    "(AdamW has both, SGD with momentum the first), or track something else."
                )

    def read(self, trainer: Any, module: nn.Module) -> dict[str, Tensor]:  # noqa: D102
        found = {}
        for optimizer in trainer.optimizers:
            holders = with_inner(optimizer)
            for name, p in self._parameters_of(optimizer, module).items():
                for state in (getattr(holder, "state", {}).get(p, {}) for holder in holders):
                    if (value := self._of(state, p)) is not None:
                        if not has_entries(value):
                            self.left_out[name] = f"the optimizer keeps it as {value.dtype}"
                        elif unreadable_reason(local_tensor(value)):
                            found[name] = value  # the recorder leaves it out, and names it
                        else:
                            found[name] = _values(value)
                        break
        return found

    def _of(self, state: Mapping[str, Any], parameter: Tensor) -> Tensor | None:
        """The moment in an optimizer's state of a parameter."""
        for name in self.states:
            if isinstance(value := state.get(name), Tensor) and value.shape == parameter.shape:
                return value
        if self.name == "second_moment" and "row_var" in state and "col_var" in state:  # torch.optim.Adafactor
            rows, columns = state["row_var"], state["col_var"]
            product: Tensor = rows * columns / rows.mean(dim=-2, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
            return product
        return None

    def _is_kept(self, optimizer: Optimizer) -> bool:
        """Whether an optimizer is going to keep it, as its class and its settings tell."""
        kinds = [kind.__name__.lower() for kind in type(optimizer).__mro__]
        groups = optimizer.param_groups
        with_betas = any("betas" in group for group in groups)
        if self.name == "first_moment":
            # Schedule-free optimizers have their momentum from averaging, without a buffer.
            if any("schedulefree" in kind for kind in kinds):
                return False
            return with_betas or any(group.get("momentum", 0) or group.get("centered") for group in groups)
        if any("lion" in kind or kind == "adamax" for kind in kinds):  # the sign alone; the largest gradient
            return False
        # RMSprop, Adagrad, Adadelta, Adafactor
        others = ("centered", "lr_decay", "rho", "beta2_decay")
        return with_betas or any(setting in group for setting in others for group in groups)

    def _has_stepped(self, optimizer: Optimizer) -> bool:
        return any(getattr(holder, "state", None) for holder in with_inner(optimizer))


def quantity(track: str) -> Quantity:
    """The quantity of this name, one of ``QUANTITIES``."""
    return _MAKERS[track]()


_MAKERS: dict[str, Callable[[], Quantity]] = {
    "weights": Weights,
    "average": Average,
    "gradient": Gradient,
    "update": Update,
    "first_moment": lambda: Moment("first_moment", ("exp_avg", "grad_avg", "momentum_buffer")),
    "second_moment": lambda: Moment("second_moment", ("exp_avg_sq", "square_avg", "sum", "variance")),
}
QUANTITIES = tuple(_MAKERS)


def zeros_like(tensor: Tensor) -> Tensor:
    """Zeros of its shape and placement: of a plain tensor without its memory."""
    if is_sharded(tensor):
        return torch.zeros_like(tensor, requires_grad=False)
    dtype = tensor.dtype if is_ordinary(tensor) else torch.float32
    return torch.zeros((), dtype=dtype, device=tensor.device).expand(tensor.shape)


def _values(tensor: Tensor) -> Tensor:
    """The values of a tensor, as an ordinary one or a sharded one."""
    return tensor.detach() if is_sharded(tensor) else read(tensor)


def _added_up(gradient: Any) -> Tensor:
    """A gradient that is not left in partial sums, as under sequence parallelism: these are added over processes."""
    if any(placement.is_partial() for placement in getattr(gradient, "placements", ())):
        from torch.distributed.tensor import Replicate

        placements = [Replicate() if placement.is_partial() else placement for placement in gradient.placements]
        gradient = gradient.redistribute(placements=placements)  # as the optimizer is about to do
    found: Tensor = gradient
    return found


def _averaged_by(callback: Any) -> AveragedModel | None:
    """The averaged model of Lightning's WeightAveraging, of either package."""
    averaged = getattr(callback, "_average_model", None)
    return averaged if isinstance(averaged, AveragedModel) else None


def _has(optimizer: Optimizer, states: Iterable[str]) -> bool:
    """Whether the optimizer, restored or of an unusual kind, has one of these states already."""
    return any(state in values for values in getattr(optimizer, "state", {}).values() for state in states)


def _widened(tensor: Tensor) -> Tensor:
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def _or_failure(get: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor] | Exception:
    """What ``get`` returns, or why it failed: raised when it would be recorded."""
    try:
        return get()
    except Exception as error:
        return error
