"""Base class of the quantities, and the training that they are read from. Knows no Lightning."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from lightning_traj.recording.parameters import Parameters
from lightning_traj.tensors import has_entries


@dataclass(frozen=True)
class Training:
    """Module in training, with its optimizers and its average.

    Attributes:
        module: Module that has the parameters.
        optimizers: All optimizers that the run has now.
        averaged: Average of the whole module that is kept outside of it, if there is one.
    """

    module: nn.Module
    optimizers: Sequence[Any] = ()
    averaged: AveragedModel | None = None


class Quantity(ABC):
    """A quantity of the parameters, read as tensors by parameter name.

    Blocks, roles and sketches are then those of the weights, and one quantity can be compared with another.

    Attributes:
        parameters: Named parameters that the quantity belongs to.
        at_steps: Whether the quantity belongs to an optimizer step, as a gradient does, or to the state between steps,
            as weights do.
        is_of_first_look: Whether a quantity of steps is kept at the first look before a step, ahead of the training
            loop's own hooks, and not right before the step (see ``steps.Look``).
        zero_if_missing: Whether a parameter whose optimizer took a step without it has the value zero. Otherwise its
            value counts as unchanged.
        left_out: Reasons why a parameter's quantity cannot be read, by name.
    """

    at_steps = True
    is_of_first_look = False
    zero_if_missing = False

    def __init__(self) -> None:
        self.parameters = Parameters()
        self.left_out: dict[str, str] = {}
        self._trained: set[str] = set()

    def restart_names(self, aliases: Mapping[str, str], shapes: Mapping[str, Sequence[int] | None]) -> None:
        """Begin with the names that parameters have now, or go on from the aliases and shapes of an earlier run."""
        self.parameters.names.restart(aliases, shapes)

    def release(self) -> None:
        """Let go of the parameters when a run is over."""
        self.parameters.release()

    def check(self, training: Training) -> None:  # noqa: B027 (most quantities have nothing to check)
        """Check that this run has the quantity, before its first step.

        Raises:
            ValueError: the run lacks it.
        """

    def begin(self, module: nn.Module) -> None:
        """Begin a run: forget the previous one, and note which parameters are trained."""
        self.clear()
        self.left_out = {}
        # Later, Lightning's toggle_optimizer() hides the parameters of the other optimizers while one of them steps.
        self._trained = {name for name, p in self.parameters.of(module).items() if p.requires_grad}

    def before_step(self, module: nn.Module, optimizer: Optimizer, has_gradients: bool = True) -> None:  # noqa: B027
        """Keep what an optimizer's step is about to change.

        Args:
            module: Module that has the parameters.
            optimizer: Optimizer whose step comes next.
            has_gradients: Whether the gradients of this step are there already.
        """

    def after_step(self, module: nn.Module, optimizer: Optimizer) -> None:  # noqa: B027
        """Keep the quantity of the step that an optimizer has just taken; not called for steps of no interest."""

    def forget(self) -> None:  # noqa: B027
        """Forget what ``before_step`` kept for a step that was not taken."""

    def clear(self) -> None:  # noqa: B027
        """Forget all steps of this run."""

    @abstractmethod
    def read(self, training: Training) -> dict[str, Tensor]:
        """Return the quantity by parameter name.

        A quantity of steps is read right after a step. Each parameter then has that of its own optimizer's latest one.
        """

    def waiting(self, training: Training) -> set[str]:
        """Return the names of the trained parameters whose optimizer has not taken a step yet."""
        optimizers = [optimizer for optimizer in training.optimizers if not self._has_stepped(optimizer)]
        names = {name for optimizer in optimizers for name in self._parameters_of(optimizer, training.module)}
        return names & self._trained

    def _has_stepped(self, optimizer: Optimizer) -> bool:
        return True

    def _parameters_of(self, optimizer: Optimizer, module: nn.Module) -> dict[str, nn.Parameter]:
        """Return the named parameters that an optimizer changes and that have entries to record."""
        own = {id(p) for group in optimizer.param_groups for p in group["params"]}
        return {name: p for name, p in self.parameters.of(module).items() if id(p) in own and has_entries(p)}
