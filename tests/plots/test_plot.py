"""Figures: what they show, that it can be read, and that nothing of the user's is touched."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from PIL import Image

from figures import assert_readable, words
from lightning_traj import measures
from lightning_traj.plots import save_png, to_rgb
from lightning_traj.plots import trajectory as plot
from lightning_traj.recording.recorder import Recorder
from lightning_traj.recording.settings import RecordingSettings
from lightning_traj.trajectory.trajectory import Trajectory

FIGURES = {"map": plot.trajectory_map, "relative_map": plot.relative_map, "path": plot.path, "overview": plot.overview}


def record(
    rows: ArrayLike, steps: Sequence[int] = (), epochs: Sequence[float] = (), sketch_dim: int = 2048
) -> Trajectory:
    """Trajectory of a model of one parameter, its snapshots stacked as rows; by default one an epoch of 10 steps."""
    rows = np.asarray(rows, dtype=np.float64)
    recorder = Recorder(RecordingSettings(sketch_dim=sketch_dim))
    epochs = epochs or range(len(rows))
    steps = steps or [round(10 * epoch) for epoch in epochs]
    for row, step, epoch in zip(rows, steps, epochs, strict=True):
        recorder.record({"w": torch.tensor(row)}, step, epoch)
    return recorder.collect()[0]


def walk(n: int, size: float = 1.0, dim: int = 50) -> np.ndarray:
    rng = np.random.default_rng(0)
    return 10 + size * np.cumsum(rng.standard_normal((n, dim)), axis=0)


def starts_at_zero() -> np.ndarray:
    rows = walk(8)
    rows[0] = 0
    return rows


CASES: dict[str, Callable[[], Trajectory]] = {
    "one": lambda: record(walk(1)),
    "two": lambda: record(walk(2)),
    "still": lambda: record(np.ones((5, 3))),
    "line": lambda: record(np.outer(np.arange(1, 9), np.ones(4))),
    "zero": lambda: record(starts_at_zero()),
    "all zero": lambda: record(np.zeros((4, 3))),
    "long": lambda: record(walk(256)),
    "sketched": lambda: record(walk(20, dim=3000), sketch_dim=64),
    "tiny moves": lambda: record(walk(30, size=1e-8)),
    "huge": lambda: record(1e20 * walk(30)),
    "log-spaced": lambda: record(walk(12), epochs=[0, *(2**k for k in range(11))]),
    "within an epoch": lambda: record(walk(12), steps=range(0, 48, 4), epochs=[k / 100 for k in range(12)]),
    "many steps": lambda: record(walk(12), steps=[k * 123_456 for k in range(12)], epochs=[k / 20 for k in range(12)]),
}


@cache
def example(case: str) -> Trajectory:
    return CASES[case]()


def map_of(case: str) -> Figure:
    return plot.trajectory_map(example(case))


def axes_labels(figure: Figure) -> tuple[str, str]:
    return figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()


def ticks(figure: Figure) -> dict[str, float]:
    axis = figure.axes[0].xaxis
    return {label.get_text(): place for label, place in zip(axis.get_ticklabels(), axis.get_ticklocs(), strict=True)}


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("case", CASES)
def test_everything_written_is_inside_the_figure_and_apart(case: str, name: str) -> None:
    figure = FIGURES[name](example(case))
    assert figure.dpi == 100
    assert tuple(figure.get_size_inches()) == ((10, 8) if name == "overview" else (5, 4))
    # Start and end lie on the path.
    assert_readable(figure, on_others=("start", "end"))


def test_map_shows_the_angles_of_the_map_on_a_stated_scale() -> None:
    trajectory = record(walk(9))
    for figure, cosines in (
        (plot.trajectory_map(trajectory), trajectory.map()),
        (plot.relative_map(trajectory), trajectory.relative_map()),
    ):
        image = figure.axes[0].images[0]
        angles = measures.angle_map(cosines)
        np.testing.assert_array_equal(image.get_array(), angles)
        assert image.get_clim() == (0, angles.max())
        assert f"angle (cosine), range 0 to {angles.max():.3g}°" in words(figure)


def test_structure_of_late_training_is_seen() -> None:
    """Phases a hundred times smaller than the whole map differ in colour from the diagonal."""
    rows = walk(20)
    rows[10:] = rows[10] + 1e-3 * (rows[10:] - rows[10])
    image = plot.trajectory_map(record(rows)).axes[0].images[0]
    late = image.norm(image.get_array())[10:, 10:]
    assert late[0, -1] > 0.02
    assert image.get_array()[10, 19] / image.get_array().max() < 0.001


def test_rounding_is_no_structure() -> None:
    image = plot.trajectory_map(record(np.outer(np.arange(1, 30), np.linspace(1, 2, 40)))).axes[0].images[0]
    assert np.ptp(image.to_rgba(image.get_array()), axis=(0, 1)).max() < 0.05


def test_titles_say_measure_value_error_and_what_was_counted() -> None:
    exact = record(walk(9))
    assert f"trajectory map   MDS = {exact.summary()['mds']:.3f}" in words(plot.trajectory_map(exact))
    assert "all 1 blocks, 50 parameters" in words(plot.trajectory_map(exact))
    assert "w: all 1 blocks, 50 parameters" in words(plot.relative_map(exact, "w"))
    title = f"map relative to θ₀   relative MDS = {exact.summary()['mds_relative']:.3f}"
    assert title in words(plot.relative_map(exact))

    sketched = record(walk(9, dim=500), sketch_dim=64)
    assert any(" ± 0.0" in text for text in words(plot.trajectory_map(sketched)))
    assert not any("±" in text for text in words(plot.trajectory_map(sketched, errors={})))
    assert "map relative to θ₀   relative MDS undefined" in words(plot.relative_map(record(walk(1))))


def test_a_value_close_to_one_has_the_decimals_that_tell_it_from_one() -> None:
    trajectory = record(walk(9, size=1e-2))
    assert 1 - 1e-4 < (mds := trajectory.summary()["mds"]) < 1 - 1e-6
    (title,) = (text for text in words(plot.trajectory_map(trajectory)) if "MDS" in text)
    shown = float(title.rpartition("= ")[2])
    assert shown < 1
    assert shown == pytest.approx(mds, abs=(1 - mds) / 5)


def test_axes_are_in_epochs_or_in_steps_where_epochs_tell_less() -> None:
    assert axes_labels(plot.trajectory_map(record(walk(5)))) == ("epoch", "epoch")
    assert axes_labels(plot.relative_map(record(walk(5), steps=range(5), epochs=[0] * 5))) == ("step", "step")
    assert axes_labels(map_of("within an epoch")) == ("step", "step")
    assert axes_labels(map_of("log-spaced")) == ("epoch (unevenly spaced)", "epoch")


def test_ticks_stand_where_their_time_is() -> None:
    assert ticks(map_of("long"))["100"] == 100
    thinned = [0, *range(1, 40, 2), 40]  # every second dropped, first and latest kept
    found = ticks(plot.trajectory_map(record(walk(len(thinned)), epochs=thinned)))
    for label, place in found.items():
        assert np.interp(place, range(len(thinned)), thinned) == pytest.approx(float(label))
    found = ticks(map_of("log-spaced"))
    assert {label: 2.0**place / 2 for label, place in found.items() if place} == {
        label: float(label) for label in found if label != "0"
    }
    assert ticks(plot.relative_map(record(walk(4)))) == {"1": 0, "2": 1, "3": 2}
    assert "1M" in ticks(map_of("many steps"))
    irregular = record(walk(4), steps=[0, 9_876, 12_345, 1_234_567], epochs=[0.1, 0.2, 0.3, 0.4])
    assert list(ticks(plot.trajectory_map(irregular))) == ["0", "9876", "12.3k", "1.23M"]


def test_undefined_cells_are_hatched_and_named() -> None:
    key = "hatched: undefined\n(zero vector)"
    figure = plot.trajectory_map(record(starts_at_zero()))
    assert key in words(figure)
    assert figure.axes[0].patch.get_hatch()
    image = figure.axes[0].images[0]
    assert np.ma.getmaskarray(image.get_array())[0].all()
    assert image.to_rgba(image.get_array())[0, :, 3].max() == 0  # transparent: what is behind is seen
    assert key not in words(plot.trajectory_map(record(walk(8))))
    assert key in words(plot.relative_map(record(np.ones((4, 3)))))


def test_path_is_the_pca_with_its_shares_of_variance() -> None:
    trajectory = record(walk(40))
    axes = plot.path(trajectory).axes[0]
    coordinates, ratios = trajectory.pca()
    np.testing.assert_array_equal(axes.collections[0].get_offsets(), coordinates[:, :2])
    np.testing.assert_array_equal(axes.collections[0].get_array(), trajectory.epochs)
    assert axes.get_xlabel() == f"PC1 ({ratios[0]:.1%} of variance); in a random walk 61%"
    assert axes.get_ylabel() == f"PC2 ({ratios[1]:.1%} of variance)"
    assert {text.get_text().strip() for text in axes.texts} >= {"start", "end", "epoch"}


def test_to_rgb_and_save_png_agree(tmp_path: Path) -> None:
    figure = plot.trajectory_map(record(walk(9)))
    pixels = to_rgb(figure)
    assert (pixels.shape, pixels.dtype) == ((400, 500, 3), np.uint8)
    save_png(figure, tmp_path / "new" / "map.png")
    with Image.open(tmp_path / "new" / "map.png") as image:
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), pixels)


def test_png_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Figure, path: Path, **_: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    (tmp_path / "map.png").write_bytes(b"old")
    figure = plot.path(record(walk(3)))
    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        save_png(figure, tmp_path / "map.png")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"map.png": b"old"}


def test_users_style_neither_matters_nor_changes() -> None:
    trajectory = record(walk(9))
    plain = to_rgb(plot.overview(trajectory))
    settings = {"axes.facecolor": "black", "axes.grid": True, "font.size": 30, "savefig.dpi": 300, "text.usetex": True}
    with matplotlib.rc_context(settings):
        before = dict(matplotlib.rcParams)
        np.testing.assert_array_equal(to_rgb(plot.overview(trajectory)), plain)
        assert dict(matplotlib.rcParams) == before


def test_pyplot_is_never_imported() -> None:
    code = """
import sys
import numpy as np
from lightning_traj.plots import to_rgb
from lightning_traj.plots import trajectory as plot
class Still:
    steps = epochs = np.arange(2)
    counted = lambda self, select=None: "all"
    map = gram = displacement_gram = lambda self, select=None: np.ones((2, 2))
    relative_map = lambda self, select=None: np.ones((1, 1))
    pca = lambda self, select=None: (np.zeros((2, 0)), np.zeros(0))
    standard_errors = lambda self, select=None: {}
to_rgb(plot.overview(Still()))
assert "matplotlib.figure" in sys.modules
sys.exit("matplotlib.pyplot" in sys.modules)
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
