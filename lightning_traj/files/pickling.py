"""Pickles and deep copies of objects that take part in a running fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import nn


class Picklable:
    """Base of classes with attributes of a running fit that cannot be pickled: hooks, threads, weak references.

    A class names these attributes in its definition. For each it gives a function that makes the value which a pickle
    or a deep copy has instead, or None if these lack the attribute:

        class Counter(Picklable, transient={"hooks": list}): ...
    """

    _transient: ClassVar[Mapping[str, Callable[[], Any] | None]] = {}

    def __init_subclass__(cls, transient: Mapping[str, Callable[[], Any] | None] | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._transient = {**cls._transient, **(transient or {})}

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: value for name, value in vars(self).items() if name not in self._transient}
        return kept | {name: make() for name, make in self._transient.items() if make is not None}


# Lightning gives these methods of its module to every callback, anew in every fit.
METHODS_OF_MODULE: Mapping[str, None] = {"log": None, "log_dict": None}


def identity_of(module: nn.Module) -> object:
    """Return an object that identifies this module, but none of its copies, without keeping the module alive.

    An object that wants to know whether its module is still the same can keep the identity: a reference to the module
    itself would put all weights into the object's pickle, and a weak reference cannot be pickled. The identity is a
    small set that every module owns. It still identifies the module if both are pickled together, as by a Trainer.
    """
    return module._non_persistent_buffers_set
