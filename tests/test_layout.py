"""The package's own order: its layers, their public interfaces, and what importing them loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import lightning_traj

PACKAGE = Path(lightning_traj.__file__).parent
HEAVY = {"torch", "lightning", "pytorch_lightning", "torchmetrics", "matplotlib", "tensorboard", "safetensors"}

# From the top down: each sub-package imports those below it only, and through their public interfaces.
LAYERS = (
    "cli",
    "hybrid",
    "callbacks",
    "compare",
    "checkpoints",
    "loggers",
    "report",
    "recording",
    "plots",
    "distributed",
    "trajectory",
    "gram",
    "sketch",
    "blocks",
    "tensors",
    "measures",
    "files",
    "schedule",
    "checks",
    "text",
)
OF_THE_PACKAGE = {"__version__", "lazy_exports"}  # which any layer may take from the package itself


def loaded_by(statement):
    """Which of the heavy packages a fresh interpreter has loaded after a statement."""
    program = f"import sys; {statement}; print(*sorted({HEAVY} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_importing_the_package_is_cheap():
    assert loaded_by("import lightning_traj; dir(lightning_traj)") == set()


def test_importing_every_public_interface_is_cheap():
    packages = [layer for layer in LAYERS if (PACKAGE / layer).is_dir()]
    statements = [f"import lightning_traj.{name}; dir(lightning_traj.{name})" for name in packages]
    assert loaded_by("; ".join(statements)) == set()


def test_the_check_of_what_is_loaded_can_fail():
    assert loaded_by("from lightning_traj import CountSketch") >= {"torch"}


def test_recording_needs_no_lightning():
    names = "Recorder, StepCounter, Training, Triggers, new_tracker"
    loaded = loaded_by(f"from lightning_traj.recording import {names}; from lightning_traj import Trajectory; Recorder")
    assert not loaded & {"lightning", "pytorch_lightning", "torchmetrics"}


def test_public_names_are_found_where_they_are_said_to_be():
    for name in lightning_traj.__all__:
        assert getattr(lightning_traj, name) is not None
        assert name in dir(lightning_traj)
    with pytest.raises(AttributeError, match="module 'lightning_traj' has no attribute 'TrajectoryCalback'"):
        _ = lightning_traj.TrajectoryCalback


@pytest.mark.parametrize("layer", [layer for layer in LAYERS if (PACKAGE / layer).is_dir()])
def test_names_of_public_interfaces_exist(layer):
    package = getattr(__import__(f"lightning_traj.{layer}"), layer)
    for name in dir(package):
        assert getattr(package, name) is not None


def imports(source):
    """Imports from this package, anywhere in a source: the module, and the name that is taken from it, if any."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "lightning_traj":
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names if alias.name.split(".")[0] == "lightning_traj")


def misplaced(layer, source):
    """What a file of a layer must not import: from the same height or above, or past a public interface."""
    wrong = []
    for module, name in imports(source):
        path = module.split(".")[1:] + (
            [name] if module == "lightning_traj" and name and name not in OF_THE_PACKAGE else []
        )
        if not path or path[0] == layer:
            continue
        below = path[0] in LAYERS and LAYERS.index(path[0]) > LAYERS.index(layer)
        if not below or len(path) > 1:
            wrong.append(f"{module}: {name}" if name else module)
    return wrong


def files_of(layer):
    return sorted((PACKAGE / layer).rglob("*.py")) or [PACKAGE / f"{layer}.py"]


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_point_downwards_and_go_through_public_interfaces(layer):
    for path in files_of(layer):
        assert misplaced(layer, path.read_text()) == [], path


def test_every_module_is_in_a_layer():
    assert {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()} - {
        "__init__",
        "__main__",  # only calls the command
        "__pycache__",
    } == set(LAYERS)


@pytest.mark.parametrize(
    "source",
    [
        "from lightning_traj.callbacks import TrajectoryCallback",
        "from lightning_traj import callbacks",
        "import lightning_traj.callbacks",
        "def f():\n    from lightning_traj.hybrid.freezing import Freezing",
        "from lightning_traj.blocks.block import Block",
        "from lightning_traj.new import x",
    ],
)
def test_a_wrong_import_is_noticed(source):
    assert misplaced("recording", source)


def test_right_imports_are_let_through():
    source = "from lightning_traj.blocks import Block\nfrom lightning_traj.recording.cost import Cost"
    assert not misplaced("recording", source)


def dependencies(layer):
    """Which modules of a sub-package each of them imports when it is loaded."""
    graph = {}
    for path in files_of(layer):
        if path.stem == "__init__":
            continue
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        top = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        found = {module.removeprefix("lightning_traj.") for node in top for module, _ in imports(ast.unparse(node))}
        graph[name] = {module for module in found if module.startswith(f"{layer}.")}
    return graph


@pytest.mark.parametrize("layer", [layer for layer in LAYERS if (PACKAGE / layer).is_dir()])
def test_no_cycles_within_a_sub_package(layer):
    assert list(TopologicalSorter(dependencies(layer)).static_order())


def test_a_cycle_is_noticed():
    with pytest.raises(CycleError):
        list(TopologicalSorter({"a": {"b"}, "b": {"a"}}).static_order())


def uses_matplotlib(source):
    """Return whether a source imports matplotlib anywhere but for type checking."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            node.body = []
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        if isinstance(node, ast.Call) and "import" in ast.unparse(node.func) and node.args:
            names = [str(getattr(node.args[0], "value", ""))]  # import_module("matplotlib"), __import__("matplotlib")
        if any(name.split(".")[0] == "matplotlib" for name in names):
            return True
    return False


def test_only_plots_imports_matplotlib():
    using = {path.relative_to(PACKAGE).parts[0] for path in PACKAGE.rglob("*.py") if uses_matplotlib(path.read_text())}
    assert using == {"plots"}


@pytest.mark.parametrize(
    "source",
    [
        "import matplotlib.pyplot as plt",
        "def f():\n    from matplotlib.figure import Figure",
        "if TYPE_CHECKING:\n    import numpy\nelse:\n    import numpy, matplotlib",
        "import_module('matplotlib.figure')",
    ],
)
def test_an_import_of_matplotlib_is_noticed(source):
    assert uses_matplotlib(source)


def test_types_of_matplotlib_may_be_named():
    assert not uses_matplotlib("if TYPE_CHECKING:\n    from matplotlib.figure import Figure\nimport numpy")


@pytest.mark.parametrize("layer", ["compare", "plots", "report"])
def test_others_take_what_the_public_interface_exports(layer):
    exported = set(dir(getattr(__import__(f"lightning_traj.{layer}"), layer)))
    assert len(exported) <= 8
    others = [path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] != layer]
    for path in others:
        taken = {name for module, name in imports(path.read_text()) if module == f"lightning_traj.{layer}"}
        assert taken <= exported, path
