"""Parameters and a model -> blocks: splitting, coarser blocks, declarations, and what is recorded of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from lightning_traj.blocks.block import Block
from lightning_traj.blocks.fused import FusedLayout
from lightning_traj.blocks.partition import Partition
from lightning_traj.blocks.rules import BlockRules
from lightning_traj.recording.recorder import Recorder
from lightning_traj.recording.settings import RecordingSettings

QKV = FusedLayout({"q": 1, "k": 1, "v": 1})


class Mixer(nn.Module):
    """Attention of a layout that nobody else has: q, k and v of each of two heads, in one projection."""

    def __init__(self):
        super().__init__()
        self.mix_qkv = nn.Linear(4, 12)
        self.out = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(7, 4)
        self.layers = nn.ModuleList([nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), Mixer()])
        self.head = nn.Linear(4, 7, bias=False)


@pytest.fixture
def network():
    return Network()


def parameters(network):
    return dict(network.named_parameters())


def by_name(partition):
    return {block.name: block for block in partition.blocks}


def test_each_tensor_is_a_block_and_a_fused_one_is_several(network):
    blocks = by_name(Partition().extended(parameters(network), network))
    attention = "layers.0.self_attn"
    assert blocks[f"{attention}.in_proj_weight:k"] == Block(f"{attention}.in_proj_weight:k", attention, "k", 16)
    assert blocks[f"{attention}.in_proj_bias:v"] == Block(f"{attention}.in_proj_bias:v", attention, "bias", 4)
    assert f"{attention}.in_proj_weight" not in blocks
    assert blocks["embed.weight"].role == "embedding"
    assert blocks["layers.0.norm1.bias"].role == "norm"
    assert blocks["head.weight"].role == "head"
    assert sum(block.numel for block in blocks.values()) == sum(p.numel() for p in network.parameters())


def test_names_alone_split_nothing(network):
    partition = Partition().extended(parameters(network))
    assert [block.name for block in partition.blocks] == list(parameters(network))


def test_what_looks_fused_is_said_and_stays_whole(network):
    partition = Partition().extended(parameters(network), network)
    assert partition.undeclared == ("layers.1.mix_qkv.weight", "layers.1.mix_qkv.bias")
    assert by_name(partition)["layers.1.mix_qkv.weight"].numel == 48


def test_a_declared_layout_splits(network):
    per_head = FusedLayout({"q": 1, "k": 1, "v": 1}, groups=2)
    partition = Partition(BlockRules(fused={"*.mix_qkv.*": per_head})).extended(parameters(network), network)
    weight = network.layers[1].mix_qkv.weight
    names = [block.name for block in partition.blocks]
    part = partition.held(parameters(network), {})[names.index("layers.1.mix_qkv.weight:v")][0].tensor
    torch.testing.assert_close(part.reshape(-1), weight[[4, 5, 10, 11]].detach().reshape(-1))
    assert part.untyped_storage().data_ptr() == weight.untyped_storage().data_ptr()  # a view
    assert partition.undeclared == ()


def test_a_fused_tensor_that_no_longer_has_its_parts_is_refused():
    partition = Partition(BlockRules(fused={"w": QKV})).extended({"w": torch.zeros(6, 4)})
    partition.held({"w": torch.ones(6, 4)}, {})
    with pytest.raises(ValueError, match=r"w has shape \(8, 3\), and .* cuts its axis 0 into 3 equal pieces"):
        partition.held({"w": torch.ones(8, 3)}, {})


def test_a_declaration_outranks_what_is_known(network):
    swapped = FusedLayout({"v": 1, "k": 1, "q": 1})
    partition = Partition(BlockRules(fused={"*.in_proj_weight": swapped})).extended(parameters(network), network)
    names = [block.name for block in partition.blocks]
    part = partition.held(parameters(network), {})[names.index("layers.0.self_attn.in_proj_weight:v")][0].tensor
    torch.testing.assert_close(part.reshape(-1), network.layers[0].self_attn.in_proj_weight[:4].detach().reshape(-1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fused": {"*.qqq": QKV}}, r"fused=\['\*.qqq'\]: '\*.qqq' matches none of the parameters; names: 'embed.wei"),
        ({"include": "*.weight:x"}, r"include='\*.weight:x': '\*.weight:x' matches none of the parameters"),
        ({"exclude": ["*:q", "nothing"]}, r"'nothing' matches none of the parameters"),
        ({"include": "head.*", "exclude": "head.*"}, "include='head.*', exclude='head.*' leave none of 20 parameters"),
        ({"fused": {"*.mix_qkv.*": QKV, "layers.1.*.weight": QKV}}, r"'\*.mix_qkv.\*' and 'layers.1.\*.weight' both"),
        ({"fused": {"*.out.weight": QKV}}, r"fused: layers.1.out.weight has shape \(4, 4\)"),
    ],
)  # fmt: skip
def test_bad_patterns_and_layouts(network, settings, message):
    partition = Partition(BlockRules(**settings))
    with pytest.raises(ValueError, match=message):
        partition.check(parameters(network), network)


def test_include_and_exclude_reach_the_parts(network):
    only_q = Partition(BlockRules(include="*weight:q")).extended(parameters(network), network)
    assert [block.name for block in only_q.blocks] == ["layers.0.self_attn.in_proj_weight:q"]
    without = Partition(BlockRules(exclude=["*:k", "head.*"])).extended(parameters(network), network)
    assert not any(block.name.endswith(":k") or block.layer == "head" for block in without.blocks)
    assert without.extended(parameters(network), network) is without  # nothing is new


@pytest.mark.parametrize(
    ("granularity", "names"),
    [
        ("role", ["embedding", "q", "k", "v", "bias", "attn_out", "mlp_in", "mlp_out", "norm", "linear", "head"]),
        ("model", ["model"]),
        (lambda block: "norms" if block.role == "norm" else "rest", ["rest", "norms"]),
    ],
)
def test_coarser_blocks(network, granularity, names):
    partition = Partition(BlockRules(granularity)).extended(parameters(network), network)
    assert {block.name for block in partition.blocks} >= set(names[:2])
    assert [block.name for block in partition.blocks if block.name in names] == [
        n for n in names if n in by_name(partition)
    ]
    assert sum(block.numel for block in partition.blocks) == sum(p.numel() for p in network.parameters())


def test_blocks_by_layer(network):
    blocks = by_name(Partition(BlockRules("layer")).extended(parameters(network), network))
    attention = blocks["layers.0.self_attn"]
    assert attention == Block("layers.0.self_attn", "layers.0.self_attn", "other", 48 + 12)
    assert blocks["layers.0.linear1"].role == "mlp_in"  # whatever its bias is
    assert blocks["layers.0.norm1"].role == "norm"
    root = Partition(BlockRules("layer")).extended({"scale": torch.ones(3)})
    assert root.blocks == (Block("root", "", "other", 3),)


def test_a_function_must_return_names(network):
    with pytest.raises(TypeError, match=r"blocks=function .* returned None for 'embed.weight': return the name"):
        Partition(BlockRules(lambda block: None)).extended(parameters(network), network)


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # of torch.compile's own
def test_compiled_modules_are_looked_through(network):
    network.layers[0] = torch.compile(network.layers[0], backend="eager")
    blocks = by_name(Partition().extended(parameters(network), network))
    assert "layers.0.self_attn.in_proj_weight:q" in blocks


def test_tied_weights_are_counted_once(network):
    network.head.weight = network.embed.weight
    partition = Partition().extended(parameters(network), network)
    assert "head.weight" not in by_name(partition)
    assert sum(block.numel for block in partition.blocks) == sum(p.numel() for p in network.parameters())


def test_functions_are_named_without_an_address():
    from functools import partial

    class Grouping:
        def __call__(self, block):
            return block.role

    assert Partition(BlockRules(Grouping())).rules.settings["blocks"].endswith("Grouping")
    named = Partition(BlockRules(partial(Grouping(), object(), extra=1))).rules.settings["blocks"]
    assert "0x" not in named
    assert "(<object object>,), {'extra': 1}" in named


def test_a_function_that_fails_is_named(network):
    with pytest.raises(TypeError, match=r"blocks=function .* failed for Block\(name='embed.weight'.*AttributeError"):
        Partition(BlockRules(lambda block: block.depth)).extended(parameters(network), network)


def test_what_is_excluded_is_not_announced(network):
    assert Partition(BlockRules(exclude="*.mix_qkv.*")).extended(parameters(network), network).undeclared == ()


def test_excluding_all_parts_leaves_nothing(network):
    with pytest.raises(ValueError, match="leave none of 20 parameters"):
        Partition(BlockRules(include="*.in_proj_weight", exclude=["*:q", "*:k", "*:v"])).check(
            parameters(network), network
        )


# What is recorded of them


@pytest.fixture
def moved(network):
    """Snapshots of a network that moves: its parameters at each, float64, by name."""
    generator = torch.Generator().manual_seed(1)
    snapshots = []
    for _ in range(6):
        snapshots.append({name: p.detach().double().clone() for name, p in network.named_parameters()})
        with torch.no_grad():
            for p in network.parameters():
                p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return snapshots


def record(network, snapshots, **settings):
    recorder = Recorder(RecordingSettings(**settings))
    recorder.check(snapshots[0], network)
    for step, snapshot in enumerate(snapshots):
        recorder.record(snapshot, step, float(step))
    return recorder


@pytest.mark.parametrize("mode", ["sketch", "full"])
def test_disjoint_blocks_add_up_to_the_whole(network, moved, tmp_path, monkeypatch, mode):
    monkeypatch.chdir(tmp_path)
    whole = np.stack([torch.cat([tensor.flatten() for tensor in snapshot.values()]).numpy() for snapshot in moved])
    exact = whole @ whole.T
    # Displacements of sketches are kept in float32.
    tolerance = 1e-12 if mode == "full" else 1e-7
    for granularity in ("tensor", "layer", "role", "model"):
        trajectory = record(network, moved, snapshot=mode, blocks=granularity, sketch_dim=10_000).collect()[0]
        np.testing.assert_allclose(trajectory.gram("*"), exact, rtol=tolerance)
        summed = sum(trajectory.gram(only) for only in trajectory.groups("block").values())
        np.testing.assert_allclose(summed, exact, rtol=tolerance)


def test_parts_are_the_slices(network, moved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trajectory = record(network, moved, snapshot="full").collect()[0]
    for i, role in enumerate("qkv"):
        slices = np.stack([s["layers.0.self_attn.in_proj_weight"][4 * i : 4 * i + 4].flatten().numpy() for s in moved])
        np.testing.assert_allclose(trajectory.gram(f"role:{role}"), slices @ slices.T, rtol=1e-12)
        np.testing.assert_allclose(trajectory.gram(f"*weight:{role}"), slices @ slices.T, rtol=1e-12)


def test_a_coarse_block_is_sketched_as_its_concatenation(network, moved):
    recorder = record(network, moved, blocks="model", sketch_dim=64)
    joined = torch.cat([tensor.flatten() for tensor in moved[0].values()])
    torch.testing.assert_close(recorder.state.gram.base, recorder.sketcher.sketch(joined, "model"))


def test_coarse_blocks_over_seeds_estimate_the_whole(network, moved):
    """The standard error of one block of the whole model covers: within 3 of them in nearly all of 60 seeds."""
    whole = np.stack([torch.cat([tensor.flatten() for tensor in snapshot.values()]).numpy() for snapshot in moved])
    displaced = whole[1:] - whole[0]
    exact = displaced @ displaced.T
    scores = []
    for seed in range(60):
        trajectory = record(network, moved, blocks="model", sketch_dim=64, seed=seed).collect()[0]
        norm = np.sqrt(exact[-1, -1])
        scores.append((trajectory.summary()["displacement"] - norm) / trajectory.standard_errors()["displacement"])
    assert np.mean(np.abs(scores) < 3) >= 0.95
    assert abs(np.mean(scores)) < 5 / np.sqrt(60)


@pytest.mark.parametrize("mode", ["sketch", "full"])
def test_what_comes_late_is_a_block_of_its_own(network, moved, tmp_path, monkeypatch, mode):
    monkeypatch.chdir(tmp_path)
    early = [{name: tensor for name, tensor in snapshot.items() if name != "head.weight"} for snapshot in moved[:3]]
    recorder = record(network, [*early, *moved[3:]], snapshot=mode, blocks="model")
    trajectory = recorder.collect()[0]
    assert [block.name for block in trajectory.blocks] == ["model", "head.weight"]
    resumed = Recorder(RecordingSettings(snapshot=mode, blocks="model"))
    resumed.load_state_dict(recorder.state_dict())
    later = {name: tensor + 1 for name, tensor in moved[-1].items()}
    for one in (recorder, resumed):
        one.record(later, 6, 6.0)
    # Of sketches, inner products are taken for several new rows at once: how many decides how they are rounded.
    rounding = 1e-14 if mode == "sketch" else 0
    ours, theirs = resumed.collect()[0], recorder.collect()[0]
    np.testing.assert_allclose(ours.anchored, theirs.anchored, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("mode", ["sketch", "full"])
def test_resumed_fused_blocks(network, moved, tmp_path, monkeypatch, mode):
    monkeypatch.chdir(tmp_path)
    settings = {"snapshot": mode, "fused": {"*.mix_qkv.*": FusedLayout({"q": 1, "k": 1, "v": 1}, groups=2)}}
    whole = record(network, moved, **settings)
    half = record(network, moved[:3], **settings)
    resumed = Recorder(RecordingSettings(**settings))
    resumed.load_state_dict(half.state_dict())
    resumed.check(moved[3], network)
    for step, snapshot in enumerate(moved[3:], start=3):
        resumed.record(snapshot, step, float(step))
    # Rows that come in two parts are multiplied in two parts: the last bit may differ.
    np.testing.assert_allclose(resumed.collect()[0].anchored, whole.collect()[0].anchored, rtol=1e-14, atol=1e-14)
    other = Recorder(RecordingSettings(snapshot=mode))
    swapped = {"*.mix_qkv.*": FusedLayout({"k": 1, "q": 1, "v": 1}, groups=2)}
    with pytest.raises(ValueError, match=r"fused=.*'k': 1, 'q': 1.* differs from fused=.*'q': 1, 'k': 1"):
        Recorder(RecordingSettings(snapshot=mode, fused=swapped)).load_state_dict(half.state_dict())
    with pytest.raises(ValueError, match=r"fused=\{\} differs from fused=\{'\*.mix_qkv.\*': "):
        other.load_state_dict(half.state_dict())
    with pytest.raises(ValueError, match="blocks='role' differs from blocks='tensor'"):
        Recorder(RecordingSettings(snapshot=mode, blocks="role")).load_state_dict(half.state_dict())


def test_frozen_pieces_of_a_coarse_block(network):
    """A block moves with each of its parameters, however that is changed."""
    recorder = Recorder(RecordingSettings(blocks="model"))
    for p in network.parameters():
        p.requires_grad_(False)
    recorder.record(parameters(network), 0, 0.0)
    network.head.weight.data.add_(1.0)
    recorder.record(parameters(network), 1, 1.0)
    displacement = recorder.collect()[0].summary()["displacement"]
    assert displacement == pytest.approx(network.head.weight.numel() ** 0.5, rel=1e-6)


def test_what_a_module_is_part_of_counts():
    network = nn.ModuleDict({"net": nn.TransformerEncoderLayer(4, 2, 8)})
    blocks = by_name(Partition().extended(parameters(network), network))
    assert blocks["net.linear1.weight"].role == "mlp_in"
    assert blocks["net.self_attn.out_proj.weight"].role == "attn_out"


def test_what_was_left_out_is_said(network, moved):
    trajectory = record(network, moved, exclude=["*.bias", "*norm*"]).collect()[0]
    assert trajectory.counted().endswith("; exclude=['*.bias', '*norm*']")


def test_a_parameter_that_goes_leaves_the_windows_of_others(network, moved):
    recorder = Recorder(RecordingSettings(window=2))
    recorder.record(moved[0], 0, 0.0)
    recorder.windows.begin(moved[0], 0)
    for step in (1, 2):
        recorder.windows.add({n: t for n, t in moved[step].items() if n != "head.weight"}, step)
    windows = recorder.collect()[0].windows
    assert windows.counts == (2,)
    names = [block.name for block in recorder.state.blocks]
    assert windows.sums[0, names.index("head.weight")].tolist() == np.zeros((3, 2)).tolist()
    assert (windows.sums[0, names.index("embed.weight"), 0] > 0).all()
