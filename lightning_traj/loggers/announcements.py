"""Announcements to loggers: how charts are grouped, and which measures belong beside the hyperparameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_traj.loggers.registry import for_each


def add_layout(loggers: Sequence[Any], prefixes: Sequence[str] = ("traj",)) -> None:
    """Group TensorBoard's custom scalars as ``MEASURES`` does.

    TensorBoard shows the last layout of a run. This should therefore be called once, with the prefixes of all callbacks
    in the Trainer, and in ``on_fit_start``: a layout that the user's module adds in ``on_train_start`` or later wins.
    """
    for_each(loggers, lambda adapter: adapter.add_layout(prefixes))


def hyperparameters(*owners: Any) -> dict[str, Any]:
    """Return the hyperparameters that Lightning logs for a module and a data module; either may be None."""
    merged: dict[str, Any] = {}
    for owner in owners:
        if getattr(owner, "_log_hyperparams", False):  # set by save_hyperparameters()
            merged |= owner.hparams_initial
    merged.pop("_class_path", None)  # added by LightningCLI
    return merged


def log_hyperparameters(
    loggers: Sequence[Any],
    hyperparameters: Mapping[str, Any],
    prefixes: Sequence[str] = ("traj",),
    *,
    finished: bool = False,
) -> None:
    """Make the measures columns of TensorBoard's HPARAMS tab, beside the hyperparameters that the user logged.

    This has to be called twice, in ``on_fit_start`` and in ``on_train_end``; ``TensorBoardAdapter.announce_columns``
    has the reasons.

    Args:
        loggers: Loggers of the Trainer. Only Lightning's TensorBoardLoggers have such columns.
        hyperparameters: Return value of ``hyperparameters``. If it is empty, nothing is logged.
        prefixes: Prefixes of the tags of all callbacks in the Trainer, since only the first call has an effect.
        finished: Whether training has ended.
    """
    if hyperparameters:
        for_each(loggers, lambda adapter: adapter.announce_columns(hyperparameters, prefixes, finished))
