"""A resumed run has the trajectory of the uninterrupted one: no snapshot twice, none lost."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, WeightAveraging
from torch import nn

from lightning_traj import EveryNEpochs, EveryNSteps, Trajectory, TrajectoryCallback
from lightning_traj.schedule import Schedule
from models import Failing, Module, Validated, batches, both_schedules, mlp
from trajectories import assert_same

pytestmark = pytest.mark.filterwarnings(
    "ignore:You're resuming from a checkpoint that ended before the epoch ended",  # hence the batches that are alike
    "ignore:Be aware that when using `ckpt_path`, callbacks used to create the checkpoint",  # ModelCheckpoint
    "ignore:Checkpoint directory .* exists and is not empty",
)

ALIKE = {"data": batches(alike=True)}  # after a checkpoint within an epoch, Lightning begins the data anew


SAVES: dict[str, dict[str, Any]] = {
    "at the end of the epoch": {"save_on_train_epoch_end": True, "every_n_epochs": 2},
    "after validation, before the end of the epoch": {"save_on_train_epoch_end": False, "every_n_epochs": 2},
    "within an epoch": {"every_n_train_steps": 6},
    "at the last batch of an epoch": {"every_n_train_steps": 8},
    "before anything was logged": {"every_n_train_steps": 1},
}


@pytest.mark.parametrize("snapshot", ["sketch", "full"])
@pytest.mark.parametrize("when", SAVES)
def test_resumed_run_equals_uninterrupted_run(fit: Any, tmp_path: Path, when: str, snapshot: Any) -> None:
    arguments = {**ALIKE, "module": Validated, "max_epochs": 4}
    settings = {"snapshot": snapshot, "sketch_dim": 8, "max_snapshots": 10}
    whole = both_schedules(**settings)
    first = ModelCheckpoint(tmp_path / "saved", save_top_k=-1, **SAVES[when])
    fit(*whole, first, **arguments)
    checkpoint = min((tmp_path / "saved").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    resumed = both_schedules(**settings)
    fit(*resumed, ckpt_path=checkpoint, **arguments)
    for ours, theirs in zip(resumed, whole, strict=True):
        assert_same(ours.trajectory, theirs.trajectory)
    assert whole[0].trajectory.steps.tolist() == [0, 4, 8, 12, 16]
    assert whole[1].trajectory.steps.tolist() == [*range(0, 17, 2)]  # thinned


@pytest.mark.parametrize("snapshot", ["sketch", "full"])
def test_resume_twice_after_a_crash(fit: Any, tmp_path: Path, snapshot: Any) -> None:
    whole = both_schedules(snapshot=snapshot)
    fit(*whole, **ALIKE, module=Validated, max_epochs=4)
    checkpoint = None
    for at in (6, 5):
        last = ModelCheckpoint(tmp_path / "saved", save_last=True, every_n_train_steps=3)
        with pytest.raises(ZeroDivisionError):
            fit(
                *both_schedules(snapshot=snapshot),
                last,
                **ALIKE,
                module=lambda at=at: Failing(at, ZeroDivisionError()),
                max_epochs=4,
                ckpt_path=checkpoint,
            )
        checkpoint = last.last_model_path
    resumed = both_schedules(snapshot=snapshot)
    fit(*resumed, **ALIKE, module=Validated, max_epochs=4, ckpt_path=checkpoint)
    for ours, theirs in zip(resumed, whole, strict=True):
        assert_same(ours.trajectory, theirs.trajectory)
        stem = ours.name
        assert_same(Trajectory.load(tmp_path / f"{stem}.safetensors"), theirs.trajectory)


@pytest.fixture
def saved(fit: Any, tmp_path: Path) -> Any:
    """Train two epochs with a callback and save; the path of the checkpoint."""

    def train(*callbacks: Any, **arguments: Any) -> Path:
        trainer = fit(*callbacks, max_epochs=2, **arguments)
        trainer.save_checkpoint(tmp_path / "saved.ckpt")
        return tmp_path / "saved.ckpt"

    return train


def test_checkpoint_loads_without_pickled_objects(saved: Any) -> None:
    path = saved(*both_schedules(), TrajectoryCallback(snapshot="full", include=["net.*"]))
    states = torch.load(path, weights_only=True)["callbacks"]
    assert [key for key in states if "Trajectory" in key] == [
        "TrajectoryCallback{'name': 'epochs'}",
        "TrajectoryCallback{'name': 'steps'}",
        "TrajectoryCallback{'name': 'traj'}",
    ]


def test_monitors_go_on(fit: Any, saved: Any) -> None:
    path = saved(TrajectoryCallback(), EarlyStopping("traj/mds"), module=Validated, val_check_interval=0.5)
    stop = EarlyStopping("traj/mds", patience=100)
    fit(TrajectoryCallback(), stop, ckpt_path=path, module=Validated, val_check_interval=0.5)
    assert np.isfinite(float(stop.best_score))


def test_weight_averaging_beside_it(fit: Any, saved: Any) -> None:
    whole, resumed = both_schedules(), both_schedules()
    path = saved(*both_schedules(), WeightAveraging(), ModelCheckpoint(), module=Validated)
    path = next(path.parent.rglob("epoch=1*.ckpt"))  # after training, averages are in the weights' place
    fit(*resumed, WeightAveraging(), module=Validated, ckpt_path=path)
    fit(*whole, WeightAveraging(), module=Validated)
    for ours, theirs in zip(resumed, whole, strict=True):
        assert_same(ours.trajectory, theirs.trajectory)


def test_callback_that_joins_begins_anew(fit: Any, saved: Any) -> None:
    known, new = TrajectoryCallback(), TrajectoryCallback(name="new")
    path = saved(TrajectoryCallback())
    with pytest.warns(
        UserWarning, match="new: the checkpoint holds no trajectory; it begins here, at step 0 of its own"
    ):
        fit(known, new, ckpt_path=path)
    assert known.trajectory.steps.tolist() == [0, 4, 8, 12]
    assert new.trajectory.steps.tolist() == [0, 4]
    assert new.trajectory.epochs.tolist() == [2, 3]


def test_used_callback_that_resumes_a_foreign_checkpoint_begins_anew(fit: Any, saved: Any) -> None:
    path = saved()
    used = TrajectoryCallback()
    fit(used)
    with pytest.warns(UserWarning, match="traj: the checkpoint holds no trajectory"):
        fit(used, ckpt_path=path)
    assert used.trajectory.steps.tolist() == [0, 4]


def test_resume_with_nothing_left_to_train(fit: Any, saved: Any, tmp_path: Path) -> None:
    for snapshot in ("sketch", "full"):
        before, after = TrajectoryCallback(snapshot=snapshot), TrajectoryCallback(snapshot=snapshot)
        trainer = fit(after, max_epochs=2, ckpt_path=saved(before))
        assert_same(after.trajectory, before.trajectory)
        trainer.save_checkpoint(tmp_path / "again.ckpt")
        third = TrajectoryCallback(snapshot=snapshot)
        fit(third, ckpt_path=tmp_path / "again.ckpt")
        assert third.trajectory.steps.tolist() == [0, 4, 8, 12]


def test_fit_that_goes_on_after_there_was_nothing_left(fit: Any, saved: Any) -> None:
    path, after = saved(TrajectoryCallback()), TrajectoryCallback()
    trainer = fit(after, max_epochs=2, ckpt_path=path)
    trainer.fit_loop.max_epochs = 3
    trainer.fit(trainer.lightning_module, batches())
    assert after.trajectory.steps.tolist() == [0, 4, 8, 12]


def test_checkpoint_before_training_has_taken_the_trajectory_up(saved: Any) -> None:
    state = torch.load(saved(TrajectoryCallback()), weights_only=True)["callbacks"][
        "TrajectoryCallback{'name': 'traj'}"
    ]
    callback = TrajectoryCallback()
    callback.load_state_dict(state)
    assert callback.state_dict() == state


class Plain(Schedule):
    """A user's own, without a repr."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.anything = object()  # whose address is in its repr

    def due_after_step(self, step: int) -> bool:
        return step % self.every == 0

    def due_after_epoch(self, epoch: int) -> bool:
        return False


