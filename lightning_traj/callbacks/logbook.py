"""What of a recording goes to loggers, monitors and the file, and how often: logs are to stay cheap beside training."""

from __future__ import annotations

from math import isfinite
from types import NoneType
from typing import Any

import torch

from lightning_traj import loggers as tensorboard
from lightning_traj.callbacks.guard import Guard
from lightning_traj.callbacks.logged_metrics import add_callback_metrics
from lightning_traj.files import Folder, Picklable
from lightning_traj.recording import Recorder
from lightning_traj.report import summary as report
from lightning_traj.trajectory import Trajectory

NAMED = 8  # blocks that a warning names, at most


class Logbook(Picklable, transient={"folder": NoneType}):
    """Logs and saves what a recorder has recorded.

    Args:
        name: Prefix of the tags, stem of the file.
        track: What the recording is of.
        recorder: Whose recording it is.
        guard: For what may fail.
        figures: Whether pictures are drawn.

    Attributes:
        trajectory: What was collected last; None before.
        folder: Where files go; None: nowhere.
    """

    def __init__(self, name: str, track: str, recorder: Recorder, guard: Guard, figures: bool = True) -> None:
        self.name, self.track, self.recorder, self.guard = name, track, recorder, guard
        self.figures = figures
        self.folder: Folder | None = None
        self._event_folders: list[str] = []
        self._batches = 0  # at the last log
        self.clear()

    def clear(self) -> None:
        """Begin anew, with an empty recorder."""
        self.trajectory: Trajectory | None = None
        self._summary: dict[str, float] = {}
        self._logged = 0  # scheduled snapshots at the last log
        self._windowed = 0  # step at which the newest window ended then
        self._pictured = 0  # scheduled snapshots when pictures were drawn last
        self._layered = 0  # and those by layer and role

    def open(self, trainer: Any, folder: Folder | None, *, new: bool) -> None:
        """Get ready for a fit.

        Args:
            trainer: Of the fit.
            folder: For the file, and for pictures that no logger takes; None: nothing is written.
            new: Whether a new trajectory begins.
        """
        self.folder = folder
        if new and folder is not None and trainer.is_global_zero:
            # That of a run without a logger, say.
            self.guard("keeping an earlier file", folder.set_aside, self._file_name)
        self._event_folders = tensorboard.event_folders(trainer.loggers)
        self._batches = batches_of(trainer)

    def skip(self) -> None:
        """Count what has been recorded so far as logged."""
        self._logged = self.recorder.state.history.scheduled

    def collect(self, drop: bool = True) -> None:
        """Bring ``trajectory`` up to date; ``drop`` snapshots that are not finite where all ranks do."""
        if not len(self.recorder):
            return
        trajectory, dropped = self.recorder.collect(drop)
        if dropped:
            names = list(dict.fromkeys(name for blocks in dropped.values() for name in blocks))
            everywhere = len(names) == len(trajectory.blocks)
            shown = "every block" if everywhere else ", ".join(names[:NAMED]) + (", …" if len(names) > NAMED else "")
            self.guard.warn(
                "recording",
                f"{len(dropped)} snapshots with non-finite entries in {shown} were left out, at steps {list(dropped)}; "
                "exclude= a parameter that is never finite",
            )
        if len(trajectory):
            self.trajectory = trajectory
            self._summary = trajectory.summary()

    def announce(self, trainer: Any) -> None:
        """Give the latest values to those that monitor them, as LearningRateMonitor does.

        They are the same on all ranks, and stay until others take their place: checks within an epoch find them too.
        """
        values = {f"{self.name}/{key}": value for key, value in self._summary.items() if isfinite(value)}
        add_callback_metrics(trainer, {key: torch.tensor(value) for key, value in values.items()})

    # When

    def after_batch(self, trainer: Any) -> None:
        """Log, as often as Lightning does at most, and ever more rarely, so that all logs together stay cheap."""
        scheduled, batches = self.recorder.state.history.scheduled, batches_of(trainer)
        new = scheduled - self._logged
        due = trainer.log_every_n_steps and batches - self._batches >= trainer.log_every_n_steps
        if due and new and 16 * new >= scheduled:
            self.guard("logging", self._log, trainer, batches, pictures=scheduled >= 2 * self._pictured)

    def after_epoch(self, trainer: Any) -> None:
        """Log what is new."""
        if self.recorder.state.history.scheduled > self._logged or self.recorder.windows.state.latest > self._windowed:
            self.guard("logging", self._log, trainer, last_step(trainer))

    def after_training(self, trainer: Any) -> None:
        """Draw what was not drawn at the last log, and save with sketches."""
        self.guard("logging", self._log_layers, trainer, last_step(trainer))
        self.guard("saving", self.save, trainer, sketches=True)

    def after_fit(self, trainer: Any) -> None:
        """Print the summary, once."""
        if trainer.is_global_zero and self.trajectory is not None and not trainer.fast_dev_run:
            self.close()
            file = None if self.folder is None else self.folder.describe(self._file_name)
            folders = self._event_folders or tensorboard.event_folders(trainer.loggers)  # nothing was left to train
            self.guard("the summary", report.print_summary, self.trajectory, self.name, self.track, file, folders)

    def close(self) -> None:
        """Wait until everything that was written is in its place, within limits."""
        if self.folder is not None:
            self.guard("sending", self.folder.close)

    # What

    def _log(self, trainer: Any, step: int, pictures: bool = True) -> None:
        self._batches = batches_of(trainer)
        self.collect()
        self.announce(trainer)
        pictures = pictures and self.figures and self.recorder.state.history.scheduled > self._pictured
        self._logged, self._windowed = self.recorder.state.history.scheduled, self.recorder.windows.state.latest
        if pictures:
            self._pictured = self._logged
        if self.trajectory is None or not trainer.is_global_zero:
            return
        self.guard("saving", self.save, trainer)
        tensorboard.log_trajectory(
            trainer.loggers,
            self.trajectory,
            self._summary,
            step,
            prefix=self.name,
            folder=self.folder,
            pictures=pictures,
        )
        # One epoch of many changes little in what is by layer and role, which takes thrice as long to draw as the rest.
        if pictures and 4 * (self._logged - self._layered) >= self._logged:
            self._log_layers(trainer, step)

    def _log_layers(self, trainer: Any, step: int) -> None:
        wanted = self.figures and self._layered != self._logged
        if wanted and self.trajectory is not None and trainer.is_global_zero:
            self._layered = self._logged
            tensorboard.log_layers(trainer.loggers, self.trajectory, step, prefix=self.name, folder=self.folder)

    def save(self, trainer: Any, sketches: bool = False) -> None:
        """Write the file: what was collected last, or, with sketches, everything up to now."""
        if sketches:
            self.collect()
        if self.folder is None or self.trajectory is None or not trainer.is_global_zero:
            return
        rows = self.recorder.rows() if sketches else None
        saved = self.trajectory if rows is None else self.trajectory.with_sketches(rows)
        self.folder.write(self._file_name, saved.save)

    @property
    def _file_name(self) -> str:
        return f"{stem(self.name)}.safetensors"


def stem(name: str) -> str:
    """Stem of the file of the trajectory of this name."""
    return "trajectory" if name == "traj" else name


def batches_of(trainer: Any) -> int:
    """Where Lightning draws what is logged now, on the x axis."""
    batches: int = trainer.fit_loop.epoch_loop._batches_that_stepped
    return batches


def last_step(trainer: Any) -> int:
    """Where Lightning draws what is logged at the end of an epoch."""
    return max(0, batches_of(trainer) - 1)
