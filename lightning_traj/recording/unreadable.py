"""Parameters that cannot be read, found on any rank and left out on all of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn

from lightning_traj.blocks import Partition, clean_name
from lightning_traj.distributed import Ranks
from lightning_traj.recording.process import NamedTensors
from lightning_traj.tensors import UnreadableError, has_entries, held_share


class Unreadable:
    """Finds the parameters that cannot be read, so that all ranks leave out the same ones.

    A rank on which reading fails during training cannot tell the others at once: they have come for a sum. Their
    snapshot is left out, and before the next one they tell each other why.

    Attributes:
        failing: Why parameters could not be read on this rank, by clean name, since ranks last told each other.
        any_left_out: Whether a snapshot was left out since then; the same on all ranks.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget earlier failures."""
        self.failing: dict[str, str] = {}
        self.any_left_out = False

    @contextmanager
    def reading(self, partition: Partition, parameters: NamedTensors) -> Iterator[None]:
        """Find the parameters that make the body fail.

        Raises:
            UnreadableError: There are some.
        """
        try:
            yield
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            reasons = partition.find_unreadable(parameters)  # also those that the error does not name
            if isinstance(error, UnreadableError):
                reasons.update(error.reasons)
            if not reasons:
                raise
            self.failing.update(reasons)
            raise UnreadableError(reasons) from error

    def tell(self, ranks: Ranks, partition: Partition) -> dict[str, str]:
        """Return the parameters for which a rank left out snapshots, with the reasons. All ranks have to call it."""
        names = sorted(piece.parameter for pieces in partition.pieces for piece in pieces)
        found = found_anywhere(ranks, self.failing, names)
        self.reset()
        return found


def found_anywhere(ranks: Ranks, reasons: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    """Return those of the names for which some rank has a reason, with the reasons. All ranks have to call it.

    Args:
        ranks: The processes.
        reasons: Why parameters cannot be read on this rank, by clean name.
        names: Clean names, the same on all ranks.
    """
    if ranks.size == 1 or not ranks.agree(names):  # ``Recorder.prepare`` raises for other names
        return dict(reasons)
    table = ranks.each([name in reasons for name in names])
    found = itertools.compress(names, table.any(dim=0).tolist())
    return {name: reasons.get(name, "it cannot be read on another process") for name in found}


def agreed(
    ranks: Ranks, before: Partition, extended: Partition, parameters: NamedTensors, model: nn.Module | None
) -> Partition:
    """Return the extended partition without new parameters that cannot be read on some rank. All ranks call it.

    Args:
        ranks: The processes.
        before: Partition before the parameters were met.
        extended: Partition with them, as this rank can read them.
        parameters: The parameters.
        model: Module that has them.
    """
    found = found_anywhere(ranks, extended.unreadable, [clean_name(name) for name in parameters])
    if found.keys() <= extended.unreadable.keys():
        return extended
    return without(before, found).extended(parameters, model)


def without(partition: Partition, reasons: Mapping[str, str]) -> Partition:
    """Return the partition with more parameters that are left out."""
    return replace(partition, unreadable={**partition.unreadable, **reasons}) if reasons else partition


def non_finite(partition: Partition, parameters: NamedTensors) -> dict[str, str]:
    """Return the parameters with entries that are not finite on this rank before training, with the reason.

    All displacements would be measured from these entries, so that no snapshot of a model with one such parameter would
    count.
    """
    found = {}
    recorded = {name: tensor for name, tensor in partition.recorded(parameters).items() if has_entries(tensor)}
    regions = {name: held_share(name, tensor) for name, tensor in recorded.items()}
    for held, pieces in zip(partition.held(recorded, regions), partition.pieces, strict=True):
        for each, piece in zip(held, pieces, strict=False):
            if not each.tensor.is_meta and not all(bool(torch.isfinite(view).all()) for view, _ in each.now().boxes()):
                found[piece.parameter] = "it has entries that are not finite before training"
    return found


def unreadable_anywhere(
    ranks: Ranks, partition: Partition, parameters: NamedTensors, model: nn.Module | None, *, is_start: bool
) -> dict[str, str]:
    """Return the parameters that cannot be recorded on some rank, with the reasons. All ranks have to call it.

    Args:
        ranks: The processes.
        partition: Partition that is going to meet the parameters.
        parameters: Tensors by qualified name.
        model: Module that has them.
        is_start: Whether nothing has been recorded yet: parameters that are not finite are found too, unless there are
            no others.
    """
    names = [clean_name(name) for name in parameters]
    found = partition.find_unreadable(parameters, model)
    if not is_start:
        return found_anywhere(ranks, found, names)
    extended, spoilt = without(partition, found).extended(parameters, model), dict[str, str]()
    ranks.all_do(lambda: spoilt.update(non_finite(extended, parameters)))
    everywhere = found_anywhere(ranks, found | spoilt, names)
    if all(piece.parameter in everywhere for pieces in extended.pieces for piece in pieces):
        return found_anywhere(ranks, found, names)
    return everywhere
