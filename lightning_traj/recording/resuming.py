"""Whether a recording can begin, or go on, with a model and on all ranks."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from lightning_traj.blocks import Partition, clean_name
from lightning_traj.distributed import Ranks
from lightning_traj.recording.process import NamedTensors
from lightning_traj.recording.record_state import RecordState
from lightning_traj.tensors import has_entries


def check_model(state: RecordState, parameters: NamedTensors, model: nn.Module | None, ended: Collection[str]) -> None:
    """Check that parameters can be recorded, and that they are those of the recording so far.

    Args:
        state: Recording so far.
        parameters: Tensors by qualified name.
        model: Module that has them.
        ended: Clean names of parameters that left the model while they were recorded.

    Raises:
        ValueError: There is nothing to record, a pattern has no match, or blocks differ from those of the recording.
    """
    state.partition.check(parameters, model)
    if any(torch.nn.parameter.is_lazy(parameter) for parameter in parameters.values()):
        return
    extended = state.partition.extended(parameters, model)
    if not extended.blocks:
        why = "".join(f"; {name!r} cannot be read ({reason})" for name, reason in extended.unreadable.items())
        raise ValueError(
            f"none of the {len(parameters)} parameters of the model is floating-point and non-empty{why}: there is "
            "no trajectory to record; add the callback to a model that has some."
        )
    cleaned = {clean_name(name): parameter for name, parameter in parameters.items()}
    for block, pieces in zip(state.blocks, state.partition.pieces, strict=True):
        missing = [piece.parameter for piece in pieces if piece.parameter not in cleaned]
        if not set(ended).isdisjoint(missing):
            continue  # it left the model while it was recorded, and rests
        for name in missing:
            raise ValueError(
                f"the trajectory so far has the parameter {name!r}, which the model lacks: resume with the same "
                "model, or begin a new trajectory (without that of the checkpoint, if it is one)."
            )
        if (numel := sum(piece.numel(cleaned[piece.parameter]) for piece in pieces)) != block.numel:
            raise ValueError(
                f"the checkpoint has a trajectory with {block.numel} entries in {block.name!r}, and the model has "
                f"{numel}: resume with the same model, or without the checkpoint's trajectory."
            )


def compare_ranks(ranks: Ranks, partition: Partition, parameters: NamedTensors, settings: Mapping[str, Any]) -> None:
    """Make sure that all ranks record the same blocks with the same settings. All ranks have to call it.

    Raises:
        ValueError: On all ranks alike, if they do not.
    """
    has_shape = {name for name, p in partition.recorded(parameters).items() if has_entries(p)}
    shapes = [(name, list(p.shape) if name in has_shape else None) for name, p in parameters.items()]
    ranks.compare({"parameters": shapes, **settings, "the blocks": list(partition.blocks)})
