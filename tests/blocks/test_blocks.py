"""Named parameters -> blocks, and how blocks are chosen."""

from __future__ import annotations

import pytest
import torch

from lightning_traj.blocks import (
    Block,
    attention_layers,
    block_groups,
    clean_name,
    group_blocks,
    select_blocks,
)
from lightning_traj.blocks.grouping import block_units
from lightning_traj.blocks.selection import check_patterns, is_wanted
from lightning_traj.tensors import has_entries, real_entries

BLOCKS = [
    Block("embed.weight", "embed", "other", 50),
    Block("h.0.attn.q.weight", "h.0.attn.q", "q", 10),
    Block("h.0.attn.k.weight", "h.0.attn.k", "k", 10),
    Block("h.1.attn.q.weight", "h.1.attn.q", "q", 10),
    Block("h.1.norm.weight", "h.1.norm", "norm", 3),
    Block("h.1.norm.bias", "h.1.norm", "norm", 3),
    Block("q", "", "other", 1),
]


def names(select):
    return [BLOCKS[i].name for i in select_blocks(BLOCKS, select)]


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("fc.weight", "fc.weight"),
        ("_orig_mod.fc.weight", "fc.weight"),
        ("model._orig_mod.h.0._orig_mod.weight", "model.h.0.weight"),
        ("my_orig_mod.weight", "my_orig_mod.weight"),
    ],
)
def test_names_are_free_of_wrappers(name, clean):
    assert clean_name(name) == clean


def test_entries_of_a_parameter():
    weight = torch.nn.Parameter(torch.ones(2, 3, dtype=torch.bfloat16))
    entries = real_entries(weight)
    assert entries.data_ptr() == weight.data_ptr()  # no copy
    assert not entries.requires_grad
    assert real_entries(torch.tensor(2.0)).shape == ()
    assert has_entries(weight)
    for none in (torch.arange(3), torch.ones(2, dtype=torch.bool), torch.ones(0, 3), torch.nn.UninitializedParameter()):
        assert not has_entries(none)


def test_complex_entries_are_pairs_of_reals():
    tensor = torch.tensor([1 + 2j, 3 - 4j])
    assert real_entries(tensor).tolist() == [[1, 2], [3, -4]]
    assert real_entries(tensor.conj()).tolist() == [[1, -2], [3, 4]]


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        (None, [block.name for block in BLOCKS]),
        ("role:q", ["h.0.attn.q.weight", "h.1.attn.q.weight"]),
        ("layer:h.1.norm", ["h.1.norm.weight", "h.1.norm.bias"]),
        ("layer:h.1", ["h.1.attn.q.weight", "h.1.norm.weight", "h.1.norm.bias"]),  # all that is in it
        ("h.1.attn", ["h.1.attn.q.weight"]),
        ("layer:", ["q"]),
        ("", ["q"]),  # the root module
        ("h.*.weight", ["h.0.attn.q.weight", "h.0.attn.k.weight", "h.1.attn.q.weight", "h.1.norm.weight"]),
        ("h.1.*", ["h.1.attn.q.weight", "h.1.norm.weight", "h.1.norm.bias"]),
        ("*.[qk].weight", ["h.0.attn.q.weight", "h.0.attn.k.weight", "h.1.attn.q.weight"]),
        ("q", ["h.0.attn.q.weight", "h.1.attn.q.weight"]),  # a role, before the block of that name
        ("h.1.norm", ["h.1.norm.weight", "h.1.norm.bias"]),  # a layer
        ("embed.weight", ["embed.weight"]),
        (lambda block: block.numel < 5, ["h.1.norm.weight", "h.1.norm.bias", "q"]),
    ],
)
def test_select(select, expected):
    assert names(select) == expected


@pytest.mark.parametrize("select", ["role:v", "layer:h.11", "layer:h.1.nor", "H.*", "role:", lambda block: False])
def test_selecting_nothing_lists_what_there_is(select):
    with pytest.raises(ValueError, match="matches none of 7 blocks; roles: 'other', 'q', 'k', 'norm'; layers: 'embed'"):
        names(select)


@pytest.mark.parametrize("select", [3, ["q"], b"q"])
def test_other_types_are_refused(select):
    with pytest.raises(TypeError, match=r'select=.*pass "role:…", "layer:…", a glob over block names, or a predicate'):
        names(select)


