"""Numbers in names: which of them orders checkpoints, whatever the names are."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lightning_traj.checkpoints.names import counter, is_end, is_start, other_counts, parse, settings
from lightning_traj.checkpoints.paths import find
from lightning_traj.checkpoints.series import open_series

# The names of one checkpoint, of its number n and of a random generator for what else stands in names.
PATTERNS: dict[str, Callable[[int, random.Random], str]] = {
    "model_10": lambda n, _: f"model_{n}.pth",
    "net_10": lambda n, _: f"net_{n}.pt",
    "G_10": lambda n, _: f"G_{n}.pth",
    "10_net_G": lambda n, _: f"{n}_net_G.pth",
    "weights.10": lambda n, _: f"weights.{n}.pt",
    "weights.10-0.23": lambda n, r: f"weights.{n:02d}-{r.random():.2f}.pt",
    "cp-0010": lambda n, _: f"cp-{n:04d}.pt",
    "snapshot_10": lambda n, _: f"snapshot_{n}.pt",
    "model_ep10": lambda n, _: f"model_ep{n}.pt",
    "resnet50_10": lambda n, _: f"resnet50_{n}.pt",
    "run1_lr0.1_e10": lambda n, _: f"run1_lr0.1_e{n}.pt",
    "epoch=9-step=10": lambda n, _: f"epoch={n // 7}-step={n}.ckpt",
    "epoch=9-step=10-val_loss=0.5": lambda n, r: f"epoch={n}-step={9 * n}-val_loss={r.random():.3f}.ckpt",
    "step10": lambda n, _: f"step{n}.pt",
    "iter_0000010": lambda n, _: f"iter_{n:07d}.pth",
    "10steps": lambda n, _: f"model-{n}steps.pt",
    "10_epochs": lambda n, _: f"vgg16_{n}_epochs.pt",
    "checkpoint-10.pth.tar": lambda n, _: f"checkpoint-{n}.pth.tar",
    "checkpoint0010": lambda n, _: f"checkpoint{n:04d}.pth",
    "checkpoint_1_10": lambda n, _: f"checkpoint_{n // 50}_{n}.pt",
    "ckpt_10": lambda n, _: f"ckpt_{n}.pt",
    "ckpt.10": lambda n, _: f"ckpt.{n}.pt",
    "10": lambda n, _: f"{n}.pt",
    "00010": lambda n, _: f"{n:05d}.safetensors.pt",
    "model_0000010": lambda n, _: f"model_{n:07d}.pth",
    "epoch_10": lambda n, _: f"epoch_{n}.pth",
    "epoch_010_acc_91": lambda n, r: f"epoch_{n:03d}_acc_{r.randrange(100)}.pth",
    "disc_epoch_10": lambda n, _: f"disc_epoch_{n}.pt",
    "2026-11-30_model_10": lambda n, _: f"2026-11-30_model_{n}.pt",
    "20261130-123456-10": lambda n, _: f"20261130-123456-{n}.pt",
    "a3f9c2d_10": lambda n, _: f"a3f9c2d_{n}.pt",
    "model_10_0676ba61": lambda n, r: f"model_{n}_{r.choice(['0676ba61', 'a3f9c2d', '1f2e3d4c', '9b8a7c6d'])}.pt",
    "vit_b_16_lr1e-3_10": lambda n, _: f"vit_b_16_lr1e-3_{n}.pt",
    "gpt2-124M-10": lambda n, _: f"gpt2-124M-{n}.pt",
    "seed42-it10": lambda n, _: f"seed42-it{n}.pt",
    "model.v2.1.10ep": lambda n, _: f"model.v2.1_e{n}_top1_{n % 7}.5.pt",
    "netE10": lambda n, _: f"netE{n}.pt",
    "state 10 (copy)": lambda n, _: f"state {n} (copy).pt",
    "encoder.epoch.10.best": lambda n, _: f"encoder.epoch.{n}.best.pt",
    "fold0_bs32_update10_loss2": lambda n, r: f"fold0_bs32_update{n}_loss{r.randrange(9)}.pt",
    "run_10": lambda n, _: f"run_{n}.pt",
    "v10": lambda n, _: f"v{n}.pt",
    "v2_10": lambda n, _: f"model_v{1 + n % 2}_{n}.pt",
    "10/weights": lambda n, _: f"round{n}/weights.pt",
}
NUMBERS = [(1, 2), (0, 1, 2, 10, 11, 100), (8, 9, 10, 11, 12), (500, 1000, 1500, 20_000, 100_000)]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_any_renaming_keeps_the_order(tmp_path: Path, pattern: str) -> None:
    assert len(PATTERNS) >= 40
    draw = random.Random(pattern)
    for case, numbers in enumerate(NUMBERS):
        files = []
        for n in numbers:
            path = tmp_path / str(case) / PATTERNS[pattern](n, draw)
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save({"w": torch.full((2,), float(n))}, path)
            os.utime(path, (10**9, 10**9))  # as unpacked from an archive
            files.append(path)
        shuffled = draw.sample(files, len(files))
        series = open_series(find(shuffled))
        assert [c.path for c in series.checkpoints] == files
        assert (series.steps[1:] > series.steps[:-1]).all()
        if "/" not in pattern:
            assert [c.path for c in open_series(find(tmp_path / str(case))).checkpoints] == files


@pytest.mark.parametrize(
    ("names", "values", "unit"),
    [
        (["model_1", "model_10", "model_2"], (1, 10, 2), "number"),
        (["model_ep1", "model_ep2"], (1, 2), "epoch"),
        (["it_100", "it_90"], (100, 90), "step"),
        (["m_1k", "m_500", "m_2M"], (1000, 500, 2_000_000), "number"),
        (["e0_100", "e0_200", "e1_100", "e1_200"], (0, 1, 2, 3), "number"),  # steps that start anew in each epoch
        (["epoch0.5", "epoch1.0"], (0.5, 1.0), "epoch"),
        (["m_2026-12-01", "m_2026-11-30"], (1, 0), "number"),
        (["m_20261130_230000", "m_20261201_010000"], (0, 1), "number"),
        (["m_2026-11-29_20", "m_2026-11-30_10"], (20, 10), "number"),
        (["a3f9c2d_1", "0676ba61_2"], (1, 2), "number"),
        (["m_1_loss3", "m_2_loss1"], (1, 2), "number"),
        (["m_5_7", "m_6_7"], (5, 6), "number"),
        (["w.01.0.53", "w.02.0.42", "w.10.0.61"], (1, 2, 10), "number"),  # a loss behind a dot
        (["tok1.5B", "tok2.5B", "tok10B"], (1_500_000_000, 2_500_000_000, 10_000_000_000), "number"),
        (["500k", "1m", "1.5m"], (500_000, 1_000_000, 1_500_000), "number"),
        (["m_20230101120000123456", "m_20221231120000123456"], (1, 0), "number"),  # more digits than an int64 has
        (["m_15-12-2023", "m_02-01-2024", "m_01-12-2023"], (1, 2, 0), "number"),
        (["e0_batch_10", "e0_batch_20", "e1_batch_10"], (0, 1, 2), "number"),
    ],
)
def test_the_number_that_orders(names: list[str], values: tuple[float, ...], unit: str) -> None:
    found = counter([parse(name)[1] for name in names])
    assert found is not None
    assert (found.values, found.unit) == (values, unit)


@pytest.mark.parametrize(
    "names",
    [
        ["model", "model"],
        ["model_7", "model_7"],
        ["seed0", "seed1"],
        ["m_lr0.1", "m_lr0.01"],
        ["m_lr1e-3", "m_lr1e-4"],
        ["m_0.23", "m_0.24"],
        ["m_loss3", "m_loss4"],
        ["m_acc=91", "m_acc=93"],
        ["m_a3f9c2d", "m_1f2e3d4c"],
    ],
)
def test_no_number_orders(names: list[str]) -> None:
    parsed = [parse(name) for name in names]
    assert len({texts for texts, _ in parsed}) == 1  # of one pattern
    assert counter([numbers for _, numbers in parsed]) is None


def test_of_several_numbers_the_one_that_grows_with_time() -> None:
    rows = [parse(name)[1] for name in ("m_1_30", "m_2_20", "m_3_10")]
    assert (found := counter(rows, times=[10.0, 20.0, 30.0])) is not None
    assert found.values == (1, 2, 3)
    assert found.others
    assert (found := counter(rows, times=[30.0, 20.0, 10.0])) is not None
    assert found.values == (30, 20, 10)


def test_of_several_numbers_the_most_distinct() -> None:
    rows = [parse(name)[1] for name in ("m_1_30", "m_1_20", "m_2_10")]
    assert (found := counter(rows)) is not None
    assert found.values == (30, 20, 10)
    assert (found.column, found.example, found.others) == (1, "30", True)


@pytest.mark.parametrize(
    ("names", "values"),
    [
        (["model1_epoch1", "model1_epoch2", "model2_epoch1", "model2_epoch2"], (1, 2, 1, 2)),
        (["w1-epoch=1-step=10", "w1-epoch=2-step=20", "w2-epoch=1-step=10", "w2-epoch=2-step=20"], (10, 20, 10, 20)),
        (["agent1_100", "agent1_200", "agent1_300", "agent2_100", "agent2_200", "agent2_300"], (100, 200, 300) * 2),
        (["sim1_10", "sim1_20", "sim1_30", "sim2_10"], (10, 20, 30, 10)),
        (["1_100", "1_200", "2_100", "2_200"], (100, 200, 100, 200)),
    ],
)
@pytest.mark.parametrize("in_time", [True, False], ids=["written run by run", "all of one time"])
def test_numbers_of_runs_order_nothing(names: list[str], values: tuple[int, ...], in_time: bool) -> None:
    rows = [parse(name)[1] for name in names]
    found = counter(rows, [float(i) if in_time else 1.0 for i in range(len(names))])
    assert found is not None
    assert found.values == values


def test_numbers_of_runs() -> None:
    rows = [parse(name)[1] for name in ("seed0_e1", "seed0_e2", "seed1_e1")]
    assert settings(rows) == [(0,), (0,), (1,)]
    assert other_counts([parse(name)[1] for name in ("a_1_10_loss3", "a_2_10_loss4")], 1) == [(1,), (2,)]


@pytest.mark.parametrize("word", ["epoch_init", "initial", "start", "model-untrained", "randomInit", "initialization"])
def test_words_for_the_start(word: str) -> None:
    assert is_start(word)
    assert not is_end(word)


@pytest.mark.parametrize(
    "word", ["best", "restart", "finetune", "initializer_range", "model", "warm_start", "random_crop", "start_best"]
)
def test_other_words(word: str) -> None:
    assert not is_start(word)


def test_words_for_the_end() -> None:
    assert all(map(is_end, ("last", "model_final", "latest-checkpoint")))
