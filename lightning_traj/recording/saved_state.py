"""State of a recorder in checkpoints, as small as it can be, and the states of earlier releases.

Format 2 leaves out the Gram matrix of sketches, which follows from their rows, and the lower halves of symmetric
matrices; it keeps windows in float32, and lists of small tensors as one tensor. The states of release 0.1 have no
number: they are format 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, astuple, replace
from typing import Any

import torch
from torch import Tensor

from lightning_traj.blocks import Block, Partition, piece_from_state
from lightning_traj.gram import ExactGram, SketchedGram
from lightning_traj.recording.history import History
from lightning_traj.recording.packing import pack, symmetric_matrices, unpack, upper_triangle
from lightning_traj.recording.path_lengths import PathLengths
from lightning_traj.recording.record_state import RecordState, SnapshotNames
from lightning_traj.recording.windows import StepWindows

FORMAT = 2
_SKETCHES = ("rows", "base", "latest", "before")
_LOCAL = 4  # rows and columns of a local Gram matrix


def saved(state: RecordState, windows: StepWindows, settings: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """Return a recording as tensors and primitives; of full snapshots their names, not the files.

    Args:
        state: Recording so far.
        windows: Windows of single steps.
        settings: Settings of the recording, as plain values.
        folder: Folder of full snapshots.
    """
    partition, history, lengths = state.partition, state.history, state.path_lengths
    return {
        "format": FORMAT,
        "settings": dict(settings),
        "blocks": [list(astuple(block)) for block in partition.blocks],
        "pieces": [[asdict(piece) for piece in pieces] for pieces in partition.pieces],
        "root": partition.root,
        "unreadable": dict(partition.unreadable),
        "steps": list(history.steps),
        "epochs": list(history.epochs),
        "order": list(history.order),
        "files": list(state.names.kept),
        "recent_files": list(state.names.recent),
        "base_files": list(state.names.base),
        "folder": folder,
        "paths": torch.stack(lengths.kept) if lengths.kept else torch.zeros(0),
        "path": lengths.latest,
        "scheduled": history.scheduled,
        "stride": history.stride,
        "windows": windows.state_dict(),
        "latest_key": history.latest,
        "gram": _saved_gram(state.gram),
    }


def restored(
    state: Mapping[str, Any],
    partition: Partition,
    gram: SketchedGram | ExactGram,
    sizes: Callable[[Iterable[Block]], tuple[int, ...]],
    device: torch.device,
) -> RecordState:
    """Return the recording that ``saved`` has put into a state.

    Args:
        state: State in the present format.
        partition: Partition by the same settings that has met no parameters.
        gram: Empty Gram matrix of the same kind. If it is exact, the snapshots themselves are left to the caller.
        sizes: Returns the length of each block's sketch.
        device: Device of the path lengths.
    """
    blocks = tuple(Block(*block) for block in state["blocks"])
    return RecordState(
        replace(
            partition,
            blocks=blocks,
            pieces=tuple(tuple(piece_from_state(piece) for piece in pieces) for pieces in state["pieces"]),
            unreadable=dict(state.get("unreadable", {})),  # which older checkpoints lack
            root=state["root"],
        ),
        _restored_gram(gram, state["gram"], sizes(blocks)),
        History(
            tuple(state["steps"]),
            tuple(state["epochs"]),
            tuple(state["order"]),
            state["scheduled"],
            state["stride"],
            None if state["latest_key"] is None else tuple(state["latest_key"]),
        ),
        PathLengths(tuple(state["paths"]), state["path"]).regrouped(blocks, device),
        SnapshotNames(tuple(state["files"]), tuple(state["recent_files"]), tuple(state["base_files"])),
    )


def current_state(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Convert a recorder's state of any release to the present format.

    Raises:
        ValueError: A later release has saved it.
    """
    found = state.get("format", 1)
    if found == FORMAT:
        return state
    if found != 1:
        raise ValueError(
            f"the checkpoint's trajectory has the format {found}, and this release reads up to {FORMAT}: upgrade "
            "lightning-traj, or pass another name= to begin a new trajectory."
        )
    windows, exact = state["windows"], state["settings"]["snapshot"] == "full"
    gram = {**state["gram"], "anchored": state["anchored"]}
    return {
        **{name: value for name, value in state.items() if name != "anchored"},
        "format": FORMAT,
        "paths": torch.stack(list(state["paths"])),
        "windows": {**windows, "sums": pack(windows["sums"])},
        "gram": _packed_gram(gram, exact),
    }


def _saved_gram(gram: SketchedGram | ExactGram) -> dict[str, Any]:
    kept: dict[str, Any] = {"local": gram.local, "finite": gram.finite, "anchored": gram.anchored}
    if isinstance(gram, SketchedGram):
        gram.wait_for_rows()  # else a file would take rows as they are while they are on their way to the host
        kept |= {name: getattr(gram, name) for name in _SKETCHES}
    return _packed_gram(kept, isinstance(gram, ExactGram))


def _packed_gram(kept: Mapping[str, Any], exact: bool) -> dict[str, Any]:
    packed = pack(kept["local"])
    finite: list[Tensor] = list(kept["finite"])
    state = {
        "local": {**packed, "values": upper_triangle(packed["values"])} if finite else packed,
        "finite": torch.stack(finite) if finite else torch.zeros(0, dtype=torch.bool),
    }
    if exact:
        return {**state, "anchored": upper_triangle(kept["anchored"])}
    return {**state, **{name: list(kept[name]) if name == "rows" else kept[name] for name in _SKETCHES}}


def _marked(local: Tensor, finite: Tensor) -> Tensor:
    """Return NaN for a snapshot that is not finite if its local Gram matrix has zeros, as release 0.1 left them."""
    return torch.where(finite | ~torch.isfinite(local).all(), local, torch.nan)


def _restored_gram(
    gram: SketchedGram | ExactGram, state: Mapping[str, Any], lengths: tuple[int, ...]
) -> SketchedGram | ExactGram:
    local = tuple(symmetric_matrices(entries, _LOCAL) for entries in unpack(state["local"]))
    if isinstance(gram, ExactGram):
        return replace(gram, local=local, anchored=symmetric_matrices(state["anchored"], len(local)))
    finite = tuple(state["finite"].unbind())
    return replace(
        gram,
        local=tuple(_marked(each, is_finite) for each, is_finite in zip(local, finite, strict=True)),
        finite=finite,
        rows=tuple(state["rows"]),
        **{name: state[name] for name in _SKETCHES[1:]},
        lengths=lengths,
    ).emptied()
