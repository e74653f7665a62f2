"""By layer, role and depth: against what the trajectory itself answers for explicit selections."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from lightning_traj import measures
from lightning_traj.blocks.block import Block
from lightning_traj.blocks.roles import ROLES
from lightning_traj.measures.catalogue import shown_in
from lightning_traj.trajectory import Windows
from lightning_traj.trajectory import by_layer as layers

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPES = {
    "wte.weight": (20, 6),
    **{f"h.{i}.attn.{role}_proj.weight": (6, 6) for i in range(2) for role in "qkv"},
    **{f"h.{i}.ln.weight": (6,) for i in range(2)},
    "h.0.mlp.fc_in.bias": (6,),
    "frozen.weight": (5, 5),
}


@pytest.fixture(scope="module")
def snapshots(walk):
    """A walk in which one block starts at zero, and one never moves."""
    snapshots = walk(SHAPES, 9)
    for snapshot in snapshots:
        snapshot["frozen.weight"] = snapshots[0]["frozen.weight"]
    snapshots[0]["h.0.mlp.fc_in.bias"] = torch.zeros(6)
    return snapshots


@pytest.fixture(scope="module")
def trajectory(snapshots, recorded):
    return recorded(snapshots).collect()[0]


@pytest.fixture(scope="module")
def windowed(trajectory):
    """With windows of four steps, the last of them cut short and undefined in one block."""
    sums = np.abs(np.random.default_rng(0).standard_normal((3, len(trajectory.blocks), 3, 4)))
    sums[:, :, 1] *= np.random.default_rng(1).choice([-0.5, 0.5], sums[:, :, 1].shape)
    sums[2, :, :, 3] = 0.0
    sums[2, 1] = np.nan
    return replace(trajectory, windows=Windows(sums, tuple(trajectory.steps[[2, 5, 8]].tolist()), (4, 4, 3)))


@pytest.mark.parametrize("by", ["depth", "role", "layer", "block", "depth x role"])
@pytest.mark.parametrize("measure", shown_in("heatmap"))
def test_progress_is_the_series_of_each_group(trajectory, measure, by):
    names, values = layers.progress(trajectory, measure, by)
    groups = trajectory.groups(by)
    assert names == list(groups)
    assert values.shape == (len(groups), len(trajectory))
    for row, select in zip(values, groups.values(), strict=True):
        # A cosine of 1 is known to some roundings: angles of 1e-6 degrees.
        np.testing.assert_allclose(row, trajectory.series(select)[measure], rtol=1e-9, atol=1e-6)
        assert row[-1] == pytest.approx(trajectory.summary(select)[measure], rel=1e-9, nan_ok=True)


@pytest.mark.parametrize("measure", shown_in("heatmap"))
def test_progress_is_what_a_run_that_ends_earlier_says_at_its_end(snapshots, recorded, trajectory, measure):
    names, values = layers.progress(trajectory, measure)
    cut = recorded(snapshots[:6]).collect()[0]
    expected = layers.latest(cut, measure, "depth")
    assert names == list(expected)
    np.testing.assert_allclose(values[:, 5], list(expected.values()), rtol=1e-9)


@pytest.mark.parametrize("by", ["depth", "depth x role", "block"])
@pytest.mark.parametrize("measure", shown_in("heatmap"))
def test_latest_is_the_end_of_the_progress(windowed, measure, by):
    names, values = layers.progress(windowed, measure, by)
    found = layers.latest(windowed, measure, by)
    assert list(found) == names
    np.testing.assert_allclose(list(found.values()), values[:, -1], rtol=1e-12, atol=1e-12)


def test_latest_of_roundings_is_known_as_well(recorded, walk):
    trajectory = recorded(walk({"w.weight": (30, 30), "v.weight": (30, 30)}, 60, size=1e-4)).collect()[0]
    for name, value in layers.latest(trajectory, "mds", "block").items():
        assert 1 - value == pytest.approx(1 - trajectory.summary(name)["mds"], rel=1e-3)


def test_oscillation_is_that_of_the_newest_window(windowed):
    values = layers.progress(windowed, "oscillation_cosine", "role")[1]
    assert np.isnan(values[:, :2]).all()
    assert np.isfinite(values[:, 2:]).any(axis=0).all()
    for row, select in zip(values, windowed.groups("role").values(), strict=True):
        np.testing.assert_allclose(row, windowed.series(select)["oscillation_cosine"], rtol=1e-12)


def test_groups_are_added_up_once(trajectory):
    states = layers.kept_states(trajectory)
    blocks = (0, 2, 3)
    assert states(blocks).anchored is states(blocks).anchored
    np.testing.assert_array_equal(states(blocks).anchored, trajectory.anchored[list(blocks)].sum(axis=0))
    before = trajectory.anchored.copy()
    for measure in shown_in("heatmap"):
        for by in ("role", "block"):
            expected = layers.progress(trajectory, measure, by)[1]
            np.testing.assert_array_equal(layers.progress(trajectory, measure, by, states=states)[1], expected)
    np.testing.assert_array_equal(trajectory.anchored, before)


def test_what_never_moved_is_in_no_group(trajectory):
    assert "frozen" not in layers.progress(trajectory, "mds")[0]
    assert layers.progress(trajectory, "mds", "layer", "frozen*")[0] == ["frozen"]


def test_groups_are_narrowed_by_a_selection(trajectory):
    assert layers.grouped(trajectory, "role", "layer:h.1").keys() == {"q", "k", "v", "norm"}
    blocks = {trajectory.blocks[i].name for i in layers.grouped(trajectory, "depth", "layer:h.1")["h.1"]}
    assert blocks == {name for name in SHAPES if name.startswith("h.1.")}
    with pytest.raises(ValueError, match="by='colour'"):
        layers.grouped(trajectory, "colour")


def test_one_snapshot_has_a_similarity_and_nothing_else(snapshots, recorded):
    trajectory = recorded(snapshots[:1]).collect()[0]
    # The bias is at zero: its direction is undefined, and it is the only one.
    values = {measure: layers.progress(trajectory, measure, "role")[1] for measure in shown_in("heatmap")}
    names = layers.progress(trajectory, "mds", "role")[0]
    np.testing.assert_allclose(values["mds"][[name != "bias" for name in names]], 1, atol=1e-12)
    assert np.isnan(values["mds"][names.index("bias")]).all()
    assert all(np.isnan(values[measure]).all() for measure in values if measure != "mds")
    assert layers.attention(trajectory)["h.0.attn"]["heterogeneity"] == pytest.approx(0, abs=1e-12)


def test_neighbours_are_merged_into_as_many_groups_as_fit(trajectory):
    groups = {str(i): [i] for i in range(10)}
    assert layers.at_most(groups, 10) == (groups, 1)
    assert layers.at_most(groups, 9) == ({f"{i} …": [i, i + 1] for i in range(0, 10, 2)}, 2)
    merged, size = layers.at_most(groups, 3)
    assert (size, merged) == (4, {"0 …": [0, 1, 2, 3], "4 …": [4, 5, 6, 7], "8 …": [8, 9]})
    assert layers.at_most(groups, 9)[0]["8 …"] == [8, 9]
    assert layers.at_most({"a": [0], "b": [1], "c": [2]}, 2)[0] == {"a …": [0, 1], "c": [2]}


def test_roles_come_in_their_order(trajectory):
    blocks = [Block(role, "", role, 1) for role in ("mine", *reversed(ROLES))]
    assert layers.present_roles(blocks) == [*ROLES, "mine"]
    groups = layers.by_role(trajectory, range(len(trajectory.blocks)))
    assert list(groups) == layers.present_roles(trajectory.blocks)
    assert all(trajectory.blocks[i].role == role for role, members in groups.items() for i in members)


# Attention


def test_attention_is_the_similarity_of_its_projections(trajectory):
    found = layers.attention(trajectory)
    assert list(found) == ["h.0.attn", "h.1.attn"]
    for module, row in found.items():
        expected = [trajectory.summary(f"{module}.{role}_proj.weight")["mds"] for role in "qkv"]
        assert [row[role] for role in "qkv"] == pytest.approx(expected)
        assert row["heterogeneity"] == pytest.approx(max(expected) - min(expected))


def test_without_all_three_there_is_no_attention(trajectory, recorded, walk):
    assert layers.attention(trajectory, lambda block: block.role != "k") == {}
    assert list(layers.attention(trajectory, "layer:h.1")) == ["h.1.attn"]
    assert layers.attention(recorded(walk({"net.0.weight": (3, 3)}, 3)).collect()[0]) == {}


# The most different


def angled(recorded, turns):
    """Blocks that turn by so many degrees a snapshot in a plane, five snapshots; biases and norms are vectors."""

    def at(name, degrees):
        point = torch.tensor([math.cos(math.radians(degrees)), math.sin(math.radians(degrees))], dtype=torch.float64)
        return point if "bias" in name or "ln" in name else point[None]

    return recorded([{name: at(name, turn * t) for name, turn in turns.items()} for t in range(5)]).collect()[0]


def test_most_different_are_those_that_turn_otherwise(recorded):
    many = {f"h.{i}.weight": 10 for i in range(20)}
    trajectory = angled(recorded, many | {"slow.weight": 4, "fast.weight": 18, "fast.bias": 20, "near.weight": 13})
    assert layers.most_different(trajectory, 3) == ["fast.weight", "slow.weight", "near.weight"]
    assert layers.most_different(trajectory, 1) == ["fast.weight"]
    assert len(layers.most_different(trajectory, 99)) == 23  # of one role
    assert layers.most_different(trajectory, 3, "slow.weight") == ["slow.weight"]


def test_most_different_are_one_a_role_and_neither_biases_nor_norms(recorded):
    turns = {f"h.{i}.attn.{role}_proj.weight": 10 + i for i in range(3) for role in "qkv"}
    turns |= {"h.0.attn.k_proj.weight": 2, "h.1.attn.k_proj.weight": 3, "h.2.attn.v_proj.weight": 16}
    turns |= {"h.0.attn.k_proj.bias": 25, "h.1.ln.weight": 40, "h.1.ln.bias": 45}
    trajectory = angled(recorded, turns)
    chosen = layers.most_different(trajectory, 5)
    assert chosen[:1] == ["h.0.attn.k_proj.weight"]
    assert sorted(name[9] for name in chosen) == ["k", "q", "v"]
    assert not any(trajectory.blocks[i].role in ("bias", "norm") for i in layers.informative(trajectory))
    few = layers.most_different(trajectory, 5, lambda block: block.role in ("bias", "norm"))
    assert set(few) == {"h.0.attn.k_proj.bias", "h.1.ln.bias"}  # nothing else is counted


def test_of_many_snapshots_some_are_compared(recorded, monkeypatch):
    trajectory = angled(recorded, {"a.weight": 3, "b.weight": 8, "c.weight": 12, "d.weight": 20})
    expected = layers.most_different(trajectory, 4)
    compared = []
    monkeypatch.setattr(
        measures, "angle_map", lambda cosines, full=measures.angle_map: compared.append(cosines) or full(cosines)
    )
    monkeypatch.setattr(layers, "COMPARED", 3)
    assert layers.most_different(trajectory, 4) == expected
    whole, *_ = compared
    np.testing.assert_allclose(whole, trajectory.map()[::2, ::2], rtol=1e-12)
    assert {cosines.shape for cosines in compared} == {(3, 3)}


def test_what_has_no_direction_is_not_different(recorded):
    still = {"zero.weight": torch.zeros(3), "one.weight": torch.ones(3)}
    assert layers.most_different(recorded([still, still]).collect()[0], 5) == ["one.weight"]


def test_map_of_blocks_is_that_of_the_selection(trajectory):
    chosen = trajectory.select("role:q")
    np.testing.assert_allclose(trajectory.state_of(chosen).map, trajectory.map("role:q"), rtol=1e-14)
    similarity = measures.mean_directional_similarity(trajectory.state_of(chosen).map)
    assert similarity == pytest.approx(trajectory.summary("role:q")["mds"])
