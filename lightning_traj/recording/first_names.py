"""Parameters under the names that they were first seen by, however their modules rename them in between.

Pruning turns ``weight`` into ``weight_orig``, ``register_parametrization`` into ``parametrizations.weight.original``,
LoRA moves a layer into ``base_layer``, and a layer that is inserted shifts the numbers of those behind it. The tensor
stays the same, and its trajectory goes on.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_traj.blocks import clean_name

# The name that a weight had before it was pruned or parametrized, and before weight normalisation split it in two.
_RENAMED = re.compile(r"(.*\.)?(?:parametrizations\.([^.]+)\.original|([^.]+)_orig)")
_NORMALISED = re.compile(r"(.*\.)?(?:parametrizations\.([^.]+)\.original1|([^.]+)_v)")


class FirstNames:
    """Follows parameters through renamings.

    A parameter that is still the same object keeps its first name. A new object continues an earlier parameter that is
    gone if it has that one's name or memory, or if it is the direction that weight normalisation has made of that one
    and has the same values. Where the earlier objects are not there to compare with, in another fit or in a resumed
    run, pruned and parametrized tensors are recognised by their names and shapes.

    The tensors of the latest call are kept alive until the next one or ``release``. Weak references to them would stop
    ``module.to`` from converting quantised and sharded parameters (``torch.utils.swap_tensors`` refuses such tensors).

    Attributes:
        aliases: First names of the parameters that have another name now, by that name. Both are without the wrappers
            of ``torch.compile``.
        shapes: Shapes of all parameters so far, by first name; None where a shape is not known.
        ended: First names of the parameters that left the model when others came that do not continue them.
        began: First names of those others.
    """

    def __init__(self) -> None:
        self.restart({})

    def restart(self, aliases: Mapping[str, str], shapes: Mapping[str, Sequence[int] | None] | None = None) -> None:
        """Forget all parameters, and go on from the aliases and shapes of an earlier run, if there are any."""
        self.aliases = dict(aliases)
        self.shapes = {first: None if shape is None else tuple(shape) for first, shape in (shapes or {}).items()}
        self.ended: tuple[str, ...] = ()
        self.began: tuple[str, ...] = ()
        self.release()

    def release(self) -> None:
        """Let go of the tensors. The next call of ``of`` recognises parameters by name and shape alone."""
        self._tensors: dict[str, Tensor] = {}  # of the latest call, by first name
        self._names: dict[int, str] = {}  # first names by the identity of the tensor

    def __getstate__(self) -> dict[str, Any]:
        """Return names and shapes: tensors have another identity in another process."""
        return {"aliases": self.aliases, "shapes": self.shapes}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.restart(state["aliases"], state["shapes"])

    def of(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the parameters by their first names, in the order given.

        Args:
            parameters: All parameters of a module, by the qualified names that they have now.
        """
        names = {name: first for name, p in parameters.items() if (first := self._followed(name, p)) is not None}
        if len(names) < len(parameters):
            names = self._with_new(parameters, names)
        self._tensors = {names[name]: p for name, p in parameters.items()}
        self._names = {id(p): first for first, p in self._tensors.items()}
        self.shapes.update({first: _shape(p) for first, p in self._tensors.items()})
        renamed = {clean_name(name): clean_name(first) for name, first in names.items() if name != first}
        self.aliases = {name: first for name, first in renamed.items() if name != first}
        return dict(self._tensors)

    def _followed(self, name: str, parameter: Tensor) -> str | None:
        """Return the first name of a tensor that was there at the latest call; None for any other tensor."""
        first = self._names.get(id(parameter))
        if first is None or name == first or self.shapes[first] is None:
            return first
        # A parametrization may give the tensor another shape along with its new name. It then belongs to a new block.
        return first if _shape(parameter) == self.shapes[first] else None

    def _with_new(self, parameters: Mapping[str, Tensor], followed: Mapping[str, str]) -> dict[str, str]:
        """Return the first names of all parameters, given those of the parameters that were followed."""
        found = self._with_own_names(parameters, followed)
        new = {name: p for name, p in parameters.items() if name not in found}
        taken = set(found.values())
        gone = {first: tensor for first, tensor in self._tensors.items() if first not in taken}
        if self._tensors:
            found |= _by_memory(new, gone)
            taken.update(found.values())
            unmatched = {name: p for name, p in new.items() if name not in found}
            found |= self._by_values(unmatched, {first: p for first, p in gone.items() if first not in taken})
        else:
            present = {clean_name(name) for name in parameters}
            lacking = [first for first in self.shapes if first not in taken and clean_name(first) not in present]
            found |= self._by_name(new, lacking)
        taken.update(found.values())
        ended, began = [first for first in gone if first not in taken], []
        taken |= self.shapes.keys()
        for name in new:
            if name not in found:
                found[name] = name if name not in taken else _unused(name, taken)
                taken.add(found[name])
                began.append(found[name])
        if began and ended:
            self.ended, self.began = (*self.ended, *ended), (*self.began, *began)
        return found

    def _with_own_names(self, parameters: Mapping[str, Tensor], followed: Mapping[str, str]) -> dict[str, str]:
        """Return ``followed`` with the parameters that have a first name, or an alias of one, that is not taken."""
        found, taken = dict(followed), set(followed.values())
        is_start = not self.shapes  # nothing was seen before, and so all names are first names
        unknown = [name for name in parameters if name not in found]
        for name in sorted(unknown, key=lambda name: clean_name(name) in self.aliases):  # own names come first
            first = self.aliases.get(clean_name(name), name)
            if first not in taken and (first in self.shapes or is_start):
                found[name] = first
                taken.add(first)
        return found

    def _by_values(self, new: Mapping[str, Tensor], gone: Mapping[str, Tensor]) -> dict[str, str]:
        """Find the weights that are gone and whose values weight normalisation has put into new tensors."""
        continued: dict[str, str] = {}
        left = dict(gone)
        for name, parameter in new.items():
            former = _former_name(_NORMALISED, name)
            first = self.aliases.get(clean_name(former), former)
            if first in left and _are_equal(parameter, left[first]):
                continued[name] = first
                del left[first]
        return continued

    def _by_name(self, new: Mapping[str, Tensor], lacking: Iterable[str]) -> dict[str, str]:
        """Find the parameters that the model lacks and has pruned, parametrized, or plain again."""
        former: dict[str, str] = {}
        for first in lacking:
            former.setdefault(_plain_name(first), first)
        continued: dict[str, str] = {}
        for name, parameter in new.items():
            first = former.get(_plain_name(name), "")
            if first and self.shapes[first] in (None, _shape(parameter)):
                continued[name] = former.pop(_plain_name(name))
        return continued


