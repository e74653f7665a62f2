"""Which parameters go on being trained, and freezing and thawing the others in groups. Knows no Lightning."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from lightning_traj.blocks import Block, Partition, clean_name, enclosing, group_blocks, select_blocks
from lightning_traj.recording import with_inner

Train = str | Sequence[str] | Callable[[Block], bool]
Unit = Literal["model", "layer", "depth"]
UNITS = ("model", "layer", "depth")
MODEL = "model"  # the one group of by="model"


@dataclass(frozen=True)
class Group:
    """Parameters that are frozen and thawed together.

    Attributes:
        parameters: Their clean names.
        blocks: Names of their blocks, as a trajectory has them.
    """

    parameters: tuple[str, ...]
    blocks: frozenset[str]

    def has(self, block: Block) -> bool:
        """Whether a trajectory's block is one of these."""
        return block.name in self.blocks


def grouped_parameters(
    parameters: Mapping[str, nn.Parameter], module: nn.Module, train: Train, by: Unit
) -> dict[str, Group]:
    """What can be frozen: {group: its parameters}, in the order of the model.

    Args:
        parameters: Of the module, by qualified name.
        module: Types of modules tell roles.
        train: What goes on being trained: ``"norm"``, ``"bias"`` or another role, ``"layer:…"``, a glob over names, a
            list of these, or a predicate over blocks.
        by: One group (``"model"``), or one for each layer or numbered block (``"depth"``) of the model.

    Raises:
        ValueError: train matches nothing or everything, or parts of a parameter only.
    """
    partition = Partition().extended(parameters, module)
    blocks = partition.blocks
    chosen: set[int] = set()
    for select in [train] if isinstance(train, str) or callable(train) else train:
        if select == "norm" and not any(block.role == "norm" for block in blocks):
            raise ValueError(
                f"train={train!r}: the model has no normalisation layer with parameters; choose what is to be "
                f"trained by another role, of {', '.join(sorted({block.role for block in blocks}))}, or by patterns."
            )
        chosen.update(select_blocks(blocks, select, "train"))
    names = [pieces[0].parameter for pieces in partition.pieces]  # a block is a tensor, or a part of one
    trained = {names[i] for i in chosen}
    others = [i for i in range(len(blocks)) if i not in chosen]
    if torn := [names[i] for i in others if names[i] in trained]:
        raise ValueError(
            f"train={train!r}: of the fused tensor {torn[0]!r} it chooses some parts and not others; tensors are "
            "frozen as a whole: choose all of its parts or none."
        )
    if not others:
        raise ValueError(f"train={train!r} chooses all {len(blocks)} blocks of the model: nothing would be frozen.")
    members = {MODEL: others} if by == MODEL else group_blocks(blocks, by, others)
    return {
        label: Group(tuple(dict.fromkeys(names[i] for i in indices)), frozenset(blocks[i].name for i in indices))
        for label, indices in members.items()
    }


