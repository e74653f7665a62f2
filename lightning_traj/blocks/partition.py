"""Partition of a model's parameters into ordered, disjoint blocks, which grows as parameters appear."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_traj.blocks.block import Block, merged
from lightning_traj.blocks.holdings import Holdings
from lightning_traj.blocks.known_layouts import looks_fused
from lightning_traj.blocks.names import clean_name, root_of
from lightning_traj.blocks.piece import Piece
from lightning_traj.blocks.rules import BlockRules, shapes_of
from lightning_traj.blocks.selection import check_patterns
from lightning_traj.tensors import (
    Deferred,
    IndexRegion,
    LocalEntries,
    has_entries,
    local_tensor,
    unreadable_reason,
)


@dataclass(frozen=True)
class Partition:
    """Blocks of the parameters that have appeared so far, and the pieces that each consists of.

    Attributes:
        rules: Rules by which parameters become blocks.
        blocks: The blocks, in order.
        pieces: Pieces of each block, in the order of its entries.
        excluded: Names of the parameters of which something was left out.
        undeclared: Names of the parameters that look fused, but whose layout is neither known nor declared.
        unreadable: Reasons why parameters cannot be read, by clean name. They are left out, and a block that contains
            one of them has no more values.
        root: Modules that wrap the network, such as ``"model."``: the names of all parameters begin with it.
    """

    rules: BlockRules = field(default_factory=BlockRules)
    blocks: tuple[Block, ...] = ()
    pieces: tuple[tuple[Piece, ...], ...] = ()
    excluded: frozenset[str] = frozenset()
    undeclared: tuple[str, ...] = ()
    unreadable: Mapping[str, str] = field(default_factory=dict)
    root: str = ""

    def check(self, parameters: Mapping[str, Tensor], model: nn.Module | None = None) -> None:
        """Raise ValueError if a pattern matches nothing, or if nothing is left to record."""
        rules = self.rules
        names = [clean_name(name) for name in parameters]
        check_patterns("fused", list(rules.fused), names)
        shapes = shapes_of(parameters)
        unreadable = self.find_unreadable(parameters, model)
        readable = [name for name in parameters if clean_name(name) not in unreadable]
        pieces = [piece for name in readable for piece in rules.pieces_of(name, parameters[name], model, shapes)]
        known = list(dict.fromkeys([*names, *(block.name for block, _ in pieces)]))
        check_patterns("include", rules.include, known)
        check_patterns("exclude", rules.exclude, known)
        if pieces and not any(rules.wants(block, piece) for block, piece in pieces):
            odd = "".join(f"; {name!r} cannot be read ({reason})" for name, reason in unreadable.items())
            raise ValueError(
                f"include={rules.include!r}, exclude={rules.exclude!r} leave none of {len(names)} parameters{odd}: "
                "record at least one."
            )

    def find_unreadable(
        self, parameters: Mapping[str, Tensor], model: nn.Module | None = None, names: Iterable[str] | None = None
    ) -> dict[str, str]:
        """Find the parameters that are, or were, to be recorded and whose values cannot be read.

        Args:
            parameters: Tensors by qualified name.
            model: The module that has them.
            names: Names of the parameters to look at. Default: all.

        Returns:
            The reasons by clean name, without those that are left out already.
        """
        meta = all(is_lazy(parameter) or parameter.is_meta for parameter in parameters.values())
        found: dict[str, str] = {}
        shapes = shapes_of(parameters)
        for name in parameters if names is None else names:
            cleaned = clean_name(name)
            if cleaned in self.excluded or cleaned in self.unreadable:
                continue
            reason = unreadable_reason(local_tensor(parameters[name]), meta)
            if reason and self.rules.wants_some(name, parameters[name], model, shapes):
                found[cleaned] = reason
        return found

    def recorded(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return those of the parameters that are in blocks and can be read."""
        return {
            name: tensor
            for name, tensor in parameters.items()
            if (cleaned := clean_name(name)) in self._recorded and cleaned not in self.unreadable
        }

    @property
    def lost(self) -> tuple[int, ...]:
        """Indices of the blocks that cannot be read any more."""
        if not self.unreadable:
            return ()
        lost = (any(piece.parameter in self.unreadable for piece in pieces) for pieces in self.pieces)
        return tuple(b for b, is_lost in enumerate(lost) if is_lost)

    def extended(self, parameters: Mapping[str, Tensor], model: nn.Module | None = None) -> Partition:
        """Return the partition with the blocks of new parameters added; itself if there are none.

        Args:
            parameters: Tensors by qualified name.
            model: Module that has the parameters. Types of modules tell roles more reliably than names.

        Raises:
            ValueError: A declared layout does not fit, or two declarations match one tensor.
        """
        known = self._known
        new = [name for name in parameters if clean_name(name) not in known]
        if not new:
            return self
        unreadable = {**self.unreadable, **self.find_unreadable(parameters, model, new)}
        new = [name for name in new if clean_name(name) not in unreadable]
        shapes = shapes_of(parameters) if any(has_entries(parameters[name]) for name in new) else {}
        found = [piece for name in new for piece in self.rules.pieces_of(name, parameters[name], model, shapes)]
        if not found:
            return self if len(unreadable) == len(self.unreadable) else replace(self, unreadable=unreadable)
        wanted = [(block, piece) for block, piece in found if self.rules.wants(block, piece)]
        left_out = {piece.parameter for block, piece in found if not self.rules.wants(block, piece)}
        grouped: dict[str, list[tuple[Block, Piece]]] = {}
        for block, piece in wanted:
            # The length of a block is fixed once it is recorded: parameters that appear later become their own blocks.
            name = block.name if self.blocks else self.rules.group(block)
            grouped.setdefault(name, []).append((block, piece))
        added = {clean_name(name): parameters[name] for name in new}
        unsplit = [piece.parameter for _, piece in wanted if not piece.part]
        undeclared = [name for name in unsplit if looks_fused(name, added[name].shape, shapes)]
        return replace(
            self,
            blocks=(*self.blocks, *(merged(name, [b for b, _ in members]) for name, members in grouped.items())),
            pieces=(*self.pieces, *(tuple(piece for _, piece in members) for members in grouped.values())),
            excluded=self.excluded | left_out,
            undeclared=(*self.undeclared, *undeclared),
            unreadable=unreadable,
            root=self.root if self.blocks else root_of([clean_name(name) for name in parameters]),
        )

    def sketch_name(self, block: Block) -> str:
        """Return the name that selects a block's random numbers: its name without the root.

        Sketches of one network are then comparable whether it was trained as ``net``, as ``model``, or read from files
        that hold it alone.
        """
        return block.name.removeprefix(self.root)

    def held(
        self, parameters: Mapping[str, Tensor], shares: Mapping[str, IndexRegion]
    ) -> list[list[LocalEntries | Deferred]]:
        """Return the local entries of each block, piece by piece; empty for a block that lacks one of its parameters.

        Args:
            parameters: Tensors by qualified name.
            shares: Region of each parameter that is on this process. Parameters without one are here as a whole.

        Raises:
            ValueError: A parameter has changed its size.
        """
        return self._holdings.find(self.recorded(parameters), shares)

    @cached_property
    def _holdings(self) -> Holdings:
        return Holdings(self.blocks, self.pieces)

    @cached_property
    def _recorded(self) -> frozenset[str]:
        return frozenset(piece.parameter for pieces in self.pieces for piece in pieces)

    @cached_property
    def _known(self) -> frozenset[str]:
        return self._recorded | self.excluded | self.unreadable.keys()
