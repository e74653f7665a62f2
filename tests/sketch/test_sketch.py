"""The sketch is linear, repeatable, the same for any dtype, layout and sharding; and its statistics over seeds."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from lightning_traj.sketch import countsketch as sketch_module
from lightning_traj.sketch.countsketch import CHUNK, CountSketch
from lightning_traj.sketch.hashing import SIGNS, random_signs, random_words
from lightning_traj.sketch.protocol import SketchInput

pytestmark = pytest.mark.usefixtures("one_thread")

DIM = 512
LONG = CHUNK + 50_001  # two chunks of many rows, the last one short

# Entries of a block: kept whole, up to exactly dim; two rows; several and many rows; two chunks.
NUMELS = [1, 100, DIM, DIM + 1, 4096, 40_001, LONG]


@pytest.fixture(scope="module")
def sketch():
    return CountSketch(DIM, seed=5)


def gaussian(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def same(a, b):
    """Equal up to the rounding of float64 sums."""
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11 * float(b.norm()))


# Contract


@pytest.mark.parametrize("numel", NUMELS)
def test_it_is_linear(sketch, numel):
    a, b = gaussian(numel), gaussian(numel, seed=1)
    same(sketch(2 * a - 3 * b, "w"), 2 * sketch(a, "w") - 3 * sketch(b, "w"))
    assert not sketch(torch.zeros(numel), "w").any()


@pytest.mark.parametrize("numel", NUMELS)
def test_it_is_repeatable_bit_for_bit(sketch, numel):
    a = gaussian(numel)
    first = sketch(a, "w")
    CountSketch(64, seed=1)(a, "v")  # what is done in between doesn't matter
    sketch(gaussian(LONG), "w")
    assert torch.equal(first, sketch(a, "w"))
    assert torch.equal(first, CountSketch(DIM, seed=5)(a, "w"))
    assert first.dtype == torch.float64
    assert first.shape == (min(DIM, numel),)


@pytest.mark.parametrize("dim", [1, 100, DIM, 5000])
def test_several_blocks_are_sketched_as_one_by_one_to_the_last_bit(dim):
    """They use the same memory in turn: nothing of one is left in the next."""
    sketch, device = CountSketch(dim), torch.device("cpu")
    numels = [NUMELS[i % len(NUMELS)] for i in range(5 * len(NUMELS))]
    tensors = [gaussian(numel, seed=i) for i, numel in enumerate(numels)]
    given = [
        SketchInput(f"b{i}", numel, device, [(tensor[: numel // 2], 0, None), (tensor[numel // 2 :], numel // 2, None)])
        for i, (numel, tensor) in enumerate(zip(numels, tensors, strict=True))
    ]
    found = torch.split(sketch.of_blocks(given), [min(dim, numel) for numel in numels])
    for of_block, one, tensor in zip(found, given, tensors, strict=True):
        assert torch.equal(of_block, CountSketch(dim).of_blocks([one]))
        same(of_block, sketch(tensor, one.name))
    assert sketch.of_blocks([]).tolist() == []


def by_definition(a, name, dim, seed):
    """Entry by entry, from the definition and the random numbers."""
    numel, chunk = len(a), max(CHUNK, 8 * dim)
    primes = [n for n in range(13 * dim // 8 + 1, 31 * dim // 16 + 1) if all(n % d for d in range(2, n))]
    first, second = (int(word) for word in random_words(seed, f"block:{name}", 2))
    m = primes[::-1][first % len(primes)]
    size, span = chunk // m * m, (SIGNS - 1) * chunk // m * m
    step = 1 + second % (span - 1)
    step += step % m == 0
    i = np.arange(numel)
    position = (i // size + 1) * step % span + i % size
    signs = random_signs(seed, "entries", SIGNS * chunk)[position] * random_signs(seed, f"chunks:{name}", 99)[i // size]
    place = np.argsort(np.argsort(random_words(seed, "permutation", dim)))  # of a bucket of the second half
    bucket = np.where(i % m < dim, i % m, place[i % m - dim])
    return np.bincount(bucket, a * signs, minlength=dim)


@pytest.mark.parametrize("numel", [numel for numel in NUMELS if numel > DIM] + [3 * CHUNK])
@pytest.mark.parametrize("dim", [DIM, 100])
def test_it_is_what_its_definition_says(dim, numel):
    a = gaussian(numel)
    same(CountSketch(dim, seed=7)(a, "w"), torch.from_numpy(by_definition(a.numpy(), "w", dim, 7)))


def test_contiguous_entries_and_others_by_index_in_one_block(sketch):
    a = gaussian(LONG)
    order = torch.arange(1000, LONG).flip(0)
    given = SketchInput("w", LONG, a.device, [(a[:1000], 0, None), (a[order], 0, order), (a[:0], 5, None)])
    same(sketch.of_blocks([given]), sketch(a, "w"))


def test_what_fails_midway_leaves_nothing_behind(sketch):
    def stretches():
        yield gaussian(4000), 0, None
        raise OSError("the other half")

    with pytest.raises(OSError, match="the other half"):
        sketch.of_blocks([SketchInput("v", 8000, torch.device("cpu"), stretches())])
    a = gaussian(4000)
    assert torch.equal(sketch(a, "w"), CountSketch(DIM, seed=5)(a, "w"))
    assert not sketch(torch.zeros(0), "w", numel=4000).any()


def test_seeds_and_the_names_of_long_blocks_make_other_sketches():
    a, short = gaussian(LONG), gaussian(4000)
    sketch = CountSketch(DIM)
    assert torch.equal(sketch(a, "w"), CountSketch(DIM, seed=0)(a, "w"))
    assert not torch.equal(sketch(a, "w"), sketch(a, "v"))
    assert not torch.equal(sketch(a, "w"), CountSketch(DIM, seed=1)(a, "w"))
    assert not torch.equal(sketch(short, "w"), CountSketch(DIM, seed=1)(short, "w"))


@pytest.mark.parametrize("numel", [1, 100, DIM])
def test_short_blocks_are_kept_whole(sketch, numel):
    a = gaussian(numel, dtype=torch.float32)
    assert torch.equal(sketch(a, "w"), a.double())


# The hash is part of the file format: sketches of a release have to be comparable with those of any later one and
# of any platform. These are integers, exact in float64; from the first release on a change of them is a new format.
GOLDEN = {
    (4, 0, 70_000): [-315.0, -3965.0, -74.0, -7323.0],
    (4, 123, 70_000): [1530.0, 467.0, 1050.0, 2010.0],
    (4, 0, 300_000): [3909.0, -18306.0, 3562.0, -6786.0],
    (4, 0, 1000): [-447.0, -875.0, -97.0, 478.0],
    (3, 0, 200_000): [7852.0, -7232.0, 3480.0],
    (5000, 2**40, 200_000): [-175.0, 71.0, 79.0, -31.0],
}


@pytest.mark.parametrize(("dim", "seed", "numel"), GOLDEN)
def test_the_hash_never_changes(dim, seed, numel):
    ramp = torch.arange(numel) % 101 - 50
    assert CountSketch(dim, seed)(ramp, "encoder.größe")[:4].tolist() == GOLDEN[dim, seed, numel]


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("numel", NUMELS)
def test_every_dtype_is_sketched_in_float64(sketch, dtype, numel):
    a = gaussian(numel, dtype=dtype)
    assert torch.equal(sketch(a, "w"), sketch(a.double(), "w"))


LAYOUTS = {
    "transposed": lambda: gaussian(700, 300).T,
    "long rows transposed": lambda: gaussian(70_000, 3).T,
    "strided": lambda: gaussian(2 * LONG)[::2],
    "columns": lambda: gaussian(300, 900)[:, 100:800],
    "channels last": lambda: gaussian(64, 40, 9, 9).to(memory_format=torch.channels_last),
    "small channels last": lambda: gaussian(8, 4, 3, 3).to(memory_format=torch.channels_last),
    "expanded": lambda: gaussian(600, 1).expand(600, 400),
    "permuted 3-D": lambda: gaussian(50, 70, 60).permute(2, 0, 1),
    "permuted, few and large slices": lambda: gaussian(100_000, 2, 2).permute(1, 2, 0),
    "requires grad": lambda: gaussian(500, 300).requires_grad_(),
    "in float32": lambda: gaussian(700, 300, dtype=torch.float32).T,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_taken_in_c_order(sketch, layout):
    a = LAYOUTS[layout]()
    result = sketch(a, "w")
    same(result, sketch(a.detach().contiguous().flatten(), "w"))
    assert not result.requires_grad


def test_scalars_and_empty_tensors(sketch):
    assert sketch(torch.tensor(3.5), "w").tolist() == [3.5]
    assert sketch(torch.zeros(0, 4), "w").shape == (0,)
    integers = torch.arange(1000) - 500
    same(sketch(integers, "w"), sketch(integers.double(), "w"))


@pytest.mark.parametrize("dim", [1, 3, 100, 1000, 2048, 5000, 70_000])
def test_dimensions_need_not_be_powers_of_two(dim):
    sketch = CountSketch(dim)
    assert sketch.chunk >= 4 * 2 * dim  # four rows at least
    for numel in (dim, dim + 1, 3 * dim + 7, sketch.chunk + 5):
        a, b = gaussian(numel), gaussian(numel, seed=1)
        result = sketch(a, "w")
        assert result.shape == (dim,)
        same(sketch(a + b, "w"), result + sketch(b, "w"))
    # Long enough for the norm to be about right: within five standard errors, √(2/k) each.
    if dim >= 100:
        assert float(result @ result / (a @ a)) == pytest.approx(1, abs=5 * math.sqrt(2 / dim))


# Shards


@pytest.mark.parametrize("numel", NUMELS)
@pytest.mark.parametrize("shards", [1, 2, 3, 7])
def test_uneven_and_empty_shards_add_up_to_the_whole(sketch, numel, shards):
    a = gaussian(numel, dtype=torch.float32)
    cuts = sorted({0, numel} | set(np.random.default_rng(shards).integers(0, numel + 1, shards - 1).tolist()))
    cuts += [numel]  # and one that holds nothing
    total = sum(sketch(a[i:j], "w", i, numel) for i, j in pairwise(cuts))
    same(total, sketch(a, "w"))


@pytest.mark.parametrize("shape", [(20, 30), (150, 80), (300, 700), (50, 60, 70)])
def test_shards_along_any_dimension_by_index_add_up_to_the_whole(sketch, shape):
    a = gaussian(*shape, dtype=torch.float32)
    positions = torch.arange(a.numel()).view(shape)
    for dim, size in enumerate(shape):
        cuts = [0, size // 3, size // 3, size - 1, size]  # uneven, and one of them empty
        total = sum(
            sketch(a.narrow(dim, i, j - i), "w", numel=a.numel(), index=positions.narrow(dim, i, j - i))
            for i, j in pairwise(cuts)
        )
        same(total, sketch(a, "w"))


def test_entries_by_index_may_come_in_any_order_and_twice(sketch):
    a = gaussian(LONG)
    order = torch.randperm(LONG, generator=torch.Generator().manual_seed(0))
    same(sketch(a[order], "w", index=order), sketch(a, "w"))
    twice = sketch(torch.cat([a, a]), "w", numel=LONG, index=torch.arange(LONG).repeat(2))
    same(twice, 2 * sketch(a, "w"))


def test_nothing_is_copied_to_the_device_time_and_again(sketch, monkeypatch):
    """Signs of chunks go there once: such a copy waits for the device."""
    a, index = gaussian(LONG), torch.arange(LONG)
    first = sketch(a, "w", index=index)
    monkeypatch.setattr(torch, "tensor", None)
    assert torch.equal(sketch(a, "w", index=index), first)


# Statistics over seeds

SEEDS = 200
SIZES = {"short": (256, CHUNK), "usual": (2048, CHUNK), "many chunks": (512, 8192)}  # dimension and chunk
SHAPES = {"few rows": (70, 80), "many rows": (600, 400)}


def of_low_rank(shape, rng):
    rows, columns = shape
    return rng.standard_normal((rows, 2)) @ rng.standard_normal((2, columns))


def sparse(shape, rng):
    a = np.zeros(math.prod(shape))
    a[rng.choice(a.size, 1000, replace=False)] = rng.standard_normal(1000)
    return a


def columns(stride, width):
    """A few neighbouring columns of a matrix, in C order: outliers in one feature, or one head of attention."""

    def make(shape, rng):
        a = rng.standard_normal(math.prod(shape))
        return np.where((np.arange(a.size) + rng.integers(width)) % stride < width, a, 0)

    return make


INPUTS = {
    "Gaussian": lambda shape, rng: rng.standard_normal(shape),
    "constant": lambda shape, rng: np.full(shape, rng.uniform(1, 2)),
    "low rank": of_low_rank,
    "periodic": lambda shape, rng: np.sin(np.arange(math.prod(shape)) * 2 * np.pi / 64 + rng.uniform(0, 2)),
    "period of a power of two": lambda shape, rng: (np.arange(math.prod(shape)) % 4096 < 5) + rng.uniform(0, 1),
    "sparse": sparse,
    "heavy-tailed": lambda shape, rng: rng.standard_t(2.2, shape),
    "4 columns of 300": columns(300, 4),
    "16 columns of 1024": columns(1024, 16),
    "64 columns of 768": columns(768, 64),
}


def pair(make, shape):
    """Two vectors, neither orthogonal nor parallel (but for constant ones)."""
    rng = np.random.default_rng(3)
    a, other = (torch.from_numpy(make(shape, rng)).double().flatten() for _ in range(2))
    return a, 0.6 * a + 0.8 * other * (a.norm() / other.norm())


@pytest.fixture(scope="module", params=SIZES)
def estimates(request):
    """Estimates of |a|², ⟨a, b⟩ of every input over seeds, [SEEDS, 2]; exact values; stated standard errors."""
    cases = {(name, size): pair(make, SHAPES[size]) for name, make in INPUTS.items() for size in SHAPES}
    found = {case: np.empty((SEEDS, 2)) for case in cases}
    dim, chunk = SIZES[request.param]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sketch_module, "CHUNK", chunk)
        for seed in range(SEEDS):
            sketch = CountSketch(dim, seed)
            assert sketch.chunk == chunk
            for case, (a, b) in cases.items():
                sa, sb = sketch(a, "layer.weight"), sketch(b, "layer.weight")
                found[case][seed] = float(sa @ sa), float(sa @ sb)
    exact = {case: np.array([float(a @ a), float(a @ b)]) for case, (a, b) in cases.items()}
    stated = {
        case: np.sqrt((float(a @ a) * np.array([float(a @ a), float(b @ b)]) + exact[case] ** 2) / dim)
        for case, (a, b) in cases.items()
    }
    return found, exact, stated


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("name", INPUTS)
def test_inner_products_are_unbiased_with_the_stated_variance(name, size, estimates):
    found, exact, stated = (part[name, size] for part in estimates)
    # Of a mean over seeds 4.5 of its standard errors are allowed, of a standard deviation, whose relative error is
    # 1/√(2 SEEDS) for estimates that are nearly normal, 4.
    bias = (found.mean(axis=0) - exact) / (stated / math.sqrt(SEEDS))
    ratio = found.std(axis=0) / stated
    assert (np.abs(bias) < 4.5).all(), bias
    assert (ratio < 1 + 4 / math.sqrt(2 * SEEDS)).all(), ratio
    # An error far below what is stated would make the intervals meaningless, too. In a few rows few entries meet.
    assert size == "few rows" or (ratio > 0.75).all(), ratio


@pytest.mark.parametrize("numel", [5000, 30_000])
def test_errors_of_blocks_with_like_contents_are_independent(numel):
    blocks, dim = 48, 2048
    a = torch.ones(numel)
    errors = np.empty(100)
    for seed in range(len(errors)):
        sketch = CountSketch(dim, seed)
        errors[seed] = sum(float(sketch(a, f"norm.{b}").square().sum()) / numel - 1 for b in range(blocks))
    # A chi distribution of 100 values, to four of its deviations; errors all alike would give √48 = 7.
    assert 0.6 < errors.std() / math.sqrt(blocks * 2 / dim) < 1.29


# Bad input


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dim": 0}, ValueError, "dim=0: pass a positive int, such as 512"),
        ({"dim": -3}, ValueError, "dim=-3"),
        ({"dim": 2.0}, TypeError, r"dim=2\.0: pass a positive int, such as 512"),
        ({"dim": True}, TypeError, "dim=True"),
        ({"dim": "64"}, TypeError, "dim='64'"),
        ({"dim": 64, "seed": None}, TypeError, "seed=None: pass an int"),
        ({"dim": 64, "seed": 0.5}, TypeError, r"seed=0\.5"),
    ],
)
def test_bad_settings_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        CountSketch(**arguments)


@pytest.mark.parametrize(
    ("tensor", "arguments", "error", "message"),
    [
        (torch.ones(4, dtype=torch.complex64), {}, TypeError, "block 'w' is complex: sketch torch.view_as_real"),
        (torch.ones(4), {"start": 1}, ValueError, "start=1 with 4 entries does not fit block 'w' of 4: pass numel="),
        (torch.ones(4), {"start": -1, "numel": 9}, ValueError, "start=-1"),
        (torch.ones(4), {"start": 6, "numel": 9}, ValueError, "start=6 with 4 entries does not fit block 'w' of 9"),
        (torch.ones(4), {"index": torch.arange(3)}, ValueError, "index has 3 entries for 4 of block 'w'"),
    ],
)
def test_bad_blocks_are_named(sketch, tensor, arguments, error, message):
    with pytest.raises(error, match=message):
        sketch(tensor, "w", **arguments)


# Devices


@pytest.mark.parametrize("numel", NUMELS)
def test_meta_tensors_have_sketches_of_the_right_shape(sketch, numel):
    a = torch.empty(numel, device="meta", dtype=torch.bfloat16)
    for result in (sketch(a, "w"), sketch(a, "w", index=torch.empty(numel, dtype=torch.int64, device="meta"))):
        assert result.shape == (min(DIM, numel),)
        assert result.device.type == "meta"
