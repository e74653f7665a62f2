"""Quantities of an optimizer's step: the gradient before it, and the update that it makes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_traj.recording.quantities.quantity import Quantity, Training
from lightning_traj.recording.quantities.values import values_of
from lightning_traj.tensors import local_tensor, unreadable_reason


class StepQuantity(Quantity):
    """A quantity of each optimizer's latest step.

    With one optimizer, only the steps that are recorded are looked at. With several, every step is, and the quantity of
    each optimizer's latest one is kept until its next: it is recorded when another optimizer's step is due. That takes
    as much memory as the gradients, or as the updates in float64.
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
        """Return copies of what the quantity needs of these parameters, before their optimizer's step."""

    @abstractmethod
    def finish(self, before: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """Return the quantity of a step.

        Args:
            before: Copies that ``keep`` made before the step.
            parameters: Parameters after the step.
        """

    def keep_late(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """Return copies as ``keep`` does, as far as possible after the step; for steps that were not announced."""
        return {}

    def before_step(self, module: nn.Module, optimizer: Optimizer, has_gradients: bool = True) -> None:  # noqa: D102
        self._before[optimizer] = _or_failure(lambda: self.keep(self._parameters_of(optimizer, module)))

    def after_step(self, module: nn.Module, optimizer: Optimizer) -> None:  # noqa: D102
        before = self._before.pop(optimizer, None)
        self._latest.pop(optimizer, None)  # the one that stepped last comes last
        self._latest[optimizer] = _or_failure(lambda: self._finish(before, module, optimizer))

    def forget(self) -> None:  # noqa: D102
        self._before = {}

    def clear(self) -> None:  # noqa: D102
        self._before, self._latest = {}, {}

    def read(self, training: Training) -> dict[str, Tensor]:  # noqa: D102
        held, is_alone = set(map(id, training.optimizers)), len(training.optimizers) == 1
        latest = {optimizer: kept for optimizer, kept in self._latest.items() if id(optimizer) in held}
        self._latest = {optimizer: {} if is_alone else kept for optimizer, kept in latest.items()}
        found: dict[str, Tensor] = {}
        for kept in latest.values():
            if isinstance(kept, Exception):
                raise kept
            found |= kept
        return found

    def _finish(
        self, before: dict[str, Tensor] | Exception | None, module: nn.Module, optimizer: Optimizer
    ) -> dict[str, Tensor]:
        if isinstance(before, Exception):
            raise before
        parameters = self._parameters_of(optimizer, module)
        return self.finish(self.keep_late(parameters) if before is None else before, parameters)

    def _has_stepped(self, optimizer: Optimizer) -> bool:
        return optimizer in self._latest


class Gradient(StepQuantity):
    """The gradient just before the step: accumulated and unscaled, before Lightning clips it.

    After a step that nothing announced (see ``StepCounter``), it is the gradient that the step has left.
    """

    is_of_first_look = True

    def before_step(self, module: nn.Module, optimizer: Optimizer, has_gradients: bool = True) -> None:  # noqa: D102
        if has_gradients:
            super().before_step(module, optimizer)

    def keep(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:  # noqa: D102
        gradients = {name: _added_up(p.grad) for name, p in parameters.items() if p.grad is not None}
        # Copies, as some optimizers overwrite gradients.
        return {name: values_of(gradient).clone() for name, gradient in gradients.items()}

    def keep_late(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:  # noqa: D102
        return self.keep(parameters)

    def finish(self, before: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:  # noqa: D102
        return dict(before)


class Update(StepQuantity):
    """The optimizer's update: the parameters after the step minus those before."""

    def keep(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:  # noqa: D102
        readable = {name: p for name, p in parameters.items() if not unreadable_reason(local_tensor(p))}
        return {name: values_of(p).clone() for name, p in readable.items()}

    def finish(self, before: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:  # noqa: D102
        # In float64: the difference of nearly equal numbers would keep few digits in float32.
        present = {name: p for name, p in before.items() if name in parameters}
        return {name: _widened(values_of(parameters[name])) - _widened(p) for name, p in present.items()}


def _added_up(gradient: Any) -> Tensor:
    """Return a gradient whose partial sums, as under sequence parallelism, are added up over processes."""
    if any(placement.is_partial() for placement in getattr(gradient, "placements", ())):
        from torch.distributed.tensor import Replicate

        placements = [Replicate() if placement.is_partial() else placement for placement in gradient.placements]
        gradient = gradient.redistribute(placements=placements)  # as the optimizer is about to do
    found: Tensor = gradient
    return found


def _widened(tensor: Tensor) -> Tensor:
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def _or_failure(get: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor] | Exception:
    """Return what ``get`` returns, or the exception that it raises. The caller raises it when recording."""
    try:
        return get()
    except Exception as error:
        return error
