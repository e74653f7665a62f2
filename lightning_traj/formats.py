"""One checkpoint on disk -> its named tensors, and when in training it was written.

Understood are Lightning's ``.ckpt``, torch's state dicts (``.pt``, ``.pth``, ``.bin``), safetensors files, Hugging Face
folders (also sharded, with an index), and folders of ``torch.distributed.checkpoint`` as Lightning writes them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from lightning_traj.blocks import clean_name
from lightning_traj.dates import epoch_in, epoch_in_name, epochs_of_lightning, number_in_name, step_in, step_in_name
from lightning_traj.dcp import METADATA, DistributedCheckpoint, read_metadata
from lightning_traj.hyperparameters import hyperparameters_beside, plain_hyperparameters
from lightning_traj.sources import (
    TRAJECTORY,
    Copied,
    SafetensorsFile,
    Sharded,
    Source,
    TorchFile,
    is_mappable,
    load,
    read_json,
    tensors_of,
)

Weights = Literal["raw", "average"]

SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".safetensors", ".tar")
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLE = ("model.safetensors", "pytorch_model.bin", "adapter_model.safetensors", "adapter_model.bin")  # last: PEFT's
NESTED = ("state_dict", "model_state_dict", "model", "module")  # where frameworks keep the weights
HYPERPARAMETERS = ("datamodule_hyper_parameters", "hyper_parameters")  # in Lightning's checkpoints
RAW_BESIDE_AVERAGE = "current_model_state"  # of Lightning's WeightAveraging, whose state_dict is the average


class CheckpointError(ValueError):
    """A checkpoint cannot be read: the message names it, and says why.

    Attributes:
        path: Of the checkpoint.
    """

    path: Path | None = None


@dataclass
class Checkpoint:
    """A checkpoint, whose tensors are read when they are used.

    Attributes:
        path: The file or folder.
        source: Where the tensors are.
        step: Optimizer steps taken when it was written; None where neither the file nor its name says so.
        epoch: Completed epochs; None where it was written within one, or nothing is known. Where the step is not known
            either, the epoch that the file or its name says, whatever is counted.
        number: In its name, which doesn't say what it counts; None where the step is known, or there is none.
        averaged: Whether these are averaged weights, as far as the file tells.
        config: What the config.json of a Hugging Face folder says; else empty.
        logged: Hyperparameters that stand in the file, flat.
        shapes: Every tensor on the meta device, by its name, free of ``_orig_mod.``.
    """

    path: Path
    source: Source
    step: int | None = None
    epoch: int | None = None
    number: int | None = None
    averaged: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)
    logged: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shapes = self.source.shapes()
        self._names = {clean_name(name): name for name in shapes}
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
        CheckpointError: it is damaged, of another kind, or would run code.
    """
    try:
        if path.is_dir():
            opened = _distributed(path, key, weights) if (path / METADATA).is_file() else _hugging_face(path)
        elif path.stat().st_size == 0:
            raise CheckpointError("it is empty")
        else:
            opened = _safetensors(path) if path.suffix == ".safetensors" else _torch(path, key, weights)
        if weights == "average" and not opened.averaged:
            raise CheckpointError('it has no averaged weights beside the raw ones: leave out weights="average"')
        return opened
    except Exception as error:
        raise unreadable(path, error) from error


def is_checkpoint(path: Path) -> bool:
    """Whether a path looks like a checkpoint: by its name, or by what the folder holds."""
    if path.is_dir():
        return any((path / name).is_file() for name in (METADATA, *INDEXES, *SINGLE))
    return path.suffix in SUFFIXES and path.is_file() and not path.name.startswith(".")


def unreadable(path: Path, error: BaseException) -> CheckpointError:
    """What went wrong with a checkpoint, in words that name it."""
    named = CheckpointError(f"{path} cannot be read as a checkpoint: {_reason(error)}.")
    named.path = path
    return named


def _reason(error: BaseException) -> str:
    said = (
        str(error).rpartition("WeightsUnpickler error:")[2].strip()
    )  # before it, torch advises to load it all the same
    reason = said.splitlines()[0][:300] if said else type(error).__name__
    if blocked := re.search(r"GLOBAL ([\w.]+)", str(error)):
        reason = (
            f"to load it, {blocked[1]} would have to be called, and whoever wrote the file decides what that does; "
            "save its tensors alone, as safetensors, and pass that file"
        )
    elif not isinstance(error, (CheckpointError, OSError)):
        reason = f"it is damaged, or of another kind ({reason})"
    return reason.rstrip(".")


@contextmanager
def _inside(name: str) -> Iterator[None]:
    """Of several files of a checkpoint, name the one with which something is wrong."""
    try:
        yield
    except Exception as error:
        raise CheckpointError(f"in {name}, {_reason(error)}") from error


# By format --------------------------------------------------------------------------------------------------


