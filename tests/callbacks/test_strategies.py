"""The contract that every entry in the table of strategies keeps."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import lightning.fabric.strategies
import lightning.pytorch.strategies
import pytest
from torch import nn

from lightning_traj import HybridTraining, TrajectoryCallback
from lightning_traj.callbacks.strategies import STRATEGIES, Strategy, find_strategy
from lightning_traj.hybrid.checks import check_run
from lightning_traj.hybrid.decisions import Decisions

ENTRIES = pytest.mark.parametrize("entry", STRATEGIES, ids=lambda entry: entry.name)


def trainer(entry: Strategy, derived: bool) -> Any:
    """A Trainer with the strategy, or one that inherits from it, as the checks see it."""
    kind = type(entry.name, (), {})  # by name: Lightning has each of them in two packages
    made = type("Derived", (kind,), {})() if derived else kind()
    made.model = nn.Linear(2, 2)
    return SimpleNamespace(
        strategy=made,
        world_size=2,
        callbacks=[],
        optimizers=[],
        fast_dev_run=True,
        max_epochs=4,
        max_steps=-1,
        num_training_batches=8,
        reload_dataloaders_every_n_epochs=0,
        lightning_module=SimpleNamespace(automatic_optimization=True),
    )


def freeze(trainer: Any, keep_state: bool = True) -> None:
    conditions = HybridTraining(when=1).settings.conditions
    check_run(trainer, {}, Decisions(*conditions), None, keep_state)


@ENTRIES
def test_lightning_has_a_strategy_of_that_name(entry: Strategy) -> None:
    packages = lightning.pytorch.strategies, lightning.fabric.strategies
    assert any(hasattr(package, entry.name) for package in packages)


@ENTRIES
@pytest.mark.parametrize("derived", [False, True])
def test_recording_is_refused_where_the_table_says_so(entry: Strategy, derived: bool) -> None:
    made = trainer(entry, derived)
    if entry.recording:
        with pytest.raises(ValueError, match=re.escape(f"is not supported by TrajectoryCallback. {entry.recording}.")):
            TrajectoryCallback().setup(made, None, "fit")  # type: ignore[arg-type]
    else:
        TrajectoryCallback().setup(made, None, "fit")  # type: ignore[arg-type]


@ENTRIES
@pytest.mark.parametrize("derived", [False, True])
def test_freezing_is_refused_where_the_table_says_so(entry: Strategy, derived: bool) -> None:
    made = trainer(entry, derived)
    if entry.freezing:
        with pytest.raises(ValueError, match=re.escape(entry.freezing)):
            freeze(made)
    else:
        freeze(made)


@ENTRIES
def test_optimizers_keep_their_state_under_sharded_strategies(entry: Strategy) -> None:
    if entry.is_sharded:
        with pytest.raises(ValueError, match="pass keep_state=True"):
            freeze(trainer(entry, derived=False), keep_state=False)
    elif not entry.freezing:
        freeze(trainer(entry, derived=False), keep_state=False)


@ENTRIES
def test_a_reason_says_what_to_use_instead(entry: Strategy) -> None:
    assert all("use " in why for why in (entry.recording, entry.freezing) if why)


def test_an_unknown_strategy_has_no_entry() -> None:
    assert find_strategy(object()) is None


def test_a_strategy_is_refused_for_any_of_its_bases() -> None:
    supported = type("DDPStrategy", (), {})
    refused = type("XLAStrategy", (supported,), {})
    assert find_strategy(type("Own", (refused,), {})()).name == "XLAStrategy"  # type: ignore[union-attr]
    assert find_strategy(type("FSDPStrategy", (supported,), {})()).name == "FSDPStrategy"  # type: ignore[union-attr]
