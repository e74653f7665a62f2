"""Checks before training that a run suits its settings, and hints about settings that may surprise."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from lightning_traj.callbacks.logbook import stem
from lightning_traj.callbacks.trainer import Trainer, epochs_may_not_end, steps_in_epoch
from lightning_traj.recording import Triggers
from lightning_traj.schedule import is_due_within_epochs, limit


def check_names(name: str, names: Sequence[str]) -> None:
    """Raise ValueError if another callback would write the file of this one.

    Args:
        name: Name of this callback.
        names: Names of all callbacks that record in the Trainer, this one included.
    """
    if [stem(other) for other in names].count(stem(name)) > 1:
        raise ValueError(
            f"name={name!r}: two TrajectoryCallbacks in one Trainer would write {stem(name)}.safetensors; give each a "
            "name of its own."
        )


def check_length(trainer: Trainer, triggers: Triggers, window: int | None) -> None:
    """Raise ValueError if the run is too short for the schedule, or an epoch too short for a window.

    Args:
        trainer: Trainer of the fit.
        triggers: Decisions when to record.
        window: Optimizer steps of a window, if the user has chosen them.
    """
    if trainer.fast_dev_run:
        return
    triggers.check(limit(trainer.max_steps), limit(trainer.max_epochs))
    steps = steps_in_epoch(trainer)
    if window and steps < window:
        raise ValueError(
            f"window={window} is longer than an epoch, which has {steps} optimizer steps: pass at most that, "
            "or None for as many as there are."
        )


def hints(trainer: Trainer, triggers: Triggers, undeclared: Collection[str]) -> Iterator[str]:
    """Yield hints about settings that may not do what the user expects.

    Args:
        trainer: Trainer of the fit.
        triggers: Decisions when to record.
        undeclared: Names of parameters that look fused, in an unknown layout.
    """
    if epochs_may_not_end(trainer) and not is_due_within_epochs(triggers.schedule):
        yield (
            f"the training data have no length, and schedule={triggers.schedule!r} is due at the ends of epochs only: "
            "if they never end, pass schedule=EveryNSteps(n) or LogSpaced()."
        )
    if undeclared:
        yield (
            f"{', '.join(undeclared)}: this looks like fused parts (q, k and v, or a gate and its input) in an unknown "
            "layout, and stays one block; declare it with fused= to see them apart."
        )
