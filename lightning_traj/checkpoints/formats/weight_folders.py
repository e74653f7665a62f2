"""Folders of Hugging Face and of diffusers: their weights are in files of safetensors or torch, whole or in shards."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from lightning_traj.checkpoints.formats.errors import CheckpointError, within
from lightning_traj.checkpoints.formats.foreign import foreign_file, truncation
from lightning_traj.checkpoints.formats.sources import SafetensorsFile, Sharded, Source, natural, read_json
from lightning_traj.checkpoints.formats.torch_files import TorchContents, kind_of, torch_source

INDEXES = (
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.bin.index.json",
)
SINGLE = (
    *("model.safetensors", "pytorch_model.bin"),
    *("adapter_model.safetensors", "adapter_model.bin"),  # PEFT's
    *("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin"),  # diffusers'
    *("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
)
# The folders in which diffusers saves the networks of a checkpoint, and what it adds to the name for an average.
PARTS = (
    *("unet", "transformer", "transformer_2", "controlnet", "t2iadapter", "prior", "decoder"),
    *("text_encoder", "text_encoder_2", "text_encoder_3", "image_encoder", "vae"),
)
AVERAGE = "_ema"
WEIGHTS = (*INDEXES, *SINGLE)
_FURTHER = re.compile(r"^(?P<model>model|pytorch_model)_\d+(?P<suffix>\.safetensors|\.bin)$")


def has_weights(folder: Path) -> bool:
    """Return whether there are weights in a folder itself, and not only in its sub-folders."""
    return any((folder / name).is_file() for name in WEIGHTS)


def is_whole_model(path: Path) -> bool:
    """Return whether a file is called as the only file of a model in a folder, such as ``model.safetensors``."""
    return path.name.startswith(SINGLE)


def models_in(folder: Path) -> list[Path]:
    """Return the files of a folder in which accelerate has saved several models; empty for any other folder.

    The first is ``model.safetensors``, the second ``model_1.safetensors``, and so on.
    """
    further = [child for child in folder.iterdir() if one_of_several(child)]
    firsts = dict.fromkeys(folder / re.sub(r"_\d+\.", ".", child.name) for child in further)
    return [*firsts, *sorted(further, key=lambda child: natural(child.name))]


def one_of_several(path: Path) -> bool:
    """Return whether a file is a further model beside the first one, as accelerate names them."""
    named = _FURTHER.match(path.name)
    return named is not None and path.with_name(f"{named['model']}{named['suffix']}").is_file()


def is_part(folder: Path) -> bool:
    """Return whether a folder has the name of a network in a checkpoint of diffusers, or of its average."""
    return folder.name.removesuffix(AVERAGE) in PARTS


def parts(folder: Path, averaged: bool = False) -> list[Path]:
    """Return the networks in a folder of diffusers that have weights: the averages, or the others."""
    names = [f"{part}{AVERAGE}" if averaged else part for part in PARTS]
    return [folder / name for name in names if has_weights(folder / name)]


def folder_source(path: Path, averaged: bool = False) -> Source | None:
    """Return the tensors of a folder, or of the networks in it, whose names then begin with the network's.

    Args:
        path: The folder.
        averaged: Whether to take the averages of networks.

    Returns:
        Source of the tensors; None if there are none.
    """
    if has_weights(path):
        return _source(path)
    named = {part.name: _source(part) for part in parts(path, averaged)}
    return Sharded({f"{part}.{n}": (file, n) for part, file in named.items() for n in file.shapes()}) if named else None


def _source(path: Path) -> Source:
    for name in INDEXES:
        if (path / name).is_file():
            listed = read_json(path / name).get("weight_map")
            if not isinstance(listed, dict) or not listed:
                raise CheckpointError(f"{name} has no weight_map")
            files = {file: _weights_file(path, file) for file in sorted(set(listed.values()))}
            absent = [tensor for tensor, file in listed.items() if tensor not in files[file].shapes()]
            if absent:
                raise CheckpointError(f"{listed[absent[0]]} lacks {absent[0]!r}, which {name} says it has")
            return Sharded({tensor: (files[file], tensor) for tensor, file in listed.items()})
    return next(_weights_file(path, name) for name in SINGLE if (path / name).is_file())


def _weights_file(folder: Path, name: Any) -> Source:
    if not isinstance(name, str) or Path(name).name != name or not (folder / name).is_file():
        raise CheckpointError(f"its index names {name!r}, and there is no such file in the folder")
    path = folder / name
    with within(name):
        if words := foreign_file(path):
            raise CheckpointError(words)
        if path.suffix == ".safetensors":
            return safetensors_file(path)
        contents = TorchContents(path)
        tensors = contents.tensors(contents.value)
        if not tensors:
            raise CheckpointError(f"it holds a {kind_of(contents.value)} without tensors, not a state dict")
        return torch_source(contents, tensors)


def safetensors_file(path: Path) -> SafetensorsFile:
    """Open a safetensors file.

    Raises:
        CheckpointError: It is truncated.
    """
    file = SafetensorsFile(path)
    try:
        file.shapes()
    except Exception as error:
        if words := truncation(path):
            raise CheckpointError(words) from error
        raise
    return file
