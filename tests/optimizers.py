"""A registry of optimizers and of ways to step: each entry takes part in all of the contract tests."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import schedulefree
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from models import Module, batches

Parameters = list[nn.Parameter]
Moves = tuple[list[Tensor], list[Tensor | None], list[Tensor]]


# How training steps, with a witness of its own ------------------------------------------------------------------


class Stepping(Module):
    """Takes down every step: the parameters right before and after it, and the gradients of its first evaluation."""

    def __init__(self, make: Callable[[Parameters], Any]) -> None:
        super().__init__()
        self.make = make
        self.moves: list[Moves] = []
        self.kept: list[dict[str, list[Tensor | None]]] = []  # moments after each step
        self.moments: dict[str, Callable[[Optimizer, nn.Parameter], Tensor | None]] = {}

    def configure_optimizers(self) -> Any:
        return self.make(list(self.parameters()))

    def now(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.parameters()]

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        self.witness(lambda closure: optimizer.step(closure=closure), optimizer.optimizer, optimizer_closure)

    def witness(self, step: Callable[[Any], Any], optimizer: Any, closure: Any = None) -> None:
        own = {id(p) for group in optimizer.param_groups for p in group["params"]}
        gradients: list[Tensor | None] = []
        before: list[Tensor] = []

        def take() -> None:
            if not before:
                before.extend(self.now())
                kept = (p.grad if id(p) in own else None for p in self.parameters())
                gradients.extend(None if gradient is None else gradient.clone() for gradient in kept)

        def evaluate() -> Any:
            result = closure()
            take()
            return result

        if closure is None:
            take()
            step(None)
        else:
            step(evaluate)
        self.moves.append((before, gradients, self.now()))
        moments = {name: [get(optimizer, p) for p in self.parameters()] for name, get in self.moments.items()}
        self.kept.append({k: [None if v is None else v.clone() for v in values] for k, values in moments.items()})


class Modes(Stepping):
    """As schedule-free optimizers want it: another mode, and so other weights, outside of training."""

    def on_train_epoch_start(self) -> None:
        self.optimizers().optimizer.train()

    def on_validation_start(self) -> None:
        self.optimizers().optimizer.eval()

    def on_validation_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.optimizers().optimizer.train()

    def on_train_epoch_end(self) -> None:
        self.optimizers().optimizer.eval()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.loss(batch)

    def val_dataloader(self) -> Any:
        return batches()


class Manual(Stepping):
    """Steps ``times`` times a batch by its own hand."""

    automatic_optimization = False
    times = 2

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for _ in range(self.times):
            for optimizer in self.all_optimizers():
                optimizer.zero_grad()
                self.manual_backward(self.loss(batch))
                raw = getattr(optimizer, "optimizer", optimizer)
                self.witness(lambda _, optimizer=optimizer: optimizer.step(), raw)

    def all_optimizers(self) -> list[Any]:
        optimizers = self.optimizers()
        return optimizers if isinstance(optimizers, list) else [optimizers]


class ManualOnce(Manual):
    times = 1


class Raw(Manual):
    """Goes past Lightning: neither its hooks nor ``global_step`` know of these steps."""

    def all_optimizers(self) -> list[Any]:
        return list(self.trainer.optimizers)


class RawClosure(Raw):
    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.trainer.optimizers[0]

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = self.loss(batch)
            loss.backward()
            return loss

        self.witness(optimizer.step, optimizer, closure)


# Stand-ins for optimizers that do it in ways of their own --------------------------------------------------------


class Lookahead(Optimizer):
    """Every second step goes half of the way: as timm's, without ``super().__init__()`` and with empty dictionaries."""

    def __init__(self, base: Optimizer) -> None:
        self._optimizer_step_pre_hooks: Any = OrderedDict()
        self._optimizer_step_post_hooks: Any = OrderedDict()
        self.base, self.defaults, self.param_groups, self.taken = base, base.defaults, base.param_groups, 0
        self.state: Any = {}

    def step(self, closure: Any = None) -> Any:
        loss = self.base.step(closure)
        with torch.no_grad():
            for p in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
                slow = self.state.setdefault(p, {"slow": p.clone()})["slow"]
                if self.taken % 2:
                    p.copy_(slow.lerp_(p, 0.5))
        self.taken += 1
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.base.zero_grad(set_to_none)

    def state_dict(self) -> Any:
        return self.base.state_dict()

    def load_state_dict(self, state_dict: Any) -> None:
        self.base.load_state_dict(state_dict)
        self.param_groups = self.base.param_groups


