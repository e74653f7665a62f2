"""Logged metrics that Lightning computes lazily: keeping ranks in step, and reading without leaving a trace.

``self.log(..., on_epoch=True, sync_dist=True)`` and a logged ``torchmetrics.Metric`` are reduced over ranks by a
collective on training's own process group. Lightning issues it when a rank first reads ``trainer.callback_metrics``,
``progress_bar_metrics`` or ``logged_metrics`` outside of the batches, and keeps the result. A progress bar reads them
in ``on_train_epoch_end`` on rank 0 alone. Another callback must therefore not communicate while a value is pending on
some rank: rank 0 would wait in the metric's collective, and the other ranks in the callback's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from torch import Tensor


def settle_logged_metrics(trainer: Any) -> None:
    """Compute the logged metrics that are reduced over ranks and still pending on this rank.

    All ranks call it first in each hook in which callbacks of this package communicate, also a rank on which recording
    has failed. Afterwards no reader on any rank issues a collective until something is logged or updated again.

    What the user logs stays the same. A Metric that nobody has read yet is still computed from what it holds when
    Lightning reads it; if any rank has read it, its value is settled on all of them. A metric that raises here raises
    the same error when Lightning reads it.

    Args:
        trainer: Trainer of the running fit.
    """
    if trainer.world_size == 1:
        return
    results = [result for result in _lazy_results(trainer) if _is_reduced(result)]
    metrics = [result for result in results if not result.is_tensor]
    was_read = any(metric._computed is not None for metric in metrics)
    for result in results:
        if result._computed is None:
            _compute(result)
    with suppress(Exception):  # where ranks cannot be reached, training says so itself
        if metrics and not trainer.strategy.reduce_boolean_decision(was_read, all=False):
            _forget(metrics)


def settle_first(trainer: Any, do: Callable[..., None]) -> Callable[..., None]:
    """Return a function that settles the logged metrics of a fit, and then calls ``do`` with its arguments."""

    def settle_and_do(*args: Any) -> None:
        settle_logged_metrics(trainer)
        do(*args)

    return settle_and_do


def read_callback_metrics(trainer: Any) -> dict[str, Tensor]:
    """Return ``trainer.callback_metrics``; Metrics that nobody has read before can still be updated.

    Args:
        trainer: Trainer of the running fit. All ranks have to call it.
    """
    settle_logged_metrics(trainer)
    unread = [result for result in _lazy_results(trainer) if not result.is_tensor and result._computed is None]
    try:
        return dict(trainer.callback_metrics)
    finally:
        _forget(unread)


def add_callback_metrics(trainer: Any, values: Mapping[str, Tensor]) -> None:
    """Add values to ``trainer.callback_metrics`` without computing logged metrics, as reading that property would.

    Args:
        trainer: Trainer of the running fit.
        values: Values by name.
    """
    trainer._logger_connector._callback_metrics.update(values)


def _lazy_results(trainer: Any) -> list[Any]:
    """Return the results that readers compute now, unless they are cached."""
    if trainer._logger_connector._first_loop_iter is not None or not (results := trainer._results):
        return []  # within a batch, readers get the values of the step, which are reduced when they are logged
    return [result for _, result in results.valid_items() if result.meta.on_epoch]


def _is_reduced(result: Any) -> bool:
    """Return whether computing a result communicates."""
    sync = result.meta.sync
    return not sync.rank_zero_only and (sync.should if result.is_tensor else result.value._to_sync)


def _forget(metrics: list[Any]) -> None:
    """Drop Lightning's copies of the values of Metrics, which themselves keep them until they are updated."""
    for metric in metrics:
        metric._computed = None


def _compute(result: Any) -> None:
    """Compute a result as Lightning does, and leave it able to take further values."""
    if result.is_tensor:
        averaged = result.meta.is_mean_reduction
        count = result.cumulated_batch_size.clone() if averaged else None
        with suppress(Exception):
            result.compute()
        if averaged:
            result.cumulated_batch_size = count  # Lightning reduces it in place
        return
    unsynced = [part for part in result.value.modules() if getattr(part, "_is_synced", None) is False]
    try:
        result.compute()
    except Exception:
        for part in unsynced:
            if part._is_synced:  # it would raise another error when it is computed again
                part.unsync()