def test_long_listings_are_cut():
    many = [Block(f"w{i}", "", "other", 1) for i in range(30)]
    with pytest.raises(ValueError, match=r"names: 'w0', .*'w11', … \(30 in all\)$"):
        select_blocks(many, "v")


@pytest.mark.parametrize(
    ("include", "exclude", "wanted"),
    [
        (None, None, "abc"),
        ("[ab]", None, "ab"),
        (["a", "c"], None, "ac"),
        (None, "a", "bc"),
        (None, ("a", "c"), "b"),
        ("[ab]", "b", "a"),
        ([], None, ""),
    ],
)
def test_include_and_exclude(include, exclude, wanted):
    assert "".join(name for name in "abc" if is_wanted({name}, include, exclude)) == wanted


def test_a_part_is_wanted_by_its_own_name_or_that_of_its_parameter():
    names = {"attn.weight:q", "attn.weight"}
    assert is_wanted(names, "*.weight", None)
    assert is_wanted(names, "*:q", None)
    assert not is_wanted(names, "*:k", None)
    assert not is_wanted(names, "*.weight", "*:q")
    assert not is_wanted(names, None, "attn.*t")


def test_a_pattern_that_matches_nothing_is_named():
    check_patterns("include", None, ["a"])
    check_patterns("include", ["a", "*"], ["a", "b"])
    with pytest.raises(
        ValueError, match=r"exclude=\['a', 'x\*'\]: 'x\*' matches none of the parameters; names: 'a', 'b'$"
    ):
        check_patterns("exclude", ["a", "x*"], ["a", "b"])


def test_groups_end_with_the_single_blocks():
    groups = block_groups(BLOCKS)
    assert groups["all"] == list(range(7))
    assert groups["layer:h.1.norm"] == [4, 5]
    assert groups["layer:h.1"] == [3, 4, 5]
    assert groups["layer:h"] == [1, 2, 3, 4, 5]
    assert groups["layer:"] == [6]
    assert groups["role:q"] == [1, 3]
    assert list(groups)[-7:] == [f"block:{block.name}" for block in BLOCKS]
    assert list(groups.values())[-7:] == [[i] for i in range(7)]


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("role", {"other": [0, 6], "q": [1, 3], "k": [2], "norm": [4, 5]}),
        ("depth", {"embed": [0], "h.0": [1, 2], "h.1": [3, 4, 5], "": [6]}),
        (
            "depth x role",
            {"embed other": [0], "h.0 q": [1], "h.0 k": [2], "h.1 q": [3], "h.1 norm": [4, 5], " other": [6]},
        ),
        ("block", {block.name: [i] for i, block in enumerate(BLOCKS)}),
    ],
)
def test_grouping(by, expected):
    assert group_blocks(BLOCKS, by, range(7)) == expected
    assert list(group_blocks(BLOCKS, by, range(7))) == list(expected)  # in the order of the model


def test_grouping_some_blocks_names_them_as_grouping_all():
    assert group_blocks(BLOCKS, "depth", [1, 3]) == {"h.0": [1], "h.1": [3]}


def test_every_grouping_is_a_partition():
    for by in ("layer", "role", "layer x role", "depth", "depth x role", "block"):
        assert sorted(i for members in group_blocks(BLOCKS, by, range(7)).values() for i in members) == list(range(7))


def test_an_unknown_grouping_is_refused():
    with pytest.raises(ValueError, match="by='colour': pass one of 'layer', 'role', 'layer x role', 'depth'"):
        group_blocks(BLOCKS, "colour", range(7))


def layers(*names):
    return [Block(f"{name}.weight", name, "other", 1) for name in names]


