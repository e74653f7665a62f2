"""Pickles and deep copies of objects that take part in a running fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import nn


class Picklable:
    """Base of classes that hold what belongs to a running fit and cannot be pickled: hooks, threads, weak references.

    A class names these attributes where it is defined, each with a function that makes the value which a pickle or a
    deep copy has instead, or None for an attribute that it lacks:

        class Counter(Picklable, transient={"hooks": list}): ...
    """

    _transient: ClassVar[Mapping[str, Callable[[], Any] | None]] = {}

    def __init_subclass__(cls, transient: Mapping[str, Callable[[], Any] | None] | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._transient = {**cls._transient, **(transient or {})}

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: value for name, value in vars(self).items() if name not in self._transient}
        return kept | {name: make() for name, make in self._transient.items() if make is not None}


# Lightning gives these methods of its module to every callback, and gives them again in every fit.
METHODS_OF_MODULE: Mapping[str, None] = {"log": None, "log_dict": None}


def identity_of(module: nn.Module) -> object:
    """Return an object that stands for this module, and for none of its copies, without keeping the module alive.

    A reference to the module itself would put its weights into the pickle of whoever asks whether it is still the
    same; a weak reference cannot be pickled. This is a small set that every module has of its own. Pickled along with
    the module, as a Trainer does with its callbacks, it still stands for the module afterwards.
    """
    return module._non_persistent_buffers_set
