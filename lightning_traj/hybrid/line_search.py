"""A step along the recent direction of the trajectory, taken only where it lowers the loss."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import inf
from typing import Any, Literal

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from lightning_traj.blocks import clean_name

Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class LineSearch:
    """Try θ + a (θ − θ') at the start of an epoch, θ' being the weights of ``every`` epochs before.

    The loss is evaluated on a copy of the module, in training mode, with the same random numbers for each a and
    without gradients: the module itself, its running statistics, metrics and random numbers are untouched until a
    step is taken. The best a is taken if its loss is lower than that of a = 0. BatchNorm's running statistics are then
    those of before; the coming epoch's batches bring them up to date. Optimizer states stay as they are.

    Args:
        factors: Values of a, in units of the movement since θ'.
        batches: How many batches the loss is evaluated on: the first of the run, kept on the device.
        data: Whether they are ``"train"`` or ``"val"`` batches.
        every: Epochs from one search to the next.
        loss: From module and batch to the loss, a scalar tensor; None: what ``training_step`` returns, also for
            validation batches.

    Raises:
        TypeError, ValueError: an argument is wrong.
    """

    factors: Sequence[float] = (0.5, 1.0, 2.0, 4.0)
    batches: int = 4
    data: Literal["train", "val"] = "train"
    every: int = 1
    loss: Loss | None = None

    def __post_init__(self) -> None:
        listed = list(self.factors) if isinstance(self.factors, Sequence) else []
        if not listed or not all(isinstance(a, int | float) and a == a and a != 0 for a in listed):
            raise ValueError(f"LineSearch(factors={self.factors!r}): pass a list of numbers other than 0.")
        for argument, value in (("batches", self.batches), ("every", self.every)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"LineSearch({argument}={value!r}): pass an int of at least 1.")
        if self.data not in ("train", "val"):
            raise ValueError(f"LineSearch(data={self.data!r}): pass 'train' or 'val'.")
        if self.loss is not None and not callable(self.loss):
            raise TypeError(f"LineSearch(loss={self.loss!r}): pass a function from module and batch to the loss.")
        object.__setattr__(self, "factors", tuple(map(float, listed)))


@dataclass(frozen=True)
class SearchResult:
    """What a search has found.

    Attributes:
        factor: The best a; 0 where none lowers the loss.
        before, after: Loss at a = 0 and at the best a.
    """

    factor: float
    before: float
    after: float


def summarised(found: Mapping[str, SearchResult]) -> dict[str, float]:
    """Share of the searches whose step was taken, and by how much they lowered the loss together."""
    results = list(found.values())
    if not results:
        return {}
    taken = sum(result.factor != 0 for result in results) / len(results)
    return {"taken": taken, "gain": results[0].before - results[-1].after}


def in_words(found: Mapping[str, SearchResult]) -> str:
    """By which factors groups were moved, one after the other, and what that did to the loss."""
    results = list(found.values())
    factors = sorted({result.factor for result in results if result.factor})
    return f"by {' or '.join(f'{a:g}' for a in factors)}: loss {results[0].before:.4g} to {results[-1].after:.4g}"


class DirectionSearch:
    """What line searches keep from one to the next.

    Args:
        settings: What to try.

    Attributes:
        batches: Those that losses are evaluated on.
        earlier: θ' of the parameters that were trained then, by clean name.
        epoch: Of the latest search, or of when ``earlier`` was taken.
    """

    def __init__(self, settings: LineSearch) -> None:
        self.settings = settings
        self.batches: list[Any] = []
        self.earlier: dict[str, Tensor] = {}
        self.epoch = 0

    def keep(self, batch: Any, data: str) -> bool:
        """Keep a copy of a batch, if it is still needed; whether it is the first."""
        if data != self.settings.data or len(self.batches) >= self.settings.batches:
            return False
        self.batches.append(apply_to_collection(batch, Tensor, Tensor.clone))
        return len(self.batches) == 1

    def is_due(self, epoch: int) -> bool:
        """Whether to search, or to begin, at the start of an epoch."""
        return not self.earlier or epoch - self.epoch >= self.settings.every

    def begin(self, parameters: Mapping[str, nn.Parameter], epoch: int) -> None:
        """Take the weights as θ'."""
        self.earlier = {name: p.detach().clone() for name, p in parameters.items() if p.requires_grad}
        self.epoch = epoch

    def search(
        self, probe: Probe, groups: Mapping[str, Sequence[str]], parameters: Mapping[str, nn.Parameter]
    ) -> dict[str, SearchResult]:
        """Search group by group, in order; what was found for each group of which something has moved.

        Args:
            probe: A copy of the module as it is.
            groups: Names of parameters, by group.
            parameters: Of the module, by clean name.
        """
        found = {}
        for label, names in groups.items():
            moving = {n: parameters[n] for n in names if n in self.earlier and parameters[n].requires_grad}
            if moving:
                found[label] = probe.search(moving, self.earlier)
        return found

    def state_dict(self) -> dict[str, Any]:
        """Everything, as tensors and primitives: without batches that are made of other things."""
        batches = [batch for batch in self.batches if _is_plain(batch)]
        return {"batches": batches, "earlier": dict(self.earlier), "epoch": self.epoch}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on where ``state_dict`` was taken, on a device."""
        self.batches = apply_to_collection(list(state["batches"]), Tensor, Tensor.to, device)
        self.earlier = {name: value.to(device) for name, value in state["earlier"].items()}
        self.epoch = state["epoch"]


class Probe:
    """A copy of a module, for losses at weights that the module does not have.

    Args:
        module: To be copied.
        batches: The loss is the mean over these.
        settings: Of the search.
        autocast: Makes the context of a training step.
        reduce: From losses of this process to their mean over all.
    """

    def __init__(
        self,
        module: nn.Module,
        batches: Sequence[Any],
        settings: LineSearch,
        autocast: Callable[[], AbstractContextManager[Any]],
        reduce: Callable[[Tensor], Tensor],
    ) -> None:
        self.module = _copied(module).train()
        self.batches, self.settings, self.autocast, self.reduce = batches, settings, autocast, reduce
        self._parameters = {clean_name(name): p for name, p in self.module.named_parameters()}

    def loss(self) -> Tensor:
        """Mean loss at the probe's weights, a scalar; the same random numbers each time.

        Raises:
            ValueError: training_step cannot be used.
        """
        with torch.no_grad(), isolate_rng(), self.autocast(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the copy has no Trainer to log to
            evaluate = self.settings.loss or _training_loss
            losses = [evaluate(self.module, batch).detach().float() for batch in self.batches]
        return torch.stack(losses).mean()

    @torch.no_grad()
    def search(self, parameters: Mapping[str, nn.Parameter], earlier: Mapping[str, Tensor]) -> SearchResult:
        """Search along θ − θ' of these parameters, and take the best step, in the module and here, if it is one.

        Args:
            parameters: θ: the module's, by clean name.
            earlier: θ', by the same names.
        """
        factors = (0.0, *self.settings.factors)
        moves = {name: p - earlier[name] for name, p in parameters.items()}
        losses = []
        for factor in factors:
            for name, p in parameters.items():
                self._parameters[name].copy_(torch.add(p, moves[name], alpha=factor))
            losses.append(self.loss())
        values = self.reduce(torch.stack(losses)).tolist()  # the one time that it waits for the device
        best = min(range(len(values)), key=lambda i: values[i] if values[i] == values[i] else inf)
        if not values[best] < values[0]:
            best = 0
        for name, p in parameters.items():
            if best:
                p.add_(moves[name], alpha=factors[best])
            self._parameters[name].copy_(p)
        return SearchResult(factors[best], values[0], values[best])


def _training_loss(module: Any, batch: Any) -> Tensor:
    """What the module's ``training_step`` says of a batch.

    Raises:
        ValueError: it returns no loss, or needs the Trainer.
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
    """A deep copy, in which what still hangs on a graph (a loss that a metric has seen) is detached."""
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


def _is_plain(value: Any) -> bool:
    """Whether a checkpoint that is loaded without pickle can hold it."""
    if type(value) in (list, tuple):
        return all(map(_is_plain, value))
    if type(value) is dict:
        return all(map(_is_plain, value)) and all(map(_is_plain, value.values()))
    return value is None or type(value) in (Tensor, int, float, str, bool, bytes)
