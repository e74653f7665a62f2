"""Rules by which parameters become blocks: which ones are recorded, how they are cut, and how they are grouped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from lightning_traj.blocks.block import Block
from lightning_traj.blocks.fused import FusedLayout, as_layouts
from lightning_traj.blocks.known_layouts import known_layout, layout_by_shapes
from lightning_traj.blocks.names import clean_name
from lightning_traj.blocks.piece import Piece
from lightning_traj.blocks.roles import Shapes, plain_path, role_of
from lightning_traj.blocks.selection import Patterns, check_is_patterns, is_wanted, matches, plain_patterns
from lightning_traj.tensors import has_entries
from lightning_traj.text import function_name

Granularity = Literal["tensor", "layer", "role", "model"] | Callable[[Block], str]
GRANULARITIES = ("tensor", "layer", "role", "model")

_WRAPPED = ("_orig_mod", "base_layer")  # names that torch.compile and PEFT give the module that they wrap


@dataclass(frozen=True)
class BlockRules:
    """Rules by which parameters become blocks, as the user chooses them.

    Attributes:
        granularity: Size of a block: ``"tensor"``, ``"layer"``, ``"role"``, ``"model"``, or a function from the block
            of a single tensor to the name of the block that it becomes part of.
        fused: Declared layouts of fused tensors, by pattern over parameter names.
        include: Patterns over names of parameters and parts that are recorded. None includes all.
        exclude: Patterns over names of parameters and parts that are left out.

    Raises:
        TypeError: Patterns are not strings, or a declared layout is not a layout.
        ValueError: The granularity is unknown, or a declared layout has wrong arguments.
    """

    granularity: Granularity = "tensor"
    fused: Mapping[str, FusedLayout] = field(default_factory=dict)
    include: Patterns | None = None
    exclude: Patterns | None = None

    def __post_init__(self) -> None:
        if not callable(self.granularity) and self.granularity not in GRANULARITIES:
            choices = ", ".join(map(repr, GRANULARITIES))
            raise ValueError(
                f"blocks={self.granularity!r}: pass {choices}, or a function from a Block to the name of its block."
            )
        check_is_patterns("include", self.include)
        check_is_patterns("exclude", self.exclude)
        # Plain values, whatever kind of sequence or mapping a configuration system passes.
        object.__setattr__(self, "fused", as_layouts(self.fused))
        object.__setattr__(self, "include", plain_patterns(self.include))
        object.__setattr__(self, "exclude", plain_patterns(self.exclude))

    @property
    def settings(self) -> dict[str, Any]:
        """The rules as plain values."""
        return {
            "blocks": self.granularity
            if isinstance(self.granularity, str)
            else f"function {function_name(self.granularity)}",
            "fused": {pattern: repr(layout) for pattern, layout in self.fused.items()},  # repr shows the order of parts
            "include": self.include,
            "exclude": self.exclude,
        }

    def pieces_of(
        self, raw: str, parameter: Tensor, model: nn.Module | None, shapes: Shapes
    ) -> Iterator[tuple[Block, Piece]]:
        """Yield the pieces that a parameter consists of, each with the block that it would be on its own.

        Args:
            raw: Qualified name of the parameter.
            parameter: The parameter.
            model: Module that has the parameter, or None if only names are known.
            shapes: Shapes of all parameters, from ``shapes_of``.

        Raises:
            ValueError: A declared layout does not fit, or two declarations match the parameter.
        """
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

    def wants(self, block: Block, piece: Piece) -> bool:
        """Whether a piece is to be recorded, given the block that it would be on its own."""
        return is_wanted({block.name, piece.parameter}, self.include, self.exclude)

    def wants_some(self, name: str, parameter: Tensor, model: nn.Module | None, shapes: Shapes) -> bool:
        """Whether a parameter, or a part of it, is to be recorded. Arguments as for ``pieces_of``."""
        try:
            pieces = list(self.pieces_of(name, parameter, model, shapes))
        except Exception:  # some tensors do not even have a shape
            return is_wanted({clean_name(name)}, self.include, self.exclude)
        return any(self.wants(block, piece) for block, piece in pieces)

    def group(self, block: Block) -> str:
        """Return the name of the block that the block of a single tensor, or of a part, becomes part of.

        Raises:
            TypeError: The function that was passed as granularity fails, or does not return a name.
        """
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


def shapes_of(parameters: Mapping[str, Tensor]) -> dict[str, Sequence[int]]:
    """Return the shapes of parameters by ``plain_path`` of their names, as roles and layouts are found by.

    Tensors that have no entries or no shape are left out.
    """
    shapes: dict[str, Sequence[int]] = {}
    for name, parameter in parameters.items():
        with suppress(RuntimeError):  # a nested tensor has no shape
            if has_entries(parameter):
                shapes[plain_path(clean_name(name))] = parameter.shape
    return shapes


def _owners(model: nn.Module | None, name: str) -> tuple[nn.Module | None, nn.Module | None]:
    """Return the module that owns a parameter, and the module that has this one as a child, ignoring wrappers."""
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
