"""Named parameters -> blocks, and how blocks are chosen."""

from __future__ import annotations

import pytest
import torch

from lightning_traj.blocks import (
    Block,
    block_entries,
    block_groups,
    check_patterns,
    clean_name,
    is_wanted,
    make_block,
    select_blocks,
)

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
    entries = block_entries(weight)
    assert entries.data_ptr() == weight.data_ptr()  # no copy
    assert not entries.requires_grad
    assert block_entries(torch.tensor(2.0)).shape == ()
    for none in (torch.arange(3), torch.ones(2, dtype=torch.bool), torch.ones(0, 3), torch.nn.UninitializedParameter()):
        assert block_entries(none) is None


def test_complex_entries_are_pairs_of_reals():
    tensor = torch.tensor([1 + 2j, 3 - 4j])
    assert block_entries(tensor).tolist() == [[1, 2], [3, -4]]
    assert block_entries(tensor.conj()).tolist() == [[1, -2], [3, 4]]
    assert make_block("w", block_entries(tensor)).numel == 4


def test_a_block_belongs_to_the_module_of_its_parameter():
    assert make_block("h.0.fc.weight", torch.ones(2, 3)) == Block("h.0.fc.weight", "h.0.fc", "other", 6)
    assert make_block("weight", torch.ones(2)).layer == ""


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        (None, [block.name for block in BLOCKS]),
        ("role:q", ["h.0.attn.q.weight", "h.1.attn.q.weight"]),
        ("layer:h.1.norm", ["h.1.norm.weight", "h.1.norm.bias"]),
        ("layer:", ["q"]),
        ("", ["q"]),  # the root module
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


@pytest.mark.parametrize("select", ["role:v", "layer:h.1", "H.*", "role:", lambda block: False])
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
    assert "".join(name for name in "abc" if is_wanted(name, include, exclude)) == wanted


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
    assert groups["role:q"] == [1, 3]
    assert list(groups)[-7:] == [f"block:{block.name}" for block in BLOCKS]
    assert list(groups.values())[-7:] == [[i] for i in range(7)]
