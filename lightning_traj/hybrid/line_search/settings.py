"""Settings of a line search along the recent direction of the trajectory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

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
        batches: Number of batches that the loss is evaluated on: the first of the run, kept on the device.
        data: Whether these are ``"train"`` or ``"val"`` batches.
        every: Epochs from one search to the next.
        loss: Function from module and batch to the loss, a scalar tensor. None: the loss that ``training_step``
            returns, also for validation batches.

    Raises:
        TypeError, ValueError: An argument is wrong.
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
