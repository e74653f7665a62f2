"""Process groups, and which rank answers for which entries."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_traj import lazy_exports

if TYPE_CHECKING:
    from lightning_traj.distributed.ownership import Ownership as Ownership
    from lightning_traj.distributed.process_group import Ranks as Ranks

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "ownership": ("Ownership",),
        "process_group": ("Ranks",),
    },
)
