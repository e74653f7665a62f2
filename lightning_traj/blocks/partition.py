"""Parameters of a model -> ordered, disjoint blocks, and where the entries of each block are."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_traj.blocks.block import (
    Block,
    Patterns,
    check_patterns,
    clean_name,
    enclosing,
    has_entries,
    is_wanted,
    matches,
    real_entries,
)
from lightning_traj.blocks.fused import FusedLayout, known_layout, layout_by_shapes, looks_fused
from lightning_traj.blocks.reading import is_ordinary, unreadable_reason
from lightning_traj.blocks.roles import Shapes, plain_path, role_of
from lightning_traj.blocks.shares import Deferred, IndexRegion, LocalEntries, local_tensor, whole
from lightning_traj.text import function_name

Granularity = Literal["tensor", "layer", "role", "model"] | Callable[[Block], str]
Place = tuple[Sequence[int], IndexRegion]  # of a parameter: its shape, and what of it is here
GRANULARITIES = ("tensor", "layer", "role", "model")


@dataclass(frozen=True)
class Piece:
    """Entries of a block: a parameter, or a part of a fused one.

    Attributes:
        parameter: The parameter's clean name.
        part: The part's role; empty for a whole parameter.
        layout: Where the part lies.
    """

    parameter: str
    part: str = ""
    layout: FusedLayout | None = None

    def numel(self, parameter: Tensor) -> int:
        """The piece's real entries; none where the parameter has none (yet)."""
        if not has_entries(parameter):
            return 0
        numel = parameter.numel() * (2 if parameter.is_complex() else 1)
        return numel if self.layout is None else numel * self.layout.parts[self.part] // sum(self.layout.parts.values())

    def share_of(self, share: IndexRegion, is_complex: bool) -> IndexRegion:
        """What a share of the parameter is of the piece's real entries."""
        if self.layout is not None:
            is_whole, share = share.is_whole, share.of_part(self.layout, self.part)
            share = whole(share.shape) if is_whole else share  # of a view, then
        return share.as_real() if is_complex else share

    def entries(self, local: Tensor, share: IndexRegion) -> Tensor:
        """The piece's real entries, and maybe more: a view of what is here of a parameter, this share of it."""
        if self.layout is not None and share.is_whole:
            local = self.layout.part(local, self.part)
        return real_entries(local) if local.is_complex() else local

    def held(self, local: Tensor, share: IndexRegion, own: IndexRegion) -> LocalEntries | Deferred:
        """The piece's own share of the entries, of what is here of a parameter, this share of it."""
        if is_ordinary(local):
            return LocalEntries(self.entries(local, share), own)
        return Deferred(local, own, self.parameter, partial(self.entries, share=share))


