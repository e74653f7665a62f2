"""The recipes train, count what they say they count, and explain what they were given."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

import recipes.hybrid.run
import recipes.resnet.model
from image_files import write_cifar10, write_idx, write_image_folder
from lightning_traj import Trajectory, from_checkpoints
from recipes.hybrid.compare import compare
from recipes.hybrid.run import VARIANTS, RandomSubset, Setting, run
from recipes.hybrid.step_time import measure, step_time_table
from recipes.hybrid.table import comparison_table
from recipes.resnet.data import ImageData
from recipes.resnet.model import ImageClassifier
from recipes.resnet.networks import NETWORKS, ResNet, build

RESNET = Path(recipes.resnet.model.__file__).parent


def test_resnet20_has_the_documented_parameters() -> None:
    network = ResNet()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert sum(p.numel() for p in network.parameters()) == 272_282
    assert sum(p.numel() for norm in norms for p in norm.parameters()) == 1_376


@pytest.mark.parametrize(
    ("network", "classes", "parameters"), [("vgg16", 10, 14_724_042), ("resnet50", 1000, 25_557_032)]
)
def test_networks_have_the_documented_parameters(network: str, classes: int, parameters: int) -> None:
    with torch.device("meta"):
        built = build(network, None, None, classes)
        assert sum(p.numel() for p in built.parameters()) == parameters
        assert built(torch.zeros(2, 3, 224, 224)).shape == (2, classes)


def test_vgg16_is_configuration_d() -> None:
    """From the table of Simonyan and Zisserman (2015): its convolutions' outputs, M where maxima are taken."""
    layers: list[object] = []
    for module in build("vgg16", None, None, 10).modules():
        if isinstance(module, nn.Conv2d):
            layers.append(module.out_channels)
        elif isinstance(module, nn.MaxPool2d):
            layers.append("M")
    expected = "64 64 M 128 128 M 256 256 256 M 512 512 512 M 512 512 512 M"
    assert " ".join(map(str, layers)) == expected


def test_resnet50_halves_in_the_middle_of_a_block() -> None:
    network = build("resnet50", None, 4, 10)
    strided = [name for name, module in network.named_modules() if getattr(module, "stride", 1) == (2, 2)]
    blocks = [f"stage{stage}.0.{part}" for stage in (2, 3, 4) for part in ("conv2", "shortcut.0")]
    assert strided == ["conv", *blocks]


def test_sizes_that_a_network_has_no_use_for_are_refused() -> None:
    with pytest.raises(ValueError, match="depth=19: network=vgg16 has one depth"):
        ImageClassifier("vgg16", depth=19)
    with pytest.raises(ValueError, match="images of 8x8: network=vgg16 halves them five times"):
        ImageClassifier("vgg16", width=2)(torch.zeros(2, 3, 8, 8))
    for network in NETWORKS:
        size = 64 if network == "resnet50" else 32
        assert build(network, None, 2, 7)(torch.randn(2, 3, size, size)).shape == (2, 7)


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


def train(monkeypatch: pytest.MonkeyPatch, configurations: list[str], settings: dict[str, object]) -> None:
    """What the command line does: python -m recipes.resnet.train fit --config ... --name=value ..."""
    flags = [f"--config={RESNET / name}" for name in configurations]
    flags += [f"--{name}={value}" for name, value in settings.items()]
    monkeypatch.setattr(sys, "argv", ["train.py", "fit", *flags])
    runpy.run_module("recipes.resnet.train", run_name="__main__")


def small(folder: Path) -> dict[str, object]:
    return {
        "trainer.logger.init_args.save_dir": folder,
        "trainer.accelerator": "cpu",
        "trainer.limit_val_batches": 1,
        "trainer.log_every_n_steps": 1,
    }


def test_the_demo_trains_and_leaves_its_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = {"model.depth": 8, "model.width": 4}
    data = {"data.batch_size": 32, "data.train_images": 64}
    train(monkeypatch, ["demo.yaml"], {**small(tmp_path), **network, **data, "trainer.max_epochs": 2})
    (run,) = tmp_path.glob("*/version_0")
    assert (run / "trajectory.safetensors").is_file()
    assert list(run.glob("events.out.tfevents.*"))
    for picture in ("map", "overview"):
        assert (run / f"traj-{picture}.png").read_bytes().startswith(b"\x89PNG")


