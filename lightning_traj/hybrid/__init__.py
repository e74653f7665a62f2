"""Hybrid training: freezes what the trajectory shows to be redundant."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_traj import lazy_exports

if TYPE_CHECKING:
    from lightning_traj.hybrid.callback import HybridTraining as HybridTraining
    from lightning_traj.hybrid.conditions import After as After
    from lightning_traj.hybrid.conditions import Condition as Condition
    from lightning_traj.hybrid.conditions import ConditionContext as ConditionContext
    from lightning_traj.hybrid.conditions import Plateau as Plateau
    from lightning_traj.hybrid.conditions import Threshold as Threshold
    from lightning_traj.hybrid.line_search import LineSearch as LineSearch

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "callback": ("HybridTraining",),
        "conditions": ("After", "Condition", "Plateau", "ConditionContext", "Threshold"),
        "line_search": ("LineSearch",),
    },
)
