"""Parameters under the names that they were first seen by, however their modules rename them in between.

Pruning turns ``weight`` into ``weight_orig``, ``register_parametrization`` into ``parametrizations.weight.original``,
LoRA moves a layer into ``base_layer``, and a layer that is inserted shifts the numbers of those behind it. The tensor
is the same one, and its trajectory goes on.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_traj.blocks import clean_name


class FirstNames:
    """Follows parameters through renamings.

    A parameter that is still the same object keeps its name. A new object takes the place of an earlier one that is
    gone if it has its name, or its memory: weight normalisation makes ``weight_v`` (``original1``) of the memory of
    ``weight``, so the values were equal when it did.

    The tensors of the latest look are held, as weak references would keep ``module.to`` from converting quantised and
    sharded parameters (``torch.utils.swap_tensors`` refuses tensors that have some).

    Attributes:
        aliases: First names of the parameters that have another name now, by that name; both without the wrappers of
            ``torch.compile``.
        ended: First names of the parameters that left at a moment when others came, and did not continue them.
        began: Names of those others.
    """

    def __init__(self) -> None:
        self.restart({})

    def restart(self, aliases: Mapping[str, str]) -> None:
        """Forget what was seen, and go on from these aliases, which may be those of an earlier run."""
        self.aliases = dict(aliases)
        self.ended: tuple[str, ...] = ()
        self.began: tuple[str, ...] = ()
        self._known: set[str] = set()  # first names of all parameters so far
        self.release()

    def release(self) -> None:
        """Let go of the tensors: from here on they are known by their names alone."""
        self._tensors: dict[str, Tensor] = {}  # of the latest look, by first name
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._names: dict[int, str] = {}  # first names by the identity of the tensor

    def __getstate__(self) -> dict[str, Any]:
        """Only names outlive the process."""
        return {"aliases": self.aliases, "known": self._known}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.restart(state["aliases"])
        self._known = set(state["known"])

    def of(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the parameters by their first names, in the order given.

        Args:
            parameters: All parameters of a module, by the qualified names that they have now.
        """
        names = {name: first for name, p in parameters.items() if (first := self._followed(name, p)) is not None}
        if len(names) < len(parameters):
            names = self._with_new(parameters, names)
        self._tensors = {names[name]: p for name, p in parameters.items()}
        self._shapes = {first: tuple(p.shape) for first, p in self._tensors.items() if _has_shape(p)}
        self._names = {id(p): first for first, p in self._tensors.items()}
        self._known.update(self._tensors)
        renamed = {clean_name(name): clean_name(first) for name, first in names.items() if name != first}
        self.aliases = {name: first for name, first in renamed.items() if name != first}
        return dict(self._tensors)

    def _followed(self, name: str, parameter: Tensor) -> str | None:
        """The first name of a tensor that was there at the latest look."""
        first = self._names.get(id(parameter))
        if first is None or name == first or first not in self._shapes:
            return first
        # A parametrization may give the tensor another shape along with its new name: that is no longer its block.
        return first if _has_shape(parameter) and tuple(parameter.shape) == self._shapes[first] else None

    def _with_new(self, parameters: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, str]:
        """First names of all parameters, of which these are known."""
        found, taken = dict(names), set(names.values())
        left: dict[str, Tensor] = {}
        unknown = [name for name in parameters if name not in found]
        for name in sorted(unknown, key=lambda name: clean_name(name) in self.aliases):  # own names come first
            first = self.aliases.get(clean_name(name), name)
            # At the start of a run, of which nothing was seen, all names are first names.
            if first not in taken and (first in self._known or not self._known):
                found[name] = first
                taken.add(first)
            else:
                left[name] = parameters[name]
        gone = {first: tensor for first, tensor in self._tensors.items() if first not in taken}
        began = []
        for name, parameter in left.items():
            # One of another shape than before is among those that are gone.
            same = (f for f, tensor in gone.items() if tensor is not parameter and _share_memory(parameter, tensor))
            first = next(same, "")
            if first:
                del gone[first]
            else:
                first = name if name not in taken | self._known else _unused(name, taken | self._known)
                began.append(first)
            found[name] = first
            taken.add(first)
        if began and gone:
            self.ended, self.began = (*self.ended, *gone), (*self.began, *began)
        return found


def _has_shape(parameter: Tensor) -> bool:
    return not (is_lazy(parameter) or parameter.is_nested)


def _share_memory(one: Tensor, other: Tensor) -> bool:
    """Whether two plain tensors have the same entries in the same memory."""
    for tensor in (one, other):
        plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided and _has_shape(tensor)
        if not plain or not tensor.data_ptr():
            return False
    return (
        one.data_ptr() == other.data_ptr()
        and one.dtype == other.dtype
        and one.shape == other.shape
        and one.stride() == other.stride()
    )


def _unused(name: str, taken: Collection[str]) -> str:
    """A name for a parameter whose own name is that of another one's block: its module gets a number."""
    module, dot, last = name.rpartition(".")
    numbered = (f"{module}~{i}.{last}" if dot else f"{last}~{i}" for i in itertools.count(2))
    return next(other for other in numbered if other not in taken)
