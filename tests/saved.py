"""Runs with checkpoints, in every format, that the tests of what is read from disk share."""

from __future__ import annotations

import json
import pickle
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import save_file
from torch import Tensor, nn

from lightning_traj import Trajectory
from models import CLASSES, INPUTS

State = dict[str, Tensor]


class SaveStart(pl.Callback):
    """θ_0, which ModelCheckpoint does not write."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_start(self, trainer: Any, module: Any) -> None:
        if trainer.global_step == 0:
            trainer.save_checkpoint(self.folder / "epoch=0-step=0.ckpt")


def savers(folder: Path, **arguments: Any) -> tuple[SaveStart, ModelCheckpoint]:
    return SaveStart(folder), ModelCheckpoint(folder, filename="{epoch}-{step}", save_top_k=-1, **arguments)


def normalised() -> nn.Sequential:
    layers = {"fc1": nn.Linear(INPUTS, 8), "tanh": nn.Tanh(), "norm": nn.BatchNorm1d(8), "fc2": nn.Linear(8, CLASSES)}
    return nn.Sequential(OrderedDict(layers))


def _safetensors(folder: Path, step: int, state: State) -> None:
    save_file({name: tensor.clone() for name, tensor in state.items()}, folder / f"step{step:06d}.safetensors")


def _hugging_face(folder: Path, step: int, state: State) -> None:
    inside = folder / f"checkpoint-{step}"
    inside.mkdir(parents=True)
    save_file({name: tensor.clone() for name, tensor in state.items()}, inside / "model.safetensors")


def _sharded_bin(folder: Path, step: int, state: State) -> None:
    inside = folder / f"checkpoint-{step}"
    inside.mkdir(parents=True)
    names = list(state)
    shards = {"pytorch_model-1.bin": names[:3], "pytorch_model-2.bin": names[3:]}
    for file, members in shards.items():
        torch.save({name: state[name] for name in members}, inside / file)
    weight_map = {name: file for file, members in shards.items() for name in members}
    (inside / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))


def _distributed(folder: Path, step: int, state: State) -> None:
    """As Lightning's ModelParallelStrategy writes it, of one process."""
    import torch.distributed.checkpoint as dcp

    inside = folder / f"run-{step}.ckpt"
    moments = {name: torch.full_like(tensor, 9) for name, tensor in state.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.save({"state_dict": dict(state), "optimizer_0": {"state": moments, "lr": 0.1}}, checkpoint_id=inside)
    torch.save({"global_step": step, "epoch": 0}, inside / "meta.pt")


def _torch(name: str, wrap: Callable[[State, int], Any] = lambda state, _: state, **how: Any) -> Callable[..., None]:
    def write(folder: Path, step: int, state: State) -> None:
        torch.save(wrap(state, step), folder / name.format(step=step), **how)

    return write


class Tree(nn.Module):
    """A network with such parameters and buffers, by their names, and nothing that it does with them."""

    def __init__(self, state: State) -> None:
        super().__init__()
        for name in dict.fromkeys(name.partition(".")[0] for name in state):
            if name in state:
                if name.startswith(("running_", "num_")):
                    self.register_buffer(name, state[name].clone())
                else:
                    self.register_parameter(name, nn.Parameter(state[name].clone()))
            else:
                inside = {n.removeprefix(f"{name}."): t for n, t in state.items() if n.startswith(f"{name}.")}
                self.add_module(name, Tree(inside))

    def forward(self, x: Tensor) -> Tensor:
        return x


def _scripted(folder: Path, step: int, state: State) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.trace(Tree(state), torch.ones(1)), folder / f"scripted_step{step}.pt")


def _stable_baselines(folder: Path, step: int, state: State) -> None:
    """As its ``save`` does: files of torch in an archive, and a pickle in text, which is not to be read."""
    with zipfile.ZipFile(folder / f"rl_model_{step}_steps.zip", "w") as archive:
        archive.writestr("data", json.dumps({"policy_class": {":serialized:": "gAWVMAAAAAAAAACMCA=="}}))
        moments = {i: {"exp_avg": torch.full_like(tensor, 9)} for i, tensor in enumerate(state.values())}
        for name, content in {
            "policy.optimizer.pth": moments,
            "policy.pth": state,
            "pytorch_variables.pth": None,
        }.items():
            with archive.open(name, "w") as member:
                torch.save(content, member)
        archive.writestr("_stable_baselines3_version", "2.3.2")


