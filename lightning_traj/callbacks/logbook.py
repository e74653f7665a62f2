"""Everything that goes from a recording to loggers, monitors and the file."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from types import NoneType
from typing import Any

import torch

from lightning_traj import loggers
from lightning_traj.callbacks.cross_angles import crossing
from lightning_traj.callbacks.guard import Guard
from lightning_traj.callbacks.logged_metrics import add_callback_metrics
from lightning_traj.callbacks.pace import Pace
from lightning_traj.callbacks.trainer import Trainer, batches_of, last_step
from lightning_traj.files import Folder, Picklable
from lightning_traj.recording import Recorder
from lightning_traj.report import summary as report
from lightning_traj.text import join_names
from lightning_traj.trajectory import Trajectory

NAMED = 8  # blocks that a warning names, at most


class Logbook(Picklable, transient={"folder": NoneType}):
    """Logs and saves the trajectory of a recorder.

    Args:
        name: Prefix of the tags, stem of the file.
        recorder: Recorder of the trajectory.
        guard: Calls whatever may fail, and warns.
        figures: Whether pictures are drawn.

    Attributes:
        trajectory: The trajectory as it was collected last; None before.
        folder: Folder of the file, and of pictures that no logger takes; None if nothing is written.
    """

    def __init__(self, name: str, recorder: Recorder, guard: Guard, figures: bool = True) -> None:
        self.name, self.recorder, self.guard, self.figures = name, recorder, guard, figures
        self.folder: Folder | None = None
        self._event_folders: list[str] = []
        self._pace = Pace()
        self.clear()

    def clear(self) -> None:
        """Start anew, with an empty recorder."""
        self.trajectory: Trajectory | None = None
        self._summary: dict[str, float] = {}
        self._crossed: tuple[int, float] | None = None  # latest snapshot whose angles to others were logged
        self._pace.restart()

    # Before training

    def lay_out(self, trainer: Trainer, module: Any, names: Sequence[str]) -> None:
        """Tell TensorBoard how to arrange the charts, and which values belong beside the hyperparameters.

        One layout and one list of columns count in a run: those of the first callback, which name all callbacks.

        Args:
            trainer: Trainer of the fit.
            module: Module whose hyperparameters the user has saved.
            names: Names of all callbacks that record in this Trainer.
        """
        if trainer.is_global_zero and self.name == names[0]:
            loggers.add_layout(trainer.loggers, names)
        self.log_hyperparameters(trainer, module, names)

    def log_hyperparameters(
        self, trainer: Trainer, module: Any, names: Sequence[str], *, finished: bool = False
    ) -> None:
        """Announce measures as columns beside the hyperparameters, before training or once it has ``finished``."""
        wanted = getattr(trainer, "enable_autolog_hparams", True)
        if wanted and trainer.is_global_zero and self.name == names[0]:
            hyperparameters = loggers.hyperparameters(module, getattr(trainer, "datamodule", None))
            loggers.log_hyperparameters(trainer.loggers, hyperparameters, names, finished=finished)

    def open(self, trainer: Trainer, folder: Folder | None, *, new: bool) -> None:
        """Get ready for a fit.

        Args:
            trainer: Trainer of the fit.
            folder: Folder of the file, and of pictures that no logger takes; None if nothing is written.
            new: Whether a new trajectory begins.
        """
        self.folder = folder
        if new and folder is not None and trainer.is_global_zero:
            # An earlier run without a logger, for one, has left its file in the same folder.
            self.guard("keeping an earlier file", folder.set_aside, self._file_name)
        self._event_folders = loggers.event_folders(trainer.loggers)
        self._pace.start(batches_of(trainer))

    def skip(self) -> None:
        """Count the snapshots taken so far as logged."""
        self._pace.skip(self.recorder.state.history.scheduled)

    def introduce(self, trainer: Trainer) -> None:
        """Give monitors their first values, before the first step."""
        if self.recorder.state.history.scheduled <= 1:
            self.skip()  # θ_0 alone is no news
        self.guard("measuring", self.collect)
        self.guard("announcing monitors", self._announce, trainer)

    def collect(self, drop: bool = True) -> None:
        """Bring ``trajectory`` up to date.

        Args:
            drop: Whether the recorder forgets snapshots that are not finite. All ranks have to do so together.
        """
        if not len(self.recorder):
            return
        trajectory, dropped = self.recorder.collect(drop)
        if dropped:
            names = list(dict.fromkeys(name for blocks in dropped.values() for name in blocks))
            shown = "every block" if len(names) >= len(trajectory.blocks) else join_names(names, NAMED)
            self.guard.warn(
                "not finite",
                f"{len(dropped)} snapshots with non-finite entries in {shown} were left out, at steps {list(dropped)}; "
                "exclude= a parameter that is never finite",
            )
        if len(trajectory):
            self.trajectory = trajectory
            self._summary = trajectory.summary()

    # When to log

    def after_batch(self, trainer: Trainer) -> None:
        """Log if enough is new, within an epoch."""
        scheduled = self.recorder.state.history.scheduled
        if self._pace.is_due_in_epoch(scheduled, batches_of(trainer), trainer.log_every_n_steps):
            pictures = self._pace.have_doubled(scheduled)
            self.guard("logging", self._log, trainer, batches_of(trainer), pictures=pictures)

    def after_epoch(self, trainer: Trainer) -> None:
        """Log at the end of an epoch, if there is something new."""
        if self._pace.is_due_after_epoch(self.recorder.state.history.scheduled, self.recorder.windows.state.latest):
            self.guard("logging", self._log, trainer, last_step(trainer))

    def after_training(self, trainer: Trainer) -> None:
        """Draw the pictures that the last log left out, and save with sketches."""
        self.guard("logging", self._log_layers, trainer, last_step(trainer))
        self.guard("saving", self.save, trainer, sketches=True)

    def after_fit(self, trainer: Trainer) -> None:
        """Print the summary, once."""
        if trainer.is_global_zero and self.trajectory is not None and not trainer.fast_dev_run:
            self.close()
            file = None if self.folder is None else self.folder.describe(self._file_name)
            folders = self._event_folders or loggers.event_folders(trainer.loggers)  # nothing was left to train
            track = self.recorder.settings.track
            self.guard("the summary", report.print_summary, self.trajectory, self.name, track, file, folders)

    def close(self) -> None:
        """Wait until all files are in their place, within limits."""
        if self.folder is not None:
            self.guard("sending", self.folder.close)

    # What to log

    def log_angles(self, trainer: Trainer, others: Sequence[Logbook]) -> None:
        """Log the angles between this quantity and others, once for each snapshot.

        Args:
            trainer: Trainer of the fit.
            others: Logbooks of the quantities that have been recorded before this one.
        """
        crossed, self._crossed = self._crossed, self.recorder.state.history.latest
        if crossed == self._crossed:  # nothing new
            return
        for other in others:
            angles = crossing(other.recorder, self.recorder)
            tags = {f"{loggers.CROSS}/{tag}": value for tag, value in angles.items()}
            loggers.log_scalars(trainer.loggers, tags, last_step(trainer))

    def save(self, trainer: Trainer, sketches: bool = False) -> None:
        """Write the file: the trajectory as collected last, or, with sketches, up to now."""
        if sketches:
            self.collect()
        if self.folder is None or self.trajectory is None or not trainer.is_global_zero:
            return
        rows = self.recorder.rows() if sketches else None
        saved = self.trajectory if rows is None else self.trajectory.with_sketches(rows)
        self.folder.write(self._file_name, saved.save)

    def _announce(self, trainer: Trainer) -> None:
        """Give the latest values to callbacks that monitor them, as LearningRateMonitor does.

        They are the same on all ranks, and stay until others take their place: checks within an epoch find them too.
        """
        values = {f"{self.name}/{key}": value for key, value in self._summary.items() if isfinite(value)}
        add_callback_metrics(trainer, {key: torch.tensor(value) for key, value in values.items()})

    def _log(self, trainer: Trainer, step: int, pictures: bool = True) -> None:
        self._pace.start(batches_of(trainer))  # also where something below fails
        self.collect()
        self._announce(trainer)
        self._pace.log(self.recorder.state.history.scheduled, self.recorder.windows.state.latest)
        pictures = pictures and self.figures and self._pace.draw_now()
        if self.trajectory is None or not trainer.is_global_zero:
            return
        self.guard("saving", self.save, trainer)
        loggers.log_trajectory(
            trainer.loggers,
            self.trajectory,
            self._summary,
            step,
            prefix=self.name,
            folder=self.folder,
            pictures=pictures,
        )
        if pictures:
            self._log_layers(trainer, step, least=0.25)  # one epoch of many changes these pictures little

    def _log_layers(self, trainer: Trainer, step: int, least: float = 0) -> None:
        if self.trajectory is None or not self.figures or not trainer.is_global_zero:
            return
        if self._pace.draw_layers_now(least):
            loggers.log_layers(trainer.loggers, self.trajectory, step, prefix=self.name, folder=self.folder)

    @property
    def _file_name(self) -> str:
        return f"{stem(self.name)}.safetensors"


def stem(name: str) -> str:
    """Return the stem of the file of the trajectory of this name."""
    return "trajectory" if name == "traj" else name
