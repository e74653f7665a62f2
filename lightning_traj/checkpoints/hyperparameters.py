"""Hyperparameters that Lightning leaves beside a run and in its checkpoints, and those that tell runs apart."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import Any

from lightning_traj.checkpoints.formats.placeholders import content
from lightning_traj.files import local_copy
from lightning_traj.text import cut

_MOST, _DEEPEST = 10_000, 16  # hyperparameters; a mapping may hold itself, or another one many times over
_LARGEST, _MERGED = 2**24, 2**18  # bytes of a file, and entries of all its mappings
_LONGEST_NAME = 200
_BITS = 1024  # of an integer; Python writes none of many thousand digits
_LONGEST = 24  # letters of the hyperparameters that a run's label shows


def hyperparameters_beside(file: Path | str) -> dict[str, Any]:
    """Return the ``hparams.yaml`` of Lightning beside a file or in the folder above, flat; empty without one.

    Tags of Python objects in it are read as plain lists and texts; nothing is built or run.

    Raises:
        ValueError: There is one, and it cannot be read.
    """
    folder = os.path.dirname(file)
    for where in (folder, os.path.dirname(folder)):
        place = os.path.join(where, "hparams.yaml")
        with suppress(FileNotFoundError), local_copy(place) as copy:
            return _read(place, copy)
    return {}


def _read(place: str, copy: Path) -> dict[str, Any]:
    import yaml

    class PlainLoader(yaml.SafeLoader):  # type: ignore[misc]
        merged = 0

        def flatten_mapping(self, node: Any) -> None:
            super().flatten_mapping(node)
            self.merged += len(node.value)
            if self.merged > _MERGED:  # merges of merges grow exponentially
                raise yaml.YAMLError(f"its mappings have more than {_MERGED:,} entries with those that are merged in")

    loader: Any = PlainLoader
    loader.add_multi_constructor("tag:yaml.org,2002:python/", _plain)
    if copy.stat().st_size > _LARGEST:
        raise ValueError(f"{place} is larger than {_LARGEST:,} bytes: mend or remove it.")
    try:
        values = yaml.load(copy.read_text(encoding="utf-8"), Loader=loader)  # a SafeLoader
    except (yaml.YAMLError, UnicodeDecodeError, OSError, RecursionError, ValueError) as error:
        raise ValueError(f"{place} cannot be read as hyperparameters: {error}; mend or remove it.") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{place} holds no hyperparameters but {type(values).__name__}; mend or remove it.")
    return _named(values)


def plain_hyperparameters(*said: Any) -> dict[str, int | float | bool | str]:
    """Return the numbers, truth values and texts in mappings, flat; of several, the last is believed.

    Namespaces and nodes of omegaconf are looked into, as their placeholders have them.
    """
    mappings = (it for it in map(content, said) if isinstance(it, Mapping))
    values = {name: value for mapping in mappings for name, value in _named(mapping).items()}
    return {
        name: value
        for name, value in values.items()
        if (isinstance(value, int) and value.bit_length() < _BITS)
        or isinstance(value, str)
        or (isinstance(value, float) and isfinite(value))
    }


def _named(values: Mapping[Any, Any]) -> dict[str, Any]:
    flat = dict(islice(_flat(values), _MOST))
    return {name: flat[name] for name in flat if not name.rpartition("/")[2].startswith("_")}  # LightningCLI's own


def split_hyperparameters(all_of: Sequence[Mapping[str, Any]]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Return hyperparameters that differ, with the value of each run (empty if it has none), and those that all share.

    Runs without known hyperparameters are not compared.
    """
    names = list(dict.fromkeys(name for some in all_of for name in some))
    values = {name: [str(some.get(name, "")) for some in all_of] for name in names}
    known = [i for i, some in enumerate(all_of) if some]
    differing = {name: its for name, its in values.items() if len({its[i] for i in known}) > 1}
    return differing, {name: its[known[0]] for name, its in values.items() if name not in differing}


def labelled(names: Sequence[str], all_of: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return names of runs with the first of the hyperparameters that differ, such as ``"version_1 (lr=0.02)"``.

    Names of several words are shown as their initials: ``learning_rate`` is ``lr``.
    """
    differing, _ = split_hyperparameters(all_of)
    last = [name.rpartition("/")[2] for name in differing]
    initials = ["".join(word[:1] for word in name.split("_")) if name.count("_") else name for name in last]
    said = [""] * len(names)
    for name, short, values in zip(differing, initials, differing.values(), strict=True):
        called = short if initials.count(short) == 1 else name
        more = [
            ", ".join(filter(None, (before, f"{called}={cut(value, 12)}" if value else "")))
            for before, value in zip(said, values, strict=True)
        ]
        if max(map(len, more)) <= _LONGEST:
            said = more
    return [f"{name} ({its})" if its else name for name, its in zip(names, said, strict=True)]


def _plain(loader: Any, suffix: str, node: Any) -> Any:
    kinds = {"sequence": loader.construct_sequence, "mapping": loader.construct_mapping}
    if node.id in kinds:
        return kinds[node.id](node, deep=True)
    return loader.construct_scalar(node) or suffix.rpartition(":")[2]


def _flat(values: Mapping[Any, Any], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    for name, it in values.items():
        value = content(it)
        if not isinstance(name, (str, int, float)) or len(str(name)) > _LONGEST_NAME:
            yield f"{prefix}_", None  # counted, and left out
        elif isinstance(value, Mapping) and value and depth < _DEEPEST:
            yield from _flat(value, f"{prefix}{name}/", depth + 1)
        else:
            yield f"{prefix}{name}", value
