"""How a trajectory was made, as types: from settings and back, with and without checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from lightning_traj import Trajectory
from lightning_traj.trajectory.provenance import CheckpointSource, Finding, FindingKind, Provenance

FINDINGS = (
    Finding("unreadable", "skipped: a.pt."),
    Finding("order", "b.pt comes before a.pt."),
    Finding("gap", "none."),
)
SOURCE = CheckpointSource(("a.pt", "b.pt"), {"lr": 0.1}, "1 running_mean", 2.0**-9, FINDINGS)


def test_a_source_comes_back_from_settings() -> None:
    assert CheckpointSource.from_settings(SOURCE.to_settings()) == SOURCE
    assert SOURCE.to_settings()["findings"] == [finding.text for finding in FINDINGS] == list(map(str, FINDINGS))


def test_every_setting_has_its_type() -> None:
    settings = {
        "snapshot": "sketch",
        "track": "average",
        "sketch_dim": 64,
        "seed": 3,
        "blocks": "layer",
        "fused": {"*.qkv": "FusedLayout(...)"},
        "include": ["*.weight"],
        "exclude": "*.bias",
        "max_snapshots": 32,
        "window": 4,
        "root": "net.",
    }
    provenance = Provenance.from_settings({**settings, **SOURCE.to_settings(), "from a later release": 1})
    assert {name: getattr(provenance, name) for name in settings} == settings
    assert provenance.source == SOURCE
    assert provenance.is_sketched
    assert provenance.rounding == 2.0**-9


def test_nothing_is_known_without_settings() -> None:
    assert Provenance.from_settings({}) == Provenance()
    assert not Provenance().is_sketched
    assert Provenance().source is None
    assert Provenance().rounding == 2.0**-24


def test_a_recording_has_no_source() -> None:
    saved = Trajectory.load(Path(__file__).parents[1] / "saved_by_0_1" / "trajectory.safetensors")
    assert saved.provenance.source is None
    assert (saved.provenance.snapshot, saved.provenance.sketch_dim) == ("sketch", 2048)


@pytest.mark.parametrize("kinds", [{}, {"finding_kinds": ["gap"]}], ids=["of release 0.1", "of another number"])
def test_findings_without_kinds_are_notes(kinds: dict[str, list[str]]) -> None:
    source = CheckpointSource.from_settings({"findings": ["skipped: a.pt.", "b.pt is odd."], **kinds})
    assert source.findings == (Finding("other", "skipped: a.pt."), Finding("other", "b.pt is odd."))


def test_severities() -> None:
    severe = {kind: Finding(kind, "x").severity for kind in get_args(FindingKind)}
    assert {kind for kind, severity in severe.items() if severity != "note"} == {"unreadable", "order"}
    assert (severe["unreadable"], severe["order"]) == ("error", "warning")


@pytest.mark.parametrize("dim", [None, "64", 2.5])
def test_sketches_of_unknown_length_are_refused(dim: object) -> None:
    with pytest.raises(ValueError, match="its sketch_dim is"):
        Provenance.from_settings({"snapshot": "sketch", "sketch_dim": dim})
