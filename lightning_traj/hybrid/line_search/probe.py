"""Losses at weights that a module does not have."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn

from lightning_traj.hybrid.groups import current_parameters
from lightning_traj.hybrid.line_search.settings import LineSearch


@dataclass(frozen=True)
class SearchResult:
    """Result of the search for one group of parameters.

    Attributes:
        factor: The best a; 0 where none lowers the loss.
        before: Loss at a = 0.
        after: Loss at the best a.
    """

    factor: float
    before: float
    after: float


class Probe:
    """Copy of a module, to evaluate the loss at other weights than the module's.

    Args:
        module: Module to copy.
        batches: Batches over which the loss is averaged.
        settings: Settings of the search.
        autocast: Makes the context of a training step.
        reduce: Returns the mean over all processes of the losses of this one.
        aliases: First names of parameters by the clean names that they have now, where these differ.

    Attributes:
        parameters: Parameters of the copy, by clean first name.
    """

    def __init__(
        self,
        module: nn.Module,
        batches: Sequence[Any],
        settings: LineSearch,
        autocast: Callable[[], AbstractContextManager[Any]],
        reduce: Callable[[Tensor], Tensor],
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        self.module = _copied(module).train()
        self.batches, self.settings, self.autocast, self.reduce = batches, settings, autocast, reduce
        self.parameters = current_parameters(self.module, aliases or {})

    def loss(self) -> Tensor:
        """Return the mean loss at the probe's weights, a scalar, with the same random numbers each time.

        Raises:
            ValueError: ``training_step`` returns no loss, or needs the Trainer.
        """
        with torch.no_grad(), isolate_rng(), self.autocast(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the copy has no Trainer to log to
            evaluate = self.settings.loss or _training_loss
            losses = [evaluate(self.module, batch).detach().float() for batch in self.batches]
        return torch.stack(losses).mean()

    @torch.no_grad()
    def search(self, parameters: Mapping[str, nn.Parameter], earlier: Mapping[str, Tensor]) -> SearchResult:
        """Search along θ − θ' of some parameters, and take the best step, in the module and here, if it is one.

        Args:
            parameters: Parameters of the module, θ, by clean name.
            earlier: Earlier values, θ', by the same names.
        """
        factors = (0.0, *self.settings.factors)
        moves = {name: p - earlier[name] for name, p in parameters.items()}
        losses = []
        for factor in factors:
            for name, p in parameters.items():
                self.parameters[name].copy_(torch.add(p, moves[name], alpha=factor))
            losses.append(self.loss())
        values = self.reduce(torch.stack(losses)).tolist()  # the only wait for the device
        best = min(range(len(values)), key=lambda i: values[i] if values[i] == values[i] else inf)
        if not values[best] < values[0]:
            best = 0
        for name, p in parameters.items():
            if best:
                p.add_(moves[name], alpha=factors[best])
            self.parameters[name].copy_(p)
        return SearchResult(factors[best], values[0], values[best])


def probe_of(
    trainer: Any,
    module: nn.Module,
    batches: Sequence[Any],
    settings: LineSearch,
    aliases: Mapping[str, str] | None = None,
) -> Probe:
    """Return a probe of the module that a Trainer trains; further arguments as of ``Probe``."""
    autocast = trainer.precision_plugin.train_step_context
    return Probe(module, batches, settings, autocast, partial(trainer.strategy.reduce, reduce_op="mean"), aliases)


def _training_loss(module: Any, batch: Any) -> Tensor:
    """Return the loss of a batch, as the module's ``training_step`` has it.

    Raises:
        ValueError: ``training_step`` returns no loss, or needs the Trainer.
    """
    # As Lightning has it: a second argument is the index, whatever it is called.
    index = (0,) if is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2) else ()
    remedy = "pass LineSearch(loss=…), a function from module and batch to the loss."
    try:
        output = module.training_step(batch, *index)
    except RuntimeError as error:
        if "not attached to a `Trainer`" not in str(error):
            raise
        raise ValueError(
            "line_search: training_step asks for self.trainer, which the copy of the module that the loss is evaluated "
            f"on does not have: {remedy}"
        ) from error
    loss = output["loss"] if isinstance(output, Mapping) else output
    if not isinstance(loss, Tensor):
        raise ValueError(f"line_search: training_step returned {loss!r} and no loss: {remedy}")
    return loss


def _copied(module: nn.Module) -> nn.Module:
    """Return a deep copy. Tensors that are part of a graph, such as a loss that a metric has seen, are detached."""
    detached: dict[int, Tensor] = {}

    def detach(value: Any) -> None:
        if isinstance(value, Tensor) and not value.is_leaf:
            detached[id(value)] = value.detach()
        for member in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
            detach(member)

    for part in module.modules():
        detach(vars(part))
    try:
        return copy.deepcopy(module, detached)
    except (TypeError, RuntimeError) as error:
        raise ValueError(
            f"line_search: works on a copy of the module, which holds something that cannot be copied ({error}): keep "
            "it outside the module, or leave line_search out."
        ) from error
