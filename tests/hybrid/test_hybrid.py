"""HybridTraining in running Trainers: what it is refused for, what it reports, and that it resumes as it was."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from threading import Lock
from typing import Any

import pytest
import pytorch_lightning
import torch
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    EarlyStopping,
    EMAWeightAveraging,
    LearningRateMonitor,
    ModelCheckpoint,
)
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from lightning_traj import (
    After,
    AtEpochs,
    AtSteps,
    EveryNSteps,
    HybridTraining,
    LineSearch,
    Plateau,
    Threshold,
    Trajectory,
    TrajectoryCallback,
)
from lightning_traj.hybrid import picture as freeze_plot
from lightning_traj.hybrid.timeline import Event, Timeline, time_saved, timeline_table
from models import INPUTS, Module, Training, TwoOptimizers, Validated, batches, mlp

pytestmark = pytest.mark.filterwarnings(
    "ignore:You're resuming from a checkpoint that ended before the epoch ended",
    "ignore:Be aware that when using `ckpt_path`, callbacks used to create the checkpoint",
    "ignore:Checkpoint directory .* exists and is not empty",
)
DRIFT = Threshold("direction_drift", below=0.05, snapshots=2)


class Normed(Validated):
    """With batch normalisation, dropout, and a loss that is logged."""

    def __init__(self) -> None:
        super().__init__(mlp(nn.BatchNorm1d(8), nn.Dropout(0.2)))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)


def events(hybrid: HybridTraining) -> list[tuple[int, str, tuple[str, ...]]]:
    return [(event.epoch, event.what, event.groups) for event in hybrid.timeline.events]


# Where the trajectory comes from --------------------------------------------------------------------------------


def test_the_trajectory_beside_it_is_used_wherever_it_stands(fit: Any) -> None:
    runs = []
    for order in (1, -1):
        hybrid, recording = HybridTraining(when=DRIFT), TrajectoryCallback()
        trainer = fit(*[recording, hybrid][::order], module=Normed, max_epochs=8)
        assert sum(isinstance(c, TrajectoryCallback) for c in trainer.callbacks) == 1
        runs.append((events(hybrid), trainer.lightning_module.state_dict()))
    own = HybridTraining(when=DRIFT)
    trainer = fit(own, module=Normed, max_epochs=8)
    assert [type(callback) for callback in trainer.callbacks[:2]] == [HybridTraining, TrajectoryCallback]
    runs.append((events(own), trainer.lightning_module.state_dict()))
    assert runs[0][0] == runs[1][0] == runs[2][0]
    for _, state in runs:
        torch.testing.assert_close(state, runs[0][1], rtol=0, atol=0)
    # By definition: the first epoch before which two snapshots in a row had a drift, as it stood then, below.
    series = recording.trajectory.series(lambda block: block.layer != "net.2")["direction_drift"]
    ((epoch, what, groups),) = runs[0][0]
    held = [t for t in range(2, 9) if series[t - 1] < 0.05 and series[t] < 0.05]
    assert (epoch, what, groups) == (held[0], "frozen", ("model",))
    assert held[0] > 2


def test_snapshots_within_an_epoch_count_one_by_one(fit: Any) -> None:
    hybrid = HybridTraining(when=Threshold("mds", above=0, snapshots=4), by="layer")
    fit(TrajectoryCallback(schedule=EveryNSteps(1)), hybrid, module=Normed)
    assert events(hybrid) == [(1, "frozen", ("net.0", "net.4"))]


# What it is refused for -----------------------------------------------------------------------------------------


class Plain(Module):
    pass


class AllFrozen(Normed):
    def __init__(self) -> None:
        super().__init__()
        self.net[2].requires_grad_(False)


class NormsInNoOptimizer(Normed):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.net[0].parameters(), lr=0.1)


class Attention(Module):
    def __init__(self) -> None:
        super().__init__(nn.MultiheadAttention(INPUTS, 2, batch_first=True))


class Lazy(Module):
    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.LazyLinear(8), nn.LayerNorm(8), nn.Linear(8, 3)))


class Quasi(Normed):
    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters())


class Locked(Normed):
    def __init__(self) -> None:
        super().__init__()
        self.lock = Lock()


class NeedsTrainer(Normed):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(batch, batch_idx) * (1 + self.trainer.current_epoch)


REFUSED: dict[str, tuple[type, dict[str, Any], list[Any], str]] = {
    "no norm": (Plain, {"when": 1}, [], "no normalisation layer with parameters.*bias, linear"),
    "no such role": (Normed, {"train": "role:q", "when": 1}, [], "train='role:q' matches none.*roles: 'linear'"),
    "a typo": (Normed, {"train": ["norm", "*.wieght"], "when": 1}, [], r"train='\*\.wieght' matches none.*names:"),
    "nothing frozen": (Normed, {"train": "*", "when": 1}, [], "chooses all 6 blocks.*nothing would be frozen"),
    "frozen already": (AllFrozen, {"when": 1}, [], "nothing would be left to train.*net.2.weight"),
    "in no optimizer": (NormsInNoOptimizer, {"when": 1}, [], "nothing would be left to train"),
    "part of a tensor": (
        Attention,
        {"train": "q", "when": 1},
        [],
        "fused tensor 'net.in_proj_weight'.*all of its parts",
    ),
    "lazy": (Lazy, {"when": 1}, [], "net.0.weight, net.0.bias have no shape.*run a batch"),
    "LBFGS": (Quasi, {"when": 1}, [], "LBFGS.*would move frozen ones"),
    "too late": (Normed, {"when": 2}, [], "when: epoch 2 is not within.*max_epochs=2"),
    "a step too late": (Normed, {"when": AtEpochs([2])}, [], "when: AtEpochs.*not within"),
    "after the last step": (Normed, {"when": AtSteps([8])}, [], "not within this run.* at most 8 steps"),
    "thawed too late": (Normed, {"when": 1, "thaw": 5}, [], "thaw: epoch 5 is not within"),
    "not recorded": (
        Normed,
        {"when": Threshold("oscillation_cosine", below=0)},
        [TrajectoryCallback(window=0)],
        "'oscillation_cosine', which the TrajectoryCallback 'traj' does not record: give that one window=8",
    ),
    "a group not recorded": (
        Normed,
        {"when": DRIFT, "by": "layer"},
        [TrajectoryCallback(exclude="net.0.*")],
        "of the group 'net.0', 'net.0.bias' is not recorded by the TrajectoryCallback 'traj'",
    ),
    "half a group not recorded": (
        Normed,
        {"when": DRIFT, "by": "layer"},
        [TrajectoryCallback(exclude="net.0.weight")],
        "'net.0.weight' is not",
    ),
    "no statistics": (Normed, {"when": 1, "by": "layer", "running_statistics": False}, [], "no BatchNorm layer is in"),
    "no copy": (Locked, {"line_search": LineSearch(), "train": "bias"}, [], "cannot be copied .*lock"),
    "coarser blocks": (Normed, {"when": DRIFT}, [TrajectoryCallback(blocks="role")], "blocks='tensor'"),
    "needs the Trainer": (
        NeedsTrainer,
        {"line_search": LineSearch()},
        [],
        r"asks for self\.trainer.*LineSearch\(loss=…\)",
    ),
    "manual": (TwoOptimizers, {"line_search": LineSearch(), "train": "bias"}, [], "manual optimisation"),
    "no validation": (Plain, {"line_search": LineSearch(data="val"), "train": "bias"}, [], 'data="train"'),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_training(fit: Any, case: str) -> None:
    module, arguments, others, said = REFUSED[case]
    built: list[Any] = []

    def build() -> Any:
        built.append(module())
        return built[0]

    with pytest.raises(ValueError, match=said):
        fit(*others, HybridTraining(**arguments), module=build, max_epochs=2)
    assert built[0].losses == []


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "nothing to do": ({}, "there is nothing to do"),
    "thaw alone": ({"thaw": 3}, "there is nothing to do"),
    "train": ({"train": 3, "when": 1}, "train=3: pass a role"),
    "an empty list": ({"train": [], "when": 1}, "pass a role"),
    "by": ({"by": "block", "when": 1}, "by='block': pass one of 'model', 'layer', 'depth'"),
    "when": ({"when": "soon"}, "when='soon': pass an epoch"),
    "thawed by standing still": ({"when": 1, "thaw": DRIFT}, r"stands still.*pass After\(…\) or Plateau"),
    "thawed before": ({"when": 5, "thaw": 2}, "thaw=2 is not after when=5"),
    "line search": ({"line_search": True}, "line_search=True: pass LineSearch"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments(case: str) -> None:
    arguments, said = WRONG[case]
    with pytest.raises((ValueError, TypeError), match=said):
        HybridTraining(**arguments)


# Resume ---------------------------------------------------------------------------------------------------------

RESUMED: dict[str, dict[str, Any]] = {
    "an epoch": {"when": 2},
    "steps": {"when": AtSteps([14]), "thaw": AtSteps([21])},  # saved at the very step, before it is acted on
    "the trajectory": {"when": DRIFT, "thaw": After(3)},
    "layer by layer": {"when": Threshold("direction_drift", below=0.2), "thaw": After(1), "by": "layer"},
    "block by block": {"when": After(1), "thaw": After(2), "by": "depth"},
    "a loss": {"when": Plateau("val/loss", patience=1), "thaw": After(1), "keep_state": False},
    "line search": {"when": 4, "line_search": LineSearch(batches=2), "running_statistics": False},
    "line search by layer": {"by": "layer", "line_search": LineSearch(factors=[1], batches=2, every=2, data="val")},
}
SAVES: dict[str, dict[str, Any]] = {
    "at the end of an epoch": {"every_n_epochs": 3, "save_on_train_epoch_end": True},
    "within an epoch": {"every_n_train_steps": 14},
}


class Scripted(Validated):
    """Whose validation loss is written down."""

    VALUES = (9.0, 8.0, 7.0, 6.5, 6.5, 6.5, 6.0, 5.0)

    def __init__(self) -> None:
        super().__init__(mlp(nn.BatchNorm1d(8)))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self.VALUES[self.current_epoch])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("train/loss", self.VALUES[self.current_epoch], on_epoch=True, on_step=False)
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("monitor", ["val/loss", "train/loss"])
def test_a_plateau_is_seen_from_every_checkpoint(fit: Any, tmp_path: Path, monitor: str) -> None:
    def train(*others: Any, **arguments: Any) -> Any:
        hybrid = HybridTraining(when=Plateau(monitor, patience=2))
        fit(hybrid, *others, module=Scripted, max_epochs=7, **arguments)
        return events(hybrid)

    saving = ModelCheckpoint(tmp_path / "saved", save_top_k=-1, every_n_epochs=1, save_on_train_epoch_end=True)
    whole = train(saving)
    assert whole == [(6, "frozen", ("model",))]  # two values that are no better than the first 6.5
    for checkpoint in (tmp_path / "saved").glob("epoch=[0-5]-*"):  # after the last one there is nothing left to train
        assert train(ckpt_path=checkpoint) == whole, checkpoint.name


@pytest.mark.parametrize(("every", "frozen"), [(1, [6]), (2, []), (3, [])])
def test_only_what_a_validation_has_logged_counts(fit: Any, every: int, frozen: list[int]) -> None:
    """Every second epoch logs 8, 6.5, 6.5 and 5: nothing that stands still is logged twice in between."""
    hybrid = HybridTraining(when=Plateau("val/loss", patience=2))
    fit(hybrid, module=Scripted, max_epochs=8, check_val_every_n_epoch=every)  # and warns of nothing
    assert [epoch for epoch, *_ in events(hybrid)] == frozen


class Deterministic(Normed):
    """Without dropout: random numbers are not part of a checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.net[3].p = 0.0


