"""TrajectoryCallback: translates Lightning's hooks for the recorder, and little else."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from math import ceil, inf
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeAlias

from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.nn.parameter import is_lazy

from lightning_traj import loggers as tensorboard
from lightning_traj.blocks import FusedLayout, Granularity, Patterns, clean_name
from lightning_traj.callbacks.averaging import averaged_model, check_order
from lightning_traj.callbacks.cross_angles import crossing
from lightning_traj.callbacks.guard import Guard
from lightning_traj.callbacks.logbook import Logbook, last_step, stem
from lightning_traj.callbacks.logged_metrics import settle_logged_metrics
from lightning_traj.callbacks.strategies import check_strategy
from lightning_traj.distributed import Ranks
from lightning_traj.files import METHODS_OF_MODULE, Picklable, folder_at, identity_of, is_remote, local_path
from lightning_traj.recording import (
    Recorder,
    RecordingSettings,
    StepCounter,
    Training,
    attempt,
    check_output,
    check_schedules,
    quantity,
    zeros_like,
)
from lightning_traj.schedule import EveryNEpochs, Schedule, is_due_within_epochs, limit
from lightning_traj.text import stable_repr
from lightning_traj.trajectory import Trajectory

NAMED = 8  # parameters that a warning names, at most

# Of lightning.pytorch or of pytorch_lightning; both set most attributes where type checkers don't see them.
Trainer: TypeAlias = Any


class TrajectoryCallback(
    Picklable,
    Callback,
    transient={"_temporary": NoneType, "_last_step": NoneType, **METHODS_OF_MODULE},
):
    """Records the trajectory of the parameters, and logs how directional it is.

    Snapshots are θ_0, before the first optimizer step, and then by ``schedule``. At the end of each epoch (with a step
    schedule also within it, no more often than ``Trainer(log_every_n_steps=…)``) the measures go to all loggers,
    pictures to those that take them (within an epoch only when the snapshots have doubled), and everything to
    ``<name>.safetensors`` beside the logs (``trajectory.safetensors`` for the default name). Training is the same to
    the last bit as without it; once it runs, whatever fails here warns, and training goes on.

    Args:
        track: What the trajectory is of: ``"weights"``; ``"average"``, those of WeightAveraging, EMAWeightAveraging or
            an AveragedModel; ``"gradient"`` just before the step; ``"update"``, the step itself; ``"first_moment"`` or
            ``"second_moment"`` of the optimizer. One a callback; for several, add several callbacks. What belongs to a
            step is recorded at the first one, and then at the step that is due or the last one of the epoch. With
            several optimizers each parameter has that of its own optimizer's latest step, for which gradients or
            updates are copied at every step.
        schedule: When to take a snapshot: ``EveryNEpochs(n)``, ``EveryNSteps(n)``, ``LogSpaced(cap)``,
            ``AtSteps([…])``, ``AtEpochs([…])``, or several of them joined by ``|``.
        snapshot: ``"sketch"`` keeps ``sketch_dim`` numbers a block, and answers with standard errors; ``"full"`` writes
            the parameters themselves to files beside the logs, and answers exactly.
        sketch_dim: Length of a block's sketch. Blocks that are no longer are kept whole. Standard errors fall as its
            inverse square root, and checkpoints grow with it. None: 512, or, for a run that goes on from a checkpoint,
            the length with which its trajectory was recorded.
        blocks: What is a block, the finest piece that can be asked for: ``"tensor"``, each parameter tensor, and each
            part of a fused one; ``"layer"``, all of a module's; ``"role"``, all q's, …; ``"model"``, one; or a function
            from a tensor's ``Block`` to the name of the block that it is added to. Coarser ones take less memory.
        include: Glob pattern or patterns over names of parameters and parts (``*.weight:q``): what is recorded. None:
            every floating-point parameter.
        exclude: The same for what is not recorded.
        fused: Layouts of fused projections that are not known, by pattern over parameter names, such as
            ``{"*.to_qkv.weight": FusedLayout({"q": 1, "k": 1, "v": 1})}``. Those of torch, transformers, timm, LitGPT
            and nanoGPT are known.
        max_snapshots: Past this many, every second snapshot between the first and the latest is dropped, and from then
            on every second one is kept. At least 4.
        window: Optimizer steps of a window: that many consecutive steps are sketched, for the oscillation measures.
            None: 8, or as many as an epoch has; 0: no windows. At most ``max_snapshots`` windows are kept.
        window_schedule: When a window begins, besides the start: by default with every epoch. It begins with the
            parameters right before its first step, and ends with the epoch.
        seed: Of the sketch; runs can be compared with each other where it and ``sketch_dim`` are the same.
        dirpath: Folder of the files, or a URL that fsspec opens (``s3://…``), to which they are sent in the
            background; default: beside the logs. Full snapshots need a folder on this machine.
        figures: Whether pictures are logged too. They take some tenths of a second an epoch: little, unless an epoch
            takes seconds. The file has what it takes to draw them later (``lightning_traj.plots.trajectory``).
        name: Prefix of the tags, stem of the file; default: ``"traj"`` for the weights, and ``"traj_gradient"`` and so
            on for others. Two callbacks in one Trainer need different names.

    Raises:
        TypeError, ValueError: an argument is wrong (at once), or the model or the checkpoint does not go with it
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
        self.track = track
        self.schedule = schedule
        self.window = window
        self.window_schedule = window_schedule
        self.name = name
        # In a Path, a URL would lose a slash.
        self.dirpath = dirpath if dirpath is None or "://" in os.fspath(dirpath) else Path(dirpath)
        self._recorder = Recorder(settings)
        self._quantity = quantity(track)
        self._first_due = False  # whether what belongs to a step has to be recorded for the first time
        self._step_due = False  # whether what belongs to the coming step is to be recorded,
        self._epoch_due = False  # and whether it is at the end of the epoch, if no later step takes its place
        self._last_step: tuple[Callable[[], Mapping[str, Any]], int, float] | None = None  # an epoch's, so far
        self._state_due = False  # whether the state after it is, as soon as others have brought it up to date
        self._guard = Guard(name)
        self._said: set[str] = set()  # parameters that were named as unreadable
        self._book = Logbook(name, track, self._recorder, self._guard, figures)
        self._restored: Mapping[str, Any] | None = None
        self._counter = StepCounter()
        self._crossed: tuple[int, float] | None = None  # latest snapshot whose angles to others were logged
        self._module: object = None  # stands for the module whose trajectory it is
        self._place: str = ""  # where the files of this fit go: an absolute path, or a URL
        self._temporary: tempfile.TemporaryDirectory[str] | None = None

    @property
    def state_key(self) -> str:
        """Key of this callback's state in checkpoints: by name, so that several live side by side."""
        return self._generate_state_key(name=self.name)

    @property
    def trajectory(self) -> Trajectory:
        """The Trajectory so far.

        Raises:
            RuntimeError: nothing has been recorded yet.
        """
        self._book.collect(drop=False)  # it may be one rank alone that asks
        if self._book.trajectory is None:
            raise RuntimeError(f"TrajectoryCallback(name={self.name!r}) has recorded nothing yet: it begins with fit.")
        return self._book.trajectory

    # Before training

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        check_strategy(trainer.strategy, trainer.world_size)
        self._restored = self._book.folder = None
        if [stem(name) for name in _names(trainer)].count(stem(self.name)) > 1:
            raise ValueError(
                f"name={self.name!r}: two TrajectoryCallbacks in one Trainer would write "
                f"{stem(self.name)}.safetensors; give each a name of its own."
            )
        if trainer.fast_dev_run:  # leaves no files behind
            return
        self._place = self._find_place(trainer)
        if is_remote(self._place) and self._recorder.options.snapshot == "full":
            raise ValueError(
                f"snapshot='full' keeps its snapshots in files that are mapped into memory, and the folder is "
                f"{self._place}: pass dirpath= a folder on this machine, or snapshot='sketch'."
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Before Lightning logs hyperparameters and the user's code logs anything: TensorBoard heeds the first list of
        # columns and the last layout.
        self._quantity.parameters.of(pl_module)  # which are in their places now
        self._recorder.process.ranks = Ranks.of_world() if trainer.world_size > 1 else Ranks()
        self._guard("laying out TensorBoard", self._lay_out, trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        settle_logged_metrics(trainer)
        # Only here is everything restored, under every strategy, and nothing trained yet.
        self._quantity.check(self._training(trainer, pl_module))
        if self.track == "average":
            check_order(trainer.callbacks)
        recorder = self._recorder
        restored, self._restored = self._restored, None
        if recorder.options.snapshot == "full":
            recorder.snapshots.folder = self._folder_of_snapshots(trainer)
        if restored is not None:
            self._load(restored, trainer, pl_module)
        elif not self._goes_on(trainer, pl_module):
            if _is_resumed(trainer):
                rank_zero_warn(
                    f"{self.name}: the checkpoint holds no trajectory; it begins here, at step 0 of its own."
                )
            self._begin()
        self._quantity.begin(pl_module)
        parameters = self._parameters(trainer, pl_module)
        self._module = identity_of(pl_module)
        self._first_due = not len(recorder)
        recorder.ended |= self._ended_names
        recorder.check(parameters, pl_module)
        self._check_trainer(trainer)
        # One of the user's own may well know of its rank, and yet answer alike.
        kinds = {argument: type(getattr(self, argument)) for argument in self._schedules}
        known = {argument for argument, kind in kinds.items() if kind.__module__ == Schedule.__module__}
        recorder.process.ranks.compare(
            {a: said if a in known else kinds[a].__name__ for a, said in self._schedules.items()}
        )
        cost = recorder.prepare(parameters)
        self._guard.forget()
        folder = None if trainer.fast_dev_run else folder_at(self._place, partial(self._guard.warn, "sending"))
        self._said = set()
        self._say_unreadable()
        self._book.open(trainer, folder, new=restored is None and not len(recorder))
        self._counter.start(
            trainer.optimizers,
            trainer.global_step,
            say=self._say,
            before=partial(self._before_step, trainer, pl_module),
            after=partial(self._after_step, trainer, pl_module),
            skips=may_skip_steps(trainer),
        )
        rank_zero_info(f"{self.name}: {cost}")
        if epochs_may_not_end(trainer) and not is_due_within_epochs(self.schedule):
            rank_zero_info(
                f"{self.name}: the training data have no length, and schedule={self.schedule!r} is due at the ends of "
                "epochs only: if they never end, pass schedule=EveryNSteps(n) or LogSpaced()."
            )
        if undeclared := recorder.undeclared(parameters):
            rank_zero_info(
                f"{self.name}: {', '.join(undeclared)}: this looks like fused parts (q, k and v, or a gate and "
                "its input) in an unknown layout, and stays one block; declare it with fused= to see them apart."
            )
        if self._quantity.at_steps:
            return
        if restored is not None and self._lacks_epoch(trainer):
            self._record(trainer, pl_module, starting=True)
        if not any(is_lazy(parameter) for parameter in parameters.values()):
            self._record_initial(trainer, pl_module, starting=True)
        if self._between_epochs(trainer):
            recorder.windows.end(self._steps)  # saved at the last batch of an epoch
            self._request_window(self._window_due_at_start, trainer.current_epoch)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        settle_logged_metrics(trainer)  # a step may be taken in any hook
        self._counter.announce(optimizer, trainer.optimizers, trainer.global_step)

    # During training

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._quantity.forget()
        self._counter.batch_starts(trainer.optimizers)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._counter.follow(trainer.global_step)
        if self._state_due:
            self._state_due = False
            self._record(trainer, pl_module)
        self._book.after_batch(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        settle_logged_metrics(trainer)
        if self._quantity.at_steps:
            self._guard("recording", self._record_last_step, trainer)
        else:
            self._record_due(self.schedule.due_after_epoch, trainer.current_epoch + 1, trainer, pl_module)
        self._guard("recording", self._recorder.windows.end, self._steps)
        self._request_window(self.window_schedule.due_after_epoch, trainer.current_epoch + 1)
        self._book.after_epoch(trainer)
        if trainer.is_global_zero:
            self._guard("logging", self._log_crossings, trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if len(self._recorder):
            self._guard("logging hyperparameters", self._log_hyperparameters, trainer, pl_module, finished=True)
            self._book.after_training(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._restored is not None:  # there was nothing left to train
            restored, self._restored = self._restored, None
            self._module = identity_of(pl_module)
            self._guard("restoring", self._load, restored, trainer, pl_module)
            self._guard("measuring", self._book.collect)
        self._book.after_fit(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if len(self._recorder):
            self._guard("saving", self._book.save, trainer, sketches=True)
        self._clean_up()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._clean_up()

    # State

    def state_dict(self) -> dict[str, Any]:
        if self._restored is not None:  # saved again before training has taken it up
            return dict(self._restored)
        if not len(self._recorder):
            return {}
        names = self._quantity.parameters.names
        return {
            **self._recorder.state_dict(),
            "schedules": self._schedules,
            "optimizer_steps": self._steps,
            "aliases": dict(names.aliases),
            "shapes": {clean_name(first): shape for first, shape in names.shapes.items()},
            "ended": sorted(self._recorder.ended | self._ended_names),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict or None  # taken up when training starts, where the folder is known

    # Inside

    @property
    def _steps(self) -> int:
        """Optimizer steps taken."""
        return self._counter.count

    @property
    def _schedules(self) -> dict[str, str]:
        return {argument: _describe(getattr(self, argument)) for argument in ("schedule", "window_schedule")}

    def _goes_on(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        """Whether a fit without restored state goes on with what an earlier fit of the same Trainer has recorded."""
        same = self._module is identity_of(pl_module) and not _is_resumed(trainer)
        goes_on = bool(same and len(self._recorder) and trainer.global_step)
        if not self._recorder.process.ranks.agree((goes_on, self._recorder.state.history.steps)):
            rank_zero_warn(f"{self.name}: ranks had come apart, and recorded other snapshots; it begins anew.")
            return False
        return goes_on

    def _lacks_epoch(self, trainer: Trainer) -> bool:
        """Whether the checkpoint was saved at the last batch of an epoch whose end Lightning does not call again."""
        recorded = self._recorder.state.history.latest or (0, 0.0)
        return (
            self._between_epochs(trainer)
            and recorded[0] < self._steps
            and self.schedule.due_after_epoch(trainer.current_epoch)
        )

    def _between_epochs(self, trainer: Trainer) -> bool:
        epoch: int = trainer.current_epoch
        return _completed_epochs(trainer, starting=True) == epoch

    def _begin(self, state: Mapping[str, Any] | None = None) -> None:
        aliases, shapes = ({}, {}) if state is None else _known_parameters(state)
        self._quantity.restart_names(aliases, shapes)
        self._recorder.clear()
        self._book.clear()
        self._counter.count = 0
        self._last_step = self._crossed = None  # of a fit that was broken off

    def _load(self, state: Mapping[str, Any], trainer: Trainer, pl_module: LightningModule) -> None:
        for argument, ours in self._schedules.items():
            if (theirs := state["schedules"][argument]) != ours:
                raise ValueError(
                    f"{argument}={ours} differs from {argument}={theirs}, with which the trajectory in the checkpoint "
                    f"was recorded: pass {argument}={theirs} to go on with it, or another name= to begin a new one."
                )
        self._begin(state)
        self._recorder.load_state_dict(state, self._parameters(trainer, pl_module))
        self._recorder.ended = set(state.get("ended", ()))
        self._counter.count = state["optimizer_steps"]
        self._book.skip()

    def _check_trainer(self, trainer: Trainer) -> None:
        max_steps, max_epochs = limit(trainer.max_steps), limit(trainer.max_epochs)
        if not trainer.fast_dev_run and not self.schedule.begins_by(max_steps, max_epochs):
            raise ValueError(
                f"schedule={self.schedule!r}: none of these is within max_steps={max_steps} and "
                f"max_epochs={max_epochs}; name earlier ones."
            )
        batches = trainer.num_training_batches
        steps = inf if batches == inf else ceil(batches / trainer.accumulate_grad_batches)
        counted = trainer.lightning_module.automatic_optimization  # how many steps a batch has is known only then
        if self.window and counted and steps < self.window and not trainer.fast_dev_run:
            raise ValueError(
                f"window={self.window} is longer than an epoch, which has {steps} optimizer steps: pass at most that, "
                "or None for as many as there are."
            )

    def _record_initial(self, trainer: Trainer, pl_module: LightningModule, starting: bool = False) -> None:
        if not len(self._recorder):
            self._record(trainer, pl_module, starting)
            self._book.skip()  # θ_0 alone is no news
        self._guard("measuring", self._book.collect)
        self._guard("announcing monitors", self._book.announce, trainer)

    def _record(self, trainer: Trainer, pl_module: LightningModule, starting: bool = False) -> None:
        self._guard("recording", self._record_quantity, trainer, pl_module, starting)

    def _record_quantity(self, trainer: Trainer, pl_module: LightningModule, starting: bool = False) -> None:
        read = attempt(lambda: self._read(trainer, pl_module))  # other ranks count on this one
        epoch = _completed_epochs(trainer, starting)
        if self._epoch_due and not self._step_due:
            self._last_step = read, self._steps, epoch
            return
        # Tried once: where it fails on one rank, others may have recorded it, and yet all have to go on alike.
        first_due, self._first_due = self._first_due, False
        try:
            if not self._recorder.record(read, self._steps, epoch):
                self._first_due = first_due
        finally:
            self._say_unreadable()
            self._say_new_blocks()

    def _say_unreadable(self) -> None:
        """Name the parameters that cannot be read and are left out, each of them once."""
        new = {name: why for name, why in self._recorder.state.partition.unreadable.items() if name not in self._said}
        if new:
            self._said.update(new)
            shown = list(new)[:NAMED]
            reasons = "; ".join(f"{name!r} ({new[name]})" for name in shown)
            more = f" and {len(new) - len(shown)} more" if len(new) > len(shown) else ""
            self._guard.warn(
                f"unreadable {sorted(new)}",
                f"parameters that cannot be read are left out of all measures, and everything else is recorded: "
                f"{reasons}{more}. Pass exclude={shown!r}, or patterns such as '*.weight', to leave them out without "
                "this warning",
            )

    @property
    def _ended_names(self) -> set[str]:
        """Parameters that left the model in this process while they were recorded, by clean name."""
        return {clean_name(name) for name in self._quantity.parameters.names.ended}

    def _say_new_blocks(self) -> None:
        """Say where parameters left and others came, which may be the same ones in another form."""
        names = self._quantity.parameters.names
        recorded = {piece.parameter for pieces in self._recorder.state.partition.pieces for piece in pieces}
        if ended := [name for name in map(clean_name, names.ended) if name in recorded]:
            self._guard.warn(
                "names",
                f"{', '.join(ended)} left the model, where their blocks end; {', '.join(map(clean_name, names.began))} "
                "came with memory and values of their own, and begin new blocks",
            )

    def _read(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """What is to be recorded, by parameter."""
        tensors = self._quantity.read(self._training(trainer, pl_module))
        if self._quantity.left_out:
            names = ", ".join(f"{name} ({why})" for name, why in self._quantity.left_out.items())
            self._guard.warn("left out", f"the {self.track} of these parameters is left out: {names}")
        if not self._quantity.at_steps:
            return tensors
        known = {piece.parameter for pieces in self._recorder.state.partition.pieces for piece in pieces}
        waiting = self._quantity.waiting(self._training(trainer, pl_module))
        zeros = {}
        for name, parameter in self._parameters(trainer, pl_module).items():
            if name in tensors:
                continue
            # Until its optimizer takes a step, a parameter is zero; in a resumed run it is as last recorded.
            is_new = bool(tensors) and name in waiting and clean_name(name) not in known
            is_without = self._quantity.zero_if_missing and name not in waiting and clean_name(name) in known
            if is_new or is_without:
                zeros[name] = zeros_like(parameter)
        return zeros | tensors

    def _record_last_step(self, trainer: Trainer) -> None:
        """What belongs to the last step of an epoch that is due, of however many steps its last batch had."""
        last, self._last_step, self._epoch_due = self._last_step, None, False
        if last is not None:
            self._recorder.record(*last)
        due = self.schedule.due_after_epoch(trainer.current_epoch + 1)
        if self._steps and not len(self._recorder):
            self._guard.warn(
                "nothing",
                f"nothing was recorded: no step came with a value for track={self.track!r}, or all were left out",
            )
        elif due and last is None and (self._recorder.state.history.latest or (0, 0.0))[0] < self._steps:
            self._guard.warn(
                "last batch",
                f"no {self.track} was recorded at the end of this epoch, whose last batch took no "
                "optimizer step; use EveryNSteps",
            )

    @staticmethod
    def _training(trainer: Trainer, pl_module: LightningModule) -> Training:
        return Training(pl_module, trainer.optimizers, averaged_model(trainer.callbacks))

    def _parameters(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Tensors of the names and shapes that are going to be recorded."""
        if self._quantity.at_steps:
            return self._quantity.parameters.of(pl_module)
        return self._quantity.read(self._training(trainer, pl_module))

    def _before_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any, has_gradients: bool) -> None:
        settle_logged_metrics(trainer)
        self._guard("following parameters", self._quantity.parameters.follow, pl_module, optimizer)
        if self._quantity.at_steps:
            self._guard("recording", self._prepare_step, trainer, pl_module, optimizer, has_gradients)
            return
        is_initial = not len(self._recorder) and not self._steps  # lazy parameters have their values only now
        if not (is_initial or self._recorder.windows.due or self._recorder.windows.running):
            return
        parameters = self._quantity.parameters.of(pl_module)
        if any(is_lazy(parameter) for parameter in parameters.values()):
            return
        if is_initial:
            self._record_initial(trainer, pl_module)
        self._guard("recording", self._recorder.windows.prepare, parameters)

    def _prepare_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any, has_gradients: bool) -> None:
        self._epoch_due = trainer.is_last_batch and self.schedule.due_after_epoch(trainer.current_epoch + 1)
        # The same on all ranks, whatever each of them has: where a gradient is in partial sums, they add it up on
        # training's own group, and one that asked for it alone would meet the others' sums there.
        self._step_due = self._first_due or self.schedule.due_after_step(self._steps + 1)
        # Of several optimizers, it may be another's step that is due next, and this one's is recorded with it. Without
        # gradients, nobody knows when the step will come, or how many.
        if self._step_due or self._epoch_due or len(trainer.optimizers) > 1 or not has_gradients:
            self._quantity.before_step(pl_module, optimizer, has_gradients)

    def _after_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any, number: int) -> None:
        settle_logged_metrics(trainer)
        if self._quantity.at_steps:
            self._guard("recording", self._finish_step, trainer, pl_module, optimizer, number)
        elif self.track == "average":  # which others update only after the step
            self._guard("recording", self._note_due, number)
        else:
            self._record_due(partial(self._due_in, self.schedule, number), self._steps, trainer, pl_module)
        if number > 1:
            self._recorder.windows.cancel()
            self._guard.warn(
                "several steps",
                f"{number} optimizer steps were noticed at once, since the optimizer neither runs step hooks nor "
                "evaluates the closure that Lightning passes: windows of single steps are left out, and an update is "
                "that of all steps in a batch",
            )
        elif self._recorder.windows.running:
            parameters = self._quantity.parameters.of(pl_module)
            self._guard("recording", self._recorder.windows.add, parameters, self._steps)
        self._request_window(partial(self._due_in, self.window_schedule, number), self._steps)

    def _finish_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any, number: int) -> None:
        self._step_due = self._first_due or self._due_in(self.schedule, number, self._steps)
        if self._step_due or self._epoch_due or len(trainer.optimizers) > 1:
            for stepped in trainer.optimizers if optimizer is None else [optimizer]:
                self._quantity.after_step(pl_module, stepped)
        if self._step_due or self._epoch_due:
            self._record_quantity(trainer, pl_module)
        self._step_due = self._epoch_due = False

    @staticmethod
    def _due_in(schedule: Schedule, number: int, step: int) -> bool:
        """Whether the schedule is due at one of the last steps."""
        return any(schedule.due_after_step(s) for s in range(step - number + 1, step + 1))

    def _window_due_at_start(self, epoch: int) -> bool:
        return not self._steps or self.window_schedule.due_after_epoch(epoch)

    def _note_due(self, number: int) -> None:
        self._state_due = self._state_due or self._due_in(self.schedule, number, self._steps)

    def _request_window(self, due: Callable[[int], bool], count: int) -> None:
        def request() -> None:  # schedules can be the user's own: they may fail
            if due(count):
                self._recorder.windows.request()

        if self._recorder.options.window_steps:
            self._guard("recording", request)

    def _record_due(self, due: Callable[[int], bool], count: int, trainer: Trainer, pl_module: LightningModule) -> None:
        def record() -> None:  # schedules can be the user's own: they may fail too
            if due(count):
                self._record(trainer, pl_module)

        self._guard("recording", record)

    def _log_crossings(self, trainer: Trainer) -> None:
        """The angles between this quantity and those of the callbacks before, which have had their turn."""
        crossed, self._crossed = self._crossed, self._recorder.state.history.latest
        if crossed == self._crossed:  # nothing new
            return
        callbacks = [callback for callback in trainer.callbacks if isinstance(callback, TrajectoryCallback)]
        for other in callbacks[: callbacks.index(self)]:
            angles = crossing((other.track, other._recorder), (self.track, self._recorder))
            tags = {f"{tensorboard.CROSS}/{tag}": value for tag, value in angles.items()}
            tensorboard.log_scalars(trainer.loggers, tags, last_step(trainer))

    def _lay_out(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and self.name == _names(trainer)[0]:
            tensorboard.add_layout(trainer.loggers, _names(trainer))
        self._log_hyperparameters(trainer, pl_module)

    def _log_hyperparameters(self, trainer: Trainer, pl_module: LightningModule, finished: bool = False) -> None:
        # One list of columns counts in a run: the first callback's, which names them all.
        wanted = getattr(trainer, "enable_autolog_hparams", True)
        if wanted and trainer.is_global_zero and self.name == _names(trainer)[0]:
            hyperparameters = tensorboard.hyperparameters(pl_module, getattr(trainer, "datamodule", None))
            tensorboard.log_hyperparameters(trainer.loggers, hyperparameters, _names(trainer), finished=finished)

    def _find_place(self, trainer: Trainer) -> str:
        """Where files go: looked up once, so that a later ``chdir`` does not spread them over two folders."""
        place = self.dirpath
        problems: list[str] = []
        if place is None:
            place = tensorboard.log_folder(trainer.loggers, problems.append) or trainer.default_root_dir
            place = trainer.strategy.broadcast(place)
        place = os.fspath(place) if is_remote(place) else str(local_path(place))
        if problems:
            message = f"{'; '.join(problems)}; files go to {place}, unless dirpath= names another folder"
            self._guard.warn("folder", message)
        return place

    def _folder_of_snapshots(self, trainer: Trainer) -> Path:
        folder = self._place
        if trainer.fast_dev_run:
            self._temporary = tempfile.TemporaryDirectory(prefix="lightning_traj-")
            folder = self._temporary.name
        return Path(folder, f"{self.name}-snapshots")

    def _say(self, line: str) -> None:
        rank_zero_info(f"{self.name}: {line}")

    def _clean_up(self) -> None:
        self._counter.stop()
        self._quantity.clear()
        self._quantity.release()
        self._recorder.process.ranks.leave()
        self._book.close()
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None


def _describe(schedule: Schedule | str) -> str:
    """A schedule in words that are the same in every process: also one of the user's own, without a repr."""
    plain = type(schedule).__repr__ is object.__repr__
    return f"{type(schedule).__qualname__}({stable_repr(vars(schedule))})" if plain else stable_repr(schedule)


def epochs_may_not_end(trainer: Trainer) -> bool:
    """Whether the training data have no length, and the run is not one of so many epochs."""
    by_epochs = limit(trainer.max_epochs) < inf and limit(trainer.max_steps) == inf
    return bool(trainer.num_training_batches == inf and not by_epochs and not trainer.fast_dev_run)


def _known_parameters(state: Mapping[str, Any]) -> tuple[Mapping[str, str], Mapping[str, Any]]:
    """Return the aliases and shapes of the parameters in a saved state; older states lack shapes, or both."""
    recorded = [piece["parameter"] for pieces in state["pieces"] for piece in pieces]
    return state.get("aliases", {}), state.get("shapes") or dict.fromkeys(recorded)


def _is_resumed(trainer: Trainer) -> bool:
    """Whether the fit goes on from a checkpoint that the user named.

    Lightning's searches for a learning rate or a batch size restore one of their own, of the moment before the search.
    """
    name = os.path.basename(trainer.ckpt_path or "")
    return bool(name) and not name.startswith((".lr_find_", ".scale_batch_size_"))


def _default_name(track: object) -> str:
    return "traj" if track == "weights" else f"traj_{track}"


def may_skip_steps(trainer: Any) -> bool:
    """Whether a GradScaler skips steps that the Trainer counts all the same."""
    return getattr(trainer.precision_plugin, "scaler", None) is not None


def _names(trainer: Any) -> list[str]:
    """The names of all TrajectoryCallbacks in a Trainer."""
    return [callback.name for callback in trainer.callbacks if isinstance(callback, TrajectoryCallback)]


def _completed_epochs(trainer: Trainer, starting: bool = False) -> float:
    """Completed epochs, with the fraction of the running one: 0 before its last batch where its length is unknown."""
    epochs, progress = trainer.fit_loop.epoch_progress.current, trainer.fit_loop.epoch_loop.batch_progress
    if starting and epochs.started == epochs.completed:  # the batches are still those of the last epoch
        return float(epochs.completed)
    if trainer.num_training_batches == float("inf"):
        return float(epochs.completed + progress.is_last_batch)
    return float(epochs.completed + progress.current.ready / trainer.num_training_batches)