@pytest.mark.parametrize(
    ("names", "units"),
    [
        (["wte", "h.0.ln_1", "h.0.attn.q", "h.11.ln_1", "h.11.fc", "f"], ["wte", "h.0", "h.0", "h.11", "h.11", "f"]),
        # a stage is a container of numbered blocks, and no unit
        (["conv", "s.0.0.conv1", "s.0.0.bn", "s.0.1.conv1", "s.0.1.bn"], ["conv", "s.0.0", "s.0.0", "s.0.1", "s.0.1"]),
        (["layer1.0.conv1", "layer1.0.conv2", "layer1.1.conv1", "layer1.1.bn"], ["layer1.0"] * 2 + ["layer1.1"] * 2),
        # the outermost: experts and inner sequences are within their layer
        ([f"l.{i}.{x}" for i in (0, 1) for x in ("attn", "experts.0.w", "experts.1.w")], ["l.0"] * 3 + ["l.1"] * 3),
        ([f"blocks.{i}.{x}" for i in (0, 1) for x in ("norm", "mlp.0", "mlp.2")], ["blocks.0"] * 3 + ["blocks.1"] * 3),
        # a place in a sequence is no depth, what repeats within is
        (["0", "1.l.0.q", "1.l.0.k", "1.l.1.q", "1.l.1.k", "2"], ["0", "1.l.0", "1.l.0", "1.l.1", "1.l.1", "2"]),
        # the only one of its kind
        (["wte", "h.0.q", "h.0.k"], ["wte", "h.0", "h.0"]),
        # parts of a block that are numbered, and not alike
        (
            [f"b.{i}.{x}" for i in (0, 1) for x in ("l.0.sa.q", "l.0.sa.k", "l.0.n", "l.1.ff.i", "l.1.ff.o", "l.1.n")],
            ["b.0"] * 6 + ["b.1"] * 6,
        ),
        # stages of blocks that begin with something else
        (
            [f"s.{i}.{x}" for i in (0, 1) for x in ("pool", "b.0.conv", "b.0.bn", "b.1.conv", "b.1.bn")],
            [f"s.{i}{x}" for i in (0, 1) for x in ("", ".b.0", ".b.0", ".b.1", ".b.1")],
        ),
        # layers that are numbered themselves
        (["net.0", "net.2", "net.4"], ["net.0", "net.2", "net.4"]),
        (["fc1", "fc2"], ["fc1", "fc2"]),
        (["e.layer_0.ln", "e.layer_0.mlp.0", "e.layer_1.ln", "e.layer_1.mlp.0"], ["e.layer_0"] * 2 + ["e.layer_1"] * 2),
    ],
)  # fmt: skip
def test_units_of_depth(names, units):
    assert block_units(layers(*names)) == units


def test_attention_is_fused_or_side_by_side():
    def of(*owners):
        return [Block(f"{layer}.weight:{role}", layer, role, 1) for layer, role in owners]

    fused = of(("h.0.attn.c_attn", "q"), ("h.0.attn.c_attn", "k"), ("h.0.attn.c_attn", "v"))
    assert attention_layers(fused) == {"h.0.attn.c_attn": {"q": [0], "k": [1], "v": [2]}}
    separate = of(
        ("l.0.attn.q", "q"), ("l.0.attn.k", "k"), ("l.0.attn.v", "v"), ("l.0.cross.q", "q"), ("l.0.mlp", "mlp_in")
    )
    assert attention_layers(separate) == {"l.0.attn": {"q": [0], "k": [1], "v": [2]}}  # cross has no k and v
    assert attention_layers(BLOCKS) == {}


def test_a_part_is_selected_by_the_name_of_its_parameter_too():
    parts = [Block(f"attn.weight:{role}", "attn", role, 1) for role in "qkv"] + [
        Block("attn.bias:q", "attn", "bias", 1)
    ]
    assert select_blocks(parts, "*.weight") == [0, 1, 2]
    assert select_blocks(parts, "attn.weight") == [0, 1, 2]
    assert select_blocks(parts, "*.weight:q") == [0]
    assert select_blocks(parts, "*:q") == [0, 3]


def test_names_with_brackets_match_themselves():
    assert is_wanted({"w[0].weight"}, "w[0].weight", None)
    assert select_blocks([Block("w[0]", "", "other", 1)], "w[0]") == [0]


def test_close_names_are_told():
    names = [f"h.{i}.mlp.weight" for i in range(20)] + ["h.3.attn.qkv.weight"]
    with pytest.raises(ValueError, match=r"close to it: 'h\.3\.attn\.qkv\.weight'"):
        check_patterns("fused", ["*.attn.qvk.weight"], names)