@pytest.mark.parametrize("save", SAVES)
@pytest.mark.parametrize("case", RESUMED)
def test_resumed_run_equals_uninterrupted_run(fit: Any, tmp_path: Path, case: str, save: str) -> None:
    arguments = {"module": Deterministic, "data": batches(alike=True), "max_epochs": 6}
    saving = ModelCheckpoint(tmp_path / "saved", save_top_k=-1, **SAVES[save])
    whole = HybridTraining(**RESUMED[case])
    trainer = fit(whole, saving, **arguments)
    checkpoint = min((tmp_path / "saved").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    resumed = HybridTraining(**RESUMED[case])
    other = fit(resumed, ckpt_path=checkpoint, **arguments)
    assert resumed.timeline.events == whole.timeline.events
    assert len(whole.timeline.events) >= 1
    assert resumed.frozen == whole.frozen
    for ours, theirs in (
        (other.lightning_module, trainer.lightning_module),
        (other.optimizers[0], trainer.optimizers[0]),
    ):
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)


def test_what_cannot_go_on_is_said(fit: Any, tmp_path: Path) -> None:
    trainer = fit(HybridTraining(when=1), module=Normed, max_epochs=2)
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    torch.load(tmp_path / "saved.ckpt", weights_only=True)
    for arguments, said in (
        ({"train": "bias"}, "train='bias' differs from train='norm'"),
        ({"by": "layer"}, "by='layer' differs from by='model'"),
    ):
        with pytest.raises(ValueError, match=said):
            fit(HybridTraining(when=1, **arguments), module=Normed, ckpt_path=tmp_path / "saved.ckpt")
    later = HybridTraining(when=1, thaw=3)  # other conditions may be asked from there on
    fit(later, module=Normed, ckpt_path=tmp_path / "saved.ckpt", max_epochs=4)
    assert events(later) == [(1, "frozen", ("model",)), (3, "thawed", ("model",))]


