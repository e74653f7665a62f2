"""Parameters that cannot be read, found on any rank and left out on all of them."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

import torch
from torch import Tensor, nn

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
    (found,) = _anywhere(ranks, names, [reasons])
    return {name: reasons.get(name, "it cannot be read on another process") for name in found}


def _anywhere(ranks: Ranks, names: Sequence[str], some: Sequence[Collection[str]]) -> list[list[str]]:
    """Return, for each collection, the names that it has on some rank. All ranks have to call it, with as many.

    If the ranks have other names than each other, their own names are returned; ``Recorder.prepare`` raises for that.
    """
    if ranks.size == 1 or not ranks.agree(names):
        return [list(each) for each in some]
    table = ranks.each([name in each for each in some for name in names]).any(dim=0)
    return [list(itertools.compress(names, column.tolist())) for column in table.view(len(some), len(names))]


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


def unrecordable(
    ranks: Ranks, partition: Partition, parameters: NamedTensors, model: nn.Module | None, *, are_first: bool
) -> dict[str, str]:
    """Return the parameters that cannot be recorded on some rank, with the reasons. All ranks have to call it.

    Args:
        ranks: The processes.
        partition: Partition that is going to meet the parameters.
        parameters: Tensors by qualified name.
        model: Module that has them.
        are_first: Whether these are the first values of a recording: those that are not finite are found too, unless
            there are no others. All displacements would be measured from them, so that no snapshot would count.
    """
    names = [clean_name(name) for name in parameters]
    found = partition.find_unreadable(parameters, model)
    if not are_first:
        return found_anywhere(ranks, found, names)
    extended, spoilt = without(partition, found).extended(parameters, model), list[str]()
    ranks.all_do(lambda: spoilt.extend(_non_finite(extended, parameters)))
    recorded = {piece.parameter for pieces in extended.pieces for piece in pieces}
    unread, not_finite, all_recorded = _anywhere(ranks, names, [found, spoilt, recorded])
    reasons = {name: found.get(name, "it cannot be read on another process") for name in unread}
    if set(all_recorded) <= {*unread, *not_finite}:
        return reasons
    return dict.fromkeys(not_finite, "it has entries that are not finite before training") | reasons


def _non_finite(partition: Partition, parameters: NamedTensors) -> list[str]:
    """Return the clean names of the parameters with entries on this rank that are not finite."""
    recorded = {name: tensor for name, tensor in partition.recorded(parameters).items() if has_entries(tensor)}
    regions = {name: held_share(name, tensor) for name, tensor in recorded.items()}
    names, finite = list[str](), list[Tensor]()
    for held, pieces in zip(partition.held(recorded, regions), partition.pieces, strict=True):
        for each, piece in zip(held, pieces, strict=False):
            if each.tensor.is_meta:
                continue
            with suppress(MemoryError, torch.OutOfMemoryError):  # it may well be recorded all the same
                extremes = [torch.stack(torch.aminmax(view)) for view, _ in each.now().boxes() if view.numel()]
                if extremes:  # the largest and the smallest entry tell, and take no memory
                    names.append(piece.parameter)
                    finite.append(torch.isfinite(torch.stack(extremes)).all())
    return [name for name, is_finite in zip(names, _on_host(finite), strict=True) if not is_finite]


def _on_host(flags: Sequence[Tensor]) -> list[bool]:
    """Return bool scalars as Python's, with one transfer for each device."""
    found: dict[int, bool] = {}
    for device in dict.fromkeys(flag.device for flag in flags):
        indices = [i for i, flag in enumerate(flags) if flag.device == device]
        found.update(zip(indices, torch.stack([flags[i] for i in indices]).tolist(), strict=True))
    return [found[i] for i in range(len(flags))]
