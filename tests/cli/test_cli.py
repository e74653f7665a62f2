"""The command line: what it writes, what it says, and its exit codes."""

from __future__ import annotations

import csv
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from safetensors.torch import save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_traj import FusedLayout, Trajectory, __version__, from_checkpoints
from lightning_traj.cli.arguments import _fused
from lightning_traj.cli.command import RESUMPTION, main
from lightning_traj.plots import to_rgb

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPES = {"net.0.weight": (30, 20), "net.0.bias": (30,), "net.2.weight": (4, 30)}


@pytest.fixture
def run(walk, tmp_path):
    """A folder of six checkpoints."""
    folder = tmp_path / "run"
    folder.mkdir()
    for step, snapshot in enumerate(walk(SHAPES, 6)):
        save_file(snapshot, folder / f"step={100 * step}.safetensors")
    return folder


@pytest.fixture
def pictureless(monkeypatch):
    """Without most of the pictures, which have tests of their own, and take their time."""
    monkeypatch.setattr("lightning_traj.report.trajectory_page._by_layer", lambda trajectory: iter(()))
    monkeypatch.setattr("lightning_traj.report.trajectory_page._over_time", lambda trajectory: iter(()))
    monkeypatch.setattr("lightning_traj.loggers.trajectory.log_layers", lambda *args: None)


def events(folder):
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    return accumulator


def test_an_analysis_writes_what_it_says(run, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["analyze", str(run), "--out", str(out), "--csv"]) == 0
    names = {path.name for path in out.iterdir()}
    pictures = {"map.png", "relative_map.png", "path.png", "overview.png"}
    assert names == {"report.html", "trajectory.safetensors", "trajectory.csv", "tensorboard", *pictures}
    trajectory = Trajectory.load(out / "trajectory.safetensors")
    expected = from_checkpoints(run)
    np.testing.assert_array_equal(trajectory.anchored, expected.anchored)
    assert trajectory.summary() == pytest.approx(expected.summary(), nan_ok=True)
    said = capsys.readouterr().out
    assert "mds" in said
    assert f"Report: {out / 'report.html'}" in said
    page = (out / "report.html").read_text()
    assert "step=500.safetensors" in page
    assert "Nothing found" in page
    with (out / "trajectory.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == [str(100 * i) for i in range(6)]
    logged = events(out / "tensorboard")
    values = [(event.step, event.value) for event in logged.Scalars("traj/mds")]
    wanted = [(100 * i, value) for i, value in enumerate(expected.series()["mds"])]
    np.testing.assert_allclose(values, wanted, rtol=1e-6)
    role = [event.value for event in logged.Scalars("traj_layers/mds/linear")]
    np.testing.assert_allclose(role, expected.series("role:linear")["mds"], rtol=1e-6)
    assert {"traj/map", "traj/relative_map", "traj/path", "traj_layers/mds"} <= set(logged.Tags()["images"])


def test_options_reach_the_analysis(run, tmp_path, pictureless):
    out = tmp_path / "out"
    options = ["--sketch", "--sketch-dim", "16", "--seed", "3", "--exclude", "*.bias", "--order", "given"]
    fused = ["--fused", "net.0.weight=q:1,k:1,v:1"]
    assert main(["analyze", str(run), "--out", str(out), *options, *fused]) == 0
    trajectory = Trajectory.load(out / "trajectory.safetensors")
    assert {name: trajectory.settings[name] for name in ("snapshot", "sketch_dim", "seed", "exclude")} == {
        "snapshot": "sketch",
        "sketch_dim": 16,
        "seed": 3,
        "exclude": ["*.bias"],
    }
    assert [block.role for block in trajectory.blocks] == ["q", "k", "v", "linear"]
    assert trajectory.sketches is not None


@pytest.mark.parametrize(
    ("text", "layout"),
    [
        ("*.qkv=q:1,k:1,v:1", FusedLayout({"q": 1, "k": 1, "v": 1})),
        ("*.qkv=q:4,k:1,v:1/groups=2/axis=-1", FusedLayout({"q": 4, "k": 1, "v": 1}, groups=2, axis=-1)),
    ],
)
def test_layouts_are_declared_in_words(text, layout):
    assert _fused(text) == ("*.qkv", layout)


def test_a_folder_that_is_not_empty_is_left_alone(run, tmp_path, capsys, pictureless):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    assert main(["analyze", str(run), "--out", str(out)]) == 1
    error = capsys.readouterr().err
    assert "not empty (thesis.txt" in error
    assert "--overwrite" in error
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]
    for _ in range(2):  # over results of its own, too
        assert main(["analyze", str(run), "--out", str(out), "--overwrite"]) == 0
    assert (out / "thesis.txt").read_text() == "mine"
    assert len(list((out / "tensorboard").glob("events*"))) == 1
    assert main(["analyze", str(run), "--out", str(out / "thesis.txt")]) == 1
    assert "is a file" in capsys.readouterr().err


@pytest.mark.parametrize("out", ["out", ".", "a/b"])
def test_a_relative_folder_for_the_results(run, tmp_path, monkeypatch, pictureless, out):
    here = tmp_path / "here"
    (here / "out").mkdir(parents=True)
    monkeypatch.chdir(here)
    assert main(["analyze", str(run), "--out", out, "--overwrite"]) == 0
    assert (here / out / "trajectory.safetensors").is_file()


def test_control_characters_do_not_reach_the_terminal(tmp_path, capsys):
    assert main(["analyze", str(tmp_path / "no\x1b]0;title\x07where"), "--out", str(tmp_path / "out")]) == 1
    assert "no?]0;title?where: there is no such file" in capsys.readouterr().err


