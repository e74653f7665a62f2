"""Hyperparameters as Lightning leaves them beside a run and in its checkpoints, and which of them tell runs apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from lightning_traj.labels import cut

_LONGEST = 24  # letters of the hyperparameters that a run's label shows


def hyperparameters_beside(file: Path) -> dict[str, Any]:
    """What Lightning has logged as ``hparams.yaml`` beside a file or in the folder above, flat; empty without one.

    Tags of Python objects in it are read as plain lists and texts: nothing is built or run.

    Raises:
        ValueError: there is one, and it cannot be read.
    """
    import yaml

    found = next(
        (path for path in (file.parent / "hparams.yaml", file.parent.parent / "hparams.yaml") if path.is_file()), None
    )
    if found is None:
        return {}
    loader: Any = type("PlainLoader", (yaml.SafeLoader,), {})
    loader.add_multi_constructor("tag:yaml.org,2002:python/", _plain)
    try:
        values = yaml.load(found.read_text(encoding="utf-8"), Loader=loader)  # a SafeLoader
    except (yaml.YAMLError, UnicodeDecodeError, OSError, RecursionError, ValueError) as error:
        raise ValueError(f"{found} cannot be read as hyperparameters: {error}; mend or remove it.") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{found} holds no hyperparameters but {type(values).__name__}; mend or remove it.")
    return _named(values)


def plain_hyperparameters(*said: Any) -> dict[str, int | float | bool | str]:
    """Numbers, truth values and texts of what was logged, flat as above; the last of several mappings is believed."""
    values = {
        name: value for mapping in said if isinstance(mapping, Mapping) for name, value in _named(mapping).items()
    }
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, (int, str)) or (isinstance(value, float) and isfinite(value))
    }


def _named(values: Mapping[Any, Any]) -> dict[str, Any]:
    flat = dict(_flat(values))
    return {name: flat[name] for name in flat if not name.rpartition("/")[2].startswith("_")}  # LightningCLI's own


def split_hyperparameters(all_of: Sequence[Mapping[str, Any]]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Hyperparameters that differ, each as the runs have it (empty where one doesn't), and those that all share.

    Runs of which none are known have no say in it.
    """
    names = list(dict.fromkeys(name for some in all_of for name in some))
    values = {name: [str(some.get(name, "")) for some in all_of] for name in names}
    known = [i for i, some in enumerate(all_of) if some]
    differing = {name: its for name, its in values.items() if len({its[i] for i in known}) > 1}
    return differing, {name: its[known[0]] for name, its in values.items() if name not in differing}


def labelled(names: Sequence[str], all_of: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of runs with the first of the hyperparameters that differ, such as ``"version_1 (lr=0.02)"``.

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


def _flat(values: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value
