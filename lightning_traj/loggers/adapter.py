"""The interface that loggers of all kinds are used through, and its form for loggers that only take scalars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class LoggerAdapter:
    """Any logger with ``log_metrics``: CSV, MLflow, and loggers of the user's own.

    Adapters of other kinds of loggers override what these can do besides. Kinds are told by the members that a logger
    has, not by its class: ``lightning.pytorch`` and ``pytorch_lightning`` have different classes for the same logger,
    and there are other libraries.

    Args:
        logger: The logger, as the Trainer has it.

    Attributes:
        takes_pictures: Whether ``log_picture`` does something.
    """

    takes_pictures = False

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    @classmethod
    def fits(cls, logger: Any) -> bool:
        """Whether a logger is of this kind. Never raises, however odd the logger is."""
        return True

    def log_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Log finite values by tag."""
        self.logger.log_metrics(metrics=dict(values), step=step)

    def log_picture(self, tag: str, pixels: Any, step: int) -> None:
        """Log a picture, uint8 [height, width, 3]."""

    def log_text(self, tag: str, text: str, step: int) -> None:
        """Log Markdown."""

    def add_layout(self, prefixes: Sequence[str]) -> None:
        """Group the charts of the measures, given the prefixes of their tags."""

    def announce_columns(self, hyperparameters: Mapping[str, Any], prefixes: Sequence[str], finished: bool) -> None:
        """Show the measures as columns beside the hyperparameters. Arguments as for ``log_hyperparameters``."""

    def event_folder(self) -> str | None:
        """Return the folder that TensorBoard reads, a path or a URL; None if the logger writes no event files."""
        return None
