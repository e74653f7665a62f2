"""What the README prints: its examples run, its table of tags is that of the code."""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch

from conftest import ROOT
from layouts import LAYOUTS
from lightning_traj import EveryNEpochs, FusedLayout, HybridTraining, Trajectory, TrajectoryCallback
from lightning_traj.callbacks.strategies import STRATEGIES, UNKNOWN
from lightning_traj.measures.catalogue import MEASURES

README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def example(words):
    """The one example that has these words in it."""
    (found,) = (code for code in EXAMPLES if words in code)
    return found


SCRIPT = example("class Classifier")
AFTERWARDS = example("Trajectory.load(")


def row(name):
    measure = MEASURES[name]
    unit = f", {measure.unit}" if measure.unit else ""
    return f"| `{name}` | {measure.formula} | {measure.range}{unit} | {measure.meaning} |"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The first script, as a new user runs it: the folder, and what it printed."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=folder,
        env={"PATH": "", "PYTHONPATH": str(ROOT), "COLUMNS": "110", "OMP_NUM_THREADS": "1", "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_script_prints_the_summary_that_is_shown(run):
    shown, printed = (
        dict(re.findall(r"│ (\w+) +│ +([-\d.]+)", text)) for text in (README, run[1].split("Trajectory:")[1])
    )
    assert list(printed) == list(shown)
    # Another processor rounds otherwise, and training amplifies that.
    for name, value in shown.items():
        np.testing.assert_allclose(float(printed[name]), float(value), rtol=0.1, err_msg=name)


def test_lines_on_a_trajectory_run(run, monkeypatch):
    monkeypatch.chdir(run[0])
    names: dict[str, object] = {}
    exec(AFTERWARDS, names)
    assert isinstance(names["trajectory"], Trajectory)
    assert len((run[0] / "trajectory.csv").read_text().splitlines()) == 32


def test_lines_that_compare_runs_run(run, monkeypatch):
    monkeypatch.chdir(run[0])
    shutil.copytree("lightning_logs/version_0", "lightning_logs/version_1")
    names: dict[str, object] = {}
    exec(example("joint_gram(runs)"), names)
    assert names["joint_gram"](names["runs"]).map() == pytest.approx(np.tile(names["runs"][0].trajectory.map(), (2, 2)))
    assert {path.name for path in Path("comparison").iterdir()} >= {"comparison.html", "comparison.csv", "tensorboard"}


def test_lines_on_checkpoints_run(walk, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "lightning_logs" / "version_0" / "checkpoints"
    folder.mkdir(parents=True)
    for step, snapshot in enumerate(walk({"net.weight": (3, 4)}, 4)):
        torch.save({"state_dict": snapshot, "global_step": step}, folder / f"{step}.ckpt")
    names: dict[str, object] = {}
    exec(example("from_checkpoints("), names)
    assert len(names["trajectory"]) == 4


def test_arguments_are_the_defaults():
    shown = eval(example("sketch_dim=None,"), {"TrajectoryCallback": dict, "EveryNEpochs": EveryNEpochs})
    parameters = inspect.signature(TrajectoryCallback).parameters.values()
    defaults = {parameter.name: parameter.default for parameter in parameters}
    assert shown == defaults


def test_arguments_of_hybrid_training_are_the_defaults():
    parameters = inspect.signature(HybridTraining).parameters.values()
    assert eval(example("keep_state=True,"), {"HybridTraining": dict}) == {p.name: p.default for p in parameters}


def test_hybrid_training_in_a_line():
    names = {"HybridTraining": HybridTraining, "L": lightning}
    exec(example("callbacks=[HybridTraining("), names)
    assert any(isinstance(callback, HybridTraining) for callback in names["trainer"].callbacks)


def test_declaration_in_a_line():
    names = {"TrajectoryCallback": TrajectoryCallback, "FusedLayout": FusedLayout}
    assert isinstance(eval(example("TrajectoryCallback(fused="), names), TrajectoryCallback)


def test_table_of_strategies_names_tests_and_messages_that_there_are():
    table = README.partition("| strategy or situation | status |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| .* \| (works|refused) \| (.*) \|$", table, flags=re.MULTILINE)
    assert len(rows) == table.count("\n") - 1  # but for the line below the header
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    code = "".join(path.read_text() for path in (ROOT / "lightning_traj").rglob("*.py"))
    told = set()
    for status, proof in rows:
        names = re.findall(r"`(test_\w+)", proof)
        assert names, proof
        for name in names:
            assert f"def {name}(" in tests or any((ROOT / "tests").rglob(f"{name}.py")), name
        messages = re.findall('"(.*?)"', proof)
        assert len(messages) == (status == "refused"), proof
        told.update(messages)
    strategies = {entry.recording for entry in STRATEGIES if entry.recording} | {UNKNOWN}
    assert told >= strategies
    for message in told - strategies:
        assert message in re.sub('"\\s*f?"', "", code), message  # in one piece
    said = set(re.findall(r"`test_training\w+\[(.*?)\]`", table))
    assert said == {*LAYOUTS}


def test_table_of_tags_is_that_of_the_code():
    shown = re.findall(r"^\| `\w+` \|.*\|$", README, flags=re.MULTILINE)
    assert shown == [row(name) for name in MEASURES]