def test_a_fit_that_goes_on_and_one_that_begins_anew(fit: Any, tmp_path: Path) -> None:
    hybrid = HybridTraining(when=1)
    trainer = fit(hybrid, module=Normed, max_epochs=2)
    module = trainer.lightning_module
    kept = module.net[0].weight.detach().clone()
    trainer.fit_loop.max_epochs = 4
    trainer.fit(module, batches())
    assert torch.equal(module.net[0].weight, kept)
    assert len(hybrid.timeline.events) == 1
    fit(hybrid, module=Normed, max_epochs=3)
    assert events(hybrid) == [(1, "frozen", ("model",))]


# What it reports ------------------------------------------------------------------------------------------------


def test_report(fit: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hybrid = HybridTraining(when=DRIFT, thaw=After(2), line_search=LineSearch(batches=1))
    fit(hybrid, module=Normed, max_epochs=8, logger=TensorBoardLogger(tmp_path), log_every_n_steps=1)
    (folder,) = tmp_path.glob("lightning_logs/version_0")
    logged = EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()
    curves = {tag: [event.value for event in logged.Scalars(tag)] for tag in logged.Tags()["scalars"]}
    shares = [1.0] * 8
    for event in hybrid.timeline.events:
        shares[event.epoch :] = [event.trained / 99] * (8 - event.epoch)
    assert curves["traj_hybrid/trained_share"] == pytest.approx(shares)
    assert curves["traj_hybrid/frozen_layers"] == [2.0 * (share < 1) for share in shares]
    assert min(curves["traj_hybrid/step_time"]) > 0
    assert len(curves["traj_hybrid/step_time_ratio"]) == 8
    assert {"traj_hybrid/line_search_taken", "traj_hybrid/line_search_gain"} <= set(curves)
    series = Trajectory.load(folder / "trajectory.safetensors").series(lambda block: block.layer != "net.2")
    drift = [value for value in series["direction_drift"][:8] if value == value]
    assert curves["traj_hybrid/direction_drift"] == pytest.approx(drift, rel=1e-5)
    texts = [event.tensor_proto.string_val[0].decode() for event in logged.Tensors("traj_hybrid/events/text_summary")]
    assert texts[-1].splitlines() == [f"- {event}" for event in hybrid.timeline.events]
    assert len(texts) == len(hybrid.timeline.events)
    printed = capsys.readouterr().out
    assert "Hybrid training: " in printed
    assert re.search(r"A step took [\d.]+ ms with everything trained, and [\d.]+ ms \([\d.]+ of it\)", printed)
    assert printed.count("│ frozen │") == sum(event.what == "frozen" for event in hybrid.timeline.events) >= 1


class Broken(TensorBoardLogger):
    def log_metrics(self, *_: Any, **__: Any) -> None:
        raise OSError("disk full")


def test_a_report_that_fails_warns_once(fit: Any, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="traj_hybrid: logging failed with OSError: disk full") as caught:
        fit(
            HybridTraining(when=1),
            module=lambda: Validated(mlp(nn.LayerNorm(8))),
            logger=Broken(tmp_path),
            log_every_n_steps=1,
        )
    assert sum("traj_hybrid" in str(warning.message) for warning in caught) == 1


def test_a_monitor_that_is_not_logged_is_said(fit: Any) -> None:
    with pytest.warns(UserWarning, match="val/accuracy was not logged so far, but.*val/loss"):
        fit(HybridTraining(when=Plateau("val/accuracy")), module=Normed)


def test_that_nothing_was_frozen_is_said(fit: Any, caplog: pytest.LogCaptureFixture) -> None:
    for when in (AtSteps([7]), AtSteps([8])):  # of four epochs, of which two are trained
        fit(
            HybridTraining(when=when), EarlyStopping("val/loss", patience=1, min_delta=9.0), module=Normed, max_epochs=4
        )
    assert caplog.text.count("nothing was frozen: when=AtSteps(steps=(8,)) did not hold at any time") == 1
    assert "when=AtSteps(steps=(7,)) did" not in caplog.text


# Beside others --------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*does not have a predefined learning rate scheduler")
def test_beside_other_callbacks(fit: Any, tmp_path: Path) -> None:
    class Backbone(Normed):
        """Its first layer is the backbone, which BackboneFinetuning trains from epoch 3 on."""

        @property
        def backbone(self) -> nn.Module:
            return self.net[0]

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD((p for p in self.parameters() if p.requires_grad), lr=0.1)
            return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]

    hybrid = HybridTraining(train="norm", when=1, thaw=2)
    others = [BackboneFinetuning(3), LearningRateMonitor(), EMAWeightAveraging(), ModelCheckpoint(tmp_path / "saved")]
    trainer = fit(
        hybrid, *others, module=Backbone, max_epochs=5, logger=TensorBoardLogger(tmp_path), log_every_n_steps=1
    )
    assert [event.trained for event in hybrid.timeline.events] == [16, 43]  # what the other one froze stays frozen
    assert trainer.lightning_module.net[0].weight.requires_grad  # from epoch 3 on, as that one has decided


