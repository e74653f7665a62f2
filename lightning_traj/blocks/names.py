"""Names of parameters, and the modules that they lie in."""

from __future__ import annotations

import itertools
from collections.abc import Sequence


def clean_name(name: str) -> str:
    """Return a parameter's name without the parts that ``torch.compile`` adds, so that a model has one set of names."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod") if "_orig_mod" in name else name


def enclosing(layer: str) -> list[str]:
    """Return a layer and the modules that contain it, outermost first: h, h.3, h.3.attn."""
    parts = layer.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def root_of(names: Sequence[str]) -> str:
    """Return the modules that all names begin with, such as ``"model.net."``; empty if they share none."""
    modules = [name.split(".")[:-1] for name in names]
    shared = itertools.takewhile(lambda some: len(set(some)) == 1, zip(*modules, strict=False))
    return "".join(f"{some[0]}." for some in shared)