class Bare(Optimizer):
    """A wrapper without the dictionaries of hooks, which hands on everything else."""

    def __init__(self, base: Optimizer) -> None:
        self.base, self.defaults, self.param_groups, self.state = base, base.defaults, base.param_groups, base.state

    def step(self, closure: Any = None) -> Any:
        return self.base.step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.base.zero_grad(set_to_none)

    def state_dict(self) -> Any:
        return self.base.state_dict()


class ScheduleFreeWrapper(schedulefree.ScheduleFreeWrapper):
    @property
    def defaults(self) -> dict[str, Any]:  # without which Lightning takes no optimizer
        return {}


class Deaf(Bare):
    """One that has no use for closures: Lightning cannot announce its steps."""

    def step(self, closure: Any = None) -> Any:
        return self.base.step()


class Sam(torch.optim.SGD):
    """Two forward and backward passes and one step: up to where the loss is worse, and down by the gradient there."""

    @torch.no_grad()
    def step(self, closure: Any) -> Any:  # type: ignore[override]
        loss = torch.enable_grad()(closure)()
        moved = [(p, 0.05 * p.grad) for group in self.param_groups for p in group["params"] if p.grad is not None]
        for p, by in moved:
            p.add_(by)
        torch.enable_grad()(closure)()
        for p, by in moved:
            p.sub_(by)
        super().step()  # fires the hooks of the same object once more
        return loss


class SamByHalves(torch.optim.SGD):
    """Each half is a call of its own: two steps a batch."""

    def step(self, closure: Any = None) -> Any:
        loss = closure() if closure is not None else None
        with torch.no_grad():
            if not getattr(self, "moved", None):
                having = (p for group in self.param_groups for p in group["params"] if p.grad is not None)
                self.moved = [(p, 0.05 * p.grad) for p in having]
                for p, by in self.moved:
                    p.add_(by)
                return loss
            for p, by in self.moved:
                p.sub_(by)
        self.moved = []
        super().step()
        return loss


class Lion(Optimizer):
    """By the sign of the momentum alone."""

    def __init__(self, parameters: Parameters) -> None:
        super().__init__(parameters, {"lr": 0.01, "betas": (0.9, 0.99)})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                average = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                p.sub_(average.lerp(p.grad, 1 - group["betas"][0]).sign_(), alpha=group["lr"])
                average.lerp_(p.grad, 1 - group["betas"][1])
        return loss


class Swapping(torch.optim.SGD):
    """Keeps an average, and puts it in the weights' place and back by ``.data``, which leaves no mark."""

    def swap(self) -> None:
        for p in (p for group in self.param_groups for p in group["params"]):
            average = self.state[p].setdefault("average", p.detach().clone())
            kept = p.data.clone()
            p.data.copy_(average)
            average.copy_(kept)

    eval = train = swap  # as Modes calls them

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        for p in (p for group in self.param_groups for p in group["params"]):
            self.state[p].setdefault("average", p.detach().clone()).lerp_(p.detach(), 0.2)
        return loss


class SwappingModes(Modes):
    """The average is what is validated, and what the epoch's end leaves until the next one begins."""

    def on_train_epoch_start(self) -> None:
        if self.current_epoch:
            super().on_train_epoch_start()

    def on_validation_start(self) -> None:
        if not self.trainer.sanity_checking:
            super().on_validation_start()


class Codes(Tensor):
    """Eight bits an entry and a scale: says that it is float32, and has no operations."""

    @staticmethod
    def __new__(cls, values: Tensor) -> Any:
        return torch.Tensor._make_wrapper_subclass(cls, values.shape, dtype=torch.float32)

    def __init__(self, values: Tensor) -> None:
        self.scale = values.abs().max().clamp_min(1e-20) / 127
        self.codes = (values / self.scale).round().to(torch.int8)

    def values(self) -> Tensor:  # type: ignore[override]
        return self.codes.float() * self.scale

    def __tensor_flatten__(self) -> Any:
        return ["codes", "scale"], None

    def __repr__(self) -> str:  # type: ignore[override]
        return "Codes()"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError(f"Codes: {func}")


