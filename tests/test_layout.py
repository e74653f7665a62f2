"""The package's own order: what importing it loads, and that imports point downwards only."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

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


def test_public_names_are_found_where_they_are_said_to_be():
    for name in lightning_traj.__all__:
        assert getattr(lightning_traj, name) is not None
        assert name in dir(lightning_traj)
    with pytest.raises(AttributeError, match="module 'lightning_traj' has no attribute 'TrajectoryCalback'"):
        _ = lightning_traj.TrajectoryCalback


# From the ground up. A module imports from lower floors only; rooms of one floor don't know each other.
FLOORS = [
    {"measures"},
    {"blocks", "files", "labels", "page", "quantities", "roles", "rows", "schedule"},
    {"dcp", "fused", "gram", "guard", "hyperparameters", "line_search", "path_lengths", "resumption", "timeline"},
    {"formats", "mirror", "shards", "sketch", "window"},
    {"overlaps", "partition", "ranks"},
    {"arguments", "cost", "freezing", "sketches", "snapshots", "streaming", "trajectory"},
    {"full_rows", "times"},
    {"conditions", "drawing", "findings", "layers", "recorder", "report", "runs"},
    {"comparison_table", "crossing", "decisions", "heatmap", "joint", "plot", "series", "series_plot", "state_dicts"},
    {"parting", "small_maps"},
    {"comparison_plot", "comparison_words", "compatibility", "freeze_plot", "layer_plot"},
    {"html", "tensorboard"},
    {"comparison_html", "logbook"},
    {"analysis", "callback", "checkpoints", "compare"},
    {"freeze"},
    {"cli"},
]
FLOORS[1] |= {"dates", "sources", "strategies", "thinning"}


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
