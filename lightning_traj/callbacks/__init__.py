"""The Lightning callback that records a trajectory: it translates hooks, and little else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_traj import lazy_exports

if TYPE_CHECKING:
    from lightning_traj.callbacks.guard import Guard as Guard
    from lightning_traj.callbacks.logged_metrics import read_callback_metrics as read_callback_metrics
    from lightning_traj.callbacks.logged_metrics import settle_logged_metrics as settle_logged_metrics
    from lightning_traj.callbacks.resumable import ResumableCallback as ResumableCallback
    from lightning_traj.callbacks.strategies import check_freezing as check_freezing
    from lightning_traj.callbacks.strategies import is_sharded as is_sharded
    from lightning_traj.callbacks.trainer import batches_of as batches_of
    from lightning_traj.callbacks.trainer import epochs_may_not_end as epochs_may_not_end
    from lightning_traj.callbacks.trainer import last_step as last_step
    from lightning_traj.callbacks.trajectory import TrajectoryCallback as TrajectoryCallback

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "guard": ("Guard",),
        "logged_metrics": ("read_callback_metrics", "settle_logged_metrics"),
        "resumable": ("ResumableCallback",),
        "strategies": ("check_freezing", "is_sharded"),
        "trainer": ("batches_of", "epochs_may_not_end", "last_step"),
        "trajectory": ("TrajectoryCallback",),
    },
)
