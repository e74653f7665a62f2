"""Trains a ResNet and records its trajectory.

python -m recipes.resnet.train fit --config recipes/resnet/demo.yaml
python -m recipes.resnet.train fit --config recipes/resnet/demo.yaml --model.momentum=0
python -m recipes.resnet.train fit --help
"""

from __future__ import annotations

import warnings
from pathlib import Path

from lightning.pytorch.cli import LightningCLI

from lightning_traj import TrajectoryCallback, plot
from recipes.resnet.data import ImageData
from recipes.resnet.model import ImageClassifier


class TrajectoryCLI(LightningCLI):
    """LightningCLI that leaves pictures of the trajectory beside the logs."""

    def after_fit(self) -> None:
        folder = Path(self.trainer.log_dir or self.trainer.default_root_dir)
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]  # Lightning sets it out of sight
            if isinstance(callback, TrajectoryCallback) and self.trainer.is_global_zero:
                figures = {"map": plot.trajectory_map, "overview": plot.overview}
                for name, draw in figures.items():
                    picture = folder / f"{callback.name}-{name}.png"
                    plot.save_png(draw(callback.trajectory), picture)
                    print(f"Picture: {picture}")


if __name__ == "__main__":
    for says_nothing_here in (
        ".*does not have many workers.*",  # the data say where they need processes
        ".*LeafSpec.* is deprecated",  # torch's name, not the recipe's
        ".*is not supported by the model summary.*",  # a size in megabytes
        "Grad strides do not match bucket view strides",  # of 1x1 kernels, whose strides mean the same
    ):
        warnings.filterwarnings("ignore", message=says_nothing_here)
    TrajectoryCLI(
        ImageClassifier,
        ImageData,
        seed_everything_default=0,
        save_config_kwargs={"overwrite": True},
        auto_configure_optimizers=False,
    )
