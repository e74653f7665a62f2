"""TrajectoryCallback: translates Lightning's hooks into calls on the parts that record and log."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_warn

from lightning_traj.blocks import FusedLayout, Granularity, Patterns
from lightning_traj.callbacks.averaging import check_order
from lightning_traj.callbacks.checks import check_length, check_names, hints
from lightning_traj.callbacks.logbook import Logbook
from lightning_traj.callbacks.logged_metrics import settle_first, settle_logged_metrics
from lightning_traj.callbacks.output import Output
from lightning_traj.callbacks.resumable import ResumableCallback
from lightning_traj.callbacks.strategies import check_recording
from lightning_traj.callbacks.trainer import LightningRun, Trainer, completed_epochs, is_resumed
from lightning_traj.distributed import Ranks
from lightning_traj.recording import (
    Recorder,
    RecordingSettings,
    Triggers,
    check_output,
    check_schedules,
    new_tracker,
    training_of,
)
from lightning_traj.schedule import EveryNEpochs, Schedule
from lightning_traj.trajectory import Trajectory


class TrajectoryCallback(ResumableCallback):
    """Records the trajectory of the parameters, and logs how directional it is.

    Snapshots are θ_0, before the first optimizer step, and then by ``schedule``. At the end of each epoch (with a step
    schedule also within it, no more often than ``Trainer(log_every_n_steps=…)``) the measures go to all loggers,
    pictures to those that take them (within an epoch only when the snapshots have doubled), and everything to
    ``<name>.safetensors`` beside the logs (``trajectory.safetensors`` for the default name). Training is the same to
    the last bit as without it; once it runs, a failure of the callback warns, and training goes on.

    Args:
        track: Quantity whose trajectory is recorded: ``"weights"``; ``"average"``, the averaged weights of
            WeightAveraging, EMAWeightAveraging or an AveragedModel; ``"gradient"`` just before the step; ``"update"``,
            the step itself; ``"first_moment"`` or ``"second_moment"`` of the optimizer. For several quantities, add
            several callbacks. A quantity of a step is recorded at the first step, and then at the step that is due or
            the last one of the epoch. With several optimizers, each parameter's quantity is that of its own
            optimizer's latest step, for which gradients or updates are copied at every step.
        schedule: When to take a snapshot: ``EveryNEpochs(n)``, ``EveryNSteps(n)``, ``LogSpaced(cap)``,
            ``AtSteps([…])``, ``AtEpochs([…])``, or several of them joined by ``|``.
        snapshot: ``"sketch"`` keeps ``sketch_dim`` numbers a block, and answers with standard errors; ``"full"`` writes
            the parameters themselves to files beside the logs, and answers exactly.
        sketch_dim: Length of a block's sketch. Blocks that are no longer are kept whole. Standard errors fall as its
            inverse square root, and checkpoints grow with it. None: 512, or, for a run that goes on from a checkpoint,
            the length with which its trajectory was recorded.
        blocks: Blocks of parameters, the finest pieces that can be selected later: ``"tensor"``, each parameter tensor,
            and each part of a fused one; ``"layer"``, all tensors of a module; ``"role"``, all q's, …; ``"model"``, a
            single block; or a function from a tensor's ``Block`` to the name of the block that it is added to. Coarser
            blocks take less memory.
        include: Glob pattern or patterns over names of parameters and parts (``*.weight:q``) that are recorded. None:
            every floating-point parameter.
        exclude: Glob pattern or patterns over names that are not recorded.
        fused: Layouts of fused projections that are not known, by pattern over parameter names, such as
            ``{"*.to_qkv.weight": FusedLayout({"q": 1, "k": 1, "v": 1})}``. Those of torch, transformers, timm, LitGPT
            and nanoGPT are known.
        max_snapshots: Past this many, every second snapshot between the first and the latest is dropped, and from then
            on every second one is kept. At least 4.
        window: Optimizer steps of a window: that many consecutive steps are sketched, for the oscillation measures.
            None: 8, or as many as an epoch has; 0: no windows. At most ``max_snapshots`` windows are kept.
        window_schedule: When a window begins, besides the start: by default with every epoch. It begins with the
            parameters right before its first step, and ends with the epoch.
        seed: Seed of the sketch. Runs can be compared with each other if they share it and ``sketch_dim``.
        dirpath: Folder of the files, or a URL that fsspec opens (``s3://…``), to which they are sent in the
            background; default: beside the logs. Full snapshots need a folder on this machine.
        figures: Whether pictures are logged too. They take some tenths of a second an epoch: little, unless an epoch
            takes seconds. They can be drawn later from the file (``lightning_traj.plots.trajectory``).
        name: Prefix of the tags, stem of the file; default: ``"traj"`` for the weights, and ``"traj_gradient"`` and so
            on for others. Two callbacks in one Trainer need different names.

    Raises:
        TypeError, ValueError: An argument is wrong (at once), or the model or the checkpoint does not go with it
            (before training starts).

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_traj import TrajectoryCallback
        >>> trainer = Trainer(callbacks=[TrajectoryCallback()], logger=False)

    Monitors: ``traj/mds``, ``traj/param_norm``, ``traj/displacement`` and ``traj/path_length`` are always defined.
    Others are missing or undefined at first: monitor them with ``EarlyStopping(check_finite=False, strict=False)``.
    """

    def __init__(
        self,
        *,
        track: str = "weights",
        schedule: Schedule = EveryNEpochs(1),
        snapshot: Literal["sketch", "full"] = "sketch",
        sketch_dim: int | None = None,
        blocks: Granularity = "tensor",
        include: Patterns | None = None,
        exclude: Patterns | None = None,
        fused: Mapping[str, FusedLayout] | None = None,
        max_snapshots: int = 256,
        window: int | None = None,
        window_schedule: Schedule = EveryNEpochs(1),
        seed: int = 0,
        dirpath: str | os.PathLike[str] | None = None,
        figures: bool = True,
        name: str | None = None,
    ) -> None:
        name = _default_name(track) if name is None else name
        settings = RecordingSettings(
            track=track,
            snapshot=snapshot,
            sketch_dim=sketch_dim,
            blocks=blocks,
            include=include,
            exclude=exclude,
            fused=fused,
            max_snapshots=max_snapshots,
            window=window,
            seed=seed,
        )
        check_schedules(schedule, window_schedule, settings)
        check_output(name, dirpath, figures, snapshot)
        super().__init__(name)
        self.track, self.window = track, window
        # In a Path, a URL would lose a slash.
        self.dirpath = dirpath if dirpath is None or "://" in os.fspath(dirpath) else Path(dirpath)
        self._recorder = Recorder(settings)
        triggers = Triggers(schedule, window_schedule)
        self._tracker = new_tracker(self._recorder, triggers, self._counter, self._guard)
        self._book = Logbook(name, self._recorder, self._guard, figures)
        self._output = Output()

    @property
    def trajectory(self) -> Trajectory:
        """The Trajectory so far.

        Raises:
            RuntimeError: Nothing has been recorded yet.
        """
        self._book.collect(drop=False)  # it may be one rank alone that asks
        if self._book.trajectory is None:
            raise RuntimeError(f"TrajectoryCallback(name={self.name!r}) has recorded nothing yet: it begins with fit.")
        return self._book.trajectory

    # Before training

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        check_recording(trainer.strategy, trainer.world_size)
        self._restored = self._book.folder = None
        check_names(self.name, _names(trainer))
        self._output.find(self.dirpath, trainer, partial(self._guard.warn, "folder"))
        if self._recorder.settings.snapshot == "full":
            self._output.check_full_snapshots()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._tracker.quantity.parameters.of(pl_module)  # all shards are in their places now
        self._recorder.process.ranks = Ranks.of_world() if trainer.world_size > 1 else Ranks()
        # Before Lightning logs hyperparameters and the user's code logs anything: TensorBoard heeds the first list of
        # columns and the last layout.
        self._guard("laying out TensorBoard", self._book.lay_out, trainer, pl_module, _names(trainer))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Only here is everything restored, under every strategy, and nothing trained yet.
        settle_logged_metrics(trainer)
        tracker, recorder = self._tracker, self._recorder
        self._attach(trainer, pl_module)
        tracker.quantity.check(training_of(tracker.run))
        if self.track == "average":
            check_order(trainer.callbacks)
        if recorder.settings.snapshot == "full":
            recorder.snapshots.folder = self._output.snapshots(self.name)
        restored = self._take_restored()
        if restored is not None:
            self._load(restored)
        elif not self._goes_on(trainer, pl_module):
            tracker.clear()
            self._book.clear()
        self._remember(pl_module)
        check_length(trainer, tracker.triggers, self.window)
        self._guard.forget()
        cost = tracker.prepare()
        folder = self._output.folder(partial(self._guard.warn, "sending"))
        self._book.open(trainer, folder, new=restored is None and not len(recorder))
        before, after = (settle_first(trainer, do) for do in (tracker.before_step, tracker.after_step))
        self._start_counting(trainer, before, after)
        for line in (cost, *hints(trainer, tracker.triggers, recorder.undeclared(tracker.parameters()))):
            self._say(line)
        tracker.begin(completed_epochs(trainer, starting=True), resumed=restored is not None)

    # During training

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        settle_logged_metrics(trainer)  # a step may be taken in any hook
        super().on_before_optimizer_step(trainer, pl_module, optimizer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._tracker.quantity.forget()
        self._counter.batch_starts(trainer.optimizers)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._counter.follow(trainer.global_step)
        self._tracker.batch_ends()
        self._book.after_batch(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        settle_logged_metrics(trainer)
        self._tracker.epoch_ends()
        self._book.after_epoch(trainer)
        if trainer.is_global_zero:
            callbacks = _recording(trainer)
            others = [callback._book for callback in callbacks[: callbacks.index(self)]]  # which have had their turn
            self._guard("logging", self._book.log_angles, trainer, others)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if len(self._recorder):
            log = partial(self._book.log_hyperparameters, finished=True)
            self._guard("logging hyperparameters", log, trainer, pl_module, _names(trainer))
            self._book.after_training(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (restored := self._take_restored()) is not None:  # there was nothing left to train
            self._remember(pl_module)
            self._attach(trainer, pl_module)
            self._guard("restoring", self._load, restored)
            self._guard("measuring", self._book.collect)
        self._book.after_fit(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if len(self._recorder):
            self._guard("saving", self._book.save, trainer, sketches=True)
        super().on_exception(trainer, pl_module, exception)

    # State

    def state_dict(self) -> dict[str, Any]:
        if self._restored is not None:  # saved again before training has taken it up
            return dict(self._restored)
        return self._tracker.state_dict() if len(self._recorder) else {}

    # Inside

    def _attach(self, trainer: Trainer, pl_module: LightningModule) -> None:
        run = LightningRun(trainer, pl_module)
        self._tracker.attach(run, introduce=partial(self._book.introduce, trainer))

    def _load(self, state: Mapping[str, Any]) -> None:
        self._tracker.load_state_dict(state)
        self._book.clear()
        self._book.skip()

    def _goes_on(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        """Return whether a fit without restored state continues the trajectory of the last one, on all ranks."""
        recorder = self._recorder
        goes_on = self._continues(trainer, pl_module) and len(recorder) > 0
        if not recorder.process.ranks.agree((goes_on, recorder.state.history.steps)):
            rank_zero_warn(f"{self.name}: ranks recorded different snapshots; starting a new trajectory.")
            goes_on = False
        if not goes_on and is_resumed(trainer):
            rank_zero_warn(f"{self.name}: the checkpoint holds no trajectory; it begins here, at step 0 of its own.")
        return goes_on

    def _clean_up(self) -> None:
        super()._clean_up()
        self._tracker.stop()
        self._book.close()
        self._output.clean_up()


def _default_name(track: object) -> str:
    return "traj" if track == "weights" else f"traj_{track}"


def _recording(trainer: Trainer) -> list[TrajectoryCallback]:
    return [callback for callback in trainer.callbacks if isinstance(callback, TrajectoryCallback)]


def _names(trainer: Trainer) -> list[str]:
    return [callback.name for callback in _recording(trainer)]
