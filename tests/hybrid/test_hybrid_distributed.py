"""Frozen parameters stand still on several devices too, and all processes decide alike."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from numpy.typing import NDArray
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from launch import launch
from lightning_traj import HybridTraining, LineSearch, Plateau, Threshold
from models import Validated, batches, fit, mlp

pytestmark = [
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed"),
    pytest.mark.filterwarnings("ignore:It is recommended to use `self.log"),  # differing values are what is tested
]


class Net(Validated):
    def __init__(self, optimizer: str) -> None:
        super().__init__(mlp(nn.LayerNorm(8)))
        self.kind = optimizer

    def configure_optimizers(self) -> Any:
        if self.kind == "AdamW":
            return torch.optim.AdamW(self.parameters(), lr=0.05, weight_decay=0.1)
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        # Differs from process to process: only the first one's counts.
        self.log("val/loss", self.loss(batch) * (-1) ** self.global_rank * (1 + self.current_epoch), sync_dist=False)


class Sharded(Net):
    def configure_model(self) -> None:
        fully_shard(self.net[3])
        fully_shard(self.net)  # its other parameters are unsharded from validation to the next backward pass


def whole(tensor: torch.Tensor) -> NDArray[np.float32]:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().numpy().copy()


class Epochs(pl.Callback):
    """Whole parameters at the end of each epoch, as the optimizer holds them."""

    def __init__(self) -> None:
        self.states: list[dict[str, NDArray[np.float32]]] = []

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        self.parameters = dict(module.named_parameters())

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        self.states.append({name: whole(p) for name, p in self.parameters.items()})


def train(
    strategy: Any, module: Any, root: Path, epochs: int, arguments: dict[str, Any], *others: Any, ckpt_path: Any = None
) -> dict[str, Any]:
    hybrid, seen = HybridTraining(**arguments), Epochs()
    strategy = strategy() if callable(strategy) else strategy
    settings = {"strategy": strategy, "devices": 2, "max_epochs": epochs, "ckpt_path": ckpt_path}
    fit(hybrid, seen, *others, root=root, module=module, **settings)
    events = [[event.epoch, event.what, list(event.groups)] for event in hybrid.timeline.events]
    return {"states": seen.states, "events": events}


def assert_alike(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one["events"] == other["events"]
    for mine, others in zip(one["states"], other["states"], strict=True):
        assert mine.keys() == others.keys()
        assert all(np.array_equal(mine[name], others[name]) for name in mine)


STRATEGIES = {
    "DDP": ("ddp_find_unused_parameters_true", Net),
    "FSDP2": (lambda: ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1), Sharded),
}


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_frozen_stands_still(tmp_path: Path, strategy: str, optimizer: str) -> None:
    how, module = STRATEGIES[strategy]
    arguments = {"train": "norm", "when": 1, "thaw": 3, "keep_state": strategy == "FSDP2"}
    one, other = launch(train, 2, how, lambda: module(optimizer), tmp_path, 4, arguments)
    assert_alike(one, other)
    assert one["events"] == [[1, "frozen", ["model"]], [3, "thawed", ["model"]]]
    before, first, second, thawed = one["states"]
    for name in before:
        moves = [not np.array_equal(a[name], b[name]) for a, b in ((before, first), (first, second), (second, thawed))]
        assert moves == ([True] * 3 if name.startswith("net.2") else [False, False, True])


@pytest.mark.parametrize(
    "arguments",
    [
        {"when": Plateau("val/loss", patience=1)},
        {"when": Threshold("direction_drift", below=0.5), "by": "layer"},
        {"when": 3, "line_search": LineSearch(batches=2)},
    ],
    ids=["a loss that differs", "the trajectory", "line search"],
)
def test_all_processes_decide_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any]) -> None:
    monkeypatch.setattr("lightning_traj.loggers.trajectory.log_figures", lambda *_: None)
    one, other = launch(train, 2, "ddp_find_unused_parameters_true", lambda: Net("SGD"), tmp_path, 4, arguments)
    assert one["events"]
    assert_alike(one, other)


@pytest.mark.parametrize("by", ["model", "layer"])
def test_thresholds_look_at_the_trajectory_of_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    monkeypatch.setattr("lightning_traj.loggers.trajectory.log_figures", lambda *_: None)
    how, module = STRATEGIES["FSDP2"]
    arguments = {"when": Threshold("direction_drift", below=0.5), "by": by}
    one, other = launch(train, 2, how, lambda: module("SGD"), tmp_path, 5, arguments)
    assert_alike(one, other)
    frozen = [epoch for epoch, what, _ in one["events"] if what == "frozen"]
    assert frozen
    before, after = one["states"][-2:]
    still = {name for name in before if np.array_equal(before[name], after[name])}
    assert {"net.0.weight", "net.3.weight"} <= still


def resumed(strategy: Any, module: Any, root: Path) -> list[dict[str, Any]]:
    """The whole run, and one that goes on from a checkpoint of the frozen phase."""
    saving = ModelCheckpoint(root / "saved", save_top_k=-1, filename="{epoch}")
    arguments = {"train": "norm", "when": 1, "thaw": 3}
    whole = train(strategy, module, root, 4, arguments, saving)
    warnings.filterwarnings("ignore", "Be aware that when using `ckpt_path`, callbacks used to create the checkpoint")
    return [whole, train(strategy, module, root, 4, arguments, ckpt_path=root / "saved" / "epoch=1.ckpt")]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_goes_on_from_the_frozen_phase(tmp_path: Path, strategy: str) -> None:
    how, module = STRATEGIES[strategy]
    for whole, other in launch(resumed, 2, how, lambda: module("AdamW"), tmp_path):
        assert whole["events"] == other["events"] == [[1, "frozen", ["model"]], [3, "thawed", ["model"]]]
        assert_alike({**whole, "states": whole["states"][2:]}, other)


def refused(strategy: Any, root: Path, arguments: Any) -> list[str]:
    said = []
    for each in arguments:
        try:
            train(strategy, lambda: Sharded("SGD") if callable(strategy) else Net("SGD"), root, 2, each)
        except ValueError as error:
            said.append(str(error))
    return said


def test_what_shards_could_not_go_on_from_is_refused(tmp_path: Path) -> None:
    said, others = launch(refused, 2, STRATEGIES["FSDP2"][0], tmp_path, [{"when": 1, "keep_state": False}, {"when": 0}])
    assert said == others
    assert "pass keep_state=True" in said[0]
    assert "freeze from epoch 1 on" in said[1]


def test_plain_ddp_is_refused_before_training(tmp_path: Path) -> None:
    said, others = launch(refused, 2, "ddp", tmp_path, [{"when": 1}])
    assert said == others
    assert 'strategy="ddp_find_unused_parameters_true"' in said[0]


def test_the_data_are_not_alike_in_both_processes() -> None:
    first, *others = batches()
    assert not any(torch.equal(first[0], other[0]) for other in others)
