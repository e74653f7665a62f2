"""Lightning's searches for a learning rate or a batch size run before the fit, and leave nothing in the trajectory."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.tuner import Tuner
from torch.utils.data import DataLoader

from lightning_traj import EveryNSteps, HybridTraining, TrajectoryCallback
from models import Module, batches, seed
from models import fit as plain_fit

NAME = "trajectory.safetensors"


class Searched(Module):
    """Has what the searches set; the learning rate that is found is not used, so that runs can be compared."""

    def __init__(self) -> None:
        super().__init__()
        self.lr, self.batch_size = 0.1, 8

    def train_dataloader(self) -> Any:
        return DataLoader(batches().dataset, batch_size=self.batch_size)

    def on_train_start(self) -> None:
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = 0.1


class SameSize(BatchSizeFinder):
    """Searches, and keeps the batch size of before."""

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        super().on_fit_start(trainer, module)
        module.batch_size = 8
        trainer.fit_loop._combined_loader = None
        trainer.fit_loop.setup_data()


def rate_finder() -> LearningRateFinder:
    return LearningRateFinder(num_training_steps=6, max_lr=1e-2)


def size_finder() -> BatchSizeFinder:
    return SameSize(mode="power", steps_per_trial=2, max_trials=2, init_val=2)


def trained(root: Path, *callbacks: Any, tune: Any = None, **arguments: Any) -> Any:
    seed()
    module = Searched()
    trainer = pl.Trainer(
        callbacks=list(callbacks),
        max_epochs=2,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=root,
        **{"logger": False, **arguments},
    )
    if tune is not None:
        tune(Tuner(trainer), module)
        module.batch_size = 8
    trainer.fit(module)
    return trainer


TUNED: dict[str, dict[str, Any]] = {
    "learning rate finder before": {"before": rate_finder},
    "learning rate finder after": {"after": rate_finder},
    "batch size finder before": {"before": size_finder},
    "batch size finder after": {"after": size_finder},
    "Tuner.lr_find": {"tune": lambda tuner, module: tuner.lr_find(module, num_training=6, max_lr=1e-2)},
    "Tuner.scale_batch_size": {
        "tune": lambda tuner, module: tuner.scale_batch_size(module, steps_per_trial=2, max_trials=2)
    },
}


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:The number of training batches")
@pytest.mark.parametrize("snapshot", ["sketch", "full"])
@pytest.mark.parametrize("case", TUNED)
def test_a_search_leaves_no_trace(tmp_path: Path, fit: Any, caplog: Any, case: str, snapshot: Any) -> None:
    how = dict(TUNED[case])
    before, after = ([how.pop(at)()] if at in how else [] for at in ("before", "after"))
    settings = {"snapshot": snapshot, "schedule": EveryNSteps(1)}
    callback, alone = TrajectoryCallback(**settings), TrajectoryCallback(**settings)
    hybrids = [HybridTraining(train="bias", when=1) for _ in range(2)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = trained(tmp_path / "searched", *before, callback, hybrids[0], *after, **how)
    assert not [text for text in map(str, caught) if "trajectory" in text or "traj:" in text]
    plain = trained(tmp_path / "plain", alone, hybrids[1])
    assert callback.trajectory.steps.tolist() == list(range(9))
    assert callback.trajectory.epochs.tolist() == alone.trajectory.epochs.tolist()
    np.testing.assert_array_equal(callback.trajectory.gram(), alone.trajectory.gram())
    assert callback.trajectory.windows.steps == alone.trajectory.windows.steps
    assert [str(event) for event in hybrids[0].timeline.events] == [str(event) for event in hybrids[1].timeline.events]
    torch.testing.assert_close(
        trainer.lightning_module.state_dict(), plain.lightning_module.state_dict(), rtol=0, atol=0
    )
    files = [path.relative_to(tmp_path / "searched") for path in (tmp_path / "searched").rglob("*") if path.is_file()]
    assert len(files) == (1 if snapshot == "sketch" else 1 + 9)
    assert caplog.text.count("traj: recording") <= 2  # of the two real fits


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:The number of training batches")
@pytest.mark.parametrize("finder", [rate_finder, size_finder])
def test_curves_begin_with_the_real_fit(tmp_path: Path, fit: Any, finder: Any) -> None:
    logged = []
    for name, callbacks in (("searched", [finder()]), ("plain", [])):
        logger = CSVLogger(tmp_path, name=name, version="")
        trained(tmp_path, *callbacks, TrajectoryCallback(), logger=logger, log_every_n_steps=1)
        logged.append((tmp_path / name / "metrics.csv").read_text())
    assert logged[0] == logged[1]


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize("finder", [rate_finder, size_finder])
def test_a_used_callback_goes_on_after_a_search(tmp_path: Path, fit: Any, finder: Any) -> None:
    callback, alone = TrajectoryCallback(), TrajectoryCallback()
    for root, callbacks in (("searched", [callback]), ("plain", [alone])):
        trainer = trained(tmp_path / root, *callbacks)
        if root == "searched":
            trainer.callbacks.insert(0, finder())
        trainer.fit_loop.max_epochs = 4
        trainer.fit(trainer.lightning_module)
    assert callback.trajectory.steps.tolist() == [0, 4, 8, 12, 16]
    np.testing.assert_array_equal(callback.trajectory.gram(), alone.trajectory.gram())


def test_a_checkpoint_without_a_trajectory_is_still_said(fit: Any, tmp_path: Path) -> None:
    plain_fit(root=tmp_path).save_checkpoint(tmp_path / "plain.ckpt")
    with pytest.warns(UserWarning, match="the checkpoint holds no trajectory; it begins here"):
        fit(TrajectoryCallback(), ckpt_path=tmp_path / "plain.ckpt", max_epochs=4)
