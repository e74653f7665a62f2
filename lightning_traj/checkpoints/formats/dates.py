"""Time in training at which a checkpoint was written, from its name or from the file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

STEPS = ("global_step", "step", "steps", "iteration", "iter_num", "iter")
_THOUSANDS = {"": 1, "k": 10**3, "m": 10**6}
_COUNT = r"(\d+\.\d+(?=[km])|\d+(?!\.\d+[km]))([km])?"  # 500, 10k, 1.5k
# epoch=3-step=120, step1000, global_step500, step_10k, 500_steps; iter_000500; fairseq's checkpoint_EPOCH_STEP
_STEP = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"steps?[ =_.-]*{_COUNT}(?![a-z]*\d)",
        rf"(?<![a-z\d.]){_COUNT}[ _-]?steps?(?![a-z])",
        rf"iter(?:ation)?s?[ =_.-]*{_COUNT}(?![a-z]*\d)",
        r"^checkpoint_\d+_(\d+)()$",
    )
]
_FOLDER = [re.compile(r"^checkpoint-(\d+)()$")]  # of transformers' Trainer
# checkpoint500, ckpt_500, 000500
_NUMBER = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (rf"(?:checkpoint|ckpt)[ =_.-]*{_COUNT}(?![a-z]*\d)", rf"^{_COUNT}$")
]
_EPOCH = [re.compile(r"epochs?[ =_.-]*(\d+)()", re.IGNORECASE)]


def step_in_name(name: str, folder: bool = False) -> int | None:
    """Return the optimizer step in a name; None if there is none."""
    return _found(_STEP + _FOLDER if folder else _STEP, name)


def number_in_name(name: str) -> int | None:
    """Return the only number of a name, which may count steps or epochs; None if there is none."""
    return _found(_NUMBER, name)


def epoch_in_name(name: str) -> int | None:
    """Return the epoch in a name; None if there is none."""
    return _found(_EPOCH, name)


def step_in(state: Mapping[str, Any]) -> int | None:
    """Return the optimizer steps that a file says were taken; a tensor of one entry or a float may hold them, too.

    mmcv and mmengine say it in ``meta``.
    """
    amounts = (*(state.get(name) for name in STEPS), _at(state, ("meta", "iter")))
    return next((step for amount in amounts if (step := _count(amount)) is not None), None)


def epochs_of_lightning(state: Mapping[str, Any]) -> int | None:
    """Return the completed epochs in a checkpoint of Lightning; None within an epoch."""
    loop = _at(state, ("loops", "fit_loop"))
    at_end = _at(loop, ("epoch_loop.batch_progress", "is_last_batch")) is True
    return _count(_at(loop, ("epoch_progress", "current", "ready"))) if at_end else None


def epochs_of_mmcv(state: Mapping[str, Any]) -> int | None:
    """Return the completed epochs that mmcv and mmengine write."""
    return _count(_at(state, ("meta", "epoch")))


def epoch_in(state: Mapping[str, Any]) -> int | float | None:
    """Return the epoch in a file; None for Lightning, which writes the one that was running."""
    return None if "loops" in state else _amount(state.get("epoch"))


def completed_epochs_in(state: Mapping[str, Any]) -> int | float | None:
    """Return the completed epochs that transformers' Trainer writes, the only ones that are floats."""
    return _amount(state.get("epoch")) if isinstance(state.get("epoch"), float) else None


def _found(patterns: Iterable[re.Pattern[str]], name: str) -> int | None:
    for pattern in patterns:
        if found := pattern.findall(name):
            digits, unit = (found[-1], "") if isinstance(found[-1], str) else found[-1]
            return _count(int(digits) if not unit else round(float(digits) * _THOUSANDS[unit.lower()]))
    return None


def _count(value: Any) -> int | None:
    amount = _amount(value)
    return amount if isinstance(amount, int) else None


def _amount(value: Any) -> int | float | None:
    """Return a number that is not negative, as an int if it is whole; None for anything else."""
    if isinstance(value, (Tensor, np.ndarray, np.number)) and np.prod(value.shape) == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 2**63:
        return None
    return int(value) if value == int(value) else value


def _at(state: Any, keys: Iterable[str]) -> Any:
    for key in keys:
        state = state.get(key) if isinstance(state, Mapping) else None
    return state
