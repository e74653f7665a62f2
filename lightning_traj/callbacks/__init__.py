"""The Lightning callback that records a trajectory: it translates hooks, and little else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_traj.lazy import lazy_exports

if TYPE_CHECKING:
    from lightning_traj.callbacks.guard import Guard as Guard
    from lightning_traj.callbacks.logbook import batches_of as batches_of
    from lightning_traj.callbacks.logbook import last_step as last_step
    from lightning_traj.callbacks.logged_metrics import read_callback_metrics as read_callback_metrics
    from lightning_traj.callbacks.logged_metrics import settle_logged_metrics as settle_logged_metrics
    from lightning_traj.callbacks.trajectory import TrajectoryCallback as TrajectoryCallback
    from lightning_traj.callbacks.trajectory import epochs_may_not_end as epochs_may_not_end
    from lightning_traj.callbacks.trajectory import may_skip_steps as may_skip_steps

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "guard": ("Guard",),
        "logbook": ("batches_of", "last_step"),
        "logged_metrics": ("read_callback_metrics", "settle_logged_metrics"),
        "trajectory": ("TrajectoryCallback", "epochs_may_not_end", "may_skip_steps"),
    },
)
