"""Checkpoints of every format give the trajectory that the callback records in the same run."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import transformers
from lightning.pytorch.callbacks import EMAWeightAveraging
from safetensors.torch import save_file
from torch import nn

from lightning_traj import EveryNSteps, Trajectory, TrajectoryCallback, from_checkpoints
from lightning_traj.checkpoints.formats import registry
from lightning_traj.checkpoints.formats.errors import CheckpointError
from lightning_traj.checkpoints.formats.opening import is_checkpoint, open_checkpoint
from models import Module, batches, fit
from saved import SAMPLES, WRITERS, Tree, agree, normalised, savers, states_of, write_all

Run = tuple[Trajectory, Path]


@pytest.fixture(scope="module", autouse=True)
def _no_pictures(one_thread: None) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lightning_traj.loggers.trajectory.log_figures", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with BatchNorm: what the callback has recorded, and its checkpoints."""
    folder = tmp_path_factory.mktemp("run")
    callback = TrajectoryCallback(snapshot="full", window=0, dirpath=folder / "traj")
    fit(callback, *savers(folder / "checkpoints"), root=folder, module=lambda: Module(normalised()))
    return callback.trajectory, folder / "checkpoints"


@pytest.fixture(scope="module")
def sketched(tmp_path_factory: pytest.TempPathFactory) -> Trajectory:
    """The same run recorded as sketches, with its rows."""
    folder = tmp_path_factory.mktemp("sketched")
    callback = TrajectoryCallback(window=0, sketch_dim=16, seed=3, dirpath=folder)
    fit(callback, root=folder, module=lambda: Module(normalised()))
    return Trajectory.load(folder / "trajectory.safetensors")


def test_checkpoints_of_lightning(run: Run) -> None:
    online, folder = run
    offline = from_checkpoints(folder)
    agree(offline, online)
    assert offline.blocks == online.blocks
    assert offline.steps.tolist() == [0, 4, 8, 12]
    assert offline.settings["left_out"] == "1 running_mean, 1 running_var, 1 num_batches_tracked"
    assert offline.settings["findings"] == []
    assert offline.settings["checkpoints"] == [
        str(folder / f"epoch={e}-step={s}.ckpt") for e, s in ((0, 0), (0, 4), (1, 8), (2, 12))
    ]


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format(run: Run, tmp_path: Path, kind: str) -> None:
    online, folder = run
    offline = from_checkpoints(write_all(kind, tmp_path / "x", states_of(folder)))
    agree(offline, dataclasses.replace(online, epochs=np.zeros(4)))  # of which these files say nothing
    assert [block.name for block in offline.blocks] == [block.name for block in online.blocks] or kind in (
        "safetensors",
        "Hugging Face",
        "diffusers LoRA",
    )
    assert "1 running_mean" in offline.settings["left_out"]
    assert offline.settings["findings"] == []


@pytest.mark.parametrize("key", ["ema.model", "my.weights"])
def test_a_key_of_ones_own(run: Run, tmp_path: Path, key: str) -> None:
    online, folder = run
    outer, inner = key.split(".")
    for step, state in states_of(folder).items():
        nested = {outer: {inner: state}} if key == "ema.model" else {key: state}
        torch.save({"model": {"decoy": torch.ones(2)}, **nested}, tmp_path / f"step{step}.pt")
    agree(from_checkpoints(tmp_path, key=key), dataclasses.replace(online, epochs=np.zeros(4)))
    with pytest.raises(
        ValueError, match=rf"step0\.pt.*key='nowhere' leads to no tensors; the file has 'model', '{outer}"
    ):
        from_checkpoints(tmp_path, key="nowhere")


