"""What stands for the objects in a pickle that are not rebuilt, and what can be seen in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Name:
    """The name of something that a pickle would import: a class or a function, as a rule."""

    __slots__ = ("kind",)

    def __init__(self, kind: str) -> None:
        self.kind = kind


class Placeholder:
    """Stands for an object that is not rebuilt, and does nothing.

    Attributes:
        kind: What would have been called to make it, as a rule its class: ``"argparse.Namespace"``.
        arguments: What that would have been called with.
        state: What the object would have been given afterwards: most often its attributes.
        items: What would have been appended to it, if it is a kind of list or set.
        entries: What would have been set in it, if it is a kind of dict.
    """

    __slots__ = ("arguments", "entries", "items", "kind", "state")

    def __init__(self, kind: str, arguments: tuple[Any, ...] = ()) -> None:
        self.kind, self.arguments = kind, arguments
        self.state: Any = ()
        self.items: list[Any] = []
        self.entries: dict[Any, Any] = {}

    @property
    def attributes(self) -> Mapping[Any, Any]:
        """Its attributes, as far as its state says; those of ``__slots__`` come second in a pair."""
        parts = self.state if isinstance(self.state, tuple) and len(self.state) == 2 else (self.state,)
        found: dict[Any, Any] = {}
        for part in parts:
            found |= part if isinstance(part, dict) else {}
        return found


class Buildable:
    """A value that is made first, and told by a later operation (BUILD) what it is."""

    def build(self, state: Any) -> None:
        """Take in the state."""
        raise NotImplementedError


def is_transparent(placeholder: Placeholder) -> bool:
    """Whether ``content`` shows what is in an object."""
    return (
        placeholder.kind.endswith("Namespace") or placeholder.kind.startswith("omegaconf.") or bool(placeholder.entries)
    )


def content(value: Any) -> Any:
    """The dict or the plain value in a namespace, a node of omegaconf, or a kind of dict; any other value as it is."""
    if not isinstance(value, Placeholder) or not is_transparent(value):
        return value
    attributes = value.attributes
    return value.entries or attributes.get("_val", attributes.get("_content", attributes))