def _safetensors(path: Path) -> Checkpoint:
    file = SafetensorsFile(path)
    metadata = file.metadata()
    if TRAJECTORY in metadata:
        raise CheckpointError("it is a trajectory, not a checkpoint; compare takes those")
    return _dated(path, file, {name: int(value) for name, value in metadata.items() if value.isdecimal()})


def _torch(path: Path, key: str | None, weights: Weights) -> Checkpoint:
    state = load(path)
    inside = _where(state, key, weights)
    source: Source = TorchFile(path, inside, state) if is_mappable(path) else Copied(tensors_of(_at(state, inside)))
    names = source.shapes()
    averaged = "n_averaged" in names or (RAW_BESIDE_AVERAGE in state and inside == ("state_dict",))
    return _dated(path, source, state if inside else {}, averaged=averaged)


def _hugging_face(path: Path) -> Checkpoint:
    for name in INDEXES:
        if (path / name).is_file():
            listed = read_json(path / name).get("weight_map")
            if not isinstance(listed, dict) or not listed:
                raise CheckpointError(f"{name} has no weight_map")
            files = {file: _weights_file(path, file) for file in sorted(set(listed.values()))}
            absent = [tensor for tensor, file in listed.items() if tensor not in files[file].shapes()]
            if absent:
                raise CheckpointError(f"{listed[absent[0]]} lacks {absent[0]!r}, which {name} says it has")
            source: Source = Sharded({tensor: files[file] for tensor, file in listed.items()})
            break
    else:
        names = [name for name in SINGLE if (path / name).is_file()]
        if not names:
            raise CheckpointError(f"the folder holds none of {', '.join((METADATA, *INDEXES, *SINGLE))}")
        source = _weights_file(path, names[0])
    return _dated(path, source, read_json(path / "trainer_state.json"), config=read_json(path / "config.json"))


def _weights_file(folder: Path, name: Any) -> Source:
    if not isinstance(name, str) or Path(name).name != name or not (folder / name).is_file():
        raise CheckpointError(f"its index names {name!r}, and there is no such file in the folder")
    path = folder / name
    with _inside(name):
        source: Source
        if path.suffix == ".safetensors":
            source = SafetensorsFile(path)
        else:
            state = load(path)
            source = TorchFile(path, (), state) if is_mappable(path) else Copied(tensors_of(state))
        source.shapes()
    return source


def _distributed(path: Path, key: str | None, weights: Weights) -> Checkpoint:
    with _inside(METADATA):
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
    with _inside("meta.pt"):
        meta = load(path / "meta.pt") if (path / "meta.pt").is_file() else {}  # Lightning's
        if not isinstance(meta, Mapping):
            raise CheckpointError(f"there is a {type(meta).__name__}, not what Lightning writes")
    averaged = RAW_BESIDE_AVERAGE in meta
    if averaged and weights == "raw":
        raise CheckpointError('its weights are averaged, and of the raw ones it has no shards: say weights="average"')
    return _dated(path, DistributedCheckpoint(found), meta, averaged=averaged)


def _dated(
    path: Path,
    source: Source,
    said: Mapping[str, Any],
    *,
    averaged: bool = False,
    config: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """The checkpoint, dated by what is said in it besides the tensors, or else by its name."""
    named = path.parent if path.name.startswith(SINGLE) else path
    name = named.stem if named.suffix in SUFFIXES else named.name
    step, epoch, number = step_in(said), epochs_of_lightning(said), None
    if step is None:
        step = step_in_name(name, folder=named.is_dir())
    if step is None:
        number = number_in_name(name)
        epoch = next((found for found in (epoch, epoch_in(said), epoch_in_name(name)) if found is not None), None)
    logged = plain_hyperparameters(*(said.get(name) for name in HYPERPARAMETERS))
    return Checkpoint(path, source, step, epoch, number, averaged, config or {}, logged)


# Inside a file that torch.save wrote ------------------------------------------------------------------------


def _where(state: Any, key: str | None, weights: Weights) -> tuple[str, ...]:
    """The keys under which the state dict lies."""
    if not isinstance(state, Mapping):
        raise CheckpointError(f"it holds a {type(state).__name__}, not a state dict")
    if key is not None:
        inside = (key,) if key in state else tuple(key.split("."))
        if not tensors_of(_at(state, inside)):
            raise CheckpointError(f"key={key!r} leads to no tensors; the file has {_listing(state)}")
        return inside
    if RAW_BESIDE_AVERAGE in state:
        return ("state_dict",) if weights == "average" else (RAW_BESIDE_AVERAGE,)
    for name in NESTED:
        if tensors_of(state.get(name)):
            return (name,)
    if tensors_of(state):
        return ()
    raise CheckpointError(f"no state dict found; name the key that leads to it: the file has {_listing(state)}")


def _at(state: Any, inside: Sequence[str]) -> Any:
    for key in inside:
        state = state.get(key) if isinstance(state, Mapping) else None
    return state


def _listing(state: Mapping[Any, Any]) -> str:
    return ", ".join(repr(name) for name in list(state)[:20])
