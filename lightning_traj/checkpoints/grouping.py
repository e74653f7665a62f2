"""Which checkpoints belong together: files are grouped into series by the names and shapes of their tensors."""

from __future__ import annotations

import re
from collections import Counter as Tally
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lightning_traj.checkpoints.findings import label
from lightning_traj.checkpoints.formats.checkpoint import Checkpoint, Weights
from lightning_traj.checkpoints.formats.opening import folder_and_name, open_checkpoint
from lightning_traj.tensors import has_entries
from lightning_traj.text import join_names
from lightning_traj.trajectory import Finding

SHARED = 2 / 3  # share of the tensors of the larger of two checkpoints that the other one needs for the same series
MATCHED = 0.5  # share of a checkpoint's parameters that others have to hold in the same shape
MOST = 4  # names in a sentence
LONGEST = 100  # letters of the name of a series, which is the name of a folder, too
# Prefixes that wrappers add to the names of parameters: DDP, torch.compile, LightningModules, Fabric, FSDP1.
WRAPPERS = re.compile(r"^(?:(?:module|_orig_mod|model|net|network|_forward_module|_fsdp_wrapped_module)\.)+")
Signature = frozenset[tuple[str, tuple[int, ...]]]


class SeveralSeries(ValueError):
    """Error for files of several series; the message lists them, and says how to pick one.

    Attributes:
        names: Names of the series, any of which ``series`` takes.
    """

    names: tuple[str, ...] = ()


def by_tensors(checkpoints: Sequence[Checkpoint]) -> list[list[int]]:
    """Group checkpoints by the names and shapes of their tensors, wrappers' prefixes aside.

    Two are of one series if two thirds of the tensors of the larger are the same in both. Tensors that only grew, as an
    embedding does with its vocabulary, count as the same if all of them grew from one size to another.

    Returns:
        Indices of the checkpoints of each series.
    """
    classes: dict[Signature, list[int]] = {}
    for i, checkpoint in enumerate(checkpoints):
        shapes = {canonical: checkpoint.shapes[name] for name, canonical in canonical_names(checkpoint).items()}
        signature = frozenset((name, tuple(like.shape)) for name, like in shapes.items() if has_entries(like))
        classes.setdefault(signature, []).append(i)
    groups: list[list[Signature]] = []
    for signature in classes:
        alike = [group for group in groups if any(_is_alike(signature, other) for other in group)]
        groups = [group for group in groups if group not in alike]
        groups.append([*(other for group in alike for other in group), signature])
    return sorted(sorted(i for signature in group for i in classes[signature]) for group in groups)


