"""What the benchmarks check before they time anything, at small sizes. No time is tested."""

from __future__ import annotations

import importlib
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from conftest import ROOT
from models import Module, batches

NAMES = (
    "_setting",
    "blocks",
    "checkpoint_size",
    "checkpoints",
    "command",
    "communication",
    "full_row",
    "measures",
    "memory",
    "pictures",
    "sketch",
    "sketch_dim",
    "training",
    "windows",
)


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """The benchmarks, by name, imported as ``python benchmarks/x.py`` finds them."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    modules = {name: importlib.import_module(name) for name in NAMES}
    for name in NAMES:
        monkeypatch.delitem(sys.modules, name)
    return modules


def test_shapes_are_those_of_the_models(benchmark: dict[str, ModuleType]) -> None:
    counts = {
        name: (len(shapes), sum(map(math.prod, shapes.values())))
        for name in ("resnet50", "gpt2")
        for shapes in [getattr(benchmark["_setting"], name)()]
    }
    assert counts == {"resnet50": (161, 25_557_032), "gpt2": (148, 124_439_808)}


def test_a_ratio_is_printed(benchmark: dict[str, ModuleType], capsys: pytest.CaptureFixture[str]) -> None:
    setting = benchmark["_setting"]
    value = setting.ratio("a / b", {"a": [0.3, 0.1], "b": [0.2, 0.4]}, target=1.0)
    assert value == 0.5
    assert capsys.readouterr().out.startswith("a / b: 0.50 (at most 1 is wanted); a 100.0 ms, b 200.0 ms")
    assert "threads" in setting.environment()
    assert {len(seconds) for seconds in setting.in_turns({"a": list, "b": dict}, 3).values()} == {3}


def test_sketch(benchmark: dict[str, ModuleType]) -> None:
    sketch, setting = benchmark["sketch"], benchmark["_setting"]
    values = setting.parameters({"short": (10, 3), "mid": (300, 10), "long": (400, 200)})
    sketch.check(values, dim=64)
    with pytest.raises(AssertionError, match="long"):
        sketch.check({"long": values["long"]}, dim=64, sigmas=0.0)


def test_full_row(benchmark: dict[str, ModuleType]) -> None:
    full_row = benchmark["full_row"]
    rows = full_row.walk(numel=5000, stored=4)
    full_row.check(rows, blocks=3)
    with pytest.raises(AssertionError, match="wrong"):
        full_row.check(rows, blocks=3, limit=0.0)


def test_blocks(benchmark: dict[str, ModuleType]) -> None:
    blocks = benchmark["blocks"]
    values = blocks.trained(blocks.network(blocks=8, numel=100_000))
    assert len(blocks.recording(values)[0].state.blocks) == 8
    blocks.check(values)
    with pytest.raises(AssertionError, match="and is"):
        blocks.check(values, sigmas=0.0)


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the peak of a process is read where Linux keeps it"
)
def test_checkpoints(
    benchmark: dict[str, ModuleType], one_thread: None, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    checkpoints = benchmark["checkpoints"]
    shapes = {"weight": (300, 20), "bias": (20,)}
    checkpoints.speed(shapes, count=3, repeats=1)
    assert checkpoints.memory(shapes, count=6, files=3) > 0
    assert checkpoints.script(shapes, count=4, copies=2) is not None
    shown = capsys.readouterr().out
    assert "exact analysis from files / in memory" in shown
    assert "cosines agree to" in shown
    monkeypatch.setattr(checkpoints, "naive", lambda paths: np.ones((4, 4)))
    with pytest.raises(AssertionError, match="cosines differ"):
        checkpoints.script(shapes, count=4, copies=2)


def test_checkpoint_size(benchmark: dict[str, ModuleType], capsys: pytest.CaptureFixture[str]) -> None:
    size = benchmark["checkpoint_size"]
    shapes = {"h.0.c_attn.weight": (10, 30), "h.0.c_attn.bias": (30,), "weight": (40, 40)}
    share = size.measure("small", size.Run(shapes, copies=2, snapshots=5, wanted=1.0), sketch_dim=64)
    shown = capsys.readouterr().out
    assert "5 snapshots of 7 blocks, sketch_dim=64" in shown
    assert f"{share:.1f} % (at most 1 % is wanted)" in shown
    recorder = size.recorded(shapes, 3)
    with pytest.raises(AssertionError, match="not the one that was saved"):
        size.check(recorder, size.file_of(size.added(recorder)), limit=-1.0)
    assert sum(map(math.prod, size.resnet20().values())) == 272_282


def test_command(benchmark: dict[str, ModuleType], tmp_path: Path) -> None:
    command = benchmark["command"]
    for arguments in command.commands(tmp_path).values():
        command.check(tmp_path, arguments)
    with pytest.raises(AssertionError, match="ended without opening a file"):
        command.check(tmp_path, ["compare", str(tmp_path / "a.safetensors"), "--out", str(tmp_path / "out")])


def test_communication(benchmark: dict[str, ModuleType], capsys: pytest.CaptureFixture[str]) -> None:
    communication = benchmark["communication"]
    communication.measure(2)
    assert capsys.readouterr().out.count("1 call") == 2
    with pytest.raises(AssertionError, match="Gram matrix of 2 ranks is off"):
        communication.measure(2, limit=0.0)
    shapes = communication.pythia_12b()
    assert (len(shapes), sum(map(math.prod, shapes.values()))) == (580, 11_846_072_320)
    shown = (ROOT / "README.md").read_text()
    assert "\n".join(communication.table(shapes)) in shown


def test_measures(benchmark: dict[str, ModuleType]) -> None:
    measures = benchmark["measures"]
    measures.check(measures.walk({f"layer{i}.weight": (3000,) for i in range(3)}, n=12))


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the peak of a process is read where Linux keeps it"
)
def test_memory(benchmark: dict[str, ModuleType]) -> None:
    memory = benchmark["memory"]
    memory.warm_up()
    assert memory.measure("two blocks", {"weight": (1000, 1000), "bias": (1000,)}) < memory.LIMIT


def test_pictures(
    benchmark: dict[str, ModuleType], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = benchmark["pictures"]
    pictures.measure(few=8, many=16, snapshots=4, repeats=1)
    assert "pictures of 16 blocks take" in capsys.readouterr().out
    monkeypatch.setattr(pictures, "PICTURES", 3)
    with pytest.raises(AssertionError, match="at most 3 are wanted"):
        pictures.check(pictures.recorded(8, 4))


@pytest.mark.filterwarnings("ignore")
def test_sketch_dim(benchmark: dict[str, ModuleType], one_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    sketch_dim = benchmark["sketch_dim"]
    run = sketch_dim.Run("small", Module, batches, {"max_epochs": 7})
    lines = sketch_dim.measure(run, dims=(8, 16), repeats=1)
    assert lines[0].startswith("| small: 8 snapshots of 4 blocks |")
    assert [line.split(" | ")[0] for line in lines[1:]] == ["| 8", "| 16"]
    columns = {line.count("|") for line in (*lines, *sketch_dim.HEADER)}
    assert len(columns) == 1
    monkeypatch.setattr(sketch_dim, "DEFAULT_DIM", 8)
    monkeypatch.setattr(sketch_dim, "WANTED", 0.0)
    with pytest.raises(AssertionError, match="the standard error of MDS is"):
        sketch_dim.measure(run, dims=(8, 16), repeats=1)
    trajectories = [callback.trajectory for callback in sketch_dim.train(run, (8, 16))[1]]
    with pytest.raises(AssertionError, match="with the longest sketch"):
        sketch_dim.check(trajectories, sigmas=0.0)
    assert {run.name.split(",")[0] for run in sketch_dim.RUNS} == {"ResNet-20", "ResNet-50", "GPT-NeoX", "GPT-2"}


@pytest.mark.filterwarnings("ignore")
def test_training(benchmark: dict[str, ModuleType], one_thread: None, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark["training"].check(batches=2, batch_size=2, depth=8)
    assert "bit-identical" in capsys.readouterr().out


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the peak of a process is read where Linux keeps it"
)
def test_windows(benchmark: dict[str, ModuleType], one_thread: None, capsys: pytest.CaptureFixture[str]) -> None:
    windows = benchmark["windows"]
    shapes = {"weight": (30, 20), "bias": (20,)}
    windows.check(shapes)
    with pytest.raises(AssertionError, match="a window says"):
        windows.check(shapes, limit=0.0)
    windows.window("two tensors", shapes, repeats=1)
    _, memory = windows.growth(windows.TINY, snapshots=300, max_snapshots=16, span=50)
    assert 0 < memory < 1  # what is stated is a bound: this run has no windows
    assert "at most 17 is wanted" in capsys.readouterr().out
    with pytest.raises(AssertionError, match="no memory is stated"):
        windows.stated("recording 2 blocks")
