"""Freezing and thawing of groups of parameters. Knows no Lightning."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from lightning_traj.blocks import clean_name, enclosing
from lightning_traj.hybrid.groups import MODEL, Group, current_parameters, grouped_parameters
from lightning_traj.hybrid.settings import HybridSettings
from lightning_traj.recording import Parameters, with_inner


@dataclass
class Freezing:
    """Freezes and thaws groups of parameters.

    Frozen parameters have ``requires_grad=False`` and no gradient: no optimizer moves them, whatever its momentum
    and weight decay, and the backward pass does not compute their gradients. They stay in their optimizers' groups.
    Parameters that were frozen by others are never thawed.

    Attributes:
        settings: Settings of HybridTraining: the groups, and whether statistics and optimizer states rest with them.
        named: The parameters of the module as they are renamed; sharded ones stay shards.
        module: Module that has the parameters.
        optimizers: Optimizers of the run.
        frozen: Names of the parameters that were frozen with each frozen group, by its label. It outlives the fit, and
            belongs to whoever passes it.
        parameters: Parameters of the module, by clean first name. Under FSDP2 the shards.
        groups: Groups that can be frozen, by label.

    Raises:
        ValueError: The selection matches nothing or everything, or only parts of a parameter.
    """

    settings: HybridSettings
    named: Parameters
    module: nn.Module
    optimizers: Sequence[Optimizer]
    frozen: dict[str, list[str]]
    parameters: dict[str, nn.Parameter] = field(init=False)
    groups: dict[str, Group] = field(init=False)
    _stopped: list[_BatchNorm] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.parameters = {clean_name(name): p for name, p in self.named.of(self.module).items()}
        self.groups = grouped_parameters(self.parameters, self.module, self.settings.train, self.settings.by)

    def check(self) -> None:
        """Raise ValueError if nothing is left to train once all is frozen, or there are no statistics to stop."""
        if not self.settings.running_statistics and self.settings.by != MODEL and not self._norms_in(self.groups):
            raise ValueError(
                f"running_statistics=False: with by={self.settings.by!r} and train={self.settings.train!r} no "
                "BatchNorm layer is in a group that can be frozen: leave it out, or use by='model'."
            )
        optimized = {
            id(p) for optimizer in self.optimizers for group in optimizer.param_groups for p in group["params"]
        }
        frozen = {name for group in self.groups.values() for name in group.parameters}
        left = {name: p for name, p in self.parameters.items() if name not in frozen}
        shown = ", ".join(list(left)[:3])
        if not any(p.requires_grad and id(p) in optimized for p in left.values()):
            raise ValueError(
                f"train={self.settings.train!r}: nothing would be left to train: its parameters ({shown}, …) do not "
                " require gradients or are in no optimizer; choose others."
            )

    def emptied(self) -> list[int]:
        """Return the numbers of the optimizers that have nothing left to train once all groups are frozen."""
        frozen = {id(self.parameters[name]) for group in self.groups.values() for name in group.parameters}
        trained = [
            {id(p) for group in optimizer.param_groups for p in group["params"] if p.requires_grad}
            for optimizer in self.optimizers
        ]
        return [i for i, parameters in enumerate(trained) if parameters and parameters <= frozen]

    def freeze(self, label: str) -> int:
        """Freeze a group; return how many parameter tensors were trained before."""
        current = self._current()
        names = [name for name in self.groups[label].parameters if self.parameters[name].requires_grad]
        if names:
            self.frozen[label] = names
            self._set(names, current, trained=False)
            self._stop_statistics(self.frozen)
        return len(names)

    def thaw(self, label: str) -> None:
        """Train a frozen group again: the parameters that ``freeze`` has frozen, and no others."""
        self._set(self.frozen.pop(label), self._current(), trained=True)
        self._stop_statistics(self.frozen)

    def apply(self) -> None:
        """Freeze the groups again that were frozen when the run was interrupted.

        Raises:
            ValueError: The model lacks a frozen group or some of its parameters.
        """
        for label, names in self.frozen.items():
            missing = [name for name in names if name not in self.parameters]
            if label not in self.groups or missing:
                raise ValueError(
                    f"the checkpoint has the group {label!r} frozen, which the model lacks or has without "
                    f"{missing}: resume with the same model, train= and by=, or without the checkpoint's callbacks."
                )
        self._set([name for names in self.frozen.values() for name in names], self._current(), trained=False)
        self._stop_statistics(self.frozen)

    def put_back(self) -> None:
        """Leave the module as it was before the run; ``frozen`` still lists the frozen groups."""
        self._set([name for names in self.frozen.values() for name in names], self._current(), trained=True)
        self._stop_statistics(())

    def trained(self) -> tuple[int, int]:
        """Return how many numbers are being trained, and how many would be if nothing were frozen here."""
        ours = {name for names in self.frozen.values() for name in names}
        now = sum(p.numel() for name, p in self.parameters.items() if p.requires_grad)
        return now, now + sum(self.parameters[name].numel() for name in ours if not self.parameters[name].requires_grad)

    def share(self) -> float:
        """Return the share of the trainable numbers that are being trained."""
        now, trainable = self.trained()
        return now / trainable

    def together(self) -> dict[str, tuple[str, ...]]:
        """Return all parameters by group: groups that can be frozen and ``"train"``, or a single group."""
        if self.settings.by == MODEL:
            return {MODEL: tuple(self.parameters)}
        groups = {label: group.parameters for label, group in self.groups.items()}
        others = set(self.parameters).difference(*groups.values())
        return groups | {"train": tuple(name for name in self.parameters if name in others)}

    def frozen_layers(self) -> int:
        """Return the number of modules that have frozen parameters."""
        return len({name.rpartition(".")[0] for names in self.frozen.values() for name in names})

    # Inside

    def _current(self) -> dict[str, nn.Parameter]:
        self.named.of(self.module)  # follows renamings
        return current_parameters(self.module, self.named.names.aliases)

    def _set(self, names: Iterable[str], current: dict[str, nn.Parameter], *, trained: bool) -> None:
        for name in names:
            # An unsharded parameter takes part in the coming step as it is, and the sharded one in those after that.
            for parameter in (self.parameters[name], current.get(name, self.parameters[name])):
                parameter.requires_grad_(trained)
                parameter.grad = None
            if not trained and not self.settings.keep_state:
                for each in (each for optimizer in self.optimizers for each in with_inner(optimizer)):
                    each.state.pop(self.parameters[name], None)

    def _norms_in(self, labels: Iterable[str]) -> list[_BatchNorm]:
        """Return the BatchNorm layers with running statistics in some groups; the group of the model has all."""
        inside = set(labels)
        return [
            module
            for name, module in self.module.named_modules()
            if isinstance(module, _BatchNorm)
            and module.track_running_stats
            and (inside if self.settings.by == MODEL else inside.intersection(enclosing(clean_name(name))))
        ]

    def _stop_statistics(self, labels: Iterable[str]) -> None:
        """Let BatchNorm's running statistics rest in some groups, and go on in all others."""
        for norm in self._stopped:
            norm.track_running_stats = True
        self._stopped = self._norms_in(() if self.settings.running_statistics else labels)
        for norm in self._stopped:
            norm.track_running_stats = False  # it normalises by the batch all the same
