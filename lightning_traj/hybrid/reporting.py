"""Reports of HybridTraining to the user and to loggers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from lightning_traj import loggers
from lightning_traj.callbacks import Guard, batches_of, last_step
from lightning_traj.hybrid.conditions import Condition
from lightning_traj.hybrid.freezing import Freezing
from lightning_traj.hybrid.groups import MODEL
from lightning_traj.hybrid.timeline import LISTED, Timeline, print_timeline
from lightning_traj.trajectory import Trajectory


def plan(freezing: Freezing, conditions: Mapping[str, object]) -> str:
    """Describe in one line what will be frozen and searched, and at what cost.

    Args:
        freezing: Groups of parameters that can be frozen.
        conditions: Conditions by argument.
    """
    parameters, settings = freezing.parameters, freezing.settings
    frozen = {name for group in freezing.groups.values() for name in group.parameters}
    total = sum(p.numel() for p in parameters.values())
    left = sum(p.numel() for name, p in parameters.items() if name not in frozen)
    groups = "the rest is" if settings.by == MODEL else f"all {len(freezing.groups)} groups are"
    line = f"trains {left:,} of {total:,} parameters once {groups} frozen"
    line += "".join(f"; {argument}: {condition}" for argument, condition in conditions.items())
    if conditions and (emptied := freezing.emptied()):
        line += f"; leaves nothing to train to optimizer {', '.join(map(str, emptied))}"
    search = settings.line_search
    if search is None:
        return line
    size = sum(p.numel() * p.element_size() for p in parameters.values() if p.requires_grad)
    copies = f"keeps a copy of the weights ({size / 1e6:.3g} MB, in each checkpoint too)"
    passes = len(freezing.together()) * (len(search.factors) + 1) * search.batches
    return f"{line}; {search}: {passes} forward passes a search, {copies}, another while it searches, and the batches"


def report_latest_event(guard: Guard, trainer: Any, timeline: Timeline) -> None:
    """Tell the user of the latest event, and show the latest ones in TensorBoard."""
    rank_zero_info(f"{guard.name}: {timeline.events[-1]}")
    if trainer.is_global_zero:
        # Several of them each time: TensorBoard shows only a few of the latest texts.
        text = "\n".join(f"- {event}" for event in timeline.events[-LISTED:])
        guard("logging", loggers.log_text, trainer.loggers, f"{guard.name}/events", text, batches_of(trainer))


def log_scalars(guard: Guard, trainer: Any, read: Callable[[], Mapping[str, float]]) -> None:
    """Log values, by tag without its prefix, at the latest step."""

    def log() -> None:
        values = {f"{guard.name}/{tag}": value for tag, value in read().items()}
        loggers.log_scalars(trainer.loggers, values, last_step(trainer))

    if trainer.is_global_zero:
        guard("logging", log)


def log_measures(
    guard: Guard, trainer: Any, trajectory: Trajectory, freezing: Freezing, measures: Sequence[str]
) -> None:
    """Log the measures that conditions see, where there is one group of parameters."""
    if freezing.settings.by == MODEL:
        (group,) = freezing.groups.values()
        newest = trajectory.series(group.has, measures, last=1)
        log_scalars(guard, trainer, lambda: {measure: float(values[-1]) for measure, values in newest.items()})


def report_end(guard: Guard, trainer: Any, timeline: Timeline, freezing: Freezing, when: Condition | None) -> None:
    """Summarise for the user at the end of training which groups were frozen when.

    Args:
        guard: Calls whatever may fail, and warns.
        trainer: Trainer of the fit.
        timeline: Events of the run.
        freezing: Groups of parameters that could be frozen.
        when: Condition for freezing; None for never.
    """
    if when is not None and not any(event.what == "frozen" for event in timeline.events):
        rank_zero_info(f"{guard.name}: nothing was frozen: when={when} did not hold at any time.")
    if freezing.settings.by != MODEL:
        guard("the picture", _log_picture, guard.name, trainer, timeline, tuple(freezing.groups))
    guard("the summary", print_timeline, timeline, freezing.trained())


def _log_picture(name: str, trainer: Any, timeline: Timeline, groups: Sequence[str]) -> None:
    from lightning_traj.hybrid import picture as freeze_plot  # matplotlib is slow to import

    figures = {f"{name}/frozen": lambda: freeze_plot.frozen_groups(timeline, groups)}
    loggers.log_figures(trainer.loggers, figures, last_step(trainer))
