"""The package's own order: what importing it loads, and that imports point downwards only."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
import torch

import lightning_traj

PACKAGE = Path(lightning_traj.__file__).parent
HEAVY = {"torch", "lightning", "pytorch_lightning", "torchmetrics", "matplotlib", "tensorboard", "safetensors"}


def loaded_by(statement):
    """Which of the heavy packages a fresh interpreter has loaded after a statement."""
    program = f"import sys; {statement}; print(*sorted({HEAVY} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_importing_the_package_is_cheap():
    assert loaded_by("import lightning_traj; dir(lightning_traj)") == set()


def test_the_check_of_what_is_loaded_can_fail():
    assert loaded_by("from lightning_traj import CountSketch") >= {"torch"}


def test_the_trajectory_needs_no_lightning():
    loaded = loaded_by("import lightning_traj.recorder, lightning_traj.trajectory")
    assert not loaded & {"lightning", "pytorch_lightning"}


SLOW = ["lightning", "pytorch_lightning", "torchmetrics", "transformers", "scipy", "sklearn", "pandas", "torch._dynamo"]


def slow_modules_of_command(*arguments):
    """Which of the slow modules a command has loaded when it is done."""
    program = f"""
import sys
from lightning_traj.cli import main
assert main({[str(argument) for argument in arguments]}) == 0
print("slow:", *[name for name in {SLOW} if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.splitlines()[-1].removeprefix("slow:").split())


@pytest.fixture
def hugging_face(tmp_path):
    """Two folders as transformers writes them, with a config.json."""
    config = {"model_type": "gpt2", "architectures": ["GPT2Model"], "n_layer": 1, "n_embd": 8, "n_head": 2}
    for step in (0, 10):
        folder = tmp_path / "hugging_face" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 11, "n_positions": 8}))
        torch.save({"wte.weight": torch.full((11, 8), 1.0 + step)}, folder / "pytorch_model.bin")
    return tmp_path / "hugging_face"


def test_the_commands_load_neither_lightning_nor_torchmetrics_nor_transformers(tmp_path, hugging_face):
    """Importing them takes longer than reading most folders of checkpoints."""
    for run in ("a", "b"):
        (tmp_path / run).mkdir()
        for step in range(3):
            state = {"net.0.weight": torch.eye(3) + step, "net.2.weight": torch.arange(6.0).view(2, 3) * step}
            torch.save({"state_dict": state, "global_step": 10 * step}, tmp_path / run / f"step={10 * step}.ckpt")
        analyze = ("analyze", tmp_path / run, "--out", tmp_path / f"{run}_out", "--csv")
        assert slow_modules_of_command(*analyze, *["--sketch"] * (run == "b")) == set()
    compared = (tmp_path / "a_out", tmp_path / "b_out")
    assert slow_modules_of_command("compare", *compared, "--out", tmp_path / "compared") == set()
    # A config.json needs transformers: the check can fail.
    assert "transformers" in slow_modules_of_command("analyze", hugging_face, "--out", tmp_path / "hf_out")


def test_public_names_are_found_where_they_are_said_to_be():
    for name in lightning_traj.__all__:
        assert getattr(lightning_traj, name) is not None
        assert name in dir(lightning_traj)
    with pytest.raises(AttributeError, match="module 'lightning_traj' has no attribute 'TrajectoryCalback'"):
        _ = lightning_traj.TrajectoryCalback


# From the ground up. A module imports from lower floors only; rooms of one floor don't know each other.
FLOORS = [
    {
        "blocks",
        "checkpoint_errors",
        "clock",
        "dates",
        "files",
        "foreign",
        "guard",
        "labels",
        "logged_metrics",
        "measures",
        "names",
        "packing",
        "page",
        "pickling",
        "placeholders",
        "roles",
        "rows",
        "schedule",
        "sources",
        "stack_machine",
        "steps",
        "strategies",
        "thinning",
        "timeline",
    },
    {
        "first_names",
        "fused",
        "gram",
        "hyperparameters",
        "line_search",
        "path_lengths",
        "reading",
        "resumption",
        "sketch",
        "trajectory",
        "unpickling",
        "uploads",
        "window",
    },
    {
        "conditions",
        "folders",
        "layers",
        "mirror",
        "omission",
        "pickled_values",
        "running_gram",
        "runs",
        "saved_state",
        "shards",
        "times",
    },
    {"drawing", "joint", "overlaps", "partition", "quantities", "ranks", "report", "torch_pickles"},
    {
        "arguments",
        "comparison_table",
        "cost",
        "freezing",
        "heatmap",
        "parting",
        "plot",
        "series_plot",
        "sketches",
        "snapshots",
        "torch_layout",
    },
    {"comparison_words", "decisions", "freeze_plot", "full_rows", "small_maps", "torch_files"},
    {"comparison_plot", "compatibility", "dcp", "layer_plot", "recorder", "weight_folders"},
    {"crossing", "formats", "html", "tensorboard"},
    {"analysis", "comparison_html", "logbook", "streaming"},
    {"callback", "compare", "duplicates"},
    {"findings", "freeze"},
    {"grouping", "ordering"},
    {"state_dicts"},
    {"series"},
    {"checkpoints"},
    {"cli"},
]


def imported_modules(source):
    """Modules of the package that a source imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            names = (
                [node.module] if node.module != "lightning_traj" else [f"lightning_traj.{a.name}" for a in node.names]
            )
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name and name.startswith("lightning_traj.")}
    return found


def misplaced(module, source):
    floors = {name: floor for floor, names in enumerate(FLOORS) for name in names}
    return {name for name in imported_modules(source) if name not in floors or floors[name] >= floors[module]}


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda path: path.stem)
def test_imports_point_downwards(path):
    if path.stem == "__init__":  # imports when it is asked for a name
        return
    assert any(path.stem in floor for floor in FLOORS), f"give {path.stem} a floor"
    assert misplaced(path.stem, path.read_text()) == set()


SUB_PACKAGES = ["measures"]


@pytest.mark.parametrize("name", SUB_PACKAGES)
def test_sub_packages_import_what_is_below_and_have_no_cycles(name):
    files = sorted((PACKAGE / name).glob("*.py"))
    assert files
    graph = {}
    for path in files:
        source = path.read_text()
        assert misplaced(name, source) <= {name}
        if path.stem != "__init__":
            graph[path.stem] = set(re.findall(rf"^from lightning_traj\.{name}\.(\w+) import", source, re.M))
            graph[path.stem] |= set(re.findall(rf"^from lightning_traj\.{name} import (\w+)", source, re.M))
    list(TopologicalSorter(graph).static_order())


def test_a_cycle_is_noticed():
    with pytest.raises(CycleError):
        list(TopologicalSorter({"a": {"b"}, "b": {"a"}}).static_order())


def test_an_import_upwards_is_noticed():
    upwards = "def f():\n    from lightning_traj import measures, callback\n    import lightning_traj.trajectory as t"
    assert misplaced("report", upwards) == {"callback"}
    assert misplaced("partition", upwards) == {"callback", "trajectory"}
    assert misplaced("plot", "from lightning_traj.new import x") == {"new"}


def test_only_the_figures_import_matplotlib():
    having = {
        path.stem for path in PACKAGE.glob("*.py") if re.search(r"^(import|from) matplotlib", path.read_text(), re.M)
    }
    assert having == {
        "comparison_plot",
        "drawing",
        "freeze_plot",
        "heatmap",
        "layer_plot",
        "plot",
        "series_plot",
        "small_maps",
    }
