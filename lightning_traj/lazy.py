"""Public interfaces of sub-packages that load a module only when one of its names is first used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any


def lazy_exports(
    package: str, homes: Mapping[str, Iterable[str]], modules: Iterable[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` of a package.

    Args:
        package: The package's ``__name__``.
        homes: The names that it exports, by the module of the package that defines them.
        modules: Modules of the package that it exports as a whole.
    """
    exported = {name: f"{package}.{module}" for module, names in homes.items() for name in names}
    whole = {module: f"{package}.{module}" for module in modules}

    def find(name: str) -> Any:
        if name in whole:
            return import_module(whole[name])
        if name not in exported:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(exported[name]), name)

    return find, lambda: sorted([*exported, *whole])