def test_schedule_of_the_users_own(fit: Any, saved: Any) -> None:
    path, resumed = saved(TrajectoryCallback(schedule=Plain(2))), TrajectoryCallback(schedule=Plain(2))
    fit(resumed, ckpt_path=path)
    assert resumed.trajectory.steps.tolist() == [*range(0, 13, 2)]
    with pytest.raises(ValueError, match=r"schedule=Plain\({'every': 3, .* differs from schedule=Plain\({'every': 2, "):
        fit(TrajectoryCallback(schedule=Plain(3)), ckpt_path=path)


def test_callbacks_that_were_left_out_do_no_harm(fit: Any, saved: Any) -> None:
    path = saved(*both_schedules())
    steps = TrajectoryCallback(name="steps", schedule=EveryNSteps(1))
    with pytest.warns(UserWarning, match="Be aware that when using `ckpt_path`, callbacks used to create"):
        fit(steps, ckpt_path=path)
    assert steps.trajectory.steps.tolist() == list(range(13))


DIFFERENT: list[tuple[dict[str, Any], str]] = [
    ({"snapshot": "full"}, "snapshot='full' differs from snapshot='sketch'"),
    ({"sketch_dim": 64}, "sketch_dim=64 differs from sketch_dim=512"),
    ({"seed": 3}, "seed=3 differs from seed=0"),
    ({"include": "*.weight"}, "include='*.weight' differs from include=None"),
    ({"exclude": ["*.bias"]}, "exclude=['*.bias'] differs from exclude=None"),
    ({"max_snapshots": 9}, "max_snapshots=9 differs from max_snapshots=256"),
    ({"schedule": EveryNEpochs(2)}, "schedule=EveryNEpochs(n=2) differs from schedule=EveryNEpochs(n=1)"),
    ({"schedule": EveryNSteps(1)}, "schedule=EveryNSteps(n=1) differs from schedule=EveryNEpochs(n=1)"),
]


