"""The recipes for language models: networks, text, configurations, and the analysis of published revisions."""

from __future__ import annotations

import csv
import re
import runpy
import shutil
import socket
import sys
from math import cos, exp, log, pi
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh

import recipes.gpt.model
from launch import launch
from lightning_traj import LogSpaced, Trajectory, TrajectoryCallback, from_checkpoints
from lightning_traj.trajectory import by_layer as layers
from recipes.gpt.data import TextData, pieces
from recipes.gpt.model import SIZES, LanguageModel, Size, blocks_of, build, rate_at
from recipes.pythia import analyze
from recipes.pythia.revisions import PUBLISHED

FOLDER = Path(recipes.gpt.model.__file__).parent
WORDS = ["a", "cat", "and", "a", "dog", "sat", "on", "the", "mat", ";", "the", "cat", "saw", "the", "dog", "."]
TEXT = "\n".join(" ".join(WORDS[i % 7 :]) for i in range(60)) + "\nend …"  # one character is of three bytes
TINY = {"width": 16, "depth": 2, "heads": 2, "context": 8}
ARCHITECTURES = ("gpt-neox", "gpt2")


@pytest.fixture(autouse=True)
def _cheap(one_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "lightning_traj.loggers.trajectory.log_figures", lambda *_: None
    )  # they have tests of their own


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["?", *sorted(set(WORDS))])}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    folder = tmp_path / "tokenizer"
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?").save_pretrained(folder)
    return folder


# Networks -------------------------------------------------------------------------------------------------------


PUBLISHED_SIZES = (
    ("gpt-neox", "14m", 14_067_712),
    ("gpt-neox", "31m", 30_494_720),
    ("gpt-neox", "70m", 70_426_624),
    ("gpt-neox", "160m", 162_322_944),
    ("gpt-neox", "410m", 405_334_016),
    ("gpt-neox", "1b", 1_011_781_632),
    ("gpt-neox", "1.4b", 1_414_647_808),
    ("gpt-neox", "2.8b", 2_775_208_960),
    ("gpt-neox", "6.9b", 6_857_302_016),
    ("gpt-neox", "12b", 11_846_072_320),
    ("gpt2", "gpt2", 124_439_808),
    ("gpt2", "gpt2-medium", 354_823_168),
    ("gpt2", "gpt2-large", 774_030_080),
    ("gpt2", "gpt2-xl", 1_557_611_200),
)


@pytest.mark.parametrize(("architecture", "size", "count"), PUBLISHED_SIZES)
def test_published_sizes_have_the_published_parameters(architecture: Any, size: str, count: int) -> None:
    vocabulary, context = {"gpt-neox": (50_277, 2048), "gpt2": (50_257, 1024)}[architecture]
    model = LanguageModel(architecture, size, vocabulary=vocabulary, context=context)
    assert all(p.is_meta for p in model.parameters())
    assert sum(p.numel() for p in model.parameters()) == count


def test_every_size_is_counted() -> None:
    assert {(architecture, size) for architecture, size, _ in PUBLISHED_SIZES} == {
        (architecture, size) for architecture, sizes in SIZES.items() for size in sizes
    }


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_network_is_the_one_that_transformers_makes(architecture: Any) -> None:
    torch.manual_seed(0)
    model = LanguageModel(architecture, width=64, depth=3, heads=4, context=8)
    model.configure_model()
    network = build(architecture, Size(64, 3, 4), context=8, vocabulary=256)  # its values drawn by its own constructor
    values, theirs = dict(model.network.named_parameters()), dict(network.named_parameters())
    assert list(values) == list(theirs)
    for name, value in values.items():
        torch.testing.assert_close(value.std(), theirs[name].std(), rtol=0.1, atol=0, msg=name)
        torch.testing.assert_close(value.mean(), theirs[name].mean(), rtol=0, atol=2e-3, msg=name)
    network.load_state_dict(model.network.state_dict())
    tokens = torch.randint(256, (2, 8))
    torch.testing.assert_close(model(tokens), network.eval()(tokens).logits)  # buffers too; no dropout in training
    head = network.get_output_embeddings()
    assert (head.weight is network.get_input_embeddings().weight) is (architecture == "gpt2")


