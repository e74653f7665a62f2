"""The running Gram matrix against float64 parameters that are stacked, and its manners as a Metric."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
import torchmetrics
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_traj.gram import inner_products as rows_module
from lightning_traj.gram.exact_gram import ExactGram
from lightning_traj.gram.running_gram import RunningGram
from lightning_traj.gram.sketched_gram import SketchedGram
from lightning_traj.measures.basis import displacement_gram, snapshot_gram

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPES = {"a": (40, 30), "b": (7,), "c": (1,)}
LENGTHS = [1200, 7, 1]
FLOAT32 = 2.0**-24  # the largest relative error of rounding to float32


@pytest.fixture
def rows(walk):
    """Snapshots as rows, one 1-D tensor a block."""

    def make(n, shapes=SHAPES, **settings):
        return [[tensor.flatten() for tensor in snapshot.values()] for snapshot in walk(shapes, n, **settings)]

    return make


def running(rows, **settings):
    gram = RunningGram(**settings)
    for row in rows:
        gram.update(row)
    return gram


def block(rows, b):
    """One block, stacked in float64, with its first value where it was missing."""
    pieces = [row[b].double().numpy() if b < len(row) else None for row in rows]
    first = next(piece for piece in pieces if piece is not None)
    return np.stack([first if piece is None else piece for piece in pieces])


def anchored_of(theta):
    """H by definition."""
    vectors = np.concatenate([theta[:1], theta[1:] - theta[0]])
    return vectors @ vectors.T


def local_of(theta, t):
    now, before, long_before = theta[t], theta[max(t - 1, 0)], theta[max(t - 2, 0)]
    vectors = np.stack([now, now - theta[0], now - before, before - long_before])
    return vectors @ vectors.T


# What it computes


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk", [100, 524_288])
def test_exact_grams_are_those_of_the_stacked_snapshots(rows, dtype, chunk, monkeypatch):
    monkeypatch.setattr(rows_module, "CHUNK", chunk)
    snapshots = rows(8, dtype=dtype)
    gram = running(snapshots, exact=True)
    for b in range(len(LENGTHS)):
        theta = block(snapshots, b)
        np.testing.assert_allclose(gram.compute()[b], theta @ theta.T, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(gram.compute_anchored()[b], anchored_of(theta), rtol=1e-12, atol=1e-12)
        for t, local in enumerate(gram.local):
            np.testing.assert_allclose(local[b], local_of(theta, t), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("at_once", [True, False])
def test_stored_displacements_are_rounded_to_float32_and_no_more(rows, at_once):
    snapshots = rows(8, dtype=torch.float64, size=1e-3)
    gram = RunningGram()
    for row in snapshots:
        gram.update(row)
        if not at_once:
            gram.compute_anchored()
    anchored = gram.compute_anchored().numpy()
    for b in range(len(LENGTHS)):
        theta = block(snapshots, b)
        norms = np.sqrt(anchored_of(theta).diagonal())
        # Both factors of ⟨d_i, d_j⟩ are rounded, and of ⟨θ_0, d_j⟩ the second.
        bound = 2.01 * FLOAT32 * np.outer(norms, norms)
        bound[0] /= 2
        bound[:, 0] /= 2
        bound[0, 0] = 1e-12 * norms[0] ** 2
        assert (np.abs(anchored[b] - anchored_of(theta)) <= bound).all()
        # Of θ itself that is nothing: displacements are small.
        np.testing.assert_allclose(gram.compute()[b], theta @ theta.T, rtol=1e-9)
        for t, local in enumerate(gram.local):
            np.testing.assert_allclose(local[b], local_of(theta, t), rtol=1e-12, atol=1e-18)


def test_it_is_the_same_whether_computed_now_and_then_or_at_the_end(rows):
    snapshots = rows(9)
    gram = RunningGram()
    for t, row in enumerate(snapshots):
        gram.update(row)
        if t % 4 == 3:
            gram.compute()
    torch.testing.assert_close(gram.compute(), running(snapshots).compute(), rtol=1e-13, atol=0)
    assert torch.equal(gram.compute(), gram.compute().mT)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("size", [1e-6, 1e-7])
def test_tiny_updates_keep_their_inner_products(exact, size):
    generator = torch.Generator().manual_seed(0)
    theta = [torch.randn(200_000, generator=generator, dtype=torch.float64)]
    for _ in range(4):
        theta.append(theta[-1] + size * torch.randn(200_000, generator=generator, dtype=torch.float64))
    gram = running([[row] for row in theta], exact=exact)
    now, before = theta[-1] - theta[-2], theta[-2] - theta[-3]
    displacement = theta[-1] - theta[0]
    updates = torch.stack([displacement, now, before]).to(torch.float64)
    np.testing.assert_allclose(gram.local[-1][0, 1:, 1:], updates @ updates.T, rtol=1e-9)
    # Not so from the Gram matrix of the snapshots: the reason why they are kept apart.
    full = gram.compute()[0]
    from_gram = full[-1, -1] - 2 * full[-1, -2] + full[-2, -2]
    assert abs(from_gram / (now @ now) - 1) > 1e-6


def test_changes_of_basis(rows):
    snapshots = rows(6)
    theta = np.concatenate([block(snapshots, b) for b in range(len(LENGTHS))], axis=1)
    anchored = anchored_of(theta)
    np.testing.assert_allclose(snapshot_gram(anchored), theta @ theta.T, rtol=1e-12)
    about_zero = (theta - theta[0]) @ (theta - theta[0]).T
    np.testing.assert_allclose(displacement_gram(anchored), about_zero, rtol=1e-12)
    torch.testing.assert_close(snapshot_gram(torch.from_numpy(anchored)).numpy(), snapshot_gram(anchored))
    stacked = np.stack([anchored, 2 * anchored])
    np.testing.assert_array_equal(snapshot_gram(stacked)[1], 2 * snapshot_gram(anchored))


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("compute_often", [True, False])
def test_late_blocks_count_as_constant_before(rows, exact, compute_often):
    snapshots = rows(7, dtype=torch.float64)
    snapshots = [row[:1] if t < 2 else row[:2] if t < 6 else row for t, row in enumerate(snapshots)]
    gram = RunningGram(exact=exact)
    for row in snapshots:
        gram.update(row)
        if compute_often:
            gram.compute()
    for b in range(3):
        theta = block(snapshots, b)
        np.testing.assert_allclose(gram.compute()[b], theta @ theta.T, rtol=1e-6)
        np.testing.assert_allclose(gram.local[-1][b], local_of(theta, 6), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("compute_before", [True, False])
def test_keep_forgets_the_others_and_nothing_else(rows, exact, compute_before):
    snapshots = rows(9)
    snapshots = [row[:2] if t < 3 else row for t, row in enumerate(snapshots)]
    gram = running(snapshots[:7], exact=exact)
    if compute_before:
        gram.compute()
    gram.keep([0, 2, 3, 6])
    assert len(gram) == 4
    for row in snapshots[7:]:
        gram.update(row)
    expected = running(snapshots, exact=exact)
    at = [0, 2, 3, 6, 7, 8]
    torch.testing.assert_close(gram.compute(), expected.compute()[:, at][:, :, at], rtol=1e-13, atol=1e-13)
    # Updates are those between neighbours, kept or not.
    for kept, t in enumerate(at):
        assert torch.equal(gram.local[kept], expected.local[t])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("compute_before", [True, False])
@pytest.mark.parametrize("on_host", [True, False])
def test_non_finite_rows_are_flagged_and_leave_later_ones_alone(rows, value, compute_before, on_host, monkeypatch):
    if not on_host:  # what is done where nothing may be asked
        monkeypatch.setattr(torch.Tensor, "is_cpu", False)
    snapshots = rows(8)
    spoilt = [row.clone() for row in snapshots[4]]
    spoilt[1][3] = value
    gram = running([*snapshots[:4], spoilt, spoilt])
    if compute_before:
        assert torch.isfinite(gram.compute()).all()
    for row in snapshots[4:]:
        gram.update(row)
    assert torch.stack(gram.finite).tolist() == [True] * 4 + [False] * 2 + [True] * 4
    gram.keep([0, 1, 2, 3, 6, 7, 8, 9])
    expected = running(snapshots)
    torch.testing.assert_close(gram.compute(), expected.compute(), rtol=1e-13, atol=0)
    assert torch.equal(torch.stack(gram.local), torch.stack(expected.local))


def test_rows_may_be_used_again(rows):
    snapshots = rows(6)
    expected = running(snapshots)
    gram, row = RunningGram(), [piece.clone() for piece in snapshots[0]]
    for snapshot in snapshots:
        for piece, value in zip(row, snapshot, strict=True):
            piece.copy_(value)
        gram.update(row)
    assert torch.equal(torch.stack(gram.local), torch.stack(expected.local))
    assert torch.equal(gram.compute(), expected.compute())


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(
    ("lengths", "said"), [([5, 7, 1], r"\[5, 7, 1\]"), ([1200, 7], r"\[1200, 7\]"), ([7, 1200, 1], ""), ([], r"\[\]")]
)
def test_other_blocks_than_before_are_refused(rows, exact, lengths, said):
    gram = running(rows(2), exact=exact)
    message = (
        rf"row has blocks of lengths {said}.*where snapshots so far have \[1200, 7, 1\]: pass one 1-D tensor for each"
    )
    with pytest.raises(ValueError, match=message):
        gram.update([torch.ones(length) for length in lengths])
    assert len(gram) == 2
    assert gram.compute().shape == (3, 2, 2)


# Its manners as a Metric


@pytest.mark.parametrize("exact", [True, False])
def test_the_metric_is_a_shell_around_what_the_recorder_uses(rows, exact):
    snapshots = rows(7)
    metric = RunningGram(exact=exact)
    for _ in range(2):  # the second time after forgetting all
        core = ExactGram() if exact else SketchedGram()
        for t, row in enumerate(snapshots):
            core, before = core.with_row(row), core
            metric.update(row)
            assert len(before) == len(core) - 1
            if t == 4:
                core = core.keep([0, 2, 4])
                metric.keep([0, 2, 4])
        assert len(core) == len(metric) == 5
        assert torch.equal(core.filled().anchored, metric.compute_anchored())
        assert torch.equal(torch.stack(core.local), torch.stack(metric.local))
        metric.reset()
        assert len(metric) == 0


@pytest.mark.parametrize("exact", [True, False])
def test_a_gram_matrix_is_never_changed(rows, exact):
    """Whoever holds one while recording goes on, such as a checkpoint that a signal asks for, has it whole."""
    snapshots = rows(6)
    gram = ExactGram() if exact else SketchedGram()
    for row in snapshots[:4]:
        gram = gram.with_row(row)
    anchored, local = gram.filled().anchored.clone(), torch.stack(gram.local).clone()
    later = gram.with_row(snapshots[4]).with_row([*snapshots[5], torch.ones(3)]).filled().keep([0, 3, 5])
    assert later.filled().anchored.shape == (4, 3, 3)
    assert torch.equal(gram.filled().anchored, anchored)
    assert torch.equal(torch.stack(gram.local), local)


@pytest.mark.parametrize("kind", [SketchedGram, RunningGram])
def test_what_the_storage_keeps_is_not_moved(rows, kind):
    for storage, moved in ((None, "meta"), (torch.device("cpu"), "cpu")):
        gram = kind(storage=storage)
        for row in rows(3):
            gram = gram.update(row) or gram if kind is RunningGram else gram.with_row(row)
        gram = gram.to("meta")
        assert {gram.rows[0].device.type, gram.anchored.device.type} == {moved}
        for state in (gram.base, gram.latest, gram.before, *gram.local, *gram.finite):
            assert state.device.type == "meta"


@pytest.mark.parametrize("exact", [True, False])
def test_it_is_a_metric(rows, exact):
    snapshots = rows(5)
    gram = running(snapshots, exact=exact)
    assert isinstance(gram, torchmetrics.Metric)
    expected = gram.compute()
    for twin in (copy.deepcopy(gram), pickle.loads(pickle.dumps(gram)), gram.clone()):
        assert torch.equal(twin.compute(), expected)
        twin.update(snapshots[0])
        assert twin.compute().shape == (3, 6, 6)
    assert torch.equal(gram.compute(), expected)
    gram.reset()
    assert len(gram) == 0
    for row in snapshots:
        gram.update(row)
    assert torch.equal(gram.compute(), expected)


@pytest.mark.parametrize("exact", [True, False])
def test_calling_it_takes_a_row_in_and_answers(rows, exact):
    snapshots = rows(4)
    gram = RunningGram(exact=exact)
    for n, row in enumerate(snapshots, start=1):
        torch.testing.assert_close(gram(row), running(snapshots[:n], exact=exact).compute(), rtol=1e-13, atol=0)


def test_state_dict_round_trip(rows):
    snapshots = rows(6)
    gram = running(snapshots[:4])
    gram.compute()
    gram.update(snapshots[4])
    state = gram.state_dict()
    twin = RunningGram()
    twin.load_state_dict(state)
    twin.update(snapshots[5])
    gram.update(snapshots[5])
    assert torch.equal(twin.compute(), gram.compute())
    assert torch.equal(torch.stack(twin.local), torch.stack(gram.local))


def test_a_state_dict_has_the_gram_matrix_of_full_snapshots_and_not_these(rows):
    snapshots = rows(6)
    gram, twin = running(snapshots[:5], exact=True), RunningGram(exact=True)
    twin.load_state_dict(gram.state_dict())
    assert torch.equal(twin.compute_anchored(), gram.compute_anchored())
    with pytest.raises(RuntimeError, match="5 snapshots from a state_dict, which does not hold the snapshots"):
        twin.update(snapshots[5])
    twin.keep([0, 2, 4])
    gram.keep([0, 2, 4])
    assert torch.equal(twin.compute_anchored(), gram.compute_anchored())
    twin.reset()
    twin.update(snapshots[0])
    assert len(twin) == 1


def test_one_block_and_one_snapshot():
    gram = running([[torch.tensor([3.0, 4.0])]])
    assert gram.compute_anchored().tolist() == [[[25.0]]]
    assert gram.compute().item() == 25  # torchmetrics makes a scalar of it
    gram.update([torch.tensor([3.0, 5.0])])
    assert gram.compute().tolist() == [[[25, 29], [29, 34]]]


def test_an_empty_one_is_moved_and_kept_as_any_other():
    gram = RunningGram().to("meta")
    assert gram.anchored.device.type == "meta"
    gram.keep([])
    assert len(gram) == 0


# What it costs on a device


class Launches(TorchDispatchMode):
    """Counts what is computed: every operation but views and questions of shape would be a kernel."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("compute_often", [True, False])
