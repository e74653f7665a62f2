"""One checkpoint on disk -> its named tensors, and when in training it was written.

Understood are Lightning's ``.ckpt``, torch's state dicts and whole networks (``.pt``, ``.pth``, ``.bin``), TorchScript
archives, safetensors files, archives of Stable-Baselines3, folders of Hugging Face (also sharded, with an index) and of
diffusers, and folders of ``torch.distributed.checkpoint`` as Lightning writes them.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from reprlib import repr as short
from typing import Any, Literal

from torch import Tensor

from lightning_traj.blocks import clean_name
from lightning_traj.checkpoints.formats.dates import (
    completed_epochs_in,
    epoch_in,
    epoch_in_name,
    epochs_of_lightning,
    number_in_name,
    step_in,
    step_in_name,
)
from lightning_traj.checkpoints.formats.dcp import METADATA, DistributedCheckpoint, read_metadata
from lightning_traj.checkpoints.formats.errors import CheckpointError as CheckpointError
from lightning_traj.checkpoints.formats.errors import NoWeights as NoWeights
from lightning_traj.checkpoints.formats.errors import unreadable, within
from lightning_traj.checkpoints.formats.foreign import foreign_file, foreign_folder, is_deepspeed
from lightning_traj.checkpoints.formats.placeholders import Placeholder, content
from lightning_traj.checkpoints.formats.sources import Source, read_json
from lightning_traj.checkpoints.formats.torch_files import TorchContents, kind_of, torch_source
from lightning_traj.checkpoints.formats.torch_pickles import StoredTensor
from lightning_traj.checkpoints.formats.weight_folders import (
    SINGLE,
    WEIGHTS,
    folder_source,
    has_weights,
    parts,
    safetensors_file,
)
from lightning_traj.checkpoints.hyperparameters import hyperparameters_beside, plain_hyperparameters
from lightning_traj.text import join_names
from lightning_traj.trajectory import TRAJECTORY

Weights = Literal["raw", "average"]

SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".safetensors", ".tar", ".zip")
NESTED = ("state_dict", "model_state_dict", "model", "module")  # where frameworks keep the weights
# In Lightning's checkpoints, the later one is believed; then where others keep them.
HYPERPARAMETERS = ("args", "cfg", "config", "hparams", "datamodule_hyper_parameters", "hyper_parameters")
_BEGINNING = 200  # bytes of an archive in which its first name is
RAW_BESIDE_AVERAGE = "current_model_state"  # of Lightning's WeightAveraging, whose state_dict is the average


@dataclass
class Checkpoint:
    """A checkpoint, whose tensors are read when they are used.

    Attributes:
        path: The file or folder.
        source: Where the tensors are.
        step: Optimizer steps taken when it was written; None where neither the file nor its name says so.
        epoch: Completed epochs, with a fraction where transformers' Trainer wrote one; None where nothing is known, or
            only that an epoch was running. Where the step is not known either, the epoch that the file or its name
            says, whatever is counted.
        number: In its name, which doesn't say what it counts; None where the step is known, or there is none.
        averaged: Whether these are averaged weights, as far as the file tells.
        config: What the config.json of a Hugging Face folder says; else empty.
        logged: Hyperparameters that stand in the file, flat.
        objects: How many objects of which class are in the file and were not read.
        shapes: Every tensor on the meta device, by its name, free of ``_orig_mod.``.
        compiled: Whether the file has names with ``_orig_mod.``.
    """

    path: Path
    source: Source
    step: int | None = None
    epoch: int | float | None = None
    number: int | None = None
    averaged: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)
    logged: Mapping[str, Any] = field(default_factory=dict)
    objects: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shapes = self.source.shapes()
        self._names = {clean_name(name): name for name in shapes}
        self.compiled = any(name != raw for name, raw in self._names.items())
        self.shapes: Mapping[str, Tensor] = {name: shapes[raw] for name, raw in self._names.items()}
        if not self._names:
            raise CheckpointError("it holds no tensors")

    def read(self, name: str) -> Tensor:
        """A tensor, most often a view of the mapped file.

        Raises:
            CheckpointError: it cannot be read.
        """
        try:
            return self.source.read(self._names[name])
        except Exception as error:
            raise unreadable(self.path, error) from error

    def rename(self, names: Mapping[str, str]) -> None:
        """Give tensors other names.

        Args:
            names: New names by the present ones; tensors that are not in it keep theirs.
        """
        self._names = {names.get(name, name): raw for name, raw in self._names.items()}
        self.shapes = {names.get(name, name): like for name, like in self.shapes.items()}

    @cached_property
    def hyperparameters(self) -> dict[str, int | float | bool | str]:
        """Those of the run: plain ones, nested ones as ``a/b``, from the file or the hparams.yaml beside or above it.

        Raises:
            ValueError: there is an hparams.yaml, and it cannot be read.
        """
        return plain_hyperparameters(self.logged or hyperparameters_beside(self.path))

    def release(self) -> None:
        """Close its files: they are opened again when they are used."""
        self.source.release()


def open_checkpoint(path: Path, key: str | None = None, weights: Weights = "raw") -> Checkpoint:
    """Open a checkpoint, whatever its format.

    Args:
        path: File or folder.
        key: Where in the file the state dict is nested, such as ``"ema.model"``; None: where it usually is.
        weights: Of checkpoints of Lightning's ``WeightAveraging``: the raw or the averaged ones.

    Raises:
        CheckpointError: it is damaged, or of another kind.
    """
    try:
        if path.is_dir():
            opened = _distributed(path, key, weights) if (path / METADATA).is_file() else _hugging_face(path, weights)
        elif path.stat().st_size == 0:
            raise CheckpointError("it is empty")
        elif words := foreign_file(path):
            raise CheckpointError(words)
        else:
            opened = _safetensors(path) if path.suffix == ".safetensors" else _torch(path, key, weights)
        if weights == "average" and not opened.averaged:
            raise CheckpointError('it has no averaged weights beside the raw ones: leave out weights="average"')
        return opened
    except Exception as error:
        raise unreadable(path, error) from error


def is_checkpoint(path: Path) -> bool:
    """Whether a path looks like a checkpoint: by its name, or by what the folder holds.

    Folders of DeepSpeed count, too, so that whoever names one hears what to do.
    """
    if path.is_dir():
        return (path / METADATA).is_file() or has_weights(path) or bool(parts(path)) or is_deepspeed(path)
    if path.suffix not in SUFFIXES or not path.is_file() or path.name.startswith("."):
        return False
    return path.suffix != ".zip" or _is_policy(path)


def folder_and_name(path: Path) -> tuple[Path, str]:
    """Return the folder and the name that tell a checkpoint apart: without suffixes; of a model's folder, its own.

    Args:
        path: The file or folder.
    """
    named = path.parent if path.name.startswith(SINGLE) else path
    name = named.name
    while (suffix := Path(name).suffix) in SUFFIXES:
        name = name.removesuffix(suffix)
    return named.parent, name


def _is_policy(path: Path) -> bool:
    """Whether a zip archive is one of torch or of Stable-Baselines3, as far as the names in it say.

    Of a truncated one only the beginning does: it is taken for one, so that it is not left out without a word.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.split("/")[-1] in ("policy.pth", "data.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        with path.open("rb") as file:
            return b"data" in file.read(_BEGINNING)


# By format --------------------------------------------------------------------------------------------------


def _safetensors(path: Path) -> Checkpoint:
    file = safetensors_file(path)
    metadata = file.metadata()
    if TRAJECTORY in metadata:
        raise CheckpointError("it is a trajectory, not a checkpoint; compare takes those")
    return _dated(path, file, {name: int(value) for name, value in metadata.items() if value.isdecimal()})


def _torch(path: Path, key: str | None, weights: Weights) -> Checkpoint:
    contents = TorchContents(path)
    state = content(contents.value)
    inside = _where(contents, state, key, weights)
    tensors = contents.tensors(_at(state, inside))
    said = {name: contents.plain(value) for name, value in state.items()} if inside else {}
    source = torch_source(contents, tensors)
    averaged = "n_averaged" in tensors or (RAW_BESIDE_AVERAGE in said and inside == ("state_dict",))
    return _dated(path, source, said, averaged=averaged, objects=contents.objects)


def _hugging_face(path: Path, weights: Weights) -> Checkpoint:
    averaged = weights == "average" and not has_weights(path)
    source = folder_source(path, averaged)
    if source is None:
        raise CheckpointError(foreign_folder(path) or f"the folder holds none of {', '.join((METADATA, *WEIGHTS))}")
    said, config = read_json(path / "trainer_state.json"), read_json(path / "config.json")
    return _dated(path, source, said, averaged=averaged, config=config)


def _distributed(path: Path, key: str | None, weights: Weights) -> Checkpoint:
    with within(METADATA):
        entries = read_metadata(path)
    # Where nothing tells the weights, all but the optimizers' moments are taken for them.
    rest = {name: entry for name, entry in entries.items() if not re.search(r"(?:^|\.)optim", name)}
    for prefix in [f"{name}." for name in ((key,) if key else NESTED)]:
        if found := {name.removeprefix(prefix): entry for name, entry in entries.items() if name.startswith(prefix)}:
            break
    else:
        if key is not None or not rest:
            kinds = _listing(dict.fromkeys(name.partition(".")[0] for name in entries))
            raise CheckpointError(f"key={key!r} leads to no tensors; what there is begins with {kinds}")
        found = rest
    with within("meta.pt"):
        beside = TorchContents(path / "meta.pt") if (path / "meta.pt").is_file() else None  # Lightning's
        meta = {} if beside is None else beside.value
        if not isinstance(meta, Mapping):
            raise CheckpointError(f"there is a {kind_of(meta)}, not what Lightning writes")
        meta = {name: beside.plain(value) for name, value in meta.items()} if beside else meta
    averaged = RAW_BESIDE_AVERAGE in meta
    if averaged and weights == "raw":
        raise CheckpointError('its weights are averaged, and of the raw ones it has no shards: say weights="average"')
    objects = beside.objects if beside else {}
    return _dated(path, DistributedCheckpoint(found), meta, averaged=averaged, objects=objects)


def _dated(
    path: Path,
    source: Source,
    said: Mapping[str, Any],
    *,
    averaged: bool = False,
    config: Mapping[str, Any] | None = None,
    objects: Mapping[str, int] | None = None,
) -> Checkpoint:
    """The checkpoint, dated by what is said in it besides the tensors, or else by its name."""
    _, name = folder_and_name(path)
    step, number = step_in(said), None
    epoch = next((found for found in (epochs_of_lightning(said), completed_epochs_in(said)) if found is not None), None)
    if step is None:
        step = step_in_name(name, folder=path.is_dir() or path.name.startswith(SINGLE))
    if step is None:
        number = number_in_name(name)
        epoch = next((found for found in (epoch, epoch_in(said), epoch_in_name(name)) if found is not None), None)
    logged = plain_hyperparameters(*(said.get(name) for name in HYPERPARAMETERS))
    return Checkpoint(path, source, step, epoch, number, averaged, config or {}, logged, objects or {})


# Inside a file that torch.save wrote ------------------------------------------------------------------------


def _where(contents: TorchContents, state: Any, key: str | None, weights: Weights) -> tuple[str, ...]:
    """The keys under which the state dict lies, or the network that was saved as a whole."""
    if isinstance(state, Placeholder) and contents.tensors(state):
        return ()
    if not isinstance(state, Mapping):
        kind = CheckpointError if _has_tensors(state) else NoWeights
        raise kind(f"it holds a {kind_of(state)}, not a state dict")
    if {"state", "param_groups"} <= state.keys():
        raise NoWeights("it holds the state of an optimizer, and no weights")
    if key is not None:
        inside = (key,) if key in state else tuple(key.split("."))
        if not contents.tensors(_at(state, inside)):
            raise CheckpointError(f"key={key!r} leads to no tensors; the file has {_listing(state)}")
        return inside
    if RAW_BESIDE_AVERAGE in state:
        return ("state_dict",) if weights == "average" else (RAW_BESIDE_AVERAGE,)
    for name in NESTED:
        if contents.tensors(state.get(name)):
            return (name,)
    if contents.tensors(state):
        return ()
    unread = join_names(list(contents.objects), 4)
    found = f"the file has {_listing(state)}" + (f", and objects that are not read ({unread})" if unread else "")
    if not _has_tensors(state):
        raise NoWeights(f"no state dict found, nor any tensor: {found}")
    raise CheckpointError(f"no state dict found; name the key that leads to it: {found}")


def _has_tensors(state: Any, depth: int = 8) -> bool:
    """Whether there is a tensor in a state, or anything that is nested too deep to tell."""
    state = content(state)
    if isinstance(state, Mapping):
        state = state.values()
    elif not isinstance(state, (list, tuple)):
        return isinstance(state, (Tensor, StoredTensor))
    return depth == 0 or any(_has_tensors(value, depth - 1) for value in state)


def _at(state: Any, inside: Sequence[str]) -> Any:
    for key in inside:
        state = content(state)
        state = state.get(key) if isinstance(state, Mapping) else None
    return state


def _listing(state: Mapping[Any, Any]) -> str:
    return ", ".join(short(name) for name in list(state)[:20]) or "nothing"