@pytest.mark.parametrize(("arguments", "message"), DIFFERENT, ids=[case[1] for case in DIFFERENT])
def test_settings_that_differ(fit: Any, saved: Any, tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    path = saved(TrajectoryCallback())
    written = (tmp_path / "trajectory.safetensors").read_bytes()
    with pytest.raises(ValueError, match="to go on with it, or another name= to begin a new one") as caught:
        fit(TrajectoryCallback(**arguments), ckpt_path=path)
    assert message in str(caught.value)
    assert (tmp_path / "trajectory.safetensors").read_bytes() == written


def test_same_patterns_in_other_clothes(fit: Any, saved: Any) -> None:
    path = saved(TrajectoryCallback(include=["*.weight", "*.bias"]))
    again = TrajectoryCallback(include=("*.weight", "*.bias"))
    fit(again, ckpt_path=path)
    assert len(again.trajectory) == 4


class Longer(Module):
    def __init__(self) -> None:
        super().__init__(mlp(nn.Linear(8, 8), nn.ReLU()))


@pytest.mark.parametrize("snapshot", ["sketch", "full"])
def test_other_model(fit: Any, saved: Any, snapshot: Any) -> None:
    path = saved(TrajectoryCallback(snapshot=snapshot), module=Longer)
    checkpoint = torch.load(path, weights_only=True)
    others = {
        "'net.2.bias', which the model lacks": mlp(nn.Linear(8, 8, bias=False), nn.ReLU()),
        "64 entries in 'net.2.weight', and the model has 24": mlp(nn.Linear(8, 3), nn.Linear(3, 8)),
    }
    for message, net in others.items():
        # Weights and optimizer of the other model, so that the trajectory alone does not fit.
        other = Module(net)
        checkpoint["state_dict"] = other.state_dict()
        checkpoint["optimizer_states"] = [other.configure_optimizers().state_dict()]
        torch.save(checkpoint, path)
        with pytest.raises(ValueError, match=message):
            fit(TrajectoryCallback(snapshot=snapshot), ckpt_path=path, module=lambda other=other: other)
        assert not other.losses


def test_full_snapshots_in_a_moved_folder(fit: Any, saved: Any, tmp_path: Path) -> None:
    whole = TrajectoryCallback(snapshot="full")
    path = saved(whole)
    fit(whole)
    shutil.rmtree(tmp_path / "moved", ignore_errors=True)
    (tmp_path / "moved").mkdir()
    (tmp_path / "traj-snapshots").rename(tmp_path / "moved" / "traj-snapshots")
    with pytest.raises(FileNotFoundError, match="pass the dirpath under which"):
        fit(TrajectoryCallback(snapshot="full"), ckpt_path=path)
    resumed = TrajectoryCallback(snapshot="full", dirpath=tmp_path / "moved")
    fit(resumed, ckpt_path=path)
    assert_same(resumed.trajectory, whole.trajectory)


def test_full_snapshots_stay_where_they_were(fit: Any, saved: Any, tmp_path: Path) -> None:
    whole = TrajectoryCallback(snapshot="full", dirpath=tmp_path / "old")
    path = saved(whole)
    resumed = TrajectoryCallback(snapshot="full", dirpath=tmp_path / "new")
    fit(resumed, ckpt_path=path)
    fit(whole)
    assert_same(resumed.trajectory, whole.trajectory)


def test_missing_full_snapshot_is_found_before_training(fit: Any, saved: Any, tmp_path: Path) -> None:
    path = saved(TrajectoryCallback(snapshot="full"))
    gone = sorted((tmp_path / "traj-snapshots").iterdir())[1]
    gone.unlink()
    modules: list[Any] = []

    def build() -> Any:
        modules.append(Module())
        return modules[0]

    with pytest.raises(FileNotFoundError) as caught:
        fit(TrajectoryCallback(snapshot="full"), ckpt_path=path, module=build)
    assert gone.name in str(caught.value)
    assert not modules[0].losses