def test_a_model_tells_parameters_from_buffers_and_their_order(run: Run, tmp_path: Path) -> None:
    online, folder = run
    states = states_of(folder)
    for state in states.values():
        state["net.extra"] = torch.ones(3)  # a buffer, which no name tells
    write_all("safetensors", tmp_path, states)
    with torch.device("meta"):
        network = normalised()
    offline = from_checkpoints(tmp_path, model=network)
    agree(offline, dataclasses.replace(online, epochs=np.zeros(4)))
    assert offline.blocks == online.blocks
    assert "1 extra" in offline.settings["left_out"]
    assert "net.extra" in {block.name for block in from_checkpoints(tmp_path).blocks}


def test_checkpoints_within_an_epoch(tmp_path: Path) -> None:
    callback = TrajectoryCallback(snapshot="full", window=0, dirpath=tmp_path / "t", schedule=EveryNSteps(2))
    fit(callback, *savers(tmp_path / "c", every_n_train_steps=2), root=tmp_path)
    agree(from_checkpoints(tmp_path / "c"), callback.trajectory)


# Sketches ---------------------------------------------------------------------------------------------------


def test_sketches_are_those_of_training(run: Run, sketched: Trajectory) -> None:
    offline = from_checkpoints(run[1], snapshot="sketch", sketch_dim=16, seed=3)
    assert sketched.sketches is not None
    np.testing.assert_array_equal(offline.sketches, sketched.sketches)
    agree(offline, sketched)


@pytest.mark.parametrize("kind", [".pt", "safetensors", "distributed"])
@pytest.mark.parametrize("prefix", ["", "model.network."])
def test_sketches_do_not_depend_on_what_wraps_the_network(
    run: Run, sketched: Trajectory, tmp_path: Path, kind: str, prefix: str
) -> None:
    states = {
        step: {prefix + name.removeprefix("net."): tensor for name, tensor in state.items()}
        for step, state in states_of(run[1]).items()
    }
    model = normalised()  # for the order, which safetensors files don't keep
    offline = from_checkpoints(
        write_all(kind, tmp_path / "x", states), model=model, snapshot="sketch", sketch_dim=16, seed=3
    )
    np.testing.assert_array_equal(offline.sketches, sketched.sketches)


def test_sketches_of_other_seeds_differ(run: Run, sketched: Trajectory) -> None:
    offline = from_checkpoints(run[1], snapshot="sketch", sketch_dim=16, seed=4)
    assert not np.array_equal(offline.sketches, sketched.sketches)


# Averages ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["raw", "average"])
def test_weights_and_their_average(tmp_path: Path, weights: Any) -> None:
    track = {"raw": "weights", "average": "average"}[weights]
    callback = TrajectoryCallback(
        track=track, snapshot="full", window=None if weights == "raw" else 0, dirpath=tmp_path / "traj"
    )
    fit(EMAWeightAveraging(decay=0.6), callback, *savers(tmp_path / "c"), root=tmp_path)
    online = callback.trajectory
    offline = from_checkpoints(tmp_path / "c", weights=weights)
    assert offline.steps.tolist() == [0, 4, 8, 12]
    at = [offline.steps.tolist().index(step) for step in online.steps]
    np.testing.assert_allclose(offline.gram("*")[np.ix_(at, at)], online.gram("*"), rtol=1e-10)
    assert not any("averaged" in finding for finding in offline.settings["findings"])


def test_no_average_to_be_had(run: Run) -> None:
    with pytest.raises(ValueError, match=r"step=0\.ckpt.*no averaged weights.*leave out weights"):
        from_checkpoints(run[1], weights="average")


# Hugging Face -----------------------------------------------------------------------------------------------

SIZES: dict[str, Any] = {"vocab_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 8}
NETWORKS = {
    "GPT-NeoX": lambda: transformers.GPTNeoXForCausalLM(
        transformers.GPTNeoXConfig(**SIZES, intermediate_size=16, max_position_embeddings=16)
    ),
    "GPT-2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=32, n_layer=2, n_head=2, n_embd=8, n_positions=16)
    ),
}


class Language(Module):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        tokens = (batch[0].abs() * 7).long() % 32
        return self.net(input_ids=tokens, labels=tokens).loss