@dataclass(frozen=True)
class Partition:
    """Which blocks the parameters met so far make up, and of which pieces.

    Attributes:
        granularity: ``"tensor"``, ``"layer"``, ``"role"``, ``"model"``, or a function from a tensor's block to the name
            of the block that it is added to.
        fused: Declared layouts of fused tensors, by pattern over parameter names.
        include, exclude: Patterns over names of parameters and parts.
        blocks: The blocks, in order.
        pieces: Of each block, one after the other.
        excluded: Names of the parameters of which something was left out.
        undeclared: Parameters that look fused, and whose layout is neither known nor declared.
        unreadable: Why parameters are left out that cannot be read, by clean name. A block with one of them has no more
            values.
        root: What the names of all parameters begin with, such as ``"model."``: the modules that wrap the network.
    """

    granularity: Granularity = "tensor"
    fused: Mapping[str, FusedLayout] = field(default_factory=dict)
    include: Patterns | None = None
    exclude: Patterns | None = None
    blocks: tuple[Block, ...] = ()
    pieces: tuple[tuple[Piece, ...], ...] = ()
    excluded: frozenset[str] = frozenset()
    undeclared: tuple[str, ...] = ()
    unreadable: Mapping[str, str] = field(default_factory=dict)
    root: str = ""

    @property
    def settings(self) -> dict[str, Any]:
        """What the user has asked for, as plain values."""
        return {
            "blocks": self.granularity
            if isinstance(self.granularity, str)
            else f"function {function_name(self.granularity)}",
            "fused": {pattern: repr(layout) for pattern, layout in self.fused.items()},  # in which their order is seen
            "include": plain_patterns(self.include),
            "exclude": plain_patterns(self.exclude),
        }

    def check(self, parameters: Mapping[str, Tensor], model: nn.Module | None = None) -> None:
        """Raise ValueError: a pattern matches nothing, or nothing is left to record."""
        names = [clean_name(name) for name in parameters]
        check_patterns("fused", list(self.fused), names)
        shapes = _shapes(parameters)
        unreadable = self.find_unreadable(parameters, model)
        readable = [name for name in parameters if clean_name(name) not in unreadable]
        pieces = [piece for name in readable for piece in self._pieces_of(name, parameters[name], model, shapes)]
        known = list(dict.fromkeys([*names, *(block.name for block, _ in pieces)]))
        check_patterns("include", self.include, known)
        check_patterns("exclude", self.exclude, known)
        if pieces and not any(self._is_wanted(block, piece) for block, piece in pieces):
            odd = "".join(f"; {name!r} cannot be read ({reason})" for name, reason in unreadable.items())
            raise ValueError(
                f"include={self.include!r}, exclude={self.exclude!r} leave none of {len(names)} parameters{odd}: "
                "record at least one."
            )

    def find_unreadable(
        self, parameters: Mapping[str, Tensor], model: nn.Module | None = None, names: Iterable[str] | None = None
    ) -> dict[str, str]:
        """Find the parameters that are, or were, to be recorded and whose values cannot be read.

        Args:
            parameters: Tensors by qualified name.
            model: The module that has them.
            names: Which of the parameters are looked at; default: all.

        Returns:
            The reasons by clean name, without those that are left out already.
        """
        meta = all(is_lazy(parameter) or parameter.is_meta for parameter in parameters.values())
        found: dict[str, str] = {}
        shapes = _shapes(parameters)
        for name in parameters if names is None else names:
            cleaned = clean_name(name)
            if cleaned in self.excluded or cleaned in self.unreadable:
                continue
            reason = unreadable_reason(local_tensor(parameters[name]), meta)
            if reason and self._wants_some(name, parameters[name], model, shapes):
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
        """The partition with the blocks of parameters that are new; itself where none is.

        Args:
            parameters: By qualified name.
            model: Whose parameters they are: types of modules tell more than names.

        Raises:
            ValueError: a declared layout does not fit, or two declarations match one tensor.
        """
        known = self._known
        new = [name for name in parameters if clean_name(name) not in known]
        if not new:
            return self
        unreadable = {**self.unreadable, **self.find_unreadable(parameters, model, new)}
        new = [name for name in new if clean_name(name) not in unreadable]
        shapes = _shapes(parameters) if any(has_entries(parameters[name]) for name in new) else {}
        found = [piece for name in new for piece in self._pieces_of(name, parameters[name], model, shapes)]
        if not found:
            return self if len(unreadable) == len(self.unreadable) else replace(self, unreadable=unreadable)
        wanted = [self._is_wanted(block, piece) for block, piece in found]
        # A block of several tensors is as long as it was at first: what comes later is a block of its own.
        group = self._group if not self.blocks else _itself
        grouped: dict[str, list[tuple[Block, Piece]]] = {}
        for (block, piece), is_in in zip(found, wanted, strict=True):
            if is_in:
                grouped.setdefault(group(block), []).append((block, piece))
        whole = [p.parameter for (_, p), is_in in zip(found, wanted, strict=True) if is_in and not p.part]
        added = {clean_name(name): parameters[name] for name in new}
        unknown = [name for name in whole if looks_fused(name, added[name].shape, shapes)]
        return replace(
            self,
            blocks=(*self.blocks, *(_merged(name, [b for b, _ in members]) for name, members in grouped.items())),
            pieces=(*self.pieces, *(tuple(piece for _, piece in members) for members in grouped.values())),
            excluded=self.excluded | {p.parameter for (_, p), is_in in zip(found, wanted, strict=True) if not is_in},
            undeclared=(*self.undeclared, *unknown),
            unreadable=unreadable,
            root=self.root if self.blocks else root_of([clean_name(name) for name in parameters]),
        )

    def sketch_name(self, block: Block) -> str:
        """The name that selects a block's random numbers: without the root, so that one network has one set of them.

        Whether it is trained as ``net``, as ``model``, or read from files that hold it alone, its sketches can then be
        compared with each other.
        """
        return block.name.removeprefix(self.root)

    def held(
        self, parameters: Mapping[str, Tensor], shares: Mapping[str, IndexRegion]
    ) -> list[list[LocalEntries | Deferred]]:
        """What is here of the real entries of each block, piece by piece; empty where one of its parameters is gone.

        Args:
            parameters: By qualified name.
            shares: Which entries of each are here; all of those that are not named.

        Raises:
            ValueError: a parameter has changed its size.
        """
        here: dict[str, tuple[Tensor, Place, Tensor]] = {}
        for name, tensor in parameters.items():
            cleaned = clean_name(name)
            if cleaned in self._recorded and cleaned not in self.unreadable and has_entries(tensor):
                placed = tensor.shape, shares.get(name) or whole(tensor.shape)
                here[cleaned] = tensor, placed, local_tensor(tensor).detach()  # of which views are cheaper
        listed: list[list[LocalEntries | Deferred]] = []
        for b, pieces in enumerate(self.pieces):
            found = [here[piece.parameter] for piece in pieces if piece.parameter in here]
            if len(found) < len(pieces):
                listed.append([])
                continue
            places = [place for _, place, _ in found]
            if b not in self._owned or self._owned[b][0] != places:
                self._owned[b] = places, self._own(b, [tensor for tensor, *_ in found], places)
            each = zip(pieces, found, self._owned[b][1], strict=True)
            listed.append([piece.held(local, share, own) for piece, (_, (_, share), local), own in each])
        return listed

    # Inside

    @cached_property
    def _recorded(self) -> frozenset[str]:
        return frozenset(piece.parameter for pieces in self.pieces for piece in pieces)

    @cached_property
    def _known(self) -> frozenset[str]:
        return self._recorded | self.excluded | self.unreadable.keys()

    @cached_property
    def _owned(self) -> dict[int, tuple[list[Place], list[IndexRegion]]]:
        """Of blocks that were asked for: where their parameters are, and what is here of their pieces."""
        return {}

    def _own(self, b: int, tensors: Sequence[Tensor], places: Sequence[Place]) -> list[IndexRegion]:
        """What is here of the pieces of a block."""
        block, pieces = self.blocks[b], self.pieces[b]
        if (numel := sum(piece.numel(tensor) for piece, tensor in zip(pieces, tensors, strict=True))) != block.numel:
            raise ValueError(f"parameter {block.name!r} had {block.numel} entries and now has {numel}.")
        for piece, tensor in zip(pieces, tensors, strict=True):
            if piece.layout is not None:
                piece.layout.check(piece.parameter, tensor.shape)
        each = zip(pieces, tensors, places, strict=True)
        return [piece.share_of(share, tensor.is_complex()) for piece, tensor, (_, share) in each]

    def _wants_some(self, name: str, parameter: Tensor, model: nn.Module | None, shapes: Shapes) -> bool:
        """Whether a parameter, or a part of it, is to be recorded."""
        try:
            pieces = list(self._pieces_of(name, parameter, model, shapes))
        except Exception:  # it does not even tell its shape
            return is_wanted({clean_name(name)}, self.include, self.exclude)
        return any(self._is_wanted(block, piece) for block, piece in pieces)

    def _is_wanted(self, block: Block, piece: Piece) -> bool:
        return is_wanted({block.name, piece.parameter}, self.include, self.exclude)

    def _pieces_of(
        self, raw: str, parameter: Tensor, model: nn.Module | None, shapes: Shapes
    ) -> Iterator[tuple[Block, Piece]]:
        """The pieces that a parameter is made of, each as a block."""
        if not has_entries(parameter):
            return
        name = clean_name(raw)
        layer = name.rpartition(".")[0]
        owner, parent = _owners(model, raw)
        role = role_of(name, parameter.ndim, owner, parent, shapes)
        layout = self._layout(name, parameter, owner, parent, shapes)
        if layout is None:
            yield Block(name, layer, role, Piece(name).numel(parameter)), Piece(name)
            return
        for part in layout.parts:
            piece = Piece(name, part, layout)
            yield Block(f"{name}:{part}", layer, "bias" if role == "bias" else part, piece.numel(parameter)), piece

    def _layout(
        self, name: str, parameter: Tensor, owner: nn.Module | None, parent: nn.Module | None, shapes: Shapes
    ) -> FusedLayout | None:
        declared = [pattern for pattern in self.fused if matches(name, pattern)]
        if len(declared) > 1:
            raise ValueError(
                f"fused: {declared[0]!r} and {declared[1]!r} both match the parameter {name!r}: declare it once."
            )
        if declared:
            layout = self.fused[declared[0]]
            layout.check(name, parameter.shape)
            return layout
        known = None if owner is None else known_layout(owner, parent, name.rpartition(".")[2])
        return known or layout_by_shapes(name, shapes)

    def _group(self, block: Block) -> str:
        """Name of the block that a tensor's, or a part's, is added to."""
        if callable(self.granularity):
            try:
                name = self.granularity(block)
            except Exception as error:
                raise TypeError(
                    f"blocks={self.settings['blocks']} failed for {block}: {error!r}; it gets a Block, returns a name."
                ) from error
            if not isinstance(name, str) or not name:
                raise TypeError(
                    f"blocks={self.settings['blocks']} returned {name!r} for {block.name!r}: return the name of the "
                    "block that it is to be added to, a string."
                )
            return name
        names = {"tensor": block.name, "layer": block.layer or "root", "role": block.role, "model": "model"}
        return names[self.granularity]


