"""Arguments from configuration files: OmegaConf's containers are taken as the lists and dicts that they stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from lightning_traj import (
    AtEpochs,
    AtSteps,
    FusedLayout,
    HybridTraining,
    LineSearch,
    Trajectory,
    TrajectoryCallback,
    from_checkpoints,
)
from models import INPUTS, Module


class Attention(nn.Module):
    """With q, k and v in one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.norm = nn.Linear(INPUTS, 12), nn.LayerNorm(12)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Any) -> Any:
        return self.head(self.norm(self.qkv(x)))


def attention() -> Module:
    return Module(Attention())


CONFIG = """
callback:
  _target_: lightning_traj.TrajectoryCallback
  schedule: {_target_: lightning_traj.AtSteps, steps: [4, 8]}
  window_schedule: {_target_: lightning_traj.AtEpochs, epochs: [1, 2]}
  include: [net.qkv.*, net.head.*]
  exclude: ["${left_out}"]
  fused:
    "*.qkv.weight": {_target_: lightning_traj.FusedLayout, parts: {q: 2, k: 1, v: 1}, groups: 3}
hybrid:
  _target_: lightning_traj.HybridTraining
  train: [norm, "*.bias"]
  when: 2
  line_search: {_target_: lightning_traj.LineSearch, factors: [0.5, 1], batches: 1}
left_out: "*.bias"
"""
PLAIN = {
    "schedule": AtSteps([4, 8]),
    "window_schedule": AtEpochs([1, 2]),
    "include": ["net.qkv.*", "net.head.*"],
    "exclude": ["*.bias"],
    "fused": {"*.qkv.weight": FusedLayout({"q": 2, "k": 1, "v": 1}, groups=3)},
}


def is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(is_plain, value)) and all(map(is_plain, value.values()))
    if isinstance(value, (list, tuple)):
        return type(value) in (list, tuple) and all(map(is_plain, value))
    return type(value) in (torch.Tensor, int, float, str, bool, type(None))


@pytest.mark.parametrize("convert", ["none", "partial", "object", "all"])
def test_hydra_makes_callbacks_with_nested_layouts(fit: Any, tmp_path: Path, convert: str) -> None:
    config = OmegaConf.create(CONFIG)
    callback, hybrid = (instantiate(config[name], _convert_=convert) for name in ("callback", "hybrid"))
    trainer = fit(callback, hybrid, module=attention)
    same = TrajectoryCallback(**PLAIN)  # type: ignore[arg-type]
    alike = HybridTraining(train=["norm", "*.bias"], when=2, line_search=LineSearch(factors=[0.5, 1], batches=1))
    other = fit(same, alike, module=attention)
    assert (callback.trajectory.gram() == same.trajectory.gram()).all()
    assert callback.trajectory.settings == same.trajectory.settings
    names = [block.name for block in callback.trajectory.blocks]
    assert names == [*(f"net.qkv.weight:{part}" for part in "qkv"), "net.head.weight"]
    assert [str(event) for event in hybrid.timeline.events] == [str(event) for event in alike.timeline.events]
    for one in (callback, hybrid):
        assert is_plain(one.state_dict())
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    assert torch.load(tmp_path / "x.ckpt", weights_only=True)
    assert torch.equal(trainer.lightning_module.net.qkv.weight, other.lightning_module.net.qkv.weight)
    # A run from a config goes on with what plain arguments began.
    other.save_checkpoint(tmp_path / "y.ckpt")
    again = [instantiate(config[name], _convert_=convert) for name in ("callback", "hybrid")]
    fit(*again, module=attention, ckpt_path=tmp_path / "y.ckpt", max_epochs=4)
    assert len(again[0].trajectory) == 3


def test_containers_of_omegaconf() -> None:
    patterns = OmegaConf.create(["net.*"])
    layouts = OmegaConf.create({"*.qkv": {"parts": {"q": 1, "k": 1, "v": 1}, "axis": -1}})
    callback = TrajectoryCallback(include=patterns, exclude=OmegaConf.create([]), fused=layouts)  # type: ignore[arg-type]
    expected = TrajectoryCallback(
        include=["net.*"], exclude=[], fused={"*.qkv": FusedLayout({"q": 1, "k": 1, "v": 1}, axis=-1)}
    )
    assert callback._recorder.plain_settings == expected._recorder.plain_settings
    assert is_plain(callback._recorder.plain_settings)
    assert HybridTraining(train=OmegaConf.create(["norm"]), when=1).train == ["norm"]  # type: ignore[arg-type]
    assert AtSteps(OmegaConf.create([2, 1])) == AtSteps([1, 2])
    assert AtEpochs(OmegaConf.create([2, 1])) == AtEpochs([1, 2])
    assert LineSearch(factors=OmegaConf.create([0.5, 2])).factors == (0.5, 2.0)
    assert FusedLayout(OmegaConf.create({"q": 1, "k": 1})) == FusedLayout({"q": 1, "k": 1})


def test_trajectories_of_checkpoints(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        state = {"qkv.weight": torch.randn(6, 4), "norm.bias": torch.randn(4)}
        torch.save(state, tmp_path / f"step{step}.pt")
    fused = {"qkv.weight": FusedLayout({"q": 1, "k": 1, "v": 1})}
    expected = from_checkpoints([tmp_path], exclude=["*.bias"], fused=fused)
    trajectory: Trajectory = from_checkpoints(
        [tmp_path],
        exclude=OmegaConf.create(["*.bias"]),  # type: ignore[arg-type]
        fused=OmegaConf.create({"qkv.weight": {"parts": {"q": 1, "k": 1, "v": 1}}}),  # type: ignore[arg-type]
    )
    assert trajectory.blocks == expected.blocks
    assert trajectory.settings["exclude"] == ["*.bias"]


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"exclude": OmegaConf.create([1])}, TypeError, "exclude=\\[1\\]: pass a glob pattern"),
    ({"exclude": b""}, TypeError, "exclude=b'': pass a glob pattern"),
    ({"exclude": {"*.bias"}}, TypeError, "exclude={'\\*.bias'}: pass a glob pattern"),
    ({"include": OmegaConf.create({"a": 1})}, TypeError, "include={'a': 1}: pass a glob pattern"),
    ({"fused": OmegaConf.create(["*.qkv"])}, TypeError, "pass a dict from glob patterns"),
    (
        {"fused": {"*.qkv": {"parts": {"queries": 1}}}},
        ValueError,
        r"fused\['\*.qkv'\]: parts=.*'queries' is not a",
    ),
    ({"fused": {"*.qkv": {"q": 1, "k": 1}}}, TypeError, r"fused\['\*.qkv'\]: .*unexpected keyword argument"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), WRONG, ids=[case[2][:30] for case in WRONG])
def test_wrong_containers(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        TrajectoryCallback(**arguments)