def _diffusers_lora(folder: Path, step: int, state: State) -> None:
    inside = folder / f"checkpoint-{step}"
    inside.mkdir(parents=True)
    save_file({name: tensor.clone() for name, tensor in state.items()}, inside / "pytorch_lora_weights.safetensors")
    torch.save({"state": {}}, inside / "optimizer.bin")
    (inside / "random_states_0.pkl").write_bytes(pickle.dumps({"step": step}))


def _pickled(folder: Path, step: int, state: State) -> None:
    """By ``pickle.dump``."""
    (folder / f"step{step}.pth").write_bytes(pickle.dumps(state))


# Name -> how the state dict of a step is written into a folder.
WRITERS: Mapping[str, Callable[[Path, int, State], None]] = {
    ".pt": _torch("step{step}.pt"),
    ".pth": _torch("net_step_{step:05d}.pth"),
    ".bin": _torch("iter_{step}.bin"),
    "model": _torch(
        "a{step}.pt", lambda state, step: {"model": state, "step": step, "optimizer": {"x": torch.ones(3)}}
    ),
    "model_state_dict": _torch("a{step}.pt", lambda state, step: {"iteration": step, "model_state_dict": state}),
    "legacy": _torch("step={step}.pth", _use_new_zipfile_serialization=False),
    "safetensors": _safetensors,
    "Hugging Face": _hugging_face,
    "sharded .bin": _sharded_bin,
    "distributed": _distributed,
    "whole network": _torch("step{step}.pt", lambda state, _: Tree(state)),
    "TorchScript": _scripted,
    "Stable-Baselines3": _stable_baselines,
    "diffusers LoRA": _diffusers_lora,
    "pickle.dump": _pickled,
}


# Name of a format in the package's registry -> one of the above that is of it.
SAMPLES: Mapping[str, str] = {
    "torch file": ".pt",
    "safetensors file": "safetensors",
    "model folder": "Hugging Face",
    "distributed folder": "distributed",
}


def write_all(kind: str, folder: Path, states: Mapping[int, State]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for step, state in states.items():
        WRITERS[kind](folder, step, state)
    return folder


def states_of(folder: Path) -> dict[int, State]:
    """The state dicts of a folder of Lightning's checkpoints, by step."""
    files = sorted(folder.glob("*.ckpt"), key=lambda file: int(file.stem.rpartition("=")[2]))
    loaded = [torch.load(file, weights_only=True) for file in files]
    return {content["global_step"]: content["state_dict"] for content in loaded}


def agree(one: Trajectory, other: Trajectory, tolerance: float = 1e-10, rename: Callable[[str], str] = str) -> None:
    """Two trajectories are the same: blocks, steps, epochs, and all matrices to this share of their largest entry.

    Of blocks that come late, what the Recorder has in ``local`` for the time before is zero: it is not compared.
    """
    names = [rename(block.name) for block in one.blocks]
    assert sorted(names) == sorted(block.name for block in other.blocks)
    at = [names.index(block.name) for block in other.blocks]
    assert [one.blocks[i].role for i in at] == [block.role for block in other.blocks]
    assert [one.blocks[i].numel for i in at] == [block.numel for block in other.blocks]
    assert one.steps.tolist() == other.steps.tolist()
    np.testing.assert_allclose(one.epochs, other.epochs, rtol=1e-12)
    singles = len(one.blocks)
    there = (other.local != 0).any(axis=(2, 3), keepdims=True)
    assert there[-1].all()
    pairs: Sequence[tuple[Any, Any]] = [
        (one.anchored[at], other.anchored),
        (one.gram("*"), other.gram("*")),
        (one.displacement_gram("*"), other.displacement_gram("*")),
        (np.where(there, one.local[:, at], 0), np.where(there, other.local, 0)),
        (one.paths[:, 0], other.paths[:, 0]),
        (one.paths[:, -singles:][:, at], other.paths[:, -singles:]),
    ]
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance * np.abs(theirs).max())
    summary = other.summary()
    for name, value in one.summary().items():
        # An angle of 0 is known to the root of the roundings, in degrees.
        np.testing.assert_allclose(value, summary[name], rtol=1e-8, atol=1e-5, err_msg=name)


class Malicious:
    """Pickled, it makes a file where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return pickle.loads(b"cos\nsystem\n."), (f"touch {self.marker}",)