class SavePretrained(pl.Callback):
    def __init__(self, folder: Path, **arguments: Any) -> None:
        self.folder, self.arguments = folder, arguments

    def on_train_start(self, trainer: Any, module: Any) -> None:
        module.net.save_pretrained(self.folder / f"step{trainer.global_step}", **self.arguments)

    on_train_epoch_end = on_train_start


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", ["5GB", "3KB"])
def test_hugging_face_folders(tmp_path: Path, name: str, size: str) -> None:
    callback = TrajectoryCallback(snapshot="full", window=0, dirpath=tmp_path / "traj")
    folder = tmp_path / "run"
    saver = SavePretrained(folder, max_shard_size=size)
    fit(callback, saver, root=tmp_path, module=lambda: Language(NETWORKS[name]()), max_epochs=2)
    assert (folder / "step0" / "model.safetensors.index.json").is_file() == (size == "3KB")
    offline = from_checkpoints(folder)
    online = dataclasses.replace(callback.trajectory, epochs=np.zeros(3))
    saved_as = {"lm_head.weight": "embed_out.weight"} if name == "GPT-NeoX" else {}  # transformers' doing
    renamed = [saved_as.get(b.name.removeprefix("net."), b.name.removeprefix("net.")) for b in online.blocks]
    agree(online, offline, rename=dict(zip([b.name for b in online.blocks], renamed, strict=True)).__getitem__)
    assert {block.role for block in offline.blocks} > {"q", "k", "v", "mlp_in", "mlp_out", "norm", "embedding"}
    assert [block.name for block in offline.blocks] == renamed


# peft 0.21 uses what transformers 5.23 deprecates
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("safe", [True, False])
def test_adapters(tmp_path: Path, safe: bool) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    config = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True)
    network = peft.get_peft_model(NETWORKS["GPT-2"](), config)
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    rows = []
    for step in (0, 500, 1000):
        network.save_pretrained(tmp_path / f"checkpoint-{step}", safe_serialization=safe)
        rows.append(torch.cat([p.detach().double().flatten() for p in trained.values()]))
        with torch.no_grad():
            for p in trained.values():
                p += torch.randn_like(p)
    trajectory = from_checkpoints(tmp_path)
    assert trajectory.steps.tolist() == [0, 500, 1000]
    assert {block.name for block in trajectory.blocks} == {name.replace(".default.", ".") for name in trained}
    assert {block.role for block in trajectory.blocks} == {"lora_a", "lora_b"}
    assert "adapter_model" in {file.stem for file in (tmp_path / "checkpoint-500").iterdir()}
    theta = torch.stack(rows)
    np.testing.assert_allclose(trajectory.gram(), (theta @ theta.T).numpy(), rtol=1e-10)


@pytest.mark.parametrize(
    "change",
    [
        {"num_hidden_layers": 10**9, "n_layer": 10**9},  # would take all memory
        {"hidden_size": 16, "n_embd": 16},  # another model's
        {"architectures": ["AutoModel"]},
        {"architectures": ["BertModel"], "model_type": "bert"},
        {"architectures": 5},
        {"model_type": ["gpt2"]},
    ],
)
def test_a_config_that_does_not_fit_is_not_believed(tmp_path: Path, change: dict[str, Any]) -> None:
    import json

    network = NETWORKS["GPT-2"]()
    for step in range(2):
        network.save_pretrained(tmp_path / f"step{step}")
        config = json.loads((tmp_path / f"step{step}" / "config.json").read_text())
        (tmp_path / f"step{step}" / "config.json").write_text(json.dumps(config | change))
        with torch.no_grad():
            for p in network.parameters():
                p += torch.randn_like(p)
    trajectory = from_checkpoints(tmp_path)
    names = {block.name for block in trajectory.blocks}
    assert names == {name for name, _ in network.named_parameters()}  # q, k and v in one piece: names don't tell
    assert any("looks like fused" in finding for finding in trajectory.settings["findings"])


