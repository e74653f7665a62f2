"""The command line of the recipes: LightningCLI, and pictures of the trajectory when training is over."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningCLI
from matplotlib.figure import Figure

from lightning_traj import TrajectoryCallback, plots


class TrajectoryCLI(LightningCLI):
    """LightningCLI that leaves pictures of the trajectory beside the logs."""

    def after_fit(self) -> None:
        folder = Path(self.trainer.log_dir or self.trainer.default_root_dir)
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]  # Lightning sets it out of sight
            if isinstance(callback, TrajectoryCallback) and self.trainer.is_global_zero:
                trajectory = callback.trajectory
                figures: dict[str, Callable[[], Figure]] = {
                    "map": partial(plots.trajectory.trajectory_map, trajectory),
                    "overview": partial(plots.trajectory.overview, trajectory),
                }
                if heterogeneity := plots.layer_figures(trajectory).get("heterogeneity"):
                    figures["heterogeneity"] = heterogeneity
                for name, draw in figures.items():
                    picture = folder / f"{callback.name}-{name}.png"
                    plots.save_png(draw(), picture)
                    print(f"Picture: {picture}")


def run(
    model: type[LightningModule], data: type[LightningDataModule], cli: type[TrajectoryCLI] = TrajectoryCLI
) -> TrajectoryCLI:
    """What the arguments of the process say."""
    for says_nothing_here in (
        ".*does not have many workers.*",  # the data say where they need processes
        ".*LeafSpec.* is deprecated",  # torch's name, not the recipes'
        ".*is not supported by the model summary.*",  # a size in megabytes
        "Grad strides do not match bucket view strides",  # of 1x1 kernels, whose strides mean the same
    ):
        warnings.filterwarnings("ignore", message=says_nothing_here)
    return cli(
        model,
        data,
        seed_everything_default=0,
        save_config_kwargs={"overwrite": True},
        auto_configure_optimizers=False,
    )
