"""HybridTraining: freezes parameters that the trajectory shows to be redundant, and trains the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from lightning.pytorch import LightningModule

from lightning_traj.blocks import clean_name
from lightning_traj.callbacks import ResumableCallback, TrajectoryCallback, epochs_may_not_end, settle_logged_metrics
from lightning_traj.hybrid.checks import check_emptied, check_run, check_state
from lightning_traj.hybrid.conditions import Condition
from lightning_traj.hybrid.decisions import Decisions
from lightning_traj.hybrid.freezing import Freezing
from lightning_traj.hybrid.groups import Train, Unit
from lightning_traj.hybrid.line_search import DirectionSearch, LineSearch, describe, summary
from lightning_traj.hybrid.recorded import find_recording, recorded_trajectory
from lightning_traj.hybrid.reporting import log_measures, log_scalars, plan, report_end, report_latest_event
from lightning_traj.hybrid.settings import HybridSettings
from lightning_traj.hybrid.timeline import Event, Timeline
from lightning_traj.measures import MEASURES
from lightning_traj.recording import Parameters
from lightning_traj.schedule import Schedule
from lightning_traj.text import check_unchanged

Trainer: TypeAlias = Any  # of lightning.pytorch or of pytorch_lightning


class HybridTraining(ResumableCallback, transient={"_freezing": None}):
    """Trains everything at first, and from some point on only a part of the parameters.

    Frozen parameters have ``requires_grad=False`` and no gradient: the backward pass does not compute their gradients,
    and neither momentum nor weight decay moves them. Decisions are made at the start of an epoch (only a schedule of
    steps acts within one), for all processes alike. When the fit ends, ``requires_grad`` is put back as it was.

    Args:
        train: Parameters that are always trained: ``"norm"`` (weights and biases of every normalisation layer),
            ``"bias"`` (all other biases) or another role, ``"layer:…"``, a glob over parameter names, a list of these,
            or a predicate over blocks.
        when: Epoch, counted from 0, from whose start on the others are frozen; a schedule, such as
            ``AtSteps([1000])``; a condition, such as ``Threshold("direction_drift", below=0.01, snapshots=5)``; None
            for never.
        thaw: Epoch, schedule or condition for training them again; after that, ``when`` is asked anew. A plain epoch
            acts once. No Threshold: the trajectory of frozen parameters stands still.
        by: Groups that are frozen and thawed together, each judged by the trajectory of its own parameters:
            ``"model"``, one group of all; ``"layer"``, each module; ``"depth"``, each numbered block of the network.
        line_search: Steps along the recent direction, taken where they lower the loss, for all trained parameters
            together or group by group; before anything is frozen in that epoch.
        running_statistics: Whether BatchNorm layers in frozen groups (all of them with ``by="model"``) go on updating
            their running statistics. They normalise by the batch in any case.
        keep_state: Whether optimizers keep their state of frozen parameters, so that thawed ones continue with it.
            False frees the memory; thawed parameters begin with an empty state. Not under ModelParallelStrategy.
        name: Prefix of the tags, and part of the key of this callback's state in checkpoints.

    Conditions on the trajectory look at that of the first ``TrajectoryCallback`` of the weights in the same Trainer;
    where there is none, one is added.

    Attributes:
        settings: All arguments.
        train: Parameters that are always trained.
        when: Condition for freezing; None for never.
        thaw: Condition for thawing; None for never.
        line_search: Settings of the line search; None for none.
        timeline: Events so far, and the time that steps took.

    Raises:
        TypeError, ValueError: An argument is wrong (at once), or does not go with the model, the strategy or the
            checkpoint (before training starts).

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_traj import HybridTraining
        >>> trainer = Trainer(callbacks=[HybridTraining(train="norm", when=20)], logger=False)
    """

    _freezing: Freezing  # while a fit trains

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
        super().__init__(name)
        self.settings = HybridSettings(train, when, thaw, by, line_search, running_statistics, keep_state)
        self.when, self.thaw = self.settings.conditions
        self.train, self.line_search = self.settings.train, line_search
        self._named = Parameters()  # follows the module's parameters through renamings
        self._begin()

    @property
    def frozen(self) -> tuple[str, ...]:
        """Names of the groups that are frozen now; ``("model",)`` is everything but ``train``."""
        return tuple(self._frozen)

    # Before training

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self._restored = None
        if (measures := self._decisions.measures) and find_recording(trainer) is None:
            window = None if any(MEASURES[measure].group == "Oscillation" for measure in measures) else 0
            # Lightning's loop over the callbacks meets it next.
            trainer.callbacks.insert(trainer.callbacks.index(self) + 1, TrajectoryCallback(window=window))
            self._say(f"adds a TrajectoryCallback, for conditions on {', '.join(measures)}.")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._named.of(pl_module)  # all shards are in their places before any forward pass

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Only here is everything restored, under every strategy, and nothing trained yet.
        settings = self.settings
        restored = self._take_restored()
        if restored is not None:
            self._load(restored, pl_module)
        elif not self._continues(trainer, pl_module):
            self._named.names.restart({})
            self._begin()
        parameters = {clean_name(name): p for name, p in self._named.of(pl_module).items()}
        check_run(trainer, parameters, self._decisions, settings.line_search, settings.keep_state)
        freezing = Freezing(settings, self._named, pl_module, trainer.optimizers, self._frozen)
        freezing.check()
        if self._decisions.conditions:
            check_emptied(trainer, freezing.emptied())
        freezing.apply()
        self._freezing = freezing
        self._remember(pl_module)
        self._guard.forget()
        self._decisions.monitors.start()
        self._start_counting(trainer)
        self._say(plan(freezing, self._decisions.conditions))
        if epochs_may_not_end(trainer) and (late := self._decisions.asked_between_epochs()):
            self._say(
                f"the training data have no length, and {', '.join(late)} is asked at the starts of epochs only: if "
                "they never end, pass a schedule of steps, such as AtSteps([1000])."
            )

    # During training

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        settle_logged_metrics(trainer)
        self._named.of(pl_module)  # parameters may have been renamed since the last look
        epoch, freezing, decisions = trainer.current_epoch, self._freezing, self._decisions
        if epoch <= decisions.epoch:  # before it was interrupted
            return
        trajectory = None
        if decisions.measures:
            trajectory = recorded_trajectory(trainer, freezing.groups, decisions.measures)
            log_measures(self._guard, trainer, trajectory, freezing, decisions.measures)
        decisions.monitors.pending |= decisions.monitors.logged_in_training(trainer)
        decisions.monitors.note(epoch)
        if complaint := decisions.monitors.complaint(trainer):
            self._guard.warn("monitors", complaint)
        if self._search is not None:
            aliases, groups = self._named.names.aliases, freezing.together()
            found = self._search.at_epoch(trainer, pl_module, aliases, groups, freezing.parameters)
            if moved := [label for label, result in found.items() if result.factor]:
                self._report(trainer, "moved", moved, describe(found))
            values = {f"line_search_{tag}": value for tag, value in summary(found).items()}
            log_scalars(self._guard, trainer, lambda: values)
        changing = decisions.at_epoch(epoch, freezing.groups, freezing.frozen, trajectory)
        # Logged values may differ from process to process: those of the first one count.
        self._change(trainer, trainer.strategy.broadcast(changing))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._counter.batch_starts(trainer.optimizers)
        freezing, steps = self._freezing, self._counter.count
        if steps > self._decisions.step:
            self._change(trainer, self._decisions.after_steps(steps, freezing.groups, freezing.frozen))
        if self._search is not None:
            self._search.take_batch(trainer, pl_module, batch, "train")
        self.timeline.batch_starts(freezing.share)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._counter.follow(trainer.global_step)
        self.timeline.batch_ends()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.timeline.pause()
        self._decisions.monitors.validation_starts(trainer)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._search is not None and hasattr(self, "_freezing"):  # training has begun
            self._search.take_batch(trainer, pl_module, batch, "val")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.timeline.go_on()
        if hasattr(self, "_freezing"):
            self._decisions.monitors.validation_ends(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.timeline.epoch_ends(trainer.current_epoch)
        layers = self._freezing.frozen_layers
        log_scalars(self._guard, trainer, lambda: self.timeline.scalars() | {"frozen_layers": layers()})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and not trainer.fast_dev_run:
            report_end(self._guard, trainer, self.timeline, self._freezing, self.when)

    # State

    def state_dict(self) -> dict[str, Any]:
        if self._restored is not None:  # saved again before training has taken it up
            return dict(self._restored)
        return {
            "settings": self.settings.lasting,
            "frozen": {label: list(names) for label, names in self._frozen.items()},
            "steps": self._counter.count,
            "decisions": self._decisions.state_dict(),
            "timeline": self.timeline.state_dict(),
            "search": None if self._search is None else self._search.state_dict(),
            **_known(self._named),
        }

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._restored is None and (state := checkpoint.get("callbacks", {}).get(self.state_key)):
            # No other part of a checkpoint has the values that the start of the coming epoch will note.
            state["decisions"]["pending"] |= self._decisions.monitors.logged_in_training(trainer)
            self._named.of(pl_module)
            state |= _known(self._named)

    # Inside

    def _begin(self) -> None:
        self.timeline = Timeline()
        self._decisions = Decisions(self.when, self.thaw)
        self._search = None if self.line_search is None else DirectionSearch(self.line_search)
        self._frozen: dict[str, list[str]] = {}  # of each frozen group, the parameters that were frozen with it
        self._counter.count = 0

    def _load(self, state: Mapping[str, Any], pl_module: LightningModule) -> None:
        check_unchanged(self.settings.lasting, state["settings"], "the checkpoint was made")
        self._begin()
        self._named.names.restart(state.get("aliases", {}), state.get("shapes"))  # which older checkpoints lack
        self._frozen = {label: list(names) for label, names in state["frozen"].items()}
        self._counter.count = state["steps"]
        self._decisions.load_state_dict(state["decisions"])
        self.timeline.load_state_dict(state["timeline"])
        if self._search is not None and state["search"] is not None:
            self._search.load_state_dict(state["search"], pl_module.device)

    def _change(self, trainer: Trainer, labels: list[str]) -> None:
        """Freeze those of the groups that are trained, and thaw the others."""
        freezing = self._freezing
        freezing.optimizers = trainer.optimizers  # they may have been replaced
        thawing = [label for label in labels if label in freezing.frozen]
        for label in thawing:
            freezing.thaw(label)
        if len(labels) > len(thawing):
            check_state(trainer, trainer.current_epoch, self._counter.count)
        # A group that the user has frozen entirely is left alone.
        frozen = [label for label in labels if label not in thawing and freezing.freeze(label)]
        for what, changed, condition in (("thawed", thawing, self.thaw), ("frozen", frozen, self.when)):
            if changed:
                self._decisions.changed |= dict.fromkeys(changed, trainer.current_epoch)
                self._report(trainer, what, changed, str(condition))

    def _report(self, trainer: Trainer, what: str, labels: list[str], why: str) -> None:
        trained, _ = self._freezing.trained()
        self.timeline.add(Event(trainer.current_epoch, self._counter.count, what, tuple(labels), trained, why))
        report_latest_event(self._guard, trainer, self.timeline)

    def _clean_up(self) -> None:
        super()._clean_up()
        if (freezing := vars(self).pop("_freezing", None)) is not None:
            freezing.put_back()
        self._named.release()


def _known(named: Parameters) -> dict[str, Any]:
    """Return the names and shapes by which a resumed run finds the parameters again."""
    shapes = {clean_name(first): shape for first, shape in named.names.shapes.items()}
    return {"aliases": dict(named.names.aliases), "shapes": shapes}