def _by_memory(new: Mapping[str, Tensor], gone: Mapping[str, Tensor]) -> dict[str, str]:
    """Find the parameters that are gone and whose memory new ones have."""
    places: dict[tuple[Any, ...], list[str]] = {}
    for first, tensor in gone.items():
        if (place := _memory(tensor)) is not None:
            places.setdefault(place, []).append(first)
    continued: dict[str, str] = {}
    for name, parameter in new.items():
        here = [] if (place := _memory(parameter)) is None else places.get(place, [])
        # The same tensor is new here only if it has changed its shape.
        if same := [first for first in here if gone[first] is not parameter]:
            continued[name] = same[0]
            here.remove(same[0])
    return continued


def _former_name(pattern: re.Pattern[str], name: str) -> str:
    """Return the name that a parameter had before it got one of this pattern; empty where it has another."""
    match = pattern.fullmatch(name)
    return "" if match is None else "".join(group for group in match.groups() if group is not None)


def _plain_name(name: str) -> str:
    """Return a parameter's name without the wrappers of ``torch.compile``, as if it were not pruned or parametrized."""
    cleaned = clean_name(name)
    return _former_name(_RENAMED, cleaned) or cleaned


def _shape(parameter: Tensor) -> tuple[int, ...] | None:
    return None if is_lazy(parameter) or parameter.is_nested else tuple(parameter.shape)


def _is_plain(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided and not tensor.is_nested


def _memory(tensor: Tensor) -> tuple[Any, ...] | None:
    """Return what tells whether two plain tensors have the same entries in the same memory; None for other tensors."""
    if not _is_plain(tensor) or not tensor.data_ptr():
        return None
    return tensor.data_ptr(), tensor.device, tensor.dtype, tuple(tensor.shape), tensor.stride()


def _are_equal(one: Tensor, other: Tensor) -> bool:
    """Whether two plain tensors have the same values; waits for the device."""
    alike = _is_plain(one) and _is_plain(other) and one.dtype == other.dtype and one.device == other.device
    return alike and not one.is_meta and torch.equal(one.detach(), other.detach())


def _unused(name: str, taken: Collection[str]) -> str:
    """Return a name for a parameter whose own name is that of another block: its module gets a number."""
    module, dot, last = name.rpartition(".")
    numbered = (f"{module}~{i}.{last}" if dot else f"{last}~{i}" for i in itertools.count(2))
    return next(other for other in numbered if other not in taken)