def test_the_config_names_nothing_that_is_fetched_or_run() -> None:
    from lightning_traj.checkpoints.parameters import _plain

    config = {
        "auto_map": {"AutoModel": "evil.Model"},
        "_attn_implementation": "someone/kernel",
        "attn_implementation": "someone/kernel",
        "backbone": "hub",
        "use_timm_backbone": True,
        "vision_config": {"attn_implementation": "someone/kernel", "hidden_size": 4, "use_pretrained_backbone": True},
        "hidden_size": 8,
    }
    assert _plain(config) == {"vision_config": {"hidden_size": 4}, "hidden_size": 8}


def test_the_folder_of_transformers_trainer(run: Run, tmp_path: Path) -> None:
    """It has the last model beside the checkpoints, again, and other files in each."""
    states = states_of(run[1])
    write_all("Hugging Face", tmp_path, states)
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "checkpoint-12" / "model.safetensors").read_bytes())
    for step in states:
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(f'{{"global_step": {step}}}')
        torch.save([1], tmp_path / f"checkpoint-{step}" / "training_args.bin")
    agree(from_checkpoints(tmp_path), dataclasses.replace(run[0], epochs=np.zeros(4)))


# Hyperparameters --------------------------------------------------------------------------------------------

HYPERPARAMETERS = {
    "lr": 0.1,
    "nested": {"depth": 3, "name": "x", "_class_path": "y"},
    "amsgrad": True,
    "betas": [0.9, 0.99],
    "none": None,
    "infinite": float("inf"),
}
PLAIN = {"lr": 0.1, "nested/depth": 3, "nested/name": "x", "amsgrad": True}


class Logged(Module):
    def __init__(self, **hyperparameters: Any) -> None:
        super().__init__()
        self.save_hyperparameters()


def test_hyperparameters_of_lightning(tmp_path: Path) -> None:
    trainer = pl.Trainer(logger=False, accelerator="cpu", default_root_dir=tmp_path)
    trainer.strategy.connect(Logged(**HYPERPARAMETERS))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    assert open_checkpoint(tmp_path / "a.ckpt").hyperparameters == PLAIN
    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    content["datamodule_hyper_parameters"] = {"batch": 8, "lr": 5}
    torch.save(content, tmp_path / "a.ckpt")
    assert open_checkpoint(tmp_path / "a.ckpt").hyperparameters == PLAIN | {"batch": 8}


def test_hyperparameters_of_a_sharded_run(tmp_path: Path) -> None:
    (folder,) = write_all("distributed", tmp_path, {1: {"w": torch.ones(2)}}).iterdir()
    assert open_checkpoint(folder).hyperparameters == {}
    torch.save({"global_step": 1, "hyper_parameters": HYPERPARAMETERS}, folder / "meta.pt")
    assert open_checkpoint(folder).hyperparameters == PLAIN


@pytest.mark.parametrize("kind", ["safetensors", "Hugging Face", "distributed", "model"])
def test_hyperparameters_beside(tmp_path: Path, kind: str) -> None:
    (path,) = write_all(kind, tmp_path / "checkpoints", {1: {"w": torch.ones(2)}}).iterdir()
    (tmp_path / "hparams.yaml").write_text("lr: 0.1\nnested:\n  depth: 3\nbetas: !!python/tuple [0.9, 0.99]\nx: null\n")
    assert open_checkpoint(path).hyperparameters == {"lr": 0.1, "nested/depth": 3}
    merges = [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, 9)]
    (tmp_path / "hparams.yaml").write_text("\n".join(["a0: &a0 {k: v, l: w}", *merges]))
    with pytest.raises(ValueError, match=r"hparams\.yaml cannot be read .* more than 262,144 entries"):
        _ = open_checkpoint(path).hyperparameters
    (tmp_path / "hparams.yaml").write_text("a: [1")
    with pytest.raises(ValueError, match=r"hparams\.yaml cannot be read as hyperparameters"):
        _ = open_checkpoint(path).hyperparameters


