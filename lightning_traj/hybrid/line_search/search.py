"""A step along the recent direction of the trajectory, taken only where it lowers the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from lightning_traj.hybrid.line_search.probe import Probe, SearchResult, probe_of
from lightning_traj.hybrid.line_search.settings import LineSearch


def summary(found: Mapping[str, SearchResult]) -> dict[str, float]:
    """Return the share of the searches whose step was taken, and by how much they lowered the loss together."""
    results = list(found.values())
    if not results:
        return {}
    taken = sum(result.factor != 0 for result in results) / len(results)
    return {"taken": taken, "gain": results[0].before - results[-1].after}


def describe(found: Mapping[str, SearchResult]) -> str:
    """Describe by which factors groups were moved, one after the other, and how that changed the loss."""
    results = list(found.values())
    factors = sorted({result.factor for result in results if result.factor})
    return f"by {' or '.join(f'{a:g}' for a in factors)}: loss {results[0].before:.4g} to {results[-1].after:.4g}"


class DirectionSearch:
    """Line searches of a run, and the weights and batches that are kept from one to the next.

    Args:
        settings: Settings of the search.

    Attributes:
        batches: Batches that losses are evaluated on.
        earlier: θ' of the parameters that were trained then, by clean name.
        epoch: Epoch of the latest search, or in which ``earlier`` was taken.
    """

    def __init__(self, settings: LineSearch) -> None:
        self.settings = settings
        self.batches: list[Any] = []
        self.earlier: dict[str, Tensor] = {}
        self.epoch = 0

    def keep(self, batch: Any, data: str) -> bool:
        """Keep a copy of a batch, if it is still needed; return whether it is the first."""
        if data != self.settings.data or len(self.batches) >= self.settings.batches:
            return False
        self.batches.append(apply_to_collection(batch, Tensor, Tensor.clone))
        return len(self.batches) == 1

    def take_batch(self, trainer: Any, module: nn.Module, batch: Any, data: str) -> None:
        """Keep a batch of a run, if it is still needed; the first one shows whether a loss can be evaluated at all."""
        if self.keep(batch, data):
            probe_of(trainer, module, self.batches, self.settings).loss()

    def is_due(self, epoch: int) -> bool:
        """Return whether to search, or to take the first θ', at the start of an epoch."""
        return not self.earlier or epoch - self.epoch >= self.settings.every

    def begin(self, parameters: Mapping[str, nn.Parameter], epoch: int) -> None:
        """Take the weights as θ'."""
        self.earlier = {name: p.detach().clone() for name, p in parameters.items() if p.requires_grad}
        self.epoch = epoch

    def at_epoch(
        self,
        trainer: Any,
        module: nn.Module,
        aliases: Mapping[str, str],
        groups: Mapping[str, Sequence[str]],
        parameters: Mapping[str, nn.Parameter],
    ) -> dict[str, SearchResult]:
        """Search at the start of an epoch, if it is due, and take the weights as the next θ'.

        Args:
            trainer: Trainer of the fit.
            module: Module that is trained.
            aliases: First names of parameters by the clean names that they have now, where these differ.
            groups: Names of parameters, by group.
            parameters: Parameters of the module, by clean name.

        Returns:
            The result for each group that has moved since θ'.
        """
        epoch: int = trainer.current_epoch
        if not self.is_due(epoch):
            return {}
        found = {}
        if self.earlier and self.batches:
            probe = probe_of(trainer, module, self.batches, self.settings, aliases)
            found = self.search(probe, groups, parameters)
        self.begin(parameters, epoch)
        return found

    def search(
        self, probe: Probe, groups: Mapping[str, Sequence[str]], parameters: Mapping[str, nn.Parameter]
    ) -> dict[str, SearchResult]:
        """Search group by group, in order; return the result for each group that has moved.

        Args:
            probe: Copy of the module as it is.
            groups: Names of parameters, by group.
            parameters: Parameters of the module, by clean name.
        """
        found = {}
        for label, names in groups.items():
            known = [name for name in names if name in self.earlier and name in probe.parameters]
            moving = {name: parameters[name] for name in known if parameters[name].requires_grad}
            if moving:
                found[label] = probe.search(moving, self.earlier)
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return everything as tensors and primitives; batches that are made of other things are left out."""
        batches = [batch for batch in self.batches if _is_plain(batch)]
        return {"batches": batches, "earlier": dict(self.earlier), "epoch": self.epoch}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Continue where ``state_dict`` was taken, on a device."""
        self.batches = apply_to_collection(list(state["batches"]), Tensor, Tensor.to, device)
        self.earlier = {name: value.to(device) for name, value in state["earlier"].items()}
        self.epoch = state["epoch"]


def _is_plain(value: Any) -> bool:
    """Return whether a checkpoint that is loaded without pickle can hold a value."""
    if type(value) in (list, tuple):
        return all(map(_is_plain, value))
    if type(value) is dict:
        return all(map(_is_plain, value)) and all(map(_is_plain, value.values()))
    return value is None or type(value) in (Tensor, int, float, str, bool, bytes)
