"""How directional is the path of an optimizer? Trajectories of neural networks, recorded while they train."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
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


def lazy_exports(
    package: str, homes: Mapping[str, Iterable[str]], modules: Iterable[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` of a package that loads a module when one of its names is first used.

    So importing this package alone loads neither torch nor Lightning.

    Args:
        package: The package's ``__name__``.
        homes: The names that it exports, by the module of the package that defines them.
        modules: Modules of the package that it exports as a whole.
    """
    exported = {name: f"{package}.{module}" for module, names in homes.items() for name in names}
    whole = {module: f"{package}.{module}" for module in modules}

    def find(name: str) -> Any:
        if name in whole:
            return import_module(whole[name])
        if name not in exported:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(exported[name]), name)

    return find, lambda: sorted([*exported, *whole])


__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "blocks.fused": ("FusedLayout",),
        "callbacks.trajectory": ("TrajectoryCallback",),
        "checkpoints.analysis": ("from_checkpoints",),
        "gram.running_gram": ("RunningGram",),
        "hybrid.callback": ("HybridTraining",),
        "hybrid.conditions": ("After", "Condition", "Plateau", "Threshold"),
        "hybrid.line_search": ("LineSearch",),
        "schedule": ("AtEpochs", "AtSteps", "EveryNEpochs", "EveryNSteps", "LogSpaced"),
        "sketch.countsketch": ("CountSketch",),
        "trajectory.trajectory": ("Trajectory",),
    },
    modules=("measures",),
)
