"""Running moments of the gradient, as the optimizers keep them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_traj.recording.quantities.quantity import Quantity, Training
from lightning_traj.recording.quantities.values import values_of
from lightning_traj.recording.step_hooks import with_inner
from lightning_traj.tensors import has_entries, local_tensor, unreadable_reason


class Moment(Quantity):
    """A running moment of the gradient.

    Args:
        name: ``"first_moment"`` or ``"second_moment"``.
        states: Names that optimizers give it in their state.
    """

    def __init__(self, name: str, states: Iterable[str]) -> None:
        super().__init__()
        self.name, self.states = name, tuple(states)

    def check(self, training: Training) -> None:  # noqa: D102
        for optimizer in training.optimizers:
            everyone = with_inner(optimizer)
            inner = everyone[1:] or everyone  # a wrapper shows the settings of what it wraps, and keeps no moments
            if not any(map(self._is_kept, inner)) and not any(_has(each, self.states) for each in everyone):
                raise ValueError(
                    f"track={self.name!r}: {type(optimizer).__name__} keeps no such moment; use an optimizer that does "
                    "(AdamW has both, SGD with momentum the first), or track something else."
                )

    def read(self, training: Training) -> dict[str, Tensor]:  # noqa: D102
        found = {}
        for optimizer in training.optimizers:
            holders = with_inner(optimizer)
            for name, p in self._parameters_of(optimizer, training.module).items():
                for state in (getattr(holder, "state", {}).get(p, {}) for holder in holders):
                    if (value := self._of(state, p)) is not None:
                        if not has_entries(value):
                            self.left_out[name] = f"the optimizer keeps it as {value.dtype}"
                        elif unreadable_reason(local_tensor(value)):
                            found[name] = value  # the recorder leaves it out, and names it
                        else:
                            found[name] = values_of(value)
                        break
        return found

    def _of(self, state: Mapping[str, Any], parameter: Tensor) -> Tensor | None:
        """Return the moment in an optimizer's state of a parameter, if it is there."""
        for name in self.states:
            if isinstance(value := state.get(name), Tensor) and value.shape == parameter.shape:
                return value
        if self.name == "second_moment" and "row_var" in state and "col_var" in state:  # torch.optim.Adafactor
            rows, columns = state["row_var"], state["col_var"]
            product: Tensor = rows * columns / rows.mean(dim=-2, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
            return product
        return None

    def _is_kept(self, optimizer: Optimizer) -> bool:
        """Whether an optimizer is going to keep the moment, judged by its class and its settings."""
        kinds = [kind.__name__.lower() for kind in type(optimizer).__mro__]
        groups = optimizer.param_groups
        with_betas = any("betas" in group for group in groups)
        if self.name == "first_moment":
            # Schedule-free optimizers have their momentum from averaging, without a buffer.
            if any("schedulefree" in kind for kind in kinds):
                return False
            return with_betas or any(group.get("momentum", 0) or group.get("centered") for group in groups)
        if any("lion" in kind or kind == "adamax" for kind in kinds):  # Lion keeps none, Adamax the largest gradient
            return False
        # RMSprop, Adagrad, Adadelta, Adafactor
        others = ("centered", "lr_decay", "rho", "beta2_decay")
        return with_betas or any(setting in group for setting in others for group in groups)

    def _has_stepped(self, optimizer: Optimizer) -> bool:
        return any(getattr(holder, "state", None) for holder in with_inner(optimizer))


def _has(optimizer: Optimizer, states: Iterable[str]) -> bool:
    """Whether an optimizer has one of these states already: it was restored, or is of an unusual kind."""
    return any(state in values for values in getattr(optimizer, "state", {}).values() for state in states)
