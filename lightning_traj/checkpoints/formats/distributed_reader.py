"""Folders of torch.distributed.checkpoint, such as Lightning's ModelParallelStrategy and FSDP write them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from lightning_traj.checkpoints.formats.checkpoint import Contents, Weights
from lightning_traj.checkpoints.formats.dcp import METADATA, DistributedCheckpoint, read_metadata
from lightning_traj.checkpoints.formats.errors import CheckpointError, within
from lightning_traj.checkpoints.formats.torch_files import TorchContents, kind_of
from lightning_traj.checkpoints.formats.torch_reader import NESTED, RAW_BESIDE_AVERAGE, listing


def matches(path: Path) -> bool:
    """Return whether a folder has the metadata of torch.distributed.checkpoint."""
    return path.is_dir() and (path / METADATA).is_file()


def read(path: Path, key: str | None, weights: Weights) -> Contents:
    """Read a folder, which Lightning's ``meta.pt`` dates.

    Raises:
        CheckpointError: Its metadata cannot be read, or it has no such weights.
    """
    with within(METADATA):
        entries = read_metadata(path)
    # If nothing tells the weights, everything but the optimizers' moments is taken for them.
    rest = {name: entry for name, entry in entries.items() if not re.search(r"(?:^|\.)optim", name)}
    for prefix in [f"{name}." for name in ((key,) if key else NESTED)]:
        if found := {name.removeprefix(prefix): entry for name, entry in entries.items() if name.startswith(prefix)}:
            break
    else:
        if key is not None or not rest:
            kinds = listing(dict.fromkeys(name.partition(".")[0] for name in entries))
            raise CheckpointError(f"key={key!r} leads to no tensors; the names in the folder begin with {kinds}")
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
    return Contents(DistributedCheckpoint(found), meta, averaged=averaged, objects=beside.objects if beside else {})