def test_an_update_costs_the_same_however_many_snapshots_there_are(rows, compute_often):
    gram = RunningGram()
    counts = []
    for row in rows(30):
        with Launches() as launches:
            gram.update(row)
        counts.append(launches.count)
        if compute_often:
            gram.compute()
    assert len(set(counts[1:])) == 1
    assert counts[1] > 0


def test_nothing_waits_for_the_device(rows):
    """On meta tensors whatever asks for a value raises."""
    snapshots = [[piece.to("meta") for piece in row] for row in rows(6)]
    gram = running(snapshots[:4])
    gram.compute()
    gram.keep([0, 1, 3])
    for row in snapshots[4:]:
        gram.update(row)
    assert gram.compute().shape == (3, 5, 5)
    assert gram.to("meta").compute_anchored().device.type == "meta"
    with pytest.raises((NotImplementedError, RuntimeError)):
        bool(gram.finite[0])  # the check can fail


def test_exact_rows_that_are_not_on_the_host(rows, monkeypatch):
    """On meta tensors: what is kept of the updates has to be where the rows are. Only the last question is a wait."""
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda tensor: True)
    snapshots = [[piece.to("meta") for piece in row] for row in rows(3)]
    gram = running([snapshots[0][:2], *snapshots[1:]], exact=True)
    assert gram.local[-1].device.type == gram.compute().device.type == "meta"