@dataclass
class Freezing:
    """Freezes and thaws groups of parameters.

    Frozen parameters have ``requires_grad=False`` and no gradient: no optimizer moves them, whatever its momentum
    and weight decay, and the backward pass does not compute their gradients. They stay in their optimizers' groups.
    What others had frozen before is never thawed.

    Attributes:
        groups: What can be frozen.
        by: What they are.
        parameters: Of the module, by clean name. Under FSDP2 those of before any forward pass.
        module: Whose they are.
        optimizers: Of the run.
        running_statistics: Whether BatchNorm layers in frozen groups go on updating theirs.
        keep_state: Whether optimizers keep their state of frozen parameters.
        frozen: Of each frozen group, the names of the parameters that were frozen with it.
    """

    groups: Mapping[str, Group]
    by: Unit
    parameters: Mapping[str, nn.Parameter]
    module: nn.Module
    optimizers: Sequence[Optimizer]
    running_statistics: bool = True
    keep_state: bool = True
    frozen: dict[str, list[str]] = field(default_factory=dict)
    _stopped: list[_BatchNorm] = field(default_factory=list)

    def check(self, train: Train) -> None:
        """Raise ValueError where nothing would be left to train once all is frozen, or no statistics to stop."""
        if not self.running_statistics and self.by != MODEL and not self._norms_in(self.groups):
            raise ValueError(
                f"running_statistics=False: with by={self.by!r} and train={train!r} no BatchNorm layer is in what is "
                "frozen: leave it out, or use by='model'."
            )
        optimized = {
            id(p) for optimizer in self.optimizers for group in optimizer.param_groups for p in group["params"]
        }
        frozen = {name for group in self.groups.values() for name in group.parameters}
        left = {name: p for name, p in self.parameters.items() if name not in frozen}
        if not any(p.requires_grad and id(p) in optimized for p in left.values()):
            raise ValueError(
                f"train={train!r}: nothing would be left to train: its parameters ({', '.join(list(left)[:3])}, …) do "
                "not require gradients or are in no optimizer; choose others."
            )

    def emptied(self) -> list[int]:
        """Numbers of the optimizers that would be left without anything to train once all groups are frozen."""
        frozen = {id(self.parameters[name]) for group in self.groups.values() for name in group.parameters}
        trained = [
            {id(p) for group in optimizer.param_groups for p in group["params"] if p.requires_grad}
            for optimizer in self.optimizers
        ]
        return [i for i, parameters in enumerate(trained) if parameters and parameters <= frozen]

    def freeze(self, label: str) -> int:
        """Freeze a group; how many parameter tensors that has changed."""
        current = self._current()
        names = [name for name in self.groups[label].parameters if self.parameters[name].requires_grad]
        if names:
            self.frozen[label] = names
            self._set(names, current, trained=False)
            self._stop_statistics(self.frozen)
        return len(names)

    def thaw(self, label: str) -> None:
        """Train a frozen group again: what ``freeze`` has frozen of it, and nothing else."""
        self._set(self.frozen.pop(label), self._current(), trained=True)
        self._stop_statistics(self.frozen)

    def apply(self, frozen: Mapping[str, Sequence[str]]) -> None:
        """Freeze what was frozen in a run that goes on.

        Raises:
            ValueError: the model lacks some of it.
        """
        for label, names in frozen.items():
            missing = [name for name in names if name not in self.parameters]
            if label not in self.groups or missing:
                raise ValueError(
                    f"the checkpoint has the group {label!r} frozen, which the model lacks or has without "
                    f"{missing}: resume with the same model, train= and by=, or without the checkpoint's callbacks."
                )
        self.frozen = {label: list(names) for label, names in frozen.items()}
        self._set([name for names in frozen.values() for name in names], self._current(), trained=False)
        self._stop_statistics(self.frozen)

    def put_back(self) -> None:
        """Leave the module as it was before the run, and remember what is frozen."""
        self._set([name for names in self.frozen.values() for name in names], self._current(), trained=True)
        self._stop_statistics(())

    def trained(self) -> tuple[int, int]:
        """Numbers that are being trained, and that would be if nothing were frozen here."""
        ours = {name for names in self.frozen.values() for name in names}
        now = sum(p.numel() for name, p in self.parameters.items() if p.requires_grad)
        return now, now + sum(self.parameters[name].numel() for name in ours if not self.parameters[name].requires_grad)

    def share(self) -> float:
        """Share of the trainable numbers that are being trained."""
        now, trainable = self.trained()
        return now / trainable

    def together(self) -> dict[str, tuple[str, ...]]:
        """Names of all parameters in groups: those that can be frozen, and ``"train"``, or everything in one."""
        if self.by == MODEL:
            return {MODEL: tuple(self.parameters)}
        groups = {label: group.parameters for label, group in self.groups.items()}
        others = set(self.parameters).difference(*groups.values())
        return groups | {"train": tuple(name for name in self.parameters if name in others)}

    def frozen_layers(self) -> int:
        """Modules of which some parameters are frozen."""
        return len({name.rpartition(".")[0] for names in self.frozen.values() for name in names})

    # Inside

    def _current(self) -> dict[str, nn.Parameter]:
        """The parameters that the module has right now: under FSDP2 after validation, the unsharded ones."""
        return {clean_name(name): p for name, p in self.module.named_parameters()}

    def _set(self, names: Iterable[str], current: Mapping[str, nn.Parameter], *, trained: bool) -> None:
        for name in names:
            # An unsharded parameter takes part in the coming step as it is, and the sharded one in those after that.
            for parameter in (self.parameters[name], current.get(name, self.parameters[name])):
                parameter.requires_grad_(trained)
                parameter.grad = None
            if not trained and not self.keep_state:
                for each in (each for optimizer in self.optimizers for each in with_inner(optimizer)):
                    each.state.pop(self.parameters[name], None)

    def _norms_in(self, labels: Iterable[str]) -> list[_BatchNorm]:
        """BatchNorm layers with running statistics in groups: all of them in the model as a whole."""
        inside = set(labels)
        return [
            module
            for name, module in self.module.named_modules()
            if isinstance(module, _BatchNorm)
            and module.track_running_stats
            and (inside if self.by == MODEL else inside.intersection(enclosing(clean_name(name))))
        ]

    def _stop_statistics(self, labels: Iterable[str]) -> None:
        """Let BatchNorm's running statistics rest in these groups, and go on in all others."""
        for norm in self._stopped:
            norm.track_running_stats = True
        self._stopped = self._norms_in(() if self.running_statistics else labels)
        for norm in self._stopped:
            norm.track_running_stats = False  # it normalises by the batch all the same
