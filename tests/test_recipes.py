"""The recipes train, count what they say they count, and explain what they were given."""

from __future__ import annotations

import json
import re
import runpy
import socket
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn

import recipes.hybrid.run
from lightning_traj import Trajectory, from_checkpoints
from recipes.hybrid.compare import compare
from recipes.hybrid.run import VARIANTS, RandomSubset, Setting, run
from recipes.hybrid.step_time import measure, step_time_table
from recipes.hybrid.table import comparison_table
from recipes.resnet.data import ImageData, random_crop, random_flip
from recipes.resnet.model import ImageClassifier
from recipes.resnet.networks import ResNet
from recipes.resnet.sources import cifar10, mnist, stratified_order

DEMO = Path(__file__).resolve().parent.parent / "recipes" / "resnet" / "demo.yaml"


def write_cifar10(folder: Path, *, images: int = 40, files: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Files in CIFAR-10's binary layout; returns the training images [N, 3, 32, 32] and labels [N]."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (files * images, 3, 32, 32), dtype=np.uint8)
    labels = (np.arange(files * images) % 10).astype(np.uint8)
    records = np.concatenate([labels[:, None], pixels.reshape(len(pixels), -1)], axis=1)
    for i, part in enumerate(np.split(records, files)):
        part.tofile(folder / f"data_batch_{i + 1}.bin")
    records[:20].tofile(folder / "test_batch.bin")
    return pixels, labels


def test_resnet20_has_the_documented_parameters() -> None:
    network = ResNet()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert sum(p.numel() for p in network.parameters()) == 272_282
    assert sum(p.numel() for norm in norms for p in norm.parameters()) == 1_376


@pytest.mark.parametrize(("depth", "convolutions"), [(8, 9), (20, 21), (32, 33)])
def test_depth_counts_the_layers_on_the_longest_path(depth: int, convolutions: int) -> None:
    network = ResNet(depth, width=4, classes=7)
    # two of the convolutions are on shortcuts, and the last layer is linear
    assert sum(isinstance(module, nn.Conv2d) for module in network.modules()) == convolutions
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize("depth", [2, 18, 21])
def test_other_depths_are_refused(depth: int) -> None:
    with pytest.raises(ValueError, match=rf"depth={depth}.*6n \+ 2"):
        ResNet(depth)


def test_mnist_comes_from_the_package_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    train, val = mnist(val_images=1000)
    for dataset, size in ((train, 4000), (val, 1000)):
        images, labels = dataset.tensors
        assert images.shape == (size, 3, 32, 32)
        assert images.dtype == torch.uint8
        assert labels.bincount().tolist() == [size // 10] * 10
    assert not {row.numpy().tobytes() for row in train.tensors[0]} & {row.numpy().tobytes() for row in val.tensors[0]}


def test_every_stretch_of_the_stratified_order_has_the_classes_in_proportion() -> None:
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    order = stratified_order(labels)
    assert sorted(order.tolist()) == list(range(100))
    assert torch.equal(order, stratified_order(labels))
    assert not torch.equal(order, stratified_order(labels, seed=1))
    for start in range(0, 100, 20):
        counts = labels[order[start : start + 20]].bincount(minlength=3)
        assert (counts - torch.tensor([12, 6, 2])).abs().max() <= 1


def test_cifar10_files_are_read_as_they_were_written(tmp_path: Path) -> None:
    pixels, labels = write_cifar10(tmp_path)
    train, val = cifar10(tmp_path)
    assert np.array_equal(train.tensors[0].numpy(), pixels)
    assert np.array_equal(train.tensors[1].numpy(), labels)
    assert np.array_equal(val.tensors[0].numpy(), pixels[:20])


def test_real_cifar10_files(real_data: Path) -> None:
    folder = real_data / "cifar-10-batches-bin"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder} with CIFAR-10's binary files")
    train, _ = cifar10(folder)
    images, labels = train.tensors
    assert labels.bincount(minlength=10).min() > len(labels) / 20
    neighbours = (images[:, :, :, 1:].int() - images[:, :, :, :-1].int()).abs().float().mean()
    assert neighbours < 20  # in photographs neighbours are alike; pixels in another order would differ by 60 or so


def test_missing_and_foreign_cifar10_files_are_explained(tmp_path: Path) -> None:
    expected = "cifar-10-batches-bin.*CIFAR-10 binary version"
    with pytest.raises(FileNotFoundError, match=f"nowhere: there is no such folder.*{expected}"):
        ImageData(source="cifar10", data_path=tmp_path / "nowhere").setup("fit")
    (tmp_path / "data_batch_1").write_bytes(b"the Python version")
    with pytest.raises(FileNotFoundError, match=rf"no data_batch_\*\.bin.*{expected}"):
        cifar10(tmp_path)
    write_cifar10(tmp_path)
    (tmp_path / "test_batch.bin").unlink()
    with pytest.raises(FileNotFoundError, match=rf"no test_batch\.bin.*{expected}"):
        cifar10(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", bytes(3072), bytes(3074) * 2, bytes([10]) + bytes(3072)],
    ids=["empty", "cut off", "CIFAR-100", "label 10"],
)
def test_damaged_cifar10_files_are_refused(tmp_path: Path, content: bytes) -> None:
    write_cifar10(tmp_path)
    (tmp_path / "data_batch_2.bin").write_bytes(content)
    with pytest.raises(ValueError, match=r"data_batch_2\.bin: not a CIFAR-10 binary file"):
        cifar10(tmp_path)


@pytest.mark.parametrize("settings", [{"train_images": 81}, {"train_images": 0}, {"batch_size": 81}])
def test_more_images_than_there_are_is_refused(tmp_path: Path, settings: dict[str, int]) -> None:
    write_cifar10(tmp_path)
    with pytest.raises(ValueError, match="there are 80 images to train on"):
        ImageData(source="cifar10", data_path=tmp_path, **{"batch_size": 8, **settings}).setup("fit")


def test_random_crops_are_windows_of_the_padded_images() -> None:
    images = torch.arange(1, 1 + 4 * 3 * 6 * 5).reshape(4, 3, 6, 5)
    padded = nn.functional.pad(images, (2, 2, 2, 2))
    for image, cut in zip(padded, random_crop(images, padding=2), strict=True):
        windows = [image[:, i : i + 6, j : j + 5] for i in range(5) for j in range(5)]
        assert sum(torch.equal(cut, window) for window in windows) == 1
    assert not torch.equal(random_crop(images, padding=2), random_crop(images, padding=2))


def test_random_flips_mirror_about_half() -> None:
    images = torch.arange(200 * 3 * 2 * 2).reshape(200, 3, 2, 2)
    flipped = random_flip(images)
    mirrored = (flipped == images.flip(-1)).all(dim=(1, 2, 3))
    assert ((flipped == images).all(dim=(1, 2, 3)) ^ mirrored).all()
    assert 60 < mirrored.sum() < 140


def test_training_images_are_normalised_by_channel(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    data = ImageData(source="cifar10", data_path=tmp_path, batch_size=80)
    data.setup("fit")
    batch: list[Tensor] = next(iter(data.train_dataloader()))
    images, _ = data.on_after_batch_transfer(batch, 0)
    deviation, mean = torch.std_mean(images, dim=(0, 2, 3))
    torch.testing.assert_close(mean, torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(deviation, torch.ones(3), atol=1e-4, rtol=0)


def test_the_demo_trains_and_leaves_its_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {
        "trainer.logger.init_args.save_dir": tmp_path,
        "trainer.accelerator": "cpu",
        "trainer.max_epochs": 2,
        "trainer.limit_val_batches": 1,
        "trainer.log_every_n_steps": 1,
        "model.depth": 8,
        "model.width": 4,
        "data.batch_size": 32,
        "data.train_images": 64,
    }
    flags = [f"--{name}={value}" for name, value in settings.items()]
    monkeypatch.setattr(sys, "argv", ["train.py", "fit", f"--config={DEMO}", *flags])
    runpy.run_module("recipes.resnet.train", run_name="__main__")
    (run,) = tmp_path.glob("*/version_0")
    assert (run / "trajectory.safetensors").is_file()
    assert list(run.glob("events.out.tfevents.*"))
    for picture in ("map", "overview"):
        assert (run / f"traj-{picture}.png").read_bytes().startswith(b"\x89PNG")


def test_checkpoints_of_the_recipe_say_what_its_callback_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar10(tmp_path)
    settings = {
        "trainer.logger.init_args.save_dir": tmp_path,
        "trainer.accelerator": "cpu",
        "trainer.max_epochs": 3,
        "trainer.limit_val_batches": 1,
        "trainer.log_every_n_steps": 1,
        "model.depth": 8,
        "model.width": 2,
        "data.source": "cifar10",
        "data.data_path": tmp_path,
        "data.val_images": "null",
        "data.batch_size": 20,
        "data.train_images": 60,
    }
    flags = [f"--{name}={value}" for name, value in settings.items()]
    checkpoints = DEMO.with_name("checkpoints.yaml")
    monkeypatch.setattr(sys, "argv", ["train.py", "fit", f"--config={DEMO}", f"--config={checkpoints}", *flags])
    runpy.run_module("recipes.resnet.train", run_name="__main__")
    (run,) = tmp_path.glob("*/version_0")
    online, offline = Trajectory.load(run / "trajectory.safetensors"), from_checkpoints(run)
    assert offline.steps.tolist() == online.steps.tolist() == [0, 3, 6, 9]
    assert offline.epochs.tolist() == online.epochs.tolist() == [0, 1, 2, 3]
    assert offline.blocks == online.blocks  # BatchNorm's statistics are not among them
    np.testing.assert_allclose(offline.gram(), online.gram(), rtol=1e-10)
    summary = {name: value for name, value in online.summary().items() if not name.startswith("oscillation")}
    assert {name: offline.summary()[name] for name in summary} == pytest.approx(summary, rel=1e-10)


@pytest.mark.parametrize("schedule", ["steps", "cosine"])
def test_the_learning_rate_falls(tmp_path: Path, schedule: str) -> None:
    import lightning as L

    write_cifar10(tmp_path)
    model = ImageClassifier(depth=8, width=2, schedule=schedule, milestones=(1,))  # type: ignore[arg-type]
    trainer = L.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, ImageData(source="cifar10", data_path=tmp_path, batch_size=40))
    rate = trainer.optimizers[0].param_groups[0]["lr"]
    assert rate == pytest.approx(0.01 if schedule == "steps" else 0.0)


HYBRID = Path(recipes.hybrid.run.__file__).parent
SMALL = Setting(epochs=4, train_images=40, batch_size=20, depth=8, width=2, crop_padding=0, drift=2.0)


@pytest.fixture
def small_cifar10(tmp_path: Path) -> Setting:
    write_cifar10(tmp_path)
    return replace(SMALL, data_path=tmp_path)


@pytest.mark.parametrize("variant", VARIANTS)
def test_hybrid_variants_train(small_cifar10: Setting, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_traj.tensorboard.log_figures", lambda *_: None)
    row = json.loads(
        json.dumps(run(replace(small_cifar10, epochs=8 if "automatic" in variant else 4), variant, seed=1))
    )
    assert all(len(row[column]) == len(row["cpu"]) for column in ("train_loss", "accuracy", "wall"))
    acts = variant != "everything" and "random numbers" not in variant and "search" not in variant
    assert bool(row["events"]) is acts or "search" in variant


def test_a_random_subset_is_as_large_as_it_says(small_cifar10: Setting) -> None:
    from lightning.pytorch import Trainer, seed_everything

    seed_everything(0, verbose=False)
    model = ImageClassifier(depth=8, width=2)
    states = []

    class Keep(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: ImageClassifier) -> None:  # type: ignore[override]
            states.append(torch.cat([p.detach().flatten() for p in pl_module.parameters()]))

    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[RandomSubset(epoch=1, count=50, seed=0), Keep()],
    )
    trainer.fit(model, ImageData(source="cifar10", data_path=small_cifar10.data_path, batch_size=20))
    first, second, third = states
    assert 0 < int((first != second).sum()) <= 50
    assert not ((first == second) & (second != third)).sum() > 50


def test_hybrid_runs_are_not_repeated(
    small_cifar10: Setting, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, variants = tmp_path / "new" / "results.jsonl", ("everything", "BatchNorm only, from 50%")
    for _ in range(2):
        compare(small_cifar10, seeds=(0, 1), variants=variants, results=results)
    printed = capsys.readouterr().out
    assert printed.count("seed 0: everything") == 1
    assert len(results.read_text().splitlines()) == 4
    assert re.search(r"\| BatchNorm only, from 50% \| 2 \| 2, 2 \| [\d.]+ ± [\d.]+ \|", printed)
    with pytest.raises(ValueError, match=r"results=.* name another file"):
        compare(replace(small_cifar10, epochs=5), results=results)


def test_table_of_hybrid_runs_is_that_of_the_results() -> None:
    rows = [json.loads(line) for line in (HYBRID / "results.jsonl").read_text().splitlines()]
    assert comparison_table(rows) in (HYBRID / "README.md").read_text()


def test_comparison_table() -> None:
    def row(variant: str, seed: int, accuracy: list[float], *events: str) -> dict[str, object]:
        values = {"accuracy": accuracy, "train_loss": [0.5], "cpu": [9.0, 4.0, 2.0], "events": events}
        return {"variant": variant, "seed": seed, **values}

    rows = [
        row("everything", 0, [50.0, 95.0, 96.0]),
        row("everything", 1, [50.0, 97.5, 98.0]),
        row("half", 0, [50.0, 95.0, 95.5], "epoch 2, step 5: frozen model; 3 trained (epoch 2)"),
        row("half", 1, [50.0, 60.0, 96.0], "epoch 2, step 5: frozen model; 3 trained (epoch 2)"),
        row("line search", 0, [50.0, 96.0, 96.0]),
    ]
    _, _, everything, half, search = comparison_table(rows).splitlines()
    assert everything == "| everything | 2 |  | 97.0 ± 1.4 | +0.0 ± 0.0 | 0.500 ± 0.000 |  | 2.5 | 2.5 |"
    assert half == "| half | 2 | 2, 2 | 95.8 ± 0.4 | -1.2 ± 1.1 | 0.500 ± 0.000 | 0.50 | never for 1 of 2 |  |"
    assert search == "| line search | 1 | 1 | 96.0 | +0.0 | 0.500 | 0.33 | 2 | 1.3 |"


def test_step_times_are_measured_by_turns() -> None:
    seconds = measure(Setting(batch_size=4, depth=8, width=4), rounds=2)
    assert {len(values) for parts in seconds.values() for values in parts.values()} == {2}
    table = step_time_table(
        {"everything": {"step": [4e-3, 2e-3]}, "norms": {"step": [1e-3, 3e-3]}} | {}, parts=("step",)
    )
    assert table.splitlines()[2:] == ["| everything, ms | 2.0 |", "| norms, ms | 1.0 |", "| ratio | 0.50 |"]
