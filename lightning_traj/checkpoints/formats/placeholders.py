"""Stand-ins for the objects in a pickle that are not rebuilt, whose plain contents can be seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Name:
    """Name of something that a pickle would import, as a rule a class or a function."""

    __slots__ = ("kind",)

    def __init__(self, kind: str) -> None:
        self.kind = kind


class Placeholder:
    """Inert stand-in for an object that is not rebuilt.

    Attributes:
        kind: Name of the class or function that would have been called: ``"argparse.Namespace"``.
        arguments: Arguments of that call.
        state: State that the object would have been given afterwards, most often its attributes.
        items: Items that would have been appended to it, for a kind of list or set.
        entries: Entries that would have been set in it, for a kind of dict.
    """

    __slots__ = ("arguments", "entries", "items", "kind", "state")

    def __init__(self, kind: str, arguments: tuple[Any, ...] = ()) -> None:
        self.kind, self.arguments = kind, arguments
        self.state: Any = ()
        self.items: list[Any] = []
        self.entries: dict[Any, Any] = {}

    @property
    def attributes(self) -> Mapping[Any, Any]:
        """Attributes in the state; those of ``__slots__`` are the second of a pair."""
        parts = self.state if isinstance(self.state, tuple) and len(self.state) == 2 else (self.state,)
        found: dict[Any, Any] = {}
        for part in parts:
            found |= part if isinstance(part, dict) else {}
        return found


class Buildable:
    """Value that is made empty and filled by a later operation, BUILD."""

    def build(self, state: Any) -> None:
        """Fill the value."""
        raise NotImplementedError


def is_transparent(placeholder: Placeholder) -> bool:
    """Return whether ``content`` looks into an object."""
    return (
        placeholder.kind.endswith("Namespace") or placeholder.kind.startswith("omegaconf.") or bool(placeholder.entries)
    )


def content(value: Any) -> Any:
    """Return the dict or value in a namespace, a node of omegaconf or a kind of dict; other values as they are."""
    if not isinstance(value, Placeholder) or not is_transparent(value):
        return value
    attributes = value.attributes
    return value.entries or attributes.get("_val", attributes.get("_content", attributes))