_WRAPPED = ("_orig_mod", "base_layer")  # what torch.compile and PEFT call the module that they wrap


def root_of(names: Sequence[str]) -> str:
    """The modules that all of these names begin with: ``"model.net."``; empty where they share none."""
    modules = [name.split(".")[:-1] for name in names]
    shared = itertools.takewhile(lambda some: len(set(some)) == 1, zip(*modules, strict=False))
    return "".join(f"{some[0]}." for some in shared)


def piece_from_state(state: Mapping[str, Any]) -> Piece:
    """A piece again, from the plain values that ``dataclasses.asdict`` has made of it."""
    layout = state["layout"]
    return Piece(state["parameter"], state["part"], None if layout is None else FusedLayout(**layout))


def _shapes(parameters: Mapping[str, Tensor]) -> dict[str, Sequence[int]]:
    """Shapes of parameters, as roles are told by; without those of tensors that do not tell theirs."""
    shapes: dict[str, Sequence[int]] = {}
    for name, parameter in parameters.items():
        with suppress(RuntimeError):  # a nested tensor has none
            if has_entries(parameter):
                shapes[plain_path(clean_name(name))] = parameter.shape
    return shapes


def _itself(block: Block) -> str:
    return block.name


def _merged(name: str, members: Sequence[Block]) -> Block:
    """One block of several: in what module they all lie, and their role where it is one."""
    # A weight's role is that of its layer, whatever its bias is.
    roles = {block.role for block in members if block.role != "bias"} or {"bias"}
    shared = [module for module in enclosing(members[0].layer) if all(module in enclosing(b.layer) for b in members)]
    return Block(
        name=name,
        layer=shared[-1] if shared else "",
        role=roles.pop() if len(roles) == 1 else "other",
        numel=sum(block.numel for block in members),
    )


def _owners(model: nn.Module | None, name: str) -> tuple[nn.Module | None, nn.Module | None]:
    """The module that owns a parameter, and the one that has it as a child, wrappers left aside."""
    if model is None:
        return None, None
    modules: list[nn.Module | None] = [None]
    module: Any = model
    for child in name.split(".")[:-1]:
        module = getattr(module, child, None)
        if child in _WRAPPED:
            modules[-1] = module
        else:
            modules.append(module)
    modules[0] = model
    owner = modules[-1]
    return owner, modules[-2] if len(modules) > 1 else None


def plain_patterns(patterns: Patterns | None) -> str | list[str] | None:
    """Return patterns as a str, a list or None, whatever sequence they came in."""
    return patterns if patterns is None or isinstance(patterns, str) else list(patterns)
