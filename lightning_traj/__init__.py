"""How directional is the path of an optimizer? Trajectories of neural networks, recorded while they train."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lightning_traj import measures
    from lightning_traj.blocks import FusedLayout
    from lightning_traj.callbacks import TrajectoryCallback
    from lightning_traj.checkpoints import from_checkpoints
    from lightning_traj.gram import RunningGram
    from lightning_traj.hybrid import After, Condition, HybridTraining, LineSearch, Plateau, Threshold
    from lightning_traj.schedule import AtEpochs, AtSteps, EveryNEpochs, EveryNSteps, LogSpaced
    from lightning_traj.sketch import CountSketch
    from lightning_traj.trajectory import Trajectory

_HOMES = {
    "After": "hybrid.conditions",
    "AtEpochs": "schedule",
    "AtSteps": "schedule",
    "Condition": "hybrid.conditions",
    "CountSketch": "sketch.countsketch",
    "EveryNEpochs": "schedule",
    "EveryNSteps": "schedule",
    "FusedLayout": "blocks.fused",
    "HybridTraining": "hybrid.callback",
    "LineSearch": "hybrid.line_search",
    "LogSpaced": "schedule",
    "Plateau": "hybrid.conditions",
    "RunningGram": "gram.running_gram",
    "Threshold": "hybrid.conditions",
    "Trajectory": "trajectory.trajectory",
    "TrajectoryCallback": "callbacks.trajectory",
    "from_checkpoints": "checkpoints.analysis",
}

__all__ = [
    "After",
    "AtEpochs",
    "AtSteps",
    "Condition",
    "CountSketch",
    "EveryNEpochs",
    "EveryNSteps",
    "FusedLayout",
    "HybridTraining",
    "LineSearch",
    "LogSpaced",
    "Plateau",
    "RunningGram",
    "Threshold",
    "Trajectory",
    "TrajectoryCallback",
    "from_checkpoints",
    "measures",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: importing the package alone loads neither torch nor Lightning."""
    if name == "measures":
        return import_module("lightning_traj.measures")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