class Other(Training, pytorch_lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__(mlp(nn.LayerNorm(8)))


def test_in_the_trainer_of_the_other_package(fit: Any) -> None:
    hybrid = HybridTraining(when=DRIFT)
    fit(hybrid, module=Other, trainer_type=pytorch_lightning.Trainer, max_epochs=8)
    assert len(hybrid.timeline.events) == 1


CONFIG = """
trainer:
  max_epochs: 3
  accelerator: cpu
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: lightning_traj.HybridTraining
      init_args:
        train: [norm, net.0.bias]
        when: 1
        thaw:
          class_path: lightning_traj.AtSteps
          init_args: {steps: [10]}
        line_search:
          class_path: lightning_traj.LineSearch
          init_args: {factors: [1.0], batches: 1}
    - class_path: lightning_traj.HybridTraining
      init_args:
        when:
          class_path: lightning_traj.Threshold
          init_args: {measure: mds, above: 0.5, snapshots: 2}
        by: layer
        name: other
"""


def test_from_the_command_line(one_thread: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    monkeypatch.setattr(sys, "argv", ["train.py", "fit", f"--config={tmp_path / 'config.yaml'}"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lightning_traj.loggers.trajectory.log_figures", lambda *_: None)
    monkeypatch.setattr(Normed, "train_dataloader", lambda self: batches(), raising=False)
    cli = LightningCLI(Normed, save_config_callback=None, auto_configure_optimizers=False, seed_everything_default=0)
    one, other = (c for c in cli.trainer.callbacks if isinstance(c, HybridTraining))
    assert (1, "frozen", ("model",)) in events(one)
    assert (2, "thawed", ("model",)) in events(one)
    assert other.when == Threshold("mds", above=0.5, snapshots=2)
    assert one.line_search == LineSearch(factors=[1.0], batches=1)


# Timeline and picture -------------------------------------------------------------------------------------------


def timeline() -> Timeline:
    made = Timeline()
    for epoch, what, groups in ((1, "frozen", "ab"), (3, "thawed", "a"), (3, "moved", "ac"), (5, "frozen", "a")):
        made.add(Event(epoch, 10 * epoch, what, tuple(groups), 5, "why"))
    made.epochs = [(0, 9.0, 1.0), *((epoch, 2.0 + epoch, 0.5 if epoch in (4, 5) else 1.0) for epoch in range(1, 7))]
    return made


def test_step_times() -> None:
    made = timeline()
    assert made.full_step() == 4.5  # of epochs 1, 2, 3 and 6: the first one is slow for other reasons
    assert made.frozen_step() == 6.5
    assert "4.5e+03 ms with everything trained, and 6.5e+03 ms (1.44 of it)" in time_saved(made)
    assert time_saved(Timeline()) == ""
    again = Timeline()
    again.load_state_dict(made.state_dict())
    assert (again.events, again.epochs) == (made.events, made.epochs)


def test_an_epoch_within_which_something_changed_counts_to_neither() -> None:
    made = Timeline()
    for change in (False, True):
        made.batch_starts(lambda: 1.0)
        if change:
            made.add(Event(1, 1, "frozen", ("a",), 5, "why"))
        made.batch_ends()
        made.epoch_ends(int(change))
    assert [share for _, _, share in made.epochs] == pytest.approx([1.0, float("nan")], nan_ok=True)


def test_validation_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 5.0, 6.0])  # first batch, validation, its end, the end of the batch after it
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    made = Timeline()
    made.batch_starts(lambda: 1.0)
    made.pause()
    made.go_on()
    made.batch_ends()
    made.epoch_ends(0)
    assert made.epochs == [(0, 2.0, 1.0)]


def test_picture_of_what_was_frozen_when(fit: Any, tmp_path: Path) -> None:
    assert freeze_plot.intervals(timeline(), "abc") == {"a": [(1, 3), (5, 7)], "b": [(1, 7)], "c": []}
    figure = freeze_plot.frozen_groups(timeline(), ("a", "b", "c"))
    words = [text.get_text() for text in [*figure.texts, *figure.axes[0].texts]]
    assert "3 groups, 7 epochs; frozen 48 % of the time, each group counted alike" in words
    assert {"a", "b", "c", "line search: moved"} <= set(words)


def test_a_long_run_is_summed_up() -> None:
    made = Timeline()
    for epoch in range(30):
        made.add(Event(epoch, epoch, "frozen", tuple(f"layer{i}" for i in range(5)), 5, "why"))
    assert timeline_table(made, 1, 2).row_count == 13
    assert str(made.events[3]) == "epoch 3, step 3: frozen layer0, layer1, layer2, … (5); 5 trained (why)"
