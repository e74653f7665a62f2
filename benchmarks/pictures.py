"""How long does a log take that draws all pictures, and does it grow with the number of blocks?"""

from __future__ import annotations

import tempfile
from pathlib import Path

from _setting import environment, in_turns, ratio
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from blocks import network, recording, trained
from lightning_traj import Trajectory
from lightning_traj.loggers import log_layers, log_trajectory

PICTURES = 12  # at most, whatever the number of blocks


def recorded(blocks: int, snapshots: int) -> Trajectory:
    """A run that turns: of so many blocks, three of four in fused projections of attention."""
    values = trained(network(blocks, numel=blocks * 256 * 12))
    updates = {name: theta.detach().clone() for name, theta in values.items()}
    recorder, _ = recording(values)
    for step in range(1, snapshots):
        for name, theta in values.items():
            theta.data.add_(updates[name].roll(step), alpha=0.1)
        recorder.record(values, step, float(step))
    return recorder.collect()[0]


def log(logger: TensorBoardLogger, trajectory: Trajectory, step: int) -> None:
    log_trajectory([logger], trajectory, trajectory.summary(), step)
    log_layers([logger], trajectory, step)


def check(trajectory: Trajectory) -> int:
    """How many pictures a log draws."""
    with tempfile.TemporaryDirectory() as folder:
        logger = TensorBoardLogger(folder)
        log(logger, trajectory, 0)
        logger.finalize("success")
        events = EventAccumulator(str(Path(logger.log_dir)))
        events.Reload()
        pictures = len(events.Tags()["images"])
    if not 0 < pictures <= PICTURES:
        raise AssertionError(f"{pictures} pictures of {len(trajectory.blocks)} blocks: at most {PICTURES} are wanted")
    return pictures


def measure(few: int = 52, many: int = 500, snapshots: int = 50, repeats: int = 3) -> float:
    """Seconds of a log of many blocks."""
    with tempfile.TemporaryDirectory() as folder:
        logger = TensorBoardLogger(folder)
        trajectories = {f"{blocks} blocks": recorded(blocks, snapshots) for blocks in (many, few)}
        pictures = [check(trajectory) for trajectory in trajectories.values()]
        sides = {name: lambda t=trajectory: log(logger, t, 0) for name, trajectory in trajectories.items()}  # type: ignore[misc]
        seconds = in_turns(sides, repeats)
        logger.finalize("success")  # its thread writes to a folder that is about to go
        ratio(f"a log of {snapshots} snapshots with {pictures[0]} pictures, " + " / ".join(sides), seconds, target=3.0)
    fastest = min(next(iter(seconds.values())))
    print(
        f"all {pictures[0]} pictures of {many} blocks take {fastest:.2f} s (at most 1 is wanted, in the mean of epochs)"
    )
    return fastest


if __name__ == "__main__":
    print(environment())
    measure()
