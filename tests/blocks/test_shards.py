"""Shares of a tensor: where their entries are in the whole one, for all layouts, sizes and cuts."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import lightning_traj.tensors.local_entries
from lightning_traj import CountSketch, FusedLayout
from lightning_traj.recording.snapshot_files import ScatteredTensor
from lightning_traj.sketch.protocol import SketchInput
from lightning_traj.tensors import IndexRegion, LocalEntries, overlaps, whole

QKV = FusedLayout({"q": 2, "k": 1, "v": 1}, groups=2, axis=1)


def runs_of(indices: list[int]) -> tuple[tuple[int, int, int], ...]:
    """The same indices as runs, the local tensor having them in this order: each run a single entry long."""
    return tuple((local, index, 1) for local, index in enumerate(indices))


@st.composite
def shared_tensors(draw: Any) -> tuple[Tensor, list[LocalEntries]]:
    """A tensor whose entries are their own positions, cut into parts along all of its dimensions."""
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)))
    tensor = torch.arange(int(np.prod(shape))).view(shape)
    parts = [LocalEntries(tensor, whole(shape))]
    for dim, size in enumerate(shape):
        owners = draw(st.lists(st.integers(0, 2), min_size=size, max_size=size))
        groups = [[i for i in range(size) if owners[i] == owner] for owner in range(3)]
        parts = [
            LocalEntries(
                held.tensor.index_select(dim, torch.tensor(group, dtype=torch.int64)),
                IndexRegion(held.share.shape, (*held.share.runs[:dim], runs_of(group), *held.share.runs[dim + 1 :])),
            )
            for held in parts
            for group in groups
        ]
    return tensor, parts


def gathered(parts: list[LocalEntries], numel: int) -> list[int]:
    """What is at each position, as the stretches of all parts say: each entry is one more than its position."""
    found = torch.zeros(numel, dtype=torch.int64)
    for held in parts:
        for tensor, start, index in held.stretches():
            at = torch.arange(start, start + tensor.numel()) if index is None else index.reshape(-1)
            found.index_add_(0, at, tensor.reshape(-1))
    return found.tolist()


@settings(deadline=None, max_examples=80)
@given(shared_tensors(), st.sampled_from([1, 4, 10**6]), st.sampled_from([1, 2, 100]), st.sampled_from([4, 10**6]))
def test_stretches_say_where_entries_are(
    case: tuple[Tensor, list[LocalEntries]], long: int, gaps: int, at_once: int
) -> None:
    """One by one, with the gaps between them filled, or by an index."""
    tensor, parts = case
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("LONG", long), ("GAPS", gaps), ("AT_ONCE", at_once)):
            patch.setattr(lightning_traj.tensors.local_entries, name, value)
        found = gathered([LocalEntries(held.tensor + 1, held.share) for held in parts], tensor.numel())
    assert found == [*range(1, tensor.numel() + 1)]


@settings(deadline=None, max_examples=40)
@given(shared_tensors(), st.lists(st.integers(0, 100), max_size=3))
def test_cuts_fit_together(case: tuple[Tensor, list[LocalEntries]], places: list[int]) -> None:
    tensor, parts = case
    pieces = []
    for held in parts:
        cuts = [0, *sorted(min(place, held.share.numel) for place in places), held.share.numel]
        pieces += [LocalEntries(held.tensor + 1, held.share.between(first, last)) for first, last in pairwise(cuts)]
    assert gathered(pieces, tensor.numel()) == [*range(1, tensor.numel() + 1)]


@settings(deadline=None, max_examples=40)
@given(shared_tensors(), shared_tensors(), st.integers(0, 10))
def test_entries_are_found_wherever_they_were(first: Any, second: Any, chosen: int) -> None:
    """Of a block of two tensors: a part of one is wanted, all of which one holder has, and the other, divided."""
    wanted, other = first[1][chosen % len(first[1])], LocalEntries(second[0] + 1000, whole(second[0].shape))
    everything = LocalEntries(first[0], whole(first[0].shape))
    nothing_of_first, nothing_of_second = (IndexRegion(held.share.shape, ((),)) for held in (everything, other))
    holders = [(everything.flat(), [everything.share, nothing_of_second])]
    holders += [(held.flat() + 1000, [nothing_of_first, held.share]) for held in second[1]]
    found = np.full(wanted.share.numel + second[0].numel(), -1)
    for file, shares in holders:
        for start, begin, length in overlaps([wanted.share, other.share], shares).tolist():
            assert (found[start : start + length] == -1).all()  # nobody else has it
            found[start : start + length] = file[begin : begin + length]
    assert found.tolist() == [*wanted.flat().tolist(), *other.flat().tolist()]


def test_parts_of_fused_tensors() -> None:
    whole_tensor = torch.arange(3 * 16 * 2).view(3, 16, 2)
    for role in QKV.parts:
        expected = QKV.part(whole_tensor, role).reshape(-1)
        for first, last in ((0, 16), (3, 9), (5, 6), (15, 16)):  # cut within heads and parts
            local = whole_tensor[:, first:last]
            share = IndexRegion((3, 16, 2), (((0, 0, 3),), ((0, first, last - first),), ((0, 0, 2),)))
            held = LocalEntries(local, share.of_part(QKV.axis, *QKV.interval(16, role)))
            found = torch.tensor(gathered([held], len(expected)))
            assert set(found.tolist()) - {0} == set(expected.tolist()) & set(local.reshape(-1).tolist()) - {0}
            assert torch.equal(found[found > 0], expected[found > 0])
            assert held.share.numel == sum(int(x in expected) for x in local.reshape(-1))


@pytest.mark.parametrize("shape", [(30, 4, 700), (3, 70_000), (90_000, 40)])
def test_shards_sketch_to_the_whole(shape: tuple[int, ...]) -> None:
    """Sizes at which stretches are long, short with short gaps, and short with long ones."""
    sketch, tensor = CountSketch(64), torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for dim in range(len(shape)):
        total = torch.zeros(64, dtype=torch.float64)
        for first, last in pairwise([0, 1, shape[dim] // 3, shape[dim] // 3, shape[dim]]):
            runs = [((0, 0, size),) for size in shape]
            runs[dim] = ((0, first, last - first),) if first < last else ()
            held = LocalEntries(tensor.narrow(dim, first, last - first), IndexRegion(shape, tuple(runs)))
            total += sketch.of_blocks([SketchInput("w", tensor.numel(), tensor.device, held.stretches())])
        torch.testing.assert_close(total, sketch(tensor, "w"), rtol=1e-10, atol=1e-10)


def test_pieces_of_several_files_are_read_as_one_tensor() -> None:
    sources = [torch.arange(10.0), torch.arange(100.0, 110.0)]
    spread = ScatteredTensor(np.array([[0, 1, 2, 3], [3, 0, 5, 1], [4, 1, 0, 2]]), sources)
    expected = torch.tensor([102.0, 103, 104, 5, 100, 101])
    assert spread.numel() == 6
    for first in range(7):
        for last in range(8):
            assert torch.equal(spread[first:last], expected[first:last])