CONFIGURATIONS: dict[str, tuple[Callable[[Path], object] | None, dict[str, object]]] = {
    "digits.yaml": (None, {}),
    "resnet20-cifar10.yaml": (write_cifar10, {"model.depth": 20}),
    "vgg16bn-cifar10.yaml": (write_cifar10, {}),
    "resnet20-fashion.yaml": (write_idx, {"trainer.callbacks.init_args.schedule.init_args.n": 1}),
    "resnet50-imagenet.yaml": (
        write_image_folder,
        {"model.classes": 2, "data.image_size": 32, "data.num_workers": 1, "trainer.devices": 1},
    ),
}
"""Each with what writes its data, and what a small machine needs beyond fewer channels and images."""


def test_every_configuration_is_tested() -> None:
    tested = {"demo.yaml", "checkpoints.yaml", *CONFIGURATIONS}
    assert {path.name for path in RESNET.glob("*.yaml")} == tested


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_configuration_trains(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    for draw in ("lightning_traj.loggers.trajectory.log_figures", "lightning_traj.plots.images.save_png"):
        monkeypatch.setattr(draw, lambda *_: None)  # slow, and tested elsewhere
    for draw in ("trajectory_map", "overview"):
        monkeypatch.setattr(f"lightning_traj.plots.trajectory.{draw}", lambda *_: None)
    write, settings = CONFIGURATIONS[name]
    settings = {"model.width": 4, "data.batch_size": 4, "trainer.max_epochs": 1, **small(tmp_path), **settings}
    if write is not None:
        write(tmp_path)
        settings["data.data_path"] = tmp_path
    with patch.dict(os.environ):  # where strategy=ddp leaves its ranks
        try:
            train(monkeypatch, [name], {**settings, "trainer.limit_train_batches": 2})
        finally:
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
    (run,) = tmp_path.glob("*/version_0")
    assert Trajectory.load(run / "trajectory.safetensors").steps.tolist()[-1] == 2


def commands() -> list[str]:
    """What README.md and the configurations say to type, backslashes and comment signs taken out."""
    texts = [path.read_text() for path in RESNET.iterdir() if path.suffix in {".md", ".yaml"}]
    joined = re.sub(r"^#", "", "\n".join(texts), flags=re.MULTILINE).replace("\\\n", " ")
    return sorted(set(re.findall(r"^ +python -m recipes\.resnet\.train (fit .*)$", joined, flags=re.MULTILINE)))


def test_printed_commands_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(commands()) >= 12
    for command in commands():
        monkeypatch.setattr(sys, "argv", ["train.py", *shlex.split(command), "--print_config"])
        with pytest.raises(SystemExit) as end:
            runpy.run_module("recipes.resnet.train", run_name="__main__")
        assert end.value.code in (None, 0), command


def test_the_example_for_your_own_project_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lightning_traj.loggers.trajectory.log_figures", lambda *_: None)
    (example,) = re.findall(r"```python\n(.*?)```", (RESNET / "README.md").read_text(), flags=re.DOTALL)
    torch.manual_seed(0)
    exec(example, {"__name__": "__main__"})
    assert 0 < float(capsys.readouterr().out.split()[-1]) <= 1


def test_another_number_of_classes_is_refused_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar10(tmp_path)
    settings = {"data.data_path": tmp_path, "data.batch_size": 4, "model.classes": 100, "model.width": 4}
    with pytest.raises(ValueError, match=r"classes=100: the data have 10; set --model\.classes=10"):
        train(monkeypatch, ["resnet20-cifar10.yaml"], {**small(tmp_path), **settings})


def test_checkpoints_of_the_recipe_say_what_its_callback_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar10(tmp_path)
    network = {"model.depth": 8, "model.width": 2}
    data = {"data.source": "cifar10", "data.data_path": tmp_path, "data.val_images": "null"}
    data |= {"data.batch_size": 20, "data.train_images": 60}
    settings = {**small(tmp_path), **network, **data, "trainer.max_epochs": 3}
    train(monkeypatch, ["demo.yaml", "checkpoints.yaml"], settings)
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
    monkeypatch.setattr("lightning_traj.loggers.trajectory.log_figures", lambda *_: None)
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
