"""The page of a trajectory: what it says, that it stands alone, and that nothing in it is taken for markup."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import torch

from lightning_traj.measures.catalogue import MEASURES
from lightning_traj.recording.recorder import Recorder
from lightning_traj.recording.settings import RecordingSettings
from lightning_traj.report import page
from lightning_traj.report import summary as report
from lightning_traj.report.trajectory_page import trajectory_report
from pages import HOSTILE, Page, assert_stands_alone


@pytest.fixture(scope="module")
def trajectory(walk, recorded):
    shapes = {"net.h.0.fc.weight": (30, 10), "net.h.0.fc.bias": (30,), "net.h.1.fc.weight": (10, 30)}
    return recorded(walk(shapes, 12), Recorder(RecordingSettings(sketch_dim=64))).collect()[0]


@pytest.fixture(scope="module")
def source(trajectory):
    return trajectory_report(trajectory, title="A run", source={"folder": "a/*.ckpt"}, findings=["Step 3 is doubled."])


@pytest.fixture(scope="module")
def hostile(walk, recorded):
    """The page of a trajectory whose blocks, layers, settings and all else are called like markup."""
    shapes = {f"net.h.{i}.{HOSTILE}.weight": (4, 4) for i in range(2)}
    trajectory = recorded(walk(shapes, 3), Recorder()).collect()[0]
    trajectory = replace(trajectory, settings={**trajectory.settings, "include": HOSTILE})
    return trajectory_report(trajectory, title=HOSTILE, source={HOSTILE: HOSTILE}, findings=[HOSTILE, "\udcff"])


def test_page_says_what_the_trajectory_says(trajectory, source):
    text = " ".join(assert_stands_alone(source).texts)
    values, errors = trajectory.summary(), trajectory.standard_errors()
    assert errors
    for name, value in values.items():
        if value == value:
            assert f"{report.format_value(name, value, errors)} " in text
            assert MEASURES[name].meaning in text
    said = [report.suggestion(trajectory), trajectory.counted(), "a/*.ckpt", "Step 3 is doubled."]
    assert all(words in text for words in [*said, "A run", "12, at steps 0 to 11", "64 numbers a block (seed 0)"])
    assert "Nothing found" not in text


def test_tables_by_layer_and_role_are_those_of_the_terminal(trajectory, source):
    texts = Page(source).texts
    for by in ("role", "depth"):
        columns, rows = report.group_rows(trajectory, by)
        cells = [str(cell) for row in [columns, *rows] for cell in row if cell]
        start = texts.index(f"Table by {by} ({len(rows)})")
        shown = [text for text in texts[start + 1 :] if text.strip()]
        assert shown[: len(cells)] == cells
    table = trajectory.table("role")
    columns, rows = report.group_rows(trajectory, "role")
    assert [row[0] for row in rows] == list(table)
    assert all(float(row[columns.index("mds")]) == pytest.approx(table[row[0]]["mds"], rel=1e-3) for row in rows)


def test_texts_are_never_markup(hostile):
    text = "".join(assert_stands_alone(hostile).texts)
    assert "<script" not in hostile
    assert hostile.encode()  # also where a path is no Unicode
    assert text.count(HOSTILE) >= 7  # title and heading, source twice, setting, finding, layers


def test_a_style_that_would_run_something_is_noticed():
    with pytest.raises(AssertionError):
        assert_stands_alone(page.page("x", page.Markup("<h1>x</h1><script>1</script>")))
    with pytest.raises(AssertionError):
        assert_stands_alone(page.page("x", page.Markup('<h1>x</h1><img src="http://example.org/x.png" alt="x">')))
    with pytest.raises(AssertionError):
        Page(page.page("x", page.Markup("<p>")))


def test_what_was_found_in_checkpoints_is_said(recorded, walk):
    trajectory = recorded(walk({"w": (4, 4)}, 2), Recorder()).collect()[0]
    for findings, given, said in (
        (["a.ckpt is odd."], None, "a.ckpt is odd."),
        ([], None, "Nothing found."),
        (["a.ckpt is odd."], ["b.ckpt is odd."], "b.ckpt is odd."),
    ):
        more = {"findings": findings, "hyperparameters": {"lr": 0.25, "opt/name": HOSTILE}}
        found = replace(trajectory, settings={**trajectory.settings, **more})
        text = " ".join(Page(trajectory_report(found, title="Found", findings=given)).texts)
        assert "What is wrong with the snapshots" in text
        assert said in text
        assert f"lr=0.25, opt/name={HOSTILE}" in text


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (np.ones((1, 40)), "one snapshot"),
        (np.ones((4, 40)), "Undefined: "),
        (np.zeros((4, 40)), "Undefined: "),
    ],
    ids=["one", "still", "zero"],
)
def test_little_to_say(rows, said):
    recorder = Recorder()
    for t, row in enumerate(rows):
        recorder.record({"w": torch.tensor(row)}, 10 * t, t)
    found = assert_stands_alone(trajectory_report(recorder.collect()[0], title="Little"))
    text = " ".join(found.texts)
    assert said in text
    assert "What is wrong" not in text  # nothing was looked for
    assert "nan" not in text.lower()


def test_pictures_are_small(source):
    sizes = [len(image["src"]) for image in Page(source).all("img")]
    assert len(sizes) >= 15
    assert max(sizes) < 250_000
    assert sum(sizes) < 2_000_000


@pytest.mark.skipif(shutil.which("chromium") is None, reason="Chromium is not installed: nothing to open pages with")
def test_a_browser_has_nothing_to_complain_about(hostile, tmp_path):
    (tmp_path / "report.html").write_text(hostile, encoding="utf-8")
    (tmp_path / "broken.html").write_text(page.page("x", page.Markup("<script>1</script>")), encoding="utf-8")

    def messages(name):
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        command += ["--enable-logging=stderr", "--v=0", "--dump-dom", (tmp_path / name).as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        assert "</html>" in done.stdout
        return [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    assert messages("report.html") == []
    assert messages("broken.html")  # what is forbidden, is refused, and said
