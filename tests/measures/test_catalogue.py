"""A new measure needs an entry in the catalogue and nothing else: it is then shown wherever the entry says."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import reference
from figures import assert_readable, words
from lightning_traj import measures
from lightning_traj.compare.figures import comparison_figures
from lightning_traj.compare.runs import Run
from lightning_traj.compare.table import comparison_rows
from lightning_traj.compare.write import is_made
from lightning_traj.hybrid.conditions import Threshold
from lightning_traj.loggers import add_layout, log_trajectory
from lightning_traj.measures.catalogue import MEASURES, shown_in
from lightning_traj.measures.measure import Measure
from lightning_traj.plots.layers import layer_figures
from lightning_traj.recording.recorder import Recorder
from lightning_traj.report import summary as report
from lightning_traj.report.trajectory_page import trajectory_report
from pages import Page

pytestmark = pytest.mark.usefixtures("one_thread")

NAME = "largest_update_angle"
SHAPES = {f"net.h.{i}.{name}": (6, 6) for i in range(2) for name in ("attn.q_proj.weight", "mlp.fc.weight")}


def largest_update_angle(gram):
    angles = measures.update_angle(gram)
    return float(np.max(angles)) if len(angles) else float("nan")


@pytest.fixture
def registered(monkeypatch):
    """The new measure in the catalogue, shown in every place; the catalogue alone is patched."""
    places = ("card", "comparison", "curve", "heatmap", "hyperparameters", "role", "table")
    entry = Measure(
        group="Angle",
        formula="max ∠(u_t, u_{t+1})",
        range="[0, 180]",
        unit="degrees",
        meaning="no turn between updates is larger",
        latest=lambda state: largest_update_angle(state.relative),
        shown_in=places,
    )
    monkeypatch.setitem(MEASURES, NAME, entry)
    assert all(shown_in(place)[-1] == NAME for place in places)
    return entry


@pytest.fixture(scope="module")
def snapshots(walk):
    return walk(SHAPES, 8)


@pytest.fixture(scope="module")
def trajectory(snapshots, recorded):
    return recorded(snapshots, Recorder()).collect()[0]


def where(trajectory):
    """The places in which the new measure is found."""
    scalars, charts = {}, {}
    writer = type("SummaryWriter", (), {"add_custom_scalars": lambda self, layout: charts.update(layout)})()
    logger = SimpleNamespace(log_metrics=lambda metrics, step: scalars.update(metrics), experiment=writer)
    log_trajectory([logger], trajectory, trajectory.summary(), 7, pictures=False)
    add_layout([logger])
    source = trajectory_report(trajectory, title="A run")
    pictures = {image["alt"] for image in Page(source).all("img")}
    cards = re.findall(r"<div><dt>(\w+)</dt>", source)
    run = Run("run", Path("run.safetensors"), trajectory)
    tables = {by: report.group_rows(trajectory, by)[0] for by in ("role", "depth")}
    seen = {
        "summary": NAME in trajectory.summary(),
        "series": NAME in trajectory.series(),
        "scalar": f"traj/{NAME}" in scalars,
        "scalars by role": f"traj_layers/{NAME}/q" in scalars,
        "layout": any(NAME in chart for charts_of in charts.values() for chart in charts_of),
        "card": NAME in cards,
        "tables": all(NAME in columns for columns in tables.values()),
        "summary table": NAME in [str(cell) for cell in report.summary_table(trajectory).columns[0].cells],
        "chart": any(alt.startswith(f"{NAME} over time") for alt in pictures),
        "heatmap": f"By layer and role: {NAME.replace('_', ' ')}." in pictures,
        "layers by roles": NAME.replace("_", " ") in words(layer_figures(trajectory)["roles"]()),
        "comparison table": NAME in [row[0] for row in comparison_rows([run, run])[1]],
        "comparison chart": f"series_{NAME}" in comparison_figures([run], []),
        "files of a comparison": is_made(f"series_{NAME}.png"),
    }
    return {place for place, is_there in seen.items() if is_there}, set(seen)


def test_a_measure_that_is_not_in_the_catalogue_is_nowhere(trajectory):
    assert where(trajectory)[0] == set()
    with pytest.raises(ValueError, match=NAME):
        Threshold(NAME, below=1)


def test_a_measure_needs_the_catalogue_alone(trajectory, registered):
    found, places = where(trajectory)
    assert found == places
    assert Threshold(NAME, below=1).measure == NAME


def test_its_values_are_those_of_the_definition(trajectory, snapshots, stacked, registered):
    thetas = stacked(snapshots)
    updates = np.diff(thetas, axis=0)
    angles = [reference.angle(one, other) for one, other in pairwise(updates)]
    expected = [float("nan")] * 2 + [np.max(angles[:t]) for t in range(1, len(angles) + 1)]
    np.testing.assert_allclose(trajectory.series()[NAME], expected, rtol=1e-4)
    assert trajectory.summary()[NAME] == pytest.approx(expected[-1], rel=1e-4)
    assert report.format_value(NAME, 12.0, {}) == "12°"


def test_its_heatmap_has_a_scale_in_degrees(trajectory, registered):
    figure = layer_figures(trajectory)[NAME]()
    image = figure.axes[0].images[0].get_array()
    expected = [trajectory.series(f"net.h.{i}.*", [NAME])[NAME][2:] for i in range(2)]
    np.testing.assert_allclose(image, expected)
    assert "largest update angle by layer" in words(figure)
    assert any(re.fullmatch(r"largest update angle\nrange [\d.]+° to [\d.]+°", text) for text in words(figure))
    assert_readable(figure)


def test_a_third_measure_by_role_fits_into_the_picture(trajectory, registered):
    figure = layer_figures(trajectory)["roles"]()
    assert len(figure.axes) == 3
    assert_readable(figure)
