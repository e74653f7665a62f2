"""By layer, role and depth: against what the trajectory itself answers for explicit selections."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lightning_traj import layers, measures
from lightning_traj.blocks import Block
from lightning_traj.roles import ROLES

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


@pytest.mark.parametrize("by", ["depth", "role", "layer", "block", "depth x role"])
@pytest.mark.parametrize("measure", layers.PROGRESS)
def test_progress_is_the_series_of_each_group(trajectory, measure, by):
    names, values = layers.progress(trajectory, measure, by)
    groups = trajectory.groups(by)
    assert names == list(groups)
    assert values.shape == (len(groups), len(trajectory))
    for row, select in zip(values, groups.values(), strict=True):
        # A cosine of 1 is known to some roundings: angles of 1e-6 degrees.
        np.testing.assert_allclose(row, trajectory.series(select)[measure], rtol=1e-9, atol=1e-6)
        assert row[-1] == pytest.approx(trajectory.summary(select)[measure], rel=1e-9, nan_ok=True)


@pytest.mark.parametrize("measure", layers.PROGRESS)
def test_progress_is_what_a_run_that_ends_earlier_says_at_its_end(snapshots, recorded, trajectory, measure):
    names, values = layers.progress(trajectory, measure)
    cut = recorded(snapshots[:6]).collect()[0]
    expected = layers.latest(cut, measure, "depth")
    assert names == list(expected)
    np.testing.assert_allclose(values[:, 5], list(expected.values()), rtol=1e-9)


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
    values = {measure: layers.progress(trajectory, measure, "role")[1] for measure in layers.PROGRESS}
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
    """Blocks that turn by so many degrees a snapshot in a plane, five snapshots."""

    def at(degrees):
        return torch.tensor([math.cos(math.radians(degrees)), math.sin(math.radians(degrees))], dtype=torch.float64)

    return recorded([{name: at(turn * t) for name, turn in turns.items()} for t in range(5)]).collect()[0]


def test_most_different_are_those_that_turn_otherwise(recorded):
    many = {f"h.{i}.weight": 10 for i in range(20)}
    trajectory = angled(recorded, many | {"slow.weight": 4, "fast.weight": 18, "fast.bias": 20, "near.weight": 13})
    assert layers.most_different(trajectory, 3) == ["fast.bias", "slow.weight", "near.weight"]
    assert layers.most_different(trajectory, 1) == ["fast.bias"]
    assert len(layers.most_different(trajectory, 99)) == 23  # one a layer
    assert layers.most_different(trajectory, 3, "slow.weight") == ["slow.weight"]


def test_what_has_no_direction_is_not_different(recorded):
    still = {"zero.weight": torch.zeros(3), "one.weight": torch.ones(3)}
    assert layers.most_different(recorded([still, still]).collect()[0], 5) == ["one.weight"]


def test_map_of_blocks_is_that_of_the_selection(trajectory):
    chosen = trajectory.select("role:q")
    np.testing.assert_allclose(layers.map_of(trajectory, chosen), trajectory.map("role:q"), rtol=1e-14)
    similarity = measures.mean_directional_similarity(layers.map_of(trajectory, chosen))
    assert similarity == pytest.approx(trajectory.summary("role:q")["mds"])