def sharded(architecture: Any) -> list[bool]:
    torch.manual_seed(0)
    model, whole = LanguageModel(architecture, **TINY), LanguageModel(architecture, **TINY)
    model._device_mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("data_parallel",))
    model.configure_model()
    local = sum(p.to_local().numel() for p in model.parameters())  # type: ignore[attr-defined]
    torch.manual_seed(0)
    whole.configure_model()
    same = [torch.equal(p.full_tensor(), q) for p, q in zip(model.parameters(), whole.parameters(), strict=True)]
    tokens = torch.randint(256, (2, 8))
    torch.testing.assert_close(model(tokens), whole(tokens))
    return [*same, local < 0.6 * sum(p.numel() for p in whole.parameters())]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sharded_networks_begin_as_those_of_one_device(architecture: str) -> None:
    for same in launch(sharded, 2, architecture):
        assert all(same)
        assert len(same) > 20


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"heads": 3}, r"heads=3: .*width=128.*divisor"),
        ({"heads": 64}, r"heads=64: .*width=128.*4 or more"),
        ({"depth": 0}, "depth=0: pass a positive number"),
        ({"vocabulary": 0}, "vocabulary=0: pass a positive number"),
        ({"size": "70M"}, "size=70M: architecture=gpt-neox has no such size; take 14m, 31m,"),
        ({"size": "gpt2"}, "size=gpt2: .*that is one of architecture=gpt2"),
        ({"warmup_steps": -1}, "warmup_steps=-1: pass 0 or more"),
    ],
)
def test_networks_that_cannot_be_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LanguageModel(**arguments)


