"""Every kind of logger. A new one takes a file and a line here; `tests/loggers/test_contract.py` then checks it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from lightning_traj.loggers.adapter import LoggerAdapter
from lightning_traj.loggers.attempts import attempt_all
from lightning_traj.loggers.images import ImageAdapter
from lightning_traj.loggers.tensorboard import TensorBoardAdapter

# The first kind that fits is used, so the last one fits all loggers.
ADAPTERS: tuple[type[LoggerAdapter], ...] = (
    TensorBoardAdapter,
    ImageAdapter,
    LoggerAdapter,
)


def adapter_of(logger: Any) -> LoggerAdapter:
    """Return the adapter of a logger."""
    return next(adapter(logger) for adapter in ADAPTERS if adapter.fits(logger))


def for_each(loggers: Sequence[Any], act: Callable[[LoggerAdapter], object]) -> None:
    """Call a function with the adapter of each logger, then raise the first error."""

    def serve(logger: Any) -> None:
        act(adapter_of(logger))

    attempt_all(partial(serve, logger) for logger in loggers)
