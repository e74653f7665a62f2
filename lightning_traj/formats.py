"""One checkpoint on disk -> its named tensors, and when in training it was written.

Understood are Lightning's ``.ckpt``, torch's state dicts (``.pt``, ``.pth``, ``.bin``), safetensors files, Hugging Face
folders (also sharded, with an index), and folders of ``torch.distributed.checkpoint`` as Lightning writes them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from lightning_traj.blocks import clean_name
from lightning_traj.sources import (
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
SINGLE = ("model.safetensors", "pytorch_model.bin")
DISTRIBUTED = ".metadata"
NESTED = ("state_dict", "model_state_dict", "model", "module")  # where frameworks keep the weights
RAW_BESIDE_AVERAGE = "current_model_state"  # of Lightning's WeightAveraging, whose state_dict is the average
STEPS = ("global_step", "step", "steps", "iteration", "iter_num", "iter")
# epoch=3-step=120, step1000, checkpoint-500, global_step500, iter_000500
STEP_IN_NAME = re.compile(r"(?:step|iter|iteration|checkpoint|ckpt)s?[=_-]?(\d+)", re.IGNORECASE)
EPOCH_IN_NAME = re.compile(r"epochs?[=_-]?(\d+)", re.IGNORECASE)


class CheckpointError(ValueError):
    """A checkpoint cannot be read: the message names it, and says why."""


@dataclass
class Checkpoint:
    """A checkpoint, whose tensors are read when they are used.

    Attributes:
        path: The file or folder.
        source: Where the tensors are.
        step: Optimizer steps taken when it was written; None where neither the file nor its name says so.
        epoch: Completed epochs; None where it was written within one, or nothing is known.
        averaged: Whether these are averaged weights, as far as the file tells.
        config: What the config.json of a Hugging Face folder says; else empty.
    """

    path: Path
    source: Source
    step: int | None = None
    epoch: int | None = None
    averaged: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._names = {clean_name(name): name for name in self.source.shapes()}
        if not self._names:
            raise CheckpointError("it holds no tensors")

    def shapes(self) -> dict[str, Tensor]:
        """Every tensor on the meta device, by its name, free of ``_orig_mod.``."""
        shapes = self.source.shapes()
        return {name: shapes[raw] for name, raw in self._names.items()}

    def read(self, name: str) -> Tensor:
        """A tensor, most often a view of the mapped file.

        Raises:
            CheckpointError: it cannot be read.
        """
        try:
            return self.source.read(self._names[name])
        except Exception as error:
            raise unreadable(self.path, error) from error


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
            return _distributed(path, key) if (path / DISTRIBUTED).is_file() else _hugging_face(path)
        if path.stat().st_size == 0:
            raise CheckpointError("it is empty")
        if path.suffix == ".safetensors":
            return _safetensors(path)
        return _torch(path, key, weights)
    except Exception as error:
        raise unreadable(path, error) from error


def is_checkpoint(path: Path) -> bool:
    """Whether a path looks like a checkpoint: by its name, or by what the folder holds."""
    if path.is_dir():
        return any((path / name).is_file() for name in (DISTRIBUTED, *INDEXES, *SINGLE))
    return path.suffix in SUFFIXES and path.is_file() and not path.name.startswith(".")


def unreadable(path: Path, error: BaseException) -> CheckpointError:
    """What went wrong with a checkpoint, in words that name it."""
    reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
    if blocked := re.search(r"GLOBAL ([\w.]+)", str(error)):
        reason = (
            f"to load it, {blocked[1]} would have to be called, and whoever wrote the file decides what that does; "
            "save its tensors alone, as safetensors, and pass that file"
        )
    elif not isinstance(error, (CheckpointError, OSError)):
        reason = f"it is damaged, or of another kind ({reason})"
    return CheckpointError(f"{path} cannot be read as a checkpoint: {reason}.")


# By format --------------------------------------------------------------------------------------------------


def _safetensors(path: Path) -> Checkpoint:
    file = SafetensorsFile(path)
    metadata = file.metadata()
    if "lightning_traj" in metadata:
        raise CheckpointError("it is a trajectory, not a checkpoint; compare takes those")
    steps = [int(metadata[name]) for name in STEPS if metadata.get(name, "").isdecimal()]
    return _dated(path, file, steps[0] if steps else None)


def _torch(path: Path, key: str | None, weights: Weights) -> Checkpoint:
    state = load(path)
    inside = _where(state, key, weights)
    if is_mappable(path):
        source: Source = TorchFile(path, inside)
    else:
        source = Copied(tensors_of(_at(state, inside)))
    step, epoch = _progress(state) if inside else (None, None)
    names = source.shapes()
    averaged = "n_averaged" in names or (RAW_BESIDE_AVERAGE in state and inside == ("state_dict",))
    return _dated(path, source, step, epoch, averaged=averaged)


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
            raise CheckpointError(f"the folder holds none of {', '.join((DISTRIBUTED, *INDEXES, *SINGLE))}")
        source = _weights_file(path, names[0])
    step = read_json(path / "trainer_state.json").get("global_step")
    return _dated(path, source, step, config=read_json(path / "config.json"))


def _weights_file(folder: Path, name: Any) -> Source:
    if not isinstance(name, str) or Path(name).name != name or not (folder / name).is_file():
        raise CheckpointError(f"its index names {name!r}, and there is no such file in the folder")
    path = folder / name
    if path.suffix == ".safetensors":
        return SafetensorsFile(path)
    return TorchFile(path) if is_mappable(path) else Copied(tensors_of(load(path)))


def _distributed(path: Path, key: str | None) -> Checkpoint:
    from lightning_traj.dcp import DistributedCheckpoint  # torch.distributed is slow to import

    prefixes = [f"{name}." for name in ((key,) if key else NESTED)] + ([] if key else [""])
    for prefix in prefixes:
        source = DistributedCheckpoint(path, prefix)
        if source.shapes():
            break
    else:
        raise CheckpointError(f"no key in it begins with {key!r}")
    rest = load(path / "meta.pt") if (path / "meta.pt").is_file() else {}  # Lightning's
    return _dated(path, source, *_progress(rest))


def _dated(
    path: Path,
    source: Source,
    step: Any = None,
    epoch: int | None = None,
    *,
    averaged: bool = False,
    config: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """The checkpoint, dated by what its content says, or else by its name."""
    name = path.name if not path.name.startswith(SINGLE) else path.parent.name
    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
        step = int(found[-1]) if (found := STEP_IN_NAME.findall(name)) else None
    if epoch is None and step is None:
        epoch = int(found[-1]) if (found := EPOCH_IN_NAME.findall(name)) else None
    return Checkpoint(path, source, step, epoch, averaged, config or {})


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


def _progress(state: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Optimizer steps taken, and epochs completed where that is a whole number."""
    step = next((state[name] for name in STEPS if isinstance(state.get(name), int)), None)
    epochs = _at(state, ("loops", "fit_loop", "epoch_progress", "current", "processed"))
    batches = _at(state, ("loops", "fit_loop", "epoch_loop.batch_progress"))
    at_end = isinstance(batches, Mapping) and batches.get("is_last_batch") is True
    return step, epochs if at_end and isinstance(epochs, int) else None
