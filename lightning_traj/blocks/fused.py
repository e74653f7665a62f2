"""Fused tensors, which hold several parts such as q, k and v: where the parts lie in them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from lightning_traj.blocks.roles import ROLES
from lightning_traj.checks import check_int


@dataclass(frozen=True, eq=False)
class FusedLayout:
    """Layout of the parts of a fused tensor.

    Attributes:
        parts: Share of each part by its role, in the order of the tensor: ``{"q": 1, "k": 1, "v": 1}`` are thirds,
            ``{"q": 4, "k": 1, "v": 1}`` is a group of four queries with its key and value.
        groups: Number of times that the parts repeat along the axis: 1 if each part is contiguous, the number of heads
            if each head has a q, k and v of its own (GPT-NeoX).
        axis: Axis of the output features: 0 in a ``torch.nn.Linear``, -1 in GPT-2's ``Conv1D``.

    Raises:
        ValueError: There are no parts, a part is not a role, or a share or ``groups`` is below 1.
        TypeError: A share, ``groups`` or ``axis`` is not an int.
    """

    parts: Mapping[str, int]
    groups: int = 1
    axis: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.parts, Mapping) or not self.parts:
            raise ValueError(f'parts={self.parts!r}: name at least one part and its share, as in {{"q": 1, "k": 1}}.')
        for role, share in self.parts.items():
            if role not in ROLES:
                raise ValueError(f"parts={self.parts!r}: {role!r} is not a role; choose from {', '.join(ROLES)}.")
            check_int(f"parts[{role!r}]", share, least=1)
        check_int("groups", self.groups, least=1)
        check_int("axis", self.axis)
        object.__setattr__(self, "parts", dict(self.parts))  # a copy, so that equality and hash cannot change

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FusedLayout) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @cached_property
    def _key(self) -> tuple[object, ...]:
        return *self.parts.items(), self.groups, self.axis  # the order of parts counts; equality of dicts ignores it

    def part(self, tensor: Tensor, role: str) -> Tensor:
        """Return a view of one part. With several groups, the axis of the tensor becomes [groups, entries]."""
        axis = self.axis % tensor.ndim
        width, begin, end = self.interval(tensor.shape[axis], role)
        if self.groups == 1:
            return tensor.narrow(axis, begin, end - begin)
        groups = tensor.view(*tensor.shape[:axis], self.groups, width, *tensor.shape[axis + 1 :])
        return groups.narrow(axis + 1, begin, end - begin)

    def interval(self, size: int, role: str) -> tuple[int, int, int]:
        """Return the place of a part along an axis of `size` indices.

        Returns:
            The number of indices of one group, and the first and last-plus-one index of the part within a group.
        """
        if role not in self.parts:
            raise ValueError(f"role={role!r}: the parts are {', '.join(self.parts)}.")
        before, share, total = self._shares[role]
        unit = size // (self.groups * total)
        return unit * total, unit * before, unit * (before + share)

    @cached_property
    def _shares(self) -> dict[str, tuple[int, int, int]]:
        """Shares by part: the sum of those before it, its own, and the sum of all."""
        total, before = sum(self.parts.values()), itertools.accumulate(self.parts.values(), initial=0)
        return {role: (first, share, total) for (role, share), first in zip(self.parts.items(), before, strict=False)}

    def check(self, name: str, shape: Sequence[int]) -> None:
        """Raise ValueError if a tensor of this name and shape does not have this layout."""
        told = f"fused: {name} has shape {tuple(shape)}, and {self}"
        if not -len(shape) <= self.axis < len(shape):
            raise ValueError(f"{told} splits axis {self.axis}, which it does not have; correct axis.")
        size, pieces = shape[self.axis], self.groups * sum(self.parts.values())
        if size == 0 or size % pieces:
            raise ValueError(
                f"{told} cuts its axis {self.axis} into {pieces} equal pieces (groups × sum of the shares), "
                f"which {size} entries cannot be; correct parts, groups or axis, or match fewer tensors."
            )


def as_layouts(declared: Mapping[str, Any] | None) -> dict[str, FusedLayout]:
    """Return declared layouts by pattern, as a plain dict.

    A mapping of FusedLayout's arguments is accepted too, since Hydra turns an instantiated layout inside a config into
    one.

    Raises:
        TypeError: A layout is neither a FusedLayout nor such a mapping, or an argument has the wrong type.
        ValueError: An argument is wrong. Messages name the pattern.
    """
    declared = {} if declared is None else declared
    if not isinstance(declared, Mapping) or not all(isinstance(pattern, str) for pattern in declared):
        raise TypeError(
            f"fused={declared!r}: pass a dict from glob patterns over parameter names to layouts, such as "
            '{"*.qkv.weight": FusedLayout({"q": 1, "k": 1, "v": 1})}.'
        )
    layouts = {}
    for pattern, layout in declared.items():
        if isinstance(layout, Mapping):
            try:
                layout = FusedLayout(**layout)
            except (TypeError, ValueError) as error:
                raise type(error)(f"fused[{pattern!r}]: {error}") from error
        if not isinstance(layout, FusedLayout):
            raise TypeError(f"fused[{pattern!r}]={layout!r} is not a layout: pass a FusedLayout.")
        layouts[pattern] = layout
    return layouts
