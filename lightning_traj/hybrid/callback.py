"""HybridTraining: freezes what the trajectory shows to be redundant, and trains the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from types import NoneType
from typing import Any, TypeAlias

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from lightning_traj import loggers as tensorboard
from lightning_traj.blocks import clean_name
from lightning_traj.callbacks import (
    Guard,
    TrajectoryCallback,
    batches_of,
    epochs_may_not_end,
    last_step,
    may_skip_steps,
    read_callback_metrics,
    settle_logged_metrics,
)
from lightning_traj.files import METHODS_OF_MODULE, Picklable, identity_of
from lightning_traj.hybrid.checks import check_emptied, check_recorded, check_run, check_state
from lightning_traj.hybrid.conditions import Condition, Threshold, as_condition
from lightning_traj.hybrid.decisions import Decisions
from lightning_traj.hybrid.freezing import MODEL, UNITS, Freezing, Train, Unit, grouped_parameters
from lightning_traj.hybrid.line_search import DirectionSearch, LineSearch, Probe, in_words, summarised
from lightning_traj.hybrid.timeline import LISTED, Event, Timeline, print_timeline
from lightning_traj.measures import MEASURES
from lightning_traj.recording import StepCounter
from lightning_traj.schedule import Schedule
from lightning_traj.text import function_name
from lightning_traj.trajectory import Trajectory

Trainer: TypeAlias = Any  # as in callback.py


class HybridTraining(
    Picklable,
    Callback,
    transient={"_freezing": NoneType, "_parameters": dict, **METHODS_OF_MODULE},
):
    """Trains everything at first, and from some point on only what has to be.

    What is frozen has ``requires_grad=False`` and no gradient: the backward pass does not compute its gradients,
    and neither momentum nor weight decay moves it. Decisions are made at the start of an epoch (only a schedule of
    steps acts within one), for all processes alike. When the fit ends, ``requires_grad`` is put back as it was.

    Args:
        train: What goes on being trained: ``"norm"`` (weights and biases of every normalisation layer), ``"bias"`` (all
            other biases) or another role, ``"layer:…"``, a glob over parameter names, a list of these, or a predicate
            over blocks.
        when: An epoch, counted from 0, from whose start on the others are frozen; a schedule, such as
            ``AtSteps([1000])``; a condition, such as ``Threshold("direction_drift", below=0.01, snapshots=5)``; None:
            never.
        thaw: The same for training them again; after that, ``when`` is asked anew. A plain epoch acts once. No
            Threshold: the trajectory of what is frozen stands still.
        by: What is frozen and thawed together, each judged by the trajectory of its own parameters: ``"model"``, all;
            ``"layer"``, each module; ``"depth"``, each numbered block of the network.
        line_search: Steps along the recent direction, taken where they lower the loss, of all that is trained together
            or group by group; before anything is frozen in that epoch.
        running_statistics: Whether BatchNorm layers in what is frozen (all of them with ``by="model"``) go on updating
            their running statistics. They normalise by the batch in any case.
        keep_state: Whether optimizers keep their state of what is frozen: then thawed parameters go on with it. False
            frees the memory; thawed parameters begin with an empty state. Not under ModelParallelStrategy.
        name: Prefix of the tags, and part of the state's key.

    Conditions on the trajectory look at that of the first ``TrajectoryCallback`` of the weights in the same Trainer;
    where there is none, one is added.

    Raises:
        TypeError, ValueError: an argument is wrong (at once), or does not go with the model, the strategy or the
            checkpoint (before training starts).

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_traj import HybridTraining
        >>> trainer = Trainer(callbacks=[HybridTraining(train="norm", when=20)], logger=False)
    """

    def __init__(
        self,
        *,
        train: Train = "norm",
        when: int | Schedule | Condition | None = None,
        thaw: int | Schedule | Condition | None = None,
        by: Unit = "model",
        line_search: LineSearch | None = None,
        running_statistics: bool = True,
        keep_state: bool = True,
        name: str = "traj_hybrid",
    ) -> None:
        if isinstance(train, Sequence) and not isinstance(train, str | list | tuple):
            train = list(train)  # of OmegaConf, say
        listed = list(train) if isinstance(train, list | tuple) else [train]
        if not listed or not (callable(train) or all(isinstance(select, str) for select in listed)):
            raise TypeError(
                f'train={train!r}: pass a role such as "norm", a glob pattern over parameter names, a list of these, '
                "or a predicate over blocks."
            )
        if by not in UNITS:
            raise ValueError(f"by={by!r}: pass one of {', '.join(map(repr, UNITS))}.")
        if line_search is not None and not isinstance(line_search, LineSearch):
            raise TypeError(f"line_search={line_search!r}: pass LineSearch() or None.")
        if when is None and (line_search is None or thaw is not None):
            raise ValueError(
                f"when={when!r}, thaw={thaw!r}, line_search={line_search!r}: there is nothing to do; pass when= an "
                "epoch or a condition, or line_search=LineSearch() alone."
            )
        if isinstance(thaw, Threshold):
            raise ValueError(
                f"thaw={thaw!r}: the trajectory of what is frozen stands still and says nothing: pass After(…) or "
                "Plateau(…)."
            )
        if isinstance(when, int) and isinstance(thaw, int) and thaw <= when:
            raise ValueError(f"thaw={thaw} is not after when={when}: nothing is frozen by then; pass a later epoch.")
        self.train, self.by, self.line_search, self.name = train, by, line_search, name
        self.when, self.thaw = as_condition("when", when), as_condition("thaw", thaw)
        self.running_statistics, self.keep_state = running_statistics, keep_state
        self._guard = Guard(name)
        self._restored: Mapping[str, Any] | None = None
        self._freezing: Freezing | None = None  # of the running fit
        self._module: object = None  # stands for the module whose training it is
        self._parameters: dict[str, nn.Parameter] = {}
        self._counter = StepCounter()
        self._before: dict[str, Any] = {}  # monitors as they were logged before the validation that runs
        self._validated: set[str] = set()  # monitors that validations log
        self._validations = 0
        self._frozen: dict[str, list[str]] = {}  # of each frozen group, the parameters that were frozen with it
        self._begin()

    @property
    def state_key(self) -> str:
        """Key of this callback's state in checkpoints: by name, so that several live side by side."""
        return self._generate_state_key(name=self.name)

    @property
    def frozen(self) -> tuple[str, ...]:
        """Names of the groups that are frozen now; ``("model",)`` is everything but ``train``."""
        return tuple(self._frozen)

    # Before training

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self._restored = None
        if (measures := self._decisions.measures) and _recording(trainer) is None:
            window = None if any(MEASURES[measure].group == "Oscillation" for measure in measures) else 0
            # Lightning's loop over the callbacks meets it next.
            trainer.callbacks.insert(trainer.callbacks.index(self) + 1, TrajectoryCallback(window=window))
            rank_zero_info(f"{self.name}: adds a TrajectoryCallback, for conditions on {', '.join(measures)}.")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Before any forward pass: under FSDP2 these stay the parameters that count, and what named_parameters() gives
        # after validation does not.
        self._parameters = {clean_name(name): p for name, p in pl_module.named_parameters()}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Only here is everything restored, under every strategy, and nothing trained yet.
        check_run(trainer, self._parameters, self._decisions, self.line_search, self.keep_state)
        groups = grouped_parameters(self._parameters, pl_module, self.train, self.by)
        freezing = Freezing(
            groups, self.by, self._parameters, pl_module, trainer.optimizers, self.running_statistics, self.keep_state
        )
        freezing.check(self.train)
        if self._decisions.conditions:
            check_emptied(trainer, freezing.emptied())
        restored, self._restored = self._restored, None
        same = self._module is identity_of(pl_module)
        if restored is not None:
            self._load(restored, pl_module.device)
        elif not (same and trainer.global_step and not trainer.ckpt_path):
            self._begin()
        freezing.apply(self._frozen)
        self._freezing, self._frozen, self._module = freezing, freezing.frozen, identity_of(pl_module)
        self._guard.forget()
        self._validated, self._validations = set(), 0
        self._counter.start(trainer.optimizers, trainer.global_step, say=self._say, skips=may_skip_steps(trainer))
        rank_zero_info(f"{self.name}: {self._describe(freezing)}")
        if epochs_may_not_end(trainer) and (late := self._decisions.asked_between_epochs()):
            rank_zero_info(
                f"{self.name}: the training data have no length, and {', '.join(late)} is asked at the starts of "
                "epochs only: if they never end, pass a schedule of steps, such as AtSteps([1000])."
            )

    # During training

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        settle_logged_metrics(trainer)
        epoch, freezing, decisions = trainer.current_epoch, self._running, self._decisions
        if epoch <= decisions.epoch:  # before it was interrupted
            return
        trajectory = self._trajectory(trainer, freezing)
        decisions.pending |= self._logged_in_training(trainer)
        decisions.note(epoch)
        if decisions.missing and epoch and (self._validations or not trainer.enable_validation):
            known = ", ".join(map(str, read_callback_metrics(trainer))) or "nothing"
            self._guard.warn("monitors", f"{', '.join(decisions.missing)} was not logged so far, but {known}")
        if self._search is not None:
            self._try_direction(trainer, pl_module, self._search, freezing)
        changing = decisions.at_epoch(epoch, freezing.groups, freezing.frozen, trajectory)
        # What is logged may differ from process to process: the first one's counts.
        self._change(trainer, freezing, trainer.strategy.broadcast(changing))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        freezing = self._running
        self._counter.batch_starts(trainer.optimizers)
        if self._steps > self._decisions.step:
            self._change(trainer, freezing, self._decisions.after_steps(self._steps, freezing.groups, freezing.frozen))
        self._keep(trainer, pl_module, batch, "train")
        self.timeline.batch_starts(freezing.share)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self._counter.announce(optimizer, trainer.optimizers, trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._counter.follow(trainer.global_step)
        self.timeline.batch_ends()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.timeline.pause()
        self._before = self._monitored(trainer)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._freezing is not None:  # training has begun
            self._keep(trainer, pl_module, batch, "val")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.timeline.go_on()
        if self._freezing is None:
            return
        self._validations += 1
        for monitor, value in self._monitored(trainer).items():
            # What this validation has not logged is still there, from before.
            if value is not self._before.get(monitor):
                self._validated.add(monitor)
                self._decisions.pending[monitor] = float(value)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.timeline.epoch_ends(trainer.current_epoch)
        if trainer.is_global_zero:
            self._guard("logging", self._log, trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and not trainer.fast_dev_run:
            if self.when is not None and not any(event.what == "frozen" for event in self.timeline.events):
                rank_zero_info(f"{self.name}: nothing was frozen: when={self.when} did not hold at any time.")
            if self.by != MODEL:
                self._guard("the picture", self._log_picture, trainer, tuple(self._running.groups))
            self._guard("the summary", print_timeline, self.timeline, self._running.trained())

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._clean_up()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._clean_up()

    # State

    def state_dict(self) -> dict[str, Any]:
        if self._restored is not None:  # saved again before training has taken it up
            return dict(self._restored)
        return {
            "settings": self._settings,
            "frozen": {label: list(names) for label, names in self._frozen.items()},
            "steps": self._steps,
            "decisions": self._decisions.state_dict(),
            "timeline": self.timeline.state_dict(),
            "search": None if self._search is None else self._search.state_dict(),
        }

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        # What the coming epoch's start is going to note is in no other part of a checkpoint.
        if self._restored is None and (state := checkpoint.get("callbacks", {}).get(self.state_key)):
            state["decisions"]["pending"] |= self._logged_in_training(trainer)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict  # taken up when training starts

    # Inside

    @property
    def _running(self) -> Freezing:
        assert self._freezing is not None
        return self._freezing

    @property
    def _steps(self) -> int:
        """Optimizer steps taken."""
        return self._counter.count

    @property
    def _settings(self) -> dict[str, str]:
        """What has to stay the same for a run to go on, in words."""
        train = f"function {function_name(self.train)}" if callable(self.train) else repr(self.train)
        return {"train": train, "by": repr(self.by)}

    def _begin(self) -> None:
        self.timeline = Timeline()
        self._decisions = Decisions(self.when, self.thaw)
        self._search = None if self.line_search is None else DirectionSearch(self.line_search)
        self._frozen = {}
        self._counter.count = 0

    def _load(self, state: Mapping[str, Any], device: torch.device) -> None:
        for argument, ours in self._settings.items():
            if (theirs := state["settings"][argument]) != ours:
                raise ValueError(
                    f"{argument}={ours} differs from {argument}={theirs}, with which the checkpoint was made: pass "
                    f"{argument}={theirs} to go on with it, or another name= to begin anew."
                )
        self._begin()
        self._frozen, self._counter.count = dict(state["frozen"]), state["steps"]
        self._decisions.load_state_dict(state["decisions"])
        self.timeline.load_state_dict(state["timeline"])
        if self._search is not None and state["search"] is not None:
            self._search.load_state_dict(state["search"], device)

    def _describe(self, freezing: Freezing) -> str:
        """What it is going to do, and at what cost, in one line."""
        frozen = {name for group in freezing.groups.values() for name in group.parameters}
        total = sum(p.numel() for p in self._parameters.values())
        left = sum(p.numel() for name, p in self._parameters.items() if name not in frozen)
        groups = "the rest is" if self.by == MODEL else f"all {len(freezing.groups)} groups are"
        words = f"trains {left:,} of {total:,} parameters once {groups} frozen"
        conditions = "".join(f"; {argument}: {c}" for argument, c in self._decisions.conditions.items())
        if conditions and (emptied := freezing.emptied()):
            conditions += f"; leaves nothing to train to optimizer {', '.join(map(str, emptied))}"
        if self.line_search is None:
            return words + conditions
        size = sum(p.numel() * p.element_size() for p in self._parameters.values() if p.requires_grad)
        copies = f"keeps a copy of the weights ({size / 1e6:.3g} MB, in each checkpoint too)"
        passes = len(freezing.together()) * (len(self.line_search.factors) + 1) * self.line_search.batches
        cost = f"{passes} forward passes a search, {copies}, another while it searches, and the batches"
        return f"{words}{conditions}; {self.line_search}: {cost}"

    def _monitored(self, trainer: Trainer) -> dict[str, Any]:
        """The monitors' values as they stand: Lightning keeps the latest of each."""
        monitors = self._decisions.monitors
        logged = read_callback_metrics(trainer) if monitors else {}
        return {monitor: logged[monitor] for monitor in monitors if monitor in logged}

    def _logged_in_training(self, trainer: Trainer) -> dict[str, float]:
        values = self._monitored(trainer)
        return {monitor: float(values[monitor]) for monitor in values if monitor not in self._validated}

    def _trajectory(self, trainer: Trainer, freezing: Freezing) -> Trajectory | None:
        """The trajectory that conditions look at, on the host; None where none does."""
        if not self._decisions.measures:
            return None
        recording = _recording(trainer)
        assert recording is not None
        trajectory = recording.trajectory
        check_recorded(trajectory, recording.name, freezing.groups, self._decisions.measures)
        if self.by == MODEL and trainer.is_global_zero:
            (group,) = freezing.groups.values()
            newest = trajectory.series(group.has, self._decisions.measures, last=1)
            values = {f"{self.name}/{measure}": float(value[-1]) for measure, value in newest.items()}
            self._guard("logging", tensorboard.log_scalars, trainer.loggers, values, last_step(trainer))
        return trajectory

    def _change(self, trainer: Trainer, freezing: Freezing, labels: list[str]) -> None:
        """Freeze those of the groups that are trained, and thaw the others."""
        freezing.optimizers = trainer.optimizers  # they may have been replaced
        thawing = [label for label in labels if label in freezing.frozen]
        for label in thawing:
            freezing.thaw(label)
        if len(labels) > len(thawing):
            check_state(trainer, trainer.current_epoch, self._steps)
        # A group of which the user has frozen everything is left alone.
        frozen = [label for label in labels if label not in thawing and freezing.freeze(label)]
        for what, changed, condition in (("thawed", thawing, self.thaw), ("frozen", frozen, self.when)):
            if changed:
                self._decisions.changed |= dict.fromkeys(changed, trainer.current_epoch)
                self._report(trainer, freezing, what, changed, str(condition))

    def _report(self, trainer: Trainer, freezing: Freezing, what: str, labels: list[str], why: str) -> None:
        event = Event(trainer.current_epoch, self._steps, what, tuple(labels), freezing.trained()[0], why)
        self.timeline.add(event)
        rank_zero_info(f"{self.name}: {event}")
        if trainer.is_global_zero:
            # The latest ones each time: TensorBoard shows a few of the latest texts.
            words = "\n".join(f"- {event}" for event in self.timeline.events[-LISTED:])
            self._guard(
                "logging", tensorboard.log_text, trainer.loggers, f"{self.name}/events", words, batches_of(trainer)
            )

    def _log(self, trainer: Trainer) -> None:
        scalars = self.timeline.scalars() | {"frozen_layers": self._running.frozen_layers()}
        values = {f"{self.name}/{tag}": value for tag, value in scalars.items()}
        tensorboard.log_scalars(trainer.loggers, values, last_step(trainer))

    def _log_picture(self, trainer: Trainer, groups: tuple[str, ...]) -> None:
        from lightning_traj.hybrid import picture as freeze_plot  # matplotlib is slow to import

        figures = {f"{self.name}/frozen": lambda: freeze_plot.frozen_groups(self.timeline, groups)}
        tensorboard.log_figures(trainer.loggers, figures, last_step(trainer))

    # Line search

    def _keep(self, trainer: Trainer, pl_module: LightningModule, batch: Any, data: str) -> None:
        if self._search is not None and self._search.keep(batch, data):
            self._probe(trainer, pl_module, self._search).loss()  # what cannot work fails now

    def _probe(self, trainer: Trainer, pl_module: LightningModule, search: DirectionSearch) -> Probe:
        autocast = trainer.precision_plugin.train_step_context
        return Probe(
            pl_module, search.batches, search.settings, autocast, partial(trainer.strategy.reduce, reduce_op="mean")
        )

    def _try_direction(
        self, trainer: Trainer, pl_module: LightningModule, search: DirectionSearch, freezing: Freezing
    ) -> None:
        epoch = trainer.current_epoch
        if not search.is_due(epoch):
            return
        if search.earlier and search.batches:
            probe = self._probe(trainer, pl_module, search)
            found = search.search(probe, freezing.together(), freezing.parameters)
            if taken := [label for label, result in found.items() if result.factor]:
                self._report(trainer, freezing, "moved", taken, in_words(found))
            if trainer.is_global_zero:
                values = {f"{self.name}/line_search_{tag}": value for tag, value in summarised(found).items()}
                self._guard("logging", tensorboard.log_scalars, trainer.loggers, values, last_step(trainer))
        search.begin(freezing.parameters, epoch)

    def _say(self, line: str) -> None:
        rank_zero_info(f"{self.name}: {line}")

    def _clean_up(self) -> None:
        self._counter.stop()
        if self._freezing is not None:
            self._freezing.put_back()
        self._freezing, self._parameters = None, {}


def _recording(trainer: Trainer) -> TrajectoryCallback | None:
    """The callback whose trajectory conditions look at."""
    callbacks = (callback for callback in trainer.callbacks if isinstance(callback, TrajectoryCallback))
    return next((callback for callback in callbacks if callback.track == "weights"), None)