# Sharded ----------------------------------------------------------------------------------------------------


class Sharded(Module):
    def configure_model(self) -> None:
        from torch.distributed.fsdp import fully_shard

        if not getattr(self, "sharded", False):
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])
            self.sharded = True


class Gathered(pl.Callback):
    """Writes the whole parameters, gathered by torch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_start(self, trainer: Any, module: Any) -> None:
        whole = {name: p.detach().full_tensor() for name, p in module.named_parameters()}
        if trainer.global_rank == 0:
            torch.save(whole, self.folder / f"step{trainer.global_step}.pt")

    on_train_epoch_end = on_train_start


def _train_sharded(rank: int, folder: Path, port: int) -> None:
    import os

    from lightning.pytorch.strategies import ModelParallelStrategy

    torch.set_num_threads(1)
    names = ("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    values = (rank, rank, 0, 0, 2, 2)
    os.environ |= {name: str(value) for name, value in zip(names, values, strict=True)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "x"}
    fit(
        Gathered(folder),
        *savers(folder / "checkpoints"),
        root=folder,
        module=lambda: Sharded(nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 3))),
        data=batches(),
        devices=2,
        strategy=ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1),
    )


def test_folders_that_a_sharded_run_writes(tmp_path: Path) -> None:
    import socket

    from torch.multiprocessing.spawn import start_processes

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_processes(_train_sharded, (tmp_path, port), nprocs=2, start_method="fork")
    assert (tmp_path / "checkpoints" / "epoch=0-step=0.ckpt" / ".metadata").is_file()
    whole = from_checkpoints(sorted(tmp_path.glob("step*.pt")))
    assert whole.steps.tolist() == [0, 2, 4, 6]
    assert whole.summary()["displacement"] > 0.1
    agree(from_checkpoints(tmp_path / "checkpoints"), dataclasses.replace(whole, epochs=np.arange(4.0)))


# Where the weights lie in a file ----------------------------------------------------------------------------


def test_the_only_state_dict_of_a_file_needs_no_key(run: Run, tmp_path: Path) -> None:
    online, folder = run
    for step, state in states_of(folder).items():
        moments = {name: torch.ones(2) for name in ("exp_avg", "exp_avg_sq")}
        content = {"net": state, "optim": moments, "ema_model": moments, "acc": 93.1, "epoch": step}
        torch.save(content, tmp_path / f"step{step}.pt")
    agree(from_checkpoints(tmp_path), dataclasses.replace(online, epochs=np.zeros(4)))
    torch.save({"net_a": states_of(folder)[0], "net_b": states_of(folder)[0]}, tmp_path / "step0.pt")
    with pytest.raises(ValueError, match=r"step0\.pt.*name the key that leads to it: the file has 'net_a', 'net_b'"):
        from_checkpoints(tmp_path)


@pytest.mark.parametrize("key", [None, "ema"])
def test_checkpoints_of_ultralytics(run: Run, tmp_path: Path, key: str | None) -> None:
    """While it trains, the average is saved; at the end the last and the best are stripped to a model."""
    online, folder = run
    states = states_of(folder)
    for step, state in states.items():
        content = {"epoch": step, "model": None, "ema": Tree(state), "updates": 9, "optimizer": {"state": {}}}
        torch.save(content, tmp_path / f"epoch{step}.pt")
    torch.save({"epoch": -1, "model": Tree(states[12]), "ema": None, "optimizer": None}, tmp_path / "best.pt")
    offline = from_checkpoints(tmp_path, key=key)
    np.testing.assert_allclose(offline.gram("*"), online.gram("*"), rtol=1e-10)
    assert offline.steps.tolist() == [0, 4, 8, 12]
    assert any("best.pt is left out: " in finding for finding in offline.settings["findings"])


@pytest.mark.parametrize("names", [("step{}.safetensors", "torch"), ("step{}.pt", "safetensors")])
def test_the_content_of_a_file_says_more_than_its_name(run: Run, tmp_path: Path, names: tuple[str, str]) -> None:
    online, folder = run
    for step, state in states_of(folder).items():
        save = torch.save if names[1] == "torch" else save_file
        save({name: tensor.clone() for name, tensor in state.items()}, tmp_path / names[0].format(step))
    offline = from_checkpoints(tmp_path)
    np.testing.assert_allclose(offline.gram("*"), online.gram("*"), rtol=1e-10)


def test_storages_within_a_pickle_are_told_apart(tmp_path: Path) -> None:
    """Without a memo, the bytes of one are freed before those of the next are read."""

    class Forgetful(pickle._Pickler):
        def memoize(self, obj: Any) -> None: ...

    states = [{f"l{n}.weight": torch.full((4, 4), float(10 * step + n)) for n in range(12)} for step in range(2)]
    for step, state in enumerate(states):
        with (tmp_path / f"step{step}.pt").open("wb") as file:
            pickler = Forgetful(file, 4)
            pickler.fast = True
            pickler.dump(state)
    for step, state in enumerate(states):
        opened = open_checkpoint(tmp_path / f"step{step}.pt")
        assert {name: float(opened.read(name)[0, 0]) for name in state} == {n: float(t[0, 0]) for n, t in state.items()}


# The contract of every format -------------------------------------------------------------------------------


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    return tmp_path / "samples"


def test_every_format_has_a_sample() -> None:
    assert set(SAMPLES) == {one.name for one in registry.FORMATS}
    assert set(SAMPLES.values()) <= set(WRITERS)


@pytest.mark.parametrize("one", registry.FORMATS, ids=lambda one: one.name)
def test_the_contract_of_a_format(one: registry.Format, sample: Path) -> None:
    state = {"a.weight": torch.randn(3, 4), "a.bias": torch.randn(3), "b.weight": torch.randn(2, 3).to(torch.bfloat16)}
    (path,) = write_all(SAMPLES[one.name], sample, {7: state}).iterdir()
    assert [other.name for other in registry.FORMATS if other.matches(path)] == [one.name]
    assert registry.format_of(path) is one
    assert is_checkpoint(path)
    assert bool(one.suffixes) == path.is_file()
    contents = one.read(path, None, "raw")
    opened = open_checkpoint(path)
    assert opened.step == 7
    assert not contents.averaged
    shapes = contents.source.shapes()
    assert set(shapes) == set(opened.shapes) == set(state)
    for name, like in shapes.items():
        assert like.device.type == "meta"
        assert (like.shape, like.dtype) == (state[name].shape, state[name].dtype)
        assert torch.equal(contents.source.read(name), state[name])
    opened.release()
    assert torch.equal(opened.read("a.bias"), state["a.bias"])  # opened again
    with pytest.raises(CheckpointError, match="no averaged weights"):
        open_checkpoint(path, weights="average")


@pytest.mark.parametrize("one", registry.FORMATS, ids=lambda one: one.name)
def test_a_damaged_file_of_a_format_is_refused(one: registry.Format, sample: Path) -> None:
    (path,) = write_all(SAMPLES[one.name], sample, {7: {"w": torch.randn(300)}}).iterdir()
    for file in [path] if path.is_file() else [f for f in path.iterdir() if f.is_file()]:
        file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(CheckpointError, match=rf"{path.name} cannot be read as a checkpoint") as raised:
        open_checkpoint(path)
    assert raised.value.path == path


@pytest.mark.parametrize("one", registry.FORMATS, ids=lambda one: one.name)
def test_a_format_matches_nothing_else(one: registry.Format, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    for path in (tmp_path, tmp_path / "notes.txt", tmp_path / "none.pt"):
        assert not one.matches(path)