@pytest.mark.filterwarnings("error")
def test_control_characters_do_not_reach_figures(walk, tmp_path, pictureless):
    name = "\x1b]0;title\x07net.weight"
    for step, snapshot in enumerate(walk({name: (6, 4), "head.weight": (4, 3)}, 3)):
        save_file(snapshot, tmp_path / f"step={step}.safetensors")
    assert main(["analyze", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    figure = Figure()
    figure.text(0.5, 0.5, name)
    assert to_rgb(figure).shape[2] == 3
    assert [text.get_text() for text in figure.findobj(Text)] == ["?]0;title?net.weight"]


def test_the_package_runs_as_the_command():
    command = [sys.executable, "-m", "lightning_traj", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1] == __version__


def test_bad_checkpoints_fail_or_are_skipped(run, tmp_path, capsys, pictureless):
    bad = run / "step=300.safetensors"
    bad.write_bytes(bad.read_bytes()[:-1])
    out = tmp_path / "out"
    assert main(["analyze", str(run), "--out", str(out)]) == 1
    error = capsys.readouterr().err
    assert str(bad) in error
    assert "To leave it out, pass skip_bad=True (--skip-bad)." in error
    assert not out.exists()
    assert main(["analyze", str(run), "--out", str(out), "--skip-bad"]) == 3
    assert f"Note: skipped: {bad}" in capsys.readouterr().out
    assert str(bad) in (out / "report.html").read_text()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["analyze"],
        ["analyze", "x", "--out", "y", "--order", "backwards"],
        ["analyze", "x", "--out", "y", "--fused", "*.qkv=q:x"],
        ["analyze", "x", "--out", "y", "--fused", "*.qkv"],
        ["compare", "x", "--out", "y", "--rename", "net."],
        ["compare", "x", "--out", "y"],
        ["analyze", "x", "--out", "y", "--processes", "0"],
        ["analyze", "x", "--out", "y", "--processes", "2", "--sketch"],
        ["analyze", "x", "--out", "y", "--seed", "1"],
    ],
)
def test_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "usage: lightning-traj" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["analyze", "nowhere"], "nowhere: there is no such file"),
        (["analyze", "{run}", "--include", "*.wieght"], "close to it: 'net."),
        (["analyze", "{run}", "--sketch", "--sketch-dim", "0"], "pass a positive int"),
        (["compare", "{run}", "{run}"], "holds no trajectory"),
    ],
)
def test_what_cannot_be_done_is_said(run, tmp_path, capsys, arguments, message):
    out = tmp_path / "out"
    assert main([*(argument.format(run=run) for argument in arguments), "--out", str(out)]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("lightning-traj: error: ")
    assert message in captured.err
    assert not out.exists()


def test_an_interrupted_analysis_goes_on(run, tmp_path, capsys, pictureless, monkeypatch):
    from lightning_traj.checkpoints import streaming

    out, read = tmp_path / "out", streaming.update_gram
    seen = []

    def interrupted(pieces, *args):
        seen.append(pieces[0].parameter)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return read(pieces, *args)

    monkeypatch.setattr(streaming, "update_gram", interrupted)
    assert main(["analyze", str(run), "--out", str(out)]) == 130
    assert "goes on" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == [RESUMPTION]
    assert main(["analyze", str(run), "--out", str(out)]) == 0
    assert seen == [*sorted(SHAPES), "net.2.weight"]  # only the last one again
    assert not (out / RESUMPTION).exists()
    resumed = Trajectory.load(out / "trajectory.safetensors")
    np.testing.assert_array_equal(resumed.anchored, from_checkpoints(run).anchored)


def test_an_interruption_while_results_are_written_loses_nothing(run, tmp_path, capsys, pictureless, monkeypatch):
    from lightning_traj.checkpoints import streaming
    from lightning_traj.cli import results as analysis

    def interrupted(*args):
        raise KeyboardInterrupt

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(analysis, "_write_events", interrupted)
        assert main(["analyze", str(run), "--out", str(out)]) == 130
    assert [path.name for path in out.iterdir()] == [RESUMPTION]
    monkeypatch.setattr(streaming, "update_gram", interrupted)  # nothing is read again
    assert main(["analyze", str(run), "--out", str(out)]) == 0
    assert (out / "report.html").exists()


def test_a_trajectory_that_was_recorded_is_not_replaced(run, walk, recorded, capsys, pictureless):
    recorded(walk(SHAPES, 3)).collect()[0].save(run / "trajectory.safetensors")
    before = (run / "trajectory.safetensors").read_bytes()
    assert main(["analyze", str(run), "--out", str(run), "--overwrite"]) == 1
    assert "recorded in training" in capsys.readouterr().err
    assert (run / "trajectory.safetensors").read_bytes() == before


def test_runs_are_compared(run, tmp_path, capsys, pictureless):
    for seed in ("0", "1"):
        arguments = ["--out", str(tmp_path / f"seed{seed}"), "--sketch", "--sketch-dim", "16", "--seed", seed]
        assert main(["analyze", str(run), *arguments]) == 0
    out = tmp_path / "comparison"
    assert main(["compare", str(tmp_path / "seed0"), str(tmp_path / "seed1"), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "seed0" in said
    assert "seed1" in said
    assert {"comparison.html", "comparison.csv", "tensorboard"} <= {path.name for path in out.iterdir()}


def test_it_is_installed():
    command = [sys.executable, "-m", "lightning_traj.cli.command", "--version"]
    assert (
        subprocess.run(command, capture_output=True, text=True, check=True).stdout == f"lightning-traj {__version__}\n"
    )
    loaded = "import sys, lightning_traj.cli.command as c; c.make_parser().format_help(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True).stdout == "False\n"