def test_the_learning_rate_warms_up_and_falls_as_a_cosine() -> None:
    rates = [rate_at(step, warmup=4, steps=24) for step in range(25)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    expected = [0.1 + 0.9 * (1 + cos(pi * t / 20)) / 2 for t in range(21)]
    assert rates[4:] == pytest.approx(expected)
    assert rates[-1] == pytest.approx(0.1)
    assert rate_at(30, warmup=0, steps=24) == pytest.approx(0.1)


def test_training_learns_what_can_be_learnt(text: Path, tmp_path: Path) -> None:
    text.write_text("abcdefgh" * 200)  # each character follows from the one before
    L.seed_everything(0, verbose=False)
    model = LanguageModel(**TINY, vocabulary=8, learning_rate=1e-2, warmup_steps=5)
    trainer = trainer_of(tmp_path, max_steps=60)
    trainer.fit(model, TextData(text, "characters", context=8, batch_size=8))
    values = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert values["val/loss"] < 0.3 * log(8)
    assert values["val/perplexity"] == pytest.approx(exp(values["val/loss"]), rel=1e-5)
    decayed, others = trainer.optimizers[0].param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert {p.ndim for p in decayed["params"]} == {2}
    assert {p.ndim for p in others["params"]} == {1}
    assert decayed["lr"] == pytest.approx(1e-3)


def test_a_run_without_an_end_is_refused(text: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"max_steps=-1, max_epochs=-1: .*pass max_steps"):
        trainer_of(tmp_path, max_epochs=-1).fit(LanguageModel(**TINY), TextData(text, context=8))


def trainer_of(root: Path, **arguments: Any) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(accelerator="cpu", default_root_dir=root, enable_checkpointing=False, **quiet, **arguments)


# Text -----------------------------------------------------------------------------------------------------------


def test_bytes_characters_and_tokens_say_what_the_text_says(text: Path, tokenizer: Path) -> None:
    data = TextData(text)
    assert data.vocabulary == 256
    assert bytes(data.encode()).decode() == TEXT
    characters = sorted(set(TEXT))
    data = TextData(text, "characters")
    assert data.vocabulary == len(characters)
    assert "".join(characters[i] for i in data.encode()) == TEXT
    words = ["?", *sorted(set(WORDS))]
    data = TextData(text, str(tokenizer))
    assert data.vocabulary == len(words)
    known = [word if word in words else "?" for word in TEXT.split()]
    assert [words[i] for i in data.encode()] == known


def test_long_texts_are_cut_at_ends_of_lines_for_tokenizers() -> None:
    cut = list(pieces(TEXT, size=50))
    assert "".join(cut) == TEXT
    assert len(cut) > 10
    assert all(piece.endswith("\n") and len(piece) >= 50 for piece in cut[:-1])


def test_files_of_a_folder_are_read_in_order(tmp_path: Path) -> None:
    for name, content in {"b.txt": "second\r\n", "a.txt": "first ", "c/d.txt": "third", "e.md": "none"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content.encode())
    assert bytes(TextData(tmp_path).encode()) == b"first second\r\nthird"


def test_windows_cover_the_text_and_leave_its_end_for_validation(text: Path) -> None:
    data = TextData(text, context=8, batch_size=4, val_share=0.25)
    data.setup("fit")
    tokens = data.encode()
    kept = int(0.75 * len(tokens))
    windows = np.stack([window.numpy() for window in data.train])
    assert windows.shape == ((kept - 1) // 8, 9)
    np.testing.assert_array_equal(windows[:, :-1].ravel(), tokens[: windows[:, :-1].size])
    np.testing.assert_array_equal(windows[:, -1], tokens[8 : 8 * len(windows) + 1 : 8])  # what follows each
    np.testing.assert_array_equal(data.val[0], tokens[kept : kept + 9])
    torch.manual_seed(0)
    first, second = (torch.cat(list(data.train_dataloader())) for _ in range(2))
    assert first.dtype == torch.int64
    assert not torch.equal(first, second)
    assert {tuple(window) for window in first.tolist()} <= {tuple(window) for window in windows.tolist()}
    torch.manual_seed(0)
    assert torch.equal(next(iter(data.train_dataloader())), first[:4])  # by the global seed


def test_english_comes_with_python_and_nothing_from_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    data = TextData(tokenizer="characters")
    data.setup("fit")
    assert 80 <= data.vocabulary <= 200
    assert len(data.encode()) > 400_000
    with pytest.raises(ValueError, match=r"tokenizer=nobody/nothing: .*download=True fetches it"):
        _ = TextData(tokenizer="nobody/nothing").vocabulary


def test_text_that_cannot_be_read_is_explained(tmp_path: Path, text: Path) -> None:
    expected = r"Expected a text file, or a folder with \.txt files, in UTF-8"
    with pytest.raises(FileNotFoundError, match=f"nowhere: there is no such file or folder.*{expected}"):
        TextData(tmp_path / "nowhere").setup("fit")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=rf"holds no \.txt file.*{expected}"):
        _ = TextData(tmp_path / "empty", "characters").vocabulary
    text.write_bytes(b"caf\xe9 au lait")
    with pytest.raises(ValueError, match=rf"text\.txt: byte 3 is not UTF-8: convert the file.*{expected}"):
        TextData(text).setup("fit")
    text.write_bytes(b"")
    with pytest.raises(ValueError, match=rf"text\.txt: it is empty.*{expected}"):
        TextData(text).setup("fit")
    text.write_text("too short for any window")
    with pytest.raises(ValueError, match=r"24 tokens, .* make 0 windows of context=64 .*take a longer text"):
        TextData(text, context=64).setup("fit")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"val_share": 1.0}, "val_share=1.0: pass a number between 0 and 1"),
        ({"context": 0}, "context=0: pass a positive number"),
        ({"batch_size": -1}, "batch_size=-1: pass a positive number"),
    ],
)
def test_wrong_arguments_of_text_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TextData(**arguments)


