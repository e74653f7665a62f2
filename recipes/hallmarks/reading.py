"""Trajectory maps of four runs that differ in one thing each, to learn reading them."""

from __future__ import annotations

from dataclasses import replace

from matplotlib.figure import Figure

from lightning_traj import Trajectory
from lightning_traj.plots.map_grid import small_maps
from lightning_traj.trajectory.times import Times
from recipes.hallmarks.claims import Base
from recipes.hallmarks.runs import Setting
from recipes.hallmarks.sweep import Sweep

TOO_HIGH = 0.5  # learning rate
INTERRUPTED = 0.6  # share of the epochs


def to_read(base: Base) -> dict[str, Setting]:
    images = base.images
    return {
        "a good run": images,
        f"learning rate {TOO_HIGH:g}": replace(images, learning_rate=TOO_HIGH),
        "no weight decay": replace(images, weight_decay=0.0),
        f"weights alone resumed at {images.epoch(INTERRUPTED)}": replace(
            images, restarted_at=images.epoch(INTERRUPTED)
        ),
    }


def reading(sweep: Sweep, base: Base) -> Figure:
    """The maps side by side, on one scale; seed 0 of each."""
    settings = to_read(base)
    sweep.complete(settings.values(), seeds=[0])
    runs = {name: Trajectory.load(sweep.trajectory(setting, 0)) for name, setting in settings.items()}
    return small_maps(
        "Trajectory maps: angles between all snapshots",
        runs["a good run"].counted(),
        {name: trajectory.map() for name, trajectory in runs.items()},
        [Times(trajectory) for trajectory in runs.values()],
        across=4,
        side=2.2,
    )
