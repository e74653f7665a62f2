"""Files that torch wrote: Lightning's checkpoints, state dicts, whole networks, TorchScript, Stable-Baselines3."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from reprlib import repr as short
from typing import Any

from torch import Tensor

from lightning_traj.checkpoints.formats.checkpoint import Contents, Weights
from lightning_traj.checkpoints.formats.errors import CheckpointError, NoWeights
from lightning_traj.checkpoints.formats.placeholders import Placeholder, content
from lightning_traj.checkpoints.formats.torch_files import TorchContents, kind_of, torch_source
from lightning_traj.checkpoints.formats.torch_pickles import StoredTensor
from lightning_traj.text import join_names

SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".tar", ".zip")
NESTED = ("state_dict", "model_state_dict", "model", "module")  # where frameworks keep the weights
RAW_BESIDE_AVERAGE = "current_model_state"  # of Lightning's WeightAveraging, whose state_dict is the average
AVERAGE = "ema"
_OF_OPTIMIZERS = ("optim", "scaler", "sched", "grad")  # begin the keys of their states
_BESIDE = (*_OF_OPTIMIZERS, "ema")
_BEGINNING = 200  # bytes of an archive in which its first name is


def matches(path: Path) -> bool:
    """Return whether a file has the name of a file of torch, and for a zip archive, the members of one."""
    return path.suffix in SUFFIXES and path.is_file() and (path.suffix != ".zip" or _is_policy(path))


def begins(start: bytes, size: int) -> bool:
    """Return whether a file begins as a zip archive does, which ``torch.save`` writes."""
    return start.startswith(b"PK\x03\x04")


def read(path: Path, key: str | None, weights: Weights) -> Contents:
    """Read a file, and find the state dict in it.

    Raises:
        CheckpointError: It holds no state dict, or not where the key leads.
        NoWeights: It holds something that is saved beside weights, such as the state of an optimizer.
    """
    contents = TorchContents(path)
    state = content(contents.value)
    inside = _where(contents, state, key, weights)
    tensors = contents.tensors(_at(state, inside))
    said = {name: contents.plain(value) for name, value in state.items()} if inside else {}
    source = torch_source(contents, tensors)
    averaged = "n_averaged" in tensors or inside == (AVERAGE,)
    averaged |= RAW_BESIDE_AVERAGE in said and inside == ("state_dict",)
    unread = _unread(content(_at(state, inside)))
    objects = {kind: count for kind, count in contents.objects.items() if kind not in unread.values()}
    return Contents(source, said, averaged=averaged, objects=objects, unread=unread)


def listing(names: Mapping[Any, Any]) -> str:
    """Return the first keys of a dict for a message."""
    return ", ".join(short(name) for name in list(names)[:20]) or "nothing"


def _is_policy(path: Path) -> bool:
    """Return whether a zip archive is one of torch or of Stable-Baselines3, as far as its names say.

    Of a truncated one, only the beginning tells: it is taken for one, so that it is not left out without a word.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.split("/")[-1] in ("policy.pth", "data.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        with path.open("rb") as file:
            return b"data" in file.read(_BEGINNING)


def _where(contents: TorchContents, state: Any, key: str | None, weights: Weights) -> tuple[str, ...]:
    """Return the keys that lead to the state dict, or to the network that was saved as a whole."""
    if isinstance(state, Placeholder) and contents.tensors(state):
        return ()
    if not isinstance(state, Mapping):
        raise NoWeights(f"it holds a {kind_of(state)}, not a state dict")
    if {"state", "param_groups"} <= state.keys():
        raise NoWeights("it holds the state of an optimizer, and no weights")
    if key is not None:
        inside = (key,) if key in state else tuple(key.split("."))
        if inside[0] in state and state[inside[0]] is None:
            raise NoWeights(f"nothing is stored under key={key!r}")
        if not contents.tensors(_at(state, inside)):
            raise CheckpointError(f"key={key!r} leads to no tensors; the file has {listing(state)}")
        return inside
    if RAW_BESIDE_AVERAGE in state:
        return ("state_dict",) if weights == "average" else (RAW_BESIDE_AVERAGE,)
    for name in NESTED:
        if contents.tensors(state.get(name)):
            return (name,)
    if contents.tensors(state):
        return ()
    if state.get("model", ...) is None and contents.tensors(state.get(AVERAGE)):  # Ultralytics, while it trains
        return (AVERAGE,)
    nested = [name for name in state if _may_be_weights(name) and contents.tensors(state[name])]
    if len(nested) == 1:
        return (nested[0],)
    unread = join_names(list(contents.objects), 4)
    found = f"the file has {listing(state)}" + (f", and objects that are not read ({unread})" if unread else "")
    if not _has_tensors(state):
        raise NoWeights(f"no state dict found, nor any tensor: {found}")
    if not any(
        _has_tensors(value) for name, value in state.items() if not str(name).lower().startswith(_OF_OPTIMIZERS)
    ):
        raise NoWeights(f"no state dict found, only the state of an optimizer: {found}")
    raise CheckpointError(f"no state dict found; name the key that leads to it: {found}")


def _unread(state: Any) -> dict[str, str]:
    """Return the tensors of a state dict that cannot be read: quantised, sparse or NumPy's, with their kinds."""
    named = state.items() if isinstance(state, Mapping) else ()
    return {
        name: kind_of(value)
        for name, value in named
        if isinstance(name, str) and kind_of(value).startswith(("torch._utils._rebuild", "numpy."))
    }


def _may_be_weights(name: Any) -> bool:
    return isinstance(name, str) and not name.lower().startswith(_BESIDE)


def _has_tensors(state: Any, depth: int = 8, seen: set[int] | None = None) -> bool:
    """Return whether there is a tensor in a state, or anything that is nested too deep to tell."""
    seen = set() if seen is None else seen
    state = content(state)
    if not isinstance(state, (Mapping, list, tuple)):
        return isinstance(state, (Tensor, StoredTensor))
    if id(state) in seen:  # looked through before, and nothing found: a pickle may refer to one list many times over
        return False
    if depth == 0:
        return True
    inside = state.values() if isinstance(state, Mapping) else state
    found = any(_has_tensors(value, depth - 1, seen) for value in inside)
    seen.add(id(state))
    return found


def _at(state: Any, inside: Sequence[str]) -> Any:
    for key in inside:
        state = content(state)
        state = state.get(key) if isinstance(state, Mapping) else None
    return state
