"""Loggers that take pictures as W&B's does."""

from __future__ import annotations

from typing import Any

from lightning_traj.loggers.adapter import LoggerAdapter


class ImageAdapter(LoggerAdapter):
    """A logger with a method ``log_image(key, images, step)``, such as ``WandbLogger``."""

    takes_pictures = True

    @classmethod
    def fits(cls, logger: Any) -> bool:  # noqa: D102 (see LoggerAdapter)
        # The class is asked, since Lightning's DummyLogger has every attribute.
        return callable(getattr(type(logger), "log_image", None))

    def log_picture(self, tag: str, pixels: Any, step: int) -> None:  # noqa: D102
        self.logger.log_image(key=tag, images=[pixels], step=step)
