"""The contract that every sketch of the registry keeps (see ``Sketch``), whatever it does inside."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_traj.measures.errors import Gradient, standard_error
from lightning_traj.sketch import SKETCHES, CountSketch, Sketch, SketchInput

pytestmark = pytest.mark.usefixtures("one_thread")

DIM = 64
NUMELS = [1, DIM - 1, DIM, DIM + 1, 1000, 300_000]
SEEDS = 200


@pytest.fixture(params=SKETCHES)
def make(request):
    return SKETCHES[request.param]


def gaussian(numel: int, seed: int = 0) -> Tensor:
    return torch.randn(numel, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def given(tensor: Tensor, name: str = "w", *, start: int = 0, numel: int | None = None) -> SketchInput:
    return SketchInput(name, tensor.numel() if numel is None else numel, tensor.device, [(tensor, start, None)])


def sketched(sketch: Sketch, tensor: Tensor, name: str = "w") -> Tensor:
    return sketch.of_blocks([given(tensor, name)])


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10 * float(expected.norm()) + 1e-300)


def test_it_has_the_members_of_a_sketch(make):
    sketch = make(DIM, 3)
    assert isinstance(sketch, Sketch)
    assert (sketch.dim, sketch.seed) == (DIM, 3)


@pytest.mark.parametrize("numel", NUMELS)
def test_it_is_linear(make, numel):
    sketch, a, b = make(DIM, 3), gaussian(numel), gaussian(numel, seed=1)
    same(sketched(sketch, 2 * a - 3 * b), 2 * sketched(sketch, a) - 3 * sketched(sketch, b))
    assert not sketched(sketch, torch.zeros(numel)).any()


@pytest.mark.parametrize("numel", NUMELS)
def test_it_depends_on_its_settings_and_the_block_alone(make, numel):
    a, sketch = gaussian(numel), make(DIM, 3)
    first = sketched(sketch, a)
    sketched(sketch, gaussian(5000), "other")  # other work in between changes nothing
    assert torch.equal(first, sketched(sketch, a))
    assert torch.equal(first, sketched(make(DIM, 3), a))
    if numel > DIM + 1:
        assert not torch.equal(first, sketched(make(DIM, 4), a))
        assert not torch.equal(first, sketched(sketch, a, "other"))


@pytest.mark.parametrize("numel", NUMELS)
def test_lengths_are_as_announced(make, numel):
    sketch = make(DIM, 3)
    found = sketched(sketch, gaussian(numel))
    assert (found.shape, found.dtype) == ((sketch.length(numel),), torch.float64)
    assert sketch.length(numel) == (numel if numel <= DIM else DIM)


@pytest.mark.parametrize("numel", [numel for numel in NUMELS if numel <= DIM])
def test_short_blocks_are_kept_whole(make, numel):
    a = gaussian(numel)
    assert torch.equal(sketched(make(DIM, 3), a), a)


def test_several_blocks_are_sketched_as_one_by_one(make):
    sketch, tensors = make(DIM, 3), [gaussian(numel, seed=numel) for numel in (*NUMELS, *reversed(NUMELS))]
    together = sketch.of_blocks([given(tensor, f"b{i}") for i, tensor in enumerate(tensors)])
    alone = [sketched(make(DIM, 3), tensor, f"b{i}") for i, tensor in enumerate(tensors)]
    assert torch.equal(together, torch.cat(alone))
    assert sketch.of_blocks([]).shape == (0,)


@pytest.mark.parametrize("numel", NUMELS)
def test_sketches_of_shares_add_up(make, numel):
    sketch, a = make(DIM, 3), gaussian(numel)
    cut = numel // 3
    parts = [given(a[:cut], numel=numel), given(a[cut:], start=cut, numel=numel), given(a[:0], numel=numel)]
    same(sum(sketch.of_blocks([part]) for part in parts), sketched(sketch, a))  # type: ignore[arg-type]
    together = SketchInput("w", numel, a.device, [(a[:cut], 0, None), (a[cut:], cut, None)])
    same(sketch.of_blocks([together]), sketched(sketch, a))
    nothing = SketchInput("w", numel, a.device, [])
    assert not sketch.of_blocks([nothing]).any()


@pytest.mark.parametrize("numel", NUMELS)
def test_entries_may_come_by_index(make, numel):
    sketch, a = make(DIM, 3), gaussian(numel)
    order = torch.randperm(numel, generator=torch.Generator().manual_seed(0))
    same(sketch.of_blocks([SketchInput("w", numel, a.device, [(a[order], 0, order)])]), sketched(sketch, a))


def deviations(make) -> tuple[np.ndarray, float]:
    """Errors of ⟨Sa, Sb⟩ over seeds, and the standard error that the measures state for them."""
    a = gaussian(5000)
    b = 0.6 * a + 0.8 * gaussian(5000, seed=1)
    gram = np.array([[float(x @ y) for y in (a, b)] for x in (a, b)])
    # ⟨a, b⟩ = (‖a + b‖² − ‖a − b‖²) / 4
    product = Gradient(np.zeros(2), np.array([[1.0, 1.0], [1.0, -1.0]]), np.array([0.25, -0.25]))
    errors = np.empty(SEEDS)
    for seed in range(SEEDS):
        sketch = make(DIM, seed)
        errors[seed] = float(sketched(sketch, a) @ sketched(sketch, b)) - gram[0, 1]
    return errors, standard_error(product, gram[None], DIM)


def check_errors(make) -> None:
    errors, stated = deviations(make)
    assert abs(errors.mean()) < 4.5 * stated / math.sqrt(SEEDS)
    assert errors.std() < stated * (1 + 4 / math.sqrt(2 * SEEDS))


def test_inner_products_are_unbiased_with_at_most_the_stated_error(make):
    check_errors(make)


class Biased(CountSketch):
    def of_blocks(self, blocks):
        return 1.1 * super().of_blocks(blocks)


class Noisy(CountSketch):
    """Half as long as it says."""

    def of_blocks(self, blocks):
        return CountSketch(self.dim // 2, self.seed).of_blocks(blocks)


@pytest.mark.parametrize("wrong", [Biased, Noisy])
def test_a_wrong_sketch_fails(wrong):
    with pytest.raises(AssertionError):
        check_errors(wrong)