class ReadableCodes(Codes):
    def dequantize(self) -> Tensor:
        return self.values()


class EightBit(Optimizer):
    """Momentum in eight bits."""

    def __init__(self, parameters: Parameters, kind: type[Codes] = ReadableCodes) -> None:
        super().__init__(parameters, {"lr": 0.05, "momentum": 0.9})
        self.kind = kind

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        loss = None if closure is None else torch.enable_grad()(closure)()
        for p in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
            kept = self.state[p].get("momentum_buffer")
            average = p.grad if kept is None else 0.9 * kept.values() + p.grad
            self.state[p]["momentum_buffer"] = self.kind(average)
            p.sub_(average, alpha=0.05)
        return loss


# The registry ---------------------------------------------------------------------------------------------------


def state(name: str) -> Callable[[Any, nn.Parameter], Tensor | None]:
    """The moment of this name in the state of an optimizer, or of the one that it wraps."""

    def get(optimizer: Any, p: nn.Parameter) -> Tensor | None:
        for holder in (optimizer, getattr(optimizer, "base", None)):
            if holder is not None and name in (values := holder.state.get(p, {})):
                return values[name].values() if isinstance(values[name], Codes) else values[name]
        return None

    return get


def factored(optimizer: Any, p: nn.Parameter) -> Tensor | None:
    """Adafactor's second moment: the variance itself of vectors; of matrices, what their rows and columns give."""
    values = optimizer.state.get(p, {})
    if "variance" in values or not values:
        return values.get("variance")
    rows, columns = values["row_var"][:, 0], values["col_var"][0]
    return torch.outer(rows, columns) / rows.mean()


@dataclass(frozen=True)
class Entry:
    """An optimizer, and what is known of it.

    Attributes:
        make: Makes it, from the parameters.
        moments: How the witness finds each moment that it keeps. A moment that is not here is refused before training.
        module: How it steps.
        steps: Steps a batch.
        says: Whether a line says that steps are counted by ``global_step``.
        freezes: Whether HybridTraining takes it.
        settings: Of the Trainer.
    """

    make: Callable[[Parameters], Any]
    moments: dict[str, Callable[[Any, nn.Parameter], Tensor | None]] = field(default_factory=dict)
    module: type[Stepping] = Stepping
    steps: int = 1
    says: bool = False
    freezes: bool = True
    settings: dict[str, Any] = field(default_factory=dict)


def first(name: str) -> dict[str, Any]:
    return {"first_moment": state(name)}


def second(name: str) -> dict[str, Any]:
    return {"second_moment": state(name)}


ADAM = first("exp_avg") | second("exp_avg_sq")
SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
MID_EPOCH = {"val_check_interval": 0.5}  # validation after the second batch: in the middle of a window

# Every class of torch.optim that takes dense gradients: what it keeps, and settings where the defaults won't do.
TORCH: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ASGD": ({}, {}),
    "Adadelta": (second("square_avg"), {"lr": 1.0}),
    "Adafactor": ({"second_moment": factored}, {}),
    "Adagrad": (second("sum"), {}),
    "Adam": (ADAM, {}),
    "AdamW": (ADAM, {}),
    "Adamax": (first("exp_avg"), {}),
    "LBFGS": ({}, {"lr": 0.5, "max_iter": 3}),
    "Muon": (first("momentum_buffer"), {}),
    "NAdam": (ADAM, {}),
    "RAdam": (ADAM, {}),
    "RMSprop": (second("square_avg"), {}),
    "Rprop": ({}, {}),
    "SGD": (first("momentum_buffer"), {"lr": 0.05, "momentum": 0.9}),
}
SPARSE = {"SparseAdam"}  # refuses dense gradients


