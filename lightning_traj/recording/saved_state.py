"""What a recorder writes into checkpoints, as little as gives everything back; and the states of earlier releases.

Format 2 leaves out the Gram matrix of sketches, which follows from their rows, and the lower halves of symmetric
matrices; it keeps windows in float32, and lists of small tensors as one tensor. The states of release 0.1 have no
number: they are format 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_traj.gram import GrowingGram
from lightning_traj.recording.packing import pack, symmetric_matrices, unpack, upper_triangle

FORMAT = 2
_SKETCHES = ("rows", "base", "latest", "before")
_LOCAL = 4  # rows and columns of a local Gram matrix


def gram_state(gram: GrowingGram) -> dict[str, Any]:
    """Return what is saved of a Gram matrix.

    Waits for the device only where rows are on their way to the host: a file would otherwise take them as they come.
    """
    gram.wait_for_rows()
    kept = {"local": gram.local, "finite": gram.finite, "anchored": gram.anchored}
    return _gram_state({**kept, **{name: getattr(gram, name) for name in _SKETCHES}}, gram.exact)


def load_gram(gram: GrowingGram, state: Mapping[str, Any], lengths: tuple[int, ...]) -> None:
    """Go on where ``gram_state`` was taken.

    Args:
        gram: An empty Gram matrix of the same kind. Where it is exact, the snapshots themselves are left to the caller.
        state: What ``gram_state`` returned.
        lengths: Length of each block's sketch, or of the block.
    """
    local = unpack(state["local"])
    gram.local = [symmetric_matrices(entries, _LOCAL) for entries in local]
    gram.finite = list(state["finite"].unbind())
    gram.lengths = lengths
    if gram.exact:
        gram.anchored = symmetric_matrices(state["anchored"], len(local))
    else:
        gram.rows = list(state["rows"])
        gram.base, gram.latest, gram.before = (state[name] for name in _SKETCHES[1:])
        gram.recompute()


def current_state(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Convert a recorder's state of any release to the present format.

    Raises:
        ValueError: a later release has saved it.
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
    return {
        **{name: value for name, value in state.items() if name != "anchored"},
        "format": FORMAT,
        "paths": torch.stack(list(state["paths"])),
        "windows": {**windows, "sums": pack(windows["sums"])},
        "gram": _gram_state({**state["gram"], "anchored": state["anchored"]}, exact),
    }


def _gram_state(kept: Mapping[str, Any], exact: bool) -> dict[str, Any]:
    packed = pack(kept["local"])
    finite: list[Tensor] = list(kept["finite"])
    state = {
        "local": {**packed, "values": upper_triangle(packed["values"])} if finite else packed,
        "finite": torch.stack(finite) if finite else torch.zeros(0, dtype=torch.bool),
    }
    if exact:
        return {**state, "anchored": upper_triangle(kept["anchored"])}
    return {**state, **{name: list(kept[name]) if name == "rows" else kept[name] for name in _SKETCHES}}
