"""The command ``lightning-traj``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_traj import lazy_exports

if TYPE_CHECKING:
    from lightning_traj.cli.command import main as main

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "command": ("main",),
    },
)
