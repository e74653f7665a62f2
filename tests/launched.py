"""Training on two processes that Lightning starts itself: a small module, since each of them imports it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from lightning.pytorch.callbacks import RichProgressBar

import lightning_traj.loggers.trajectory
from lightning_traj import TrajectoryCallback
from models import Reported, fit


def by_itself(strategy: str, root: str, script: str = "") -> None:
    """Train as a script of its own would; its output goes to a file, unless it is one."""
    torch.set_num_threads(1)
    lightning_traj.loggers.trajectory.log_figures = lambda *_: None  # type: ignore[assignment]
    if script:
        sys.argv = [script, strategy, root]  # what "ddp" starts once more,
        sys.modules["__main__"].__spec__ = None  # as if it had been started so
        printed = os.open(Path(root) / "printed", os.O_WRONLY | os.O_CREAT)
        for stream in (1, 2):
            os.dup2(printed, stream)
        sys.stdout, sys.stderr = (os.fdopen(stream, "w") for stream in (1, 2))
    arguments = {"strategy": strategy, "devices": 2, "max_epochs": 2, "enable_progress_bar": True}
    # A progress bar before us reads on one process what is reduced over both.
    fit(RichProgressBar(), TrajectoryCallback(), root=Path(root), module=Reported, **arguments)