def canonical_names(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the names of tensors without wrappers' prefixes; as they are where two would be the same."""
    found = {name: WRAPPERS.sub("", name) for name in checkpoint.shapes}
    return found if len(set(found.values())) == len(found) else {name: name for name in found}


def unify_names(checkpoints: Sequence[Checkpoint]) -> list[Finding]:
    """Rename tensors that only some checkpoints of a series have under a wrapper's prefix, as most have them.

    Returns:
        Findings about the renamed tensors.
    """
    compiled = [label(checkpoint) for checkpoint in checkpoints if checkpoint.compiled]
    canonical = [canonical_names(checkpoint) for checkpoint in checkpoints]
    used: dict[str, Tally[str]] = {}
    for names in canonical:
        for name, short in names.items():
            used.setdefault(short, Tally())[name] += 1
    wanted = {  # the same in every process: of equals the shortest, and the first in the alphabet
        short: min(tally, key=lambda name: (-tally[name], len(name), name)) for short, tally in used.items()
    }
    changed: dict[tuple[str, str], list[str]] = {}
    for checkpoint, names in zip(checkpoints, canonical, strict=True):
        renamed = {name: wanted[short] for name, short in names.items() if wanted[short] != name}
        if not renamed or len({wanted[short] for short in names.values()}) < len(names):
            continue
        checkpoint.rename(renamed)
        first, new = next(iter(renamed.items()))
        short = names[first]
        changed.setdefault((first.removesuffix(short), new.removesuffix(short)), []).append(label(checkpoint))
    notes = [f"'_orig_mod.' in names of parameters in {join_names(compiled, MOST)} is left aside."] if compiled else []
    texts = [*(notes if len(compiled) < len(checkpoints) else []), *_prefixes(changed)]
    return [Finding("names", text) for text in texts]


def _prefixes(changed: Mapping[tuple[str, str], Sequence[str]]) -> list[str]:
    return [
        f"names of parameters begin with {old or new!r} {'in' if old else 'in all but'} {join_names(which, MOST)}"
        f"{f', and with {new!r} in others' if old and new else ''}: they are taken for the same."
        for (old, new), which in changed.items()
    ]


def reopen_series(paths: Sequence[Path], key: str | None, weights: Weights) -> list[Checkpoint]:
    """Open the checkpoints of a series again, in another process, with the same names for their tensors.

    Args:
        paths: Paths of all of them, in order.
        key: Where in a file the state dict is nested, as for ``open_checkpoint``.
        weights: Raw or averaged weights, as for ``open_checkpoint``.
    """
    checkpoints = [open_checkpoint(path, key, weights) for path in paths]
    unify_names(checkpoints)
    return checkpoints


def check_matched(checkpoints: Sequence[Checkpoint], names: Iterable[str]) -> None:
    """Check that at least half of the parameters of each checkpoint are in another one with the same shape.

    Args:
        checkpoints: Checkpoints of one series.
        names: Names of all parameters, whether they are matched or not.

    Raises:
        ValueError: A checkpoint has fewer.
    """
    names = list(names)
    stored = [{name: c.shapes[name] for name in names if name in c.shapes} for c in checkpoints]
    seen = Tally((name, tuple(like.shape)) for shapes in stored for name, like in shapes.items())
    kinds = Tally(name for name, _ in seen)
    for checkpoint, shapes in zip(checkpoints, stored, strict=True):
        whole = sum(like.numel() for like in shapes.values())
        matched = sum(
            like.numel() for name, like in shapes.items() if kinds[name] == 1 and seen[name, tuple(like.shape)] > 1
        )
        if matched < MATCHED * whole:
            raise ValueError(
                f"only {matched:,} of the {whole:,} parameters in {label(checkpoint)} could be matched with those of "
                "other files, by name and shape: pass files of one model, or partial=True (--partial) to analyse their "
                "common parameters."
            )


def several_series(
    series: Mapping[str, Sequence[Checkpoint]], sizes: Sequence[int], wanted: str | None = None
) -> SeveralSeries:
    """Return the error that lists several series, and says how to pick one.

    Args:
        series: Checkpoints by the name of their series.
        sizes: Number of parameters of each series.
        wanted: Name that was asked for; None if there was none.
    """
    lines = []
    for (name, checkpoints), size in zip(series.items(), sizes, strict=True):
        files = f"{len(checkpoints)} file{'s' if len(checkpoints) > 1 else ''}"
        ends = " … ".join(dict.fromkeys((label(checkpoints[0]), label(checkpoints[-1]))))
        lines.append(f"  {name}: {files}, {size:,} parameters ({ends})")
    first = next(iter(series))
    why = "the files are of several series" if wanted is None else f"series={wanted!r}: there is no such series"
    remedy = f'pick one with series="{first}" (--series {first}), or have a report of each with --series all.'
    if all(len(checkpoints) == 1 for checkpoints in series.values()):
        why = "no two of the files are of one series, since their tensors differ in names or shapes"
        remedy = "pass checkpoints of one model, or partial=True (--partial) to analyse their common parameters."
    error = SeveralSeries("\n".join([f"{why}:", *lines, remedy]))
    error.names = tuple(series)
    return error


def series_by_name(groups: Sequence[Sequence[Checkpoint]], stems: Sequence[str]) -> dict[str, list[Checkpoint]]:
    """Give each group a name of its own; where file names do not tell groups apart, with the folder or a number in it.

    Args:
        groups: Checkpoints of each series.
        stems: Common part of the names of the files in each group.
    """
    folders = [folder_and_name(group[0].path)[0].absolute().name for group in groups]
    stems = [stem[:LONGEST] for stem in stems]
    count = Tally(stems)
    names = [
        f"{folder}_{stem}" if count[stem] > 1 and len(set(folders)) > 1 else stem
        for folder, stem in zip(folders, stems, strict=True)
    ]
    count = Tally(names)
    seen: Tally[str] = Tally()
    found = {}
    for name, group in zip(names, groups, strict=True):
        seen[name] += 1
        found[f"{name}-{seen[name]}" if count[name] > 1 else name] = list(group)
    return found


def _is_alike(one: Signature, other: Signature) -> bool:
    sizes, more = dict(one), dict(other)
    common = sizes.keys() & more.keys()
    changed = [name for name in common if sizes[name] != more[name]]
    grown = {(sizes[name][:1], more[name][:1]) for name in changed}
    only_grew = len(grown) == 1 and all(sizes[name][1:] == more[name][1:] and sizes[name] for name in changed)
    same = len(common) if only_grew else len(common) - len(changed)
    return same >= SHARED * max(len(sizes), len(more)) > 0