def test_a_folder_without_a_tokenizer_is_explained(text: Path, tmp_path: Path) -> None:
    (tmp_path / "tokens").mkdir()
    with pytest.raises(ValueError, match=r"tokenizer=.*tokens: neither 'bytes' nor 'characters', nor a folder with"):
        _ = TextData(text, str(tmp_path / "tokens")).vocabulary
    (tmp_path / "tokens" / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    (tmp_path / "tokens" / "tokenizer.json").write_text('{"added_tokens": [], "version": "1.0"}')  # without a model
    with pytest.raises(ValueError, match=r"tokenizer=.*tokens: neither"):
        _ = TextData(text, str(tmp_path / "tokens")).vocabulary


# Configurations -------------------------------------------------------------------------------------------------

OF_THE_CALLBACK = "--trainer.callbacks.init_args"
SHORT = {"trainer.max_steps": 2, "trainer.accelerator": "cpu", "trainer.enable_progress_bar": "false"}
SMALL = {  # where the published size is large
    "model.size": "null",
    **{f"model.{name}": value for name, value in TINY.items() if name != "context"},
    "data.num_workers": 0,
    "data.val_share": 0.1,
    "trainer.accumulate_grad_batches": 1,
    "trainer.devices": 1,
}


def train(root: Path, *configurations: str, more: tuple[str, ...] = (), **settings: Any) -> Path:
    """Run the recipe by its command line, two steps on small windows; the folder of its logs."""
    flags = SHORT | {
        "trainer.logger.init_args.save_dir": root,
        "trainer.val_check_interval": 2,
        "trainer.log_every_n_steps": 1,
        "trainer.limit_val_batches": 1,
        "data.context": 8,
        "data.batch_size": 2,
    }
    flags |= settings
    arguments = [f"--config={FOLDER / name}" for name in configurations]
    sys.argv = ["train.py", "fit", *arguments, *(f"--{name}={value}" for name, value in flags.items()), *more]
    runpy.run_module("recipes.gpt.train", run_name="__main__")
    return root / "gpt" / "version_0"


@pytest.mark.parametrize("configurations", [("cpu.yaml",), ("cpu.yaml", "gpt2-cpu.yaml")], ids=ARCHITECTURES)
def test_configurations_for_a_cpu_train(tmp_path: Path, configurations: tuple[str, ...], capsys: Any) -> None:
    run = train(tmp_path, *configurations, more=(f"{OF_THE_CALLBACK}.schedule.init_args.n=1",))
    trajectory = Trajectory.load(run / "trajectory.safetensors")
    assert {block.role for block in trajectory.blocks} >= {"q", "k", "v", "attn_out", "mlp_in", "mlp_out", "embedding"}
    assert not {block.role for block in trajectory.blocks} & {"norm", "bias"}
    assert list(run.glob("events.out.tfevents.*"))
    for picture in ("map", "overview", "heterogeneity"):
        assert (run / f"traj-{picture}.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.count("Picture: ") == 3


@pytest.fixture
def own(text: Path, tokenizer: Path) -> dict[str, Any]:
    return {"data.data_path": text, "data.tokenizer": tokenizer}


def test_the_configuration_for_a_gpu_trains(tmp_path: Path, own: dict[str, Any]) -> None:
    run = train(tmp_path, "gpu.yaml", **SMALL, **own)
    assert Trajectory.load(run / "trajectory.safetensors").steps.tolist() == [0, 1, 2]
    assert f"vocabulary: {len(set(WORDS)) + 1}" in (run / "hparams.yaml").read_text()  # the tokenizer's


def trained_sharded(root: Path, own: dict[str, Any]) -> None:
    gloo = {
        "devices": 2,
        "strategy.init_args.data_parallel_size": 2,
        "strategy.init_args.process_group_backend": "gloo",
    }
    more = {f"trainer.{name}": value for name, value in gloo.items()}
    train(
        root, "fsdp2.yaml", **SMALL | more, **own, more=("--trainer.callbacks+=recipes.pythia.revisions.SaveRevisions",)
    )


def test_the_configuration_for_many_devices_trains_and_saves_whole_revisions(
    tmp_path: Path, own: dict[str, Any]
) -> None:
    launch(trained_sharded, 2, tmp_path, own)
    run = tmp_path / "gpt" / "version_0"
    assert Trajectory.load(run / "trajectory.safetensors").steps.tolist() == [0, 1, 2]
    assert analyze.steps_in(run / "revisions") == [0, 1, 2]


README = (FOLDER / "README.md").read_text()
PRINTED = "\n".join(
    [README, (FOLDER.parent / "pythia" / "README.md").read_text(), *map(Path.read_text, FOLDER.glob("*.yaml"))]
)
COMMANDS = sorted(set(re.findall(r"-m recipes\.gpt\.train (fit --config .*)", PRINTED)))


@pytest.mark.parametrize("command", COMMANDS)
def test_printed_commands_are_understood(command: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(FOLDER.parent.parent)
    monkeypatch.setattr(sys, "argv", ["train.py", *command.split(), "--print_config"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("recipes.gpt.train", run_name="__main__")
    assert ended.value.code == 0
    assert "seed_everything: 0" in capsys.readouterr().out


def test_what_the_readme_says_is_so() -> None:
    assert len(COMMANDS) >= 8
    rows = re.findall(r"^\| `(\S+)` \| ([\d,]+) \| ([\d,]+) \| (\d+) \| (\d+) \|", README, flags=re.MULTILINE)
    shown = {size: tuple(int(value.replace(",", "")) for value in values) for size, *values in rows}
    counts = {size: count for _, size, count in PUBLISHED_SIZES}
    assert shown == {
        size: (counts[size], shape.width, shape.depth, shape.heads) for size, shape in SIZES["gpt-neox"].items()
    }
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names: dict[str, Any] = {"Trainer": L.Trainer, "TrajectoryCallback": TrajectoryCallback, "LogSpaced": LogSpaced}
    exec(example, names)
    assert isinstance(names["trainer"], L.Trainer)


# Published revisions --------------------------------------------------------------------------------------------


def test_steps_are_those_of_pythia() -> None:
    assert len(PUBLISHED) == 154
    assert PUBLISHED[:13] == (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 2000)
    assert PUBLISHED[-1] == 143_000


def test_revisions_say_what_the_callback_says(tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = (
        f"{OF_THE_CALLBACK}.snapshot=full",
        f"{OF_THE_CALLBACK}.schedule=lightning_traj.LogSpaced",
        f"{OF_THE_CALLBACK}.exclude=null",
        "--trainer.callbacks+=recipes.pythia.revisions.SaveRevisions",
    )
    settings = {"trainer.max_steps": 6, "trainer.accumulate_grad_batches": 2, "data.data_path": text}
    run = train(tmp_path, "cpu.yaml", more=more, **{"model.width": 16, "model.depth": 2, "model.heads": 2}, **settings)
    revisions, out = run / "revisions", tmp_path / "analysis"
    assert sorted(path.name for path in revisions.iterdir()) == ["step0", "step1", "step2", "step4"]
    shutil.rmtree(revisions / "step1")
    assert analyze.main([str(revisions), "--out", str(out), "--csv"]) == 0
    printed = capsys.readouterr().out
    assert "1 of the 4 steps that Pythia has until then are not here (1)." in printed
    assert "same weights" not in printed
    shutil.copytree(revisions / "step2", revisions / "step1")
    source = from_checkpoints(revisions).provenance.source
    assert analyze.remarks([0, 1, 2, 4], source.findings, {"attention": {}}) == [analyze.ABOUT_SAME]
    online, offline = Trajectory.load(run / "trajectory.safetensors"), Trajectory.load(out / "trajectory.safetensors")
    assert online.steps.tolist() == [0, 1, 2, 4]
    assert offline.steps.tolist() == [0, 2, 4]
    np.testing.assert_allclose(offline.gram(), online.gram()[np.ix_([0, 2, 3], [0, 2, 3])], rtol=1e-10)
    with (out / "heterogeneity.csv").open() as file:
        rows = list(csv.DictReader(file))
    expected = layers.attention(offline)
    assert [row["attention"] for row in rows] == list(expected) and len(rows) == 2  # noqa: PT018
    for row, (module, values) in zip(rows, expected.items(), strict=True):
        assert {name: float(row[name]) for name in analyze.COLUMNS} == values
        omegas = [offline.summary(f"{module}.weight:{role}")["mds"] for role in "qkv"]
        assert values["heterogeneity"] == pytest.approx(max(omegas) - min(omegas))
    assert {"report.html", "trajectory.csv", "heterogeneity.png"} <= {path.name for path in out.iterdir()}


def test_other_folders_are_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "analysis")]
    assert analyze.main([str(tmp_path / "nowhere"), *out]) == 1
    assert "nowhere: there is no such folder. Expected a folder with the revisions step0," in capsys.readouterr().err
    (tmp_path / "step1").mkdir()
    (tmp_path / "step1" / "config.json").write_text("{}")
    assert analyze.main([str(tmp_path), *out]) == 1
    assert "holds 0 revision(s)" in capsys.readouterr().err
    assert not (tmp_path / "analysis").exists()


def test_revisions_of_another_run_are_not_written_over(tmp_path: Path, text: Path) -> None:
    from recipes.pythia.revisions import SaveRevisions

    (tmp_path / "step5").mkdir()
    with pytest.raises(FileExistsError, match=r"dirpath=.*another run; name a new folder"):
        trainer_of(tmp_path, max_steps=1, callbacks=[SaveRevisions(tmp_path)]).fit(
            LanguageModel(**TINY), TextData(text, context=8)
        )


def test_blocks_are_those_that_are_numbered() -> None:
    for architecture in ARCHITECTURES:
        assert len(blocks_of(LanguageModel(architecture, **TINY).network)) == TINY["depth"]  # type: ignore[arg-type]