def torch_optimizer(name: str, parameters: Parameters, **settings: Any) -> Optimizer:
    if name == "Muon":  # of matrices only
        parameters = [p for p in parameters if p.ndim == 2]
    optimizer: Optimizer = getattr(torch.optim, name)(parameters, **TORCH[name][1], **settings)
    return optimizer


REGISTRY: dict[str, Entry] = {
    name: Entry(partial(torch_optimizer, name), moments, freezes=name != "LBFGS")
    for name, (moments, _) in TORCH.items()
}
for variant in ("foreach", "fused"):
    for name, (moments, _) in TORCH.items():
        if variant in inspect.signature(getattr(torch.optim, name)).parameters:
            REGISTRY[f"{name}, {variant}"] = Entry(partial(torch_optimizer, name, **{variant: True}), moments)
REGISTRY |= {
    "SGD without momentum": Entry(partial(torch.optim.SGD, lr=0.05)),
    "RMSprop, centered": Entry(
        partial(torch.optim.RMSprop, centered=True, momentum=0.9), first("grad_avg") | second("square_avg")
    ),
    "schedulefree SGD": Entry(partial(schedulefree.SGDScheduleFree, lr=0.1), module=Modes, settings=MID_EPOCH),
    "schedulefree AdamW": Entry(
        partial(schedulefree.AdamWScheduleFree, lr=0.01), second("exp_avg_sq"), Modes, settings=MID_EPOCH
    ),
    "schedulefree RAdam": Entry(partial(schedulefree.RAdamScheduleFree, lr=0.01), second("exp_avg_sq"), Modes),
    "schedulefree wrapper": Entry(
        lambda parameters: ScheduleFreeWrapper(SGD(parameters)),
        first("momentum_buffer"),
        Modes,
        says=True,
        settings=MID_EPOCH,
    ),
    "Lookahead": Entry(lambda parameters: Lookahead(torch.optim.AdamW(parameters)), ADAM, says=True),
    "without dictionaries": Entry(lambda parameters: Bare(SGD(parameters)), first("momentum_buffer"), says=True),
    "without dictionaries, LBFGS": Entry(
        lambda parameters: Bare(torch.optim.LBFGS(parameters, lr=0.5, max_iter=3)), says=True, freezes=False
    ),
    "without dictionaries, by hand": Entry(
        lambda parameters: Bare(SGD(parameters)), first("momentum_buffer"), Manual, steps=2, says=True
    ),
    "deaf to closures": Entry(
        lambda parameters: Deaf(SGD(parameters)), first("momentum_buffer"), ManualOnce, says=True
    ),
    "SAM": Entry(partial(Sam, lr=0.05, momentum=0.9), first("momentum_buffer")),
    "SAM by halves": Entry(partial(SamByHalves, lr=0.05), module=Manual, steps=2),
    "SAM by halves, without dictionaries": Entry(
        lambda parameters: Bare(SamByHalves(parameters, lr=0.05)), module=Manual, steps=2, says=True
    ),
    "Lion": Entry(Lion, first("exp_avg")),
    "swapping": Entry(
        partial(Swapping, lr=0.05, momentum=0.9), first("momentum_buffer"), SwappingModes, settings=MID_EPOCH
    ),
    "eight bits": Entry(EightBit, first("momentum_buffer")),
    "past Lightning": Entry(SGD, first("momentum_buffer"), Raw, steps=2),
    "past Lightning, with a closure": Entry(SGD, first("momentum_buffer"), RawClosure),
}  # fmt: skip

# What must be here, whatever else comes and goes.
REQUIRED = {
    *TORCH,
    *("SGD, fused", "Adam, fused", "AdamW, fused", "Adagrad, fused", "SGD, foreach", "AdamW, foreach"),
    *("schedulefree SGD", "schedulefree AdamW", "Lookahead", "without dictionaries", "SAM", "SAM by halves", "Lion"),
    *("swapping", "eight bits"),
}


def dense_torch_classes() -> set[str]:
    """The optimizers that the installed torch has."""
    found = {name: value for name, value in vars(torch.optim).items() if isinstance(value, type)}
    return {name for name, kind in found.items() if issubclass(kind, Optimizer) and kind is not Optimizer}
