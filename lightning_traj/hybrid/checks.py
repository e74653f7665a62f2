"""Checks before training that a run goes together with freezing parameters while it lasts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import inf
from typing import Any

import torch
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

from lightning_traj.callbacks import check_freezing, is_sharded
from lightning_traj.hybrid.decisions import Decisions
from lightning_traj.hybrid.line_search import LineSearch
from lightning_traj.recording import with_inner
from lightning_traj.schedule import limit


def check_run(
    trainer: Any,
    parameters: Mapping[str, nn.Parameter],
    decisions: Decisions,
    line_search: LineSearch | None,
    keep_state: bool,
) -> None:
    """Raise ValueError if the strategy, an optimizer or the length of the run rules out the settings.

    Args:
        trainer: Trainer of the fit.
        parameters: Parameters of the module, by name.
        decisions: Decisions when to freeze and thaw.
        line_search: Settings of the line search; None for none.
        keep_state: Whether optimizers keep their state of frozen parameters.
    """
    if lazy := [name for name, p in parameters.items() if is_lazy(p)]:
        raise ValueError(
            f"the parameters {', '.join(lazy[:3])} have no shape before the first batch, and their roles are unknown: "
            "run a batch through the model before fit."
        )
    if decisions.conditions:
        _check_strategy(trainer, keep_state)
    for optimizer in trainer.optimizers:
        if any(isinstance(each, torch.optim.LBFGS) for each in with_inner(optimizer)):
            raise ValueError(
                "LBFGS steps along directions that it remembers of all parameters, and would move frozen ones: use "
                "another optimizer."
            )
    max_epochs = limit(trainer.max_epochs)
    steps = _most_steps(trainer, max_epochs)
    for argument, condition in decisions.conditions.items():
        # After the last step there is nothing left to train.
        if not trainer.fast_dev_run and not condition.begins_by(steps - 1, max_epochs):
            raise ValueError(
                f"{argument}: {condition} is not within this run, of max_epochs={max_epochs} (epochs are counted from "
                f"0) and at most {steps} steps (after the last one it would be too late): name an earlier one."
            )
    if line_search is not None:
        _check_line_search(trainer, parameters, line_search)


def check_state(trainer: Any, epoch: int, steps: int) -> None:
    """Raise ValueError if freezing before the first step would make checkpoints that cannot be loaded.

    Args:
        trainer: Trainer of the fit.
        epoch: Epoch in which a group is about to be frozen.
        steps: Number of optimizer steps taken before.
    """
    if not steps and is_sharded(trainer.strategy):
        raise ValueError(
            f"when: freezing in epoch {epoch}, before any step, leaves optimizers without state of frozen parameters, "
            "and ModelParallelStrategy could not resume from such checkpoints: freeze from epoch 1 on, or set "
            "requires_grad=False in configure_model."
        )


def check_emptied(trainer: Any, emptied: Collection[int]) -> None:
    """Raise ValueError if a GradScaler would fail at optimizers that have nothing left to train.

    Args:
        trainer: Trainer of the fit.
        emptied: Numbers of these optimizers.
    """
    if emptied and getattr(trainer.precision_plugin, "scaler", None) is not None:
        raise ValueError(
            f"optimizer {min(emptied)} would be left without anything to train, which a GradScaler does not "
            "go on with: let train= choose something of each optimizer, or use precision='bf16-mixed'."
        )


def _most_steps(trainer: Any, max_epochs: float) -> float:
    """Return an upper limit of the optimizer steps of a run; unless the module takes steps, one a batch."""
    max_steps = limit(trainer.max_steps)
    batches: float = trainer.num_training_batches
    if not trainer.lightning_module.automatic_optimization or trainer.reload_dataloaders_every_n_epochs:
        return max_steps
    if inf in (batches, max_epochs):
        return max_steps
    return min(max_steps, batches * max_epochs)  # fewer where gradients are accumulated, which may change


def _check_strategy(trainer: Any, keep_state: bool) -> None:
    if is_sharded(trainer.strategy) and not keep_state:
        raise ValueError(
            "keep_state=False: under ModelParallelStrategy a checkpoint from which the state of something is missing "
            "cannot be loaded: pass keep_state=True."
        )
    check_freezing(trainer.strategy)
    model = trainer.strategy.model
    if isinstance(model, DistributedDataParallel):
        if not model.find_unused_parameters:
            raise ValueError(
                "DDP expects a gradient of every parameter and fails once some are frozen: use "
                'strategy="ddp_find_unused_parameters_true".'
            )
        if model.static_graph:
            raise ValueError("DDP(static_graph=True) fails once the graph changes: leave static_graph out.")


def _check_line_search(trainer: Any, parameters: Mapping[str, nn.Parameter], line_search: LineSearch) -> None:
    module = trainer.lightning_module
    steps = ["training_step" if line_search.data == "train" else "validation_step"]
    steps += ["training_step"] if line_search.loss is None else []
    for step in steps:
        if is_param_in_hook_signature(getattr(module, step), "dataloader_iter", explicit=True):
            raise ValueError(
                f"line_search: {step} takes its batches from dataloader_iter itself, and leaves none to evaluate the "
                f"loss on: let {step} take a batch, or leave line_search out."
            )
    if not trainer.lightning_module.automatic_optimization and line_search.loss is None:
        raise ValueError(
            "line_search: under manual optimisation training_step takes optimizer steps of its own: pass "
            "LineSearch(loss=…), a function from module and batch to the loss."
        )
    if any(hasattr(p, "placements") for p in parameters.values()):
        raise ValueError("line_search works on whole parameters, and these are sharded: use DDP or leave it out.")
    if line_search.data == "val" and not trainer.enable_validation:
        raise ValueError('line_search: there is no validation to take batches from: use LineSearch(data="train").')
