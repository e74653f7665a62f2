"""Sentences that sum up a comparison of runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import floor, hypot, log10

import numpy as np

from lightning_traj.compare.divergence import Parting
from lightning_traj.compare.joint import Array, Joint
from lightning_traj.compare.runs import Run
from lightning_traj.report import summary as report
from lightning_traj.text import join_names

# Measures, and what the runs with the smallest and the largest value do.
_ENDS = (
    ("mds", "turns most as seen from the origin", "turns least"),
    ("displacement", "ends nearest to its start", "ends farthest from it"),
    ("tortuosity", "takes the straightest way there", "takes the most winding one"),
)


def at_a_glance(runs: Sequence[Run], joints: Sequence[tuple[Joint, Sequence[Parting]]]) -> Iterator[str]:
    """Yield sentences on which runs lead in which measure, which start together, and how far apart they end.

    Args:
        runs: Runs to compare.
        joints: Groups of runs that can be compared snapshot by snapshot, and where each two of them part, as
            ``joint_partings`` returns them.
    """
    groups = _of_the_same(runs)
    for group in groups:
        among = f" (among {join_names([run.name for run in group])})" if len(groups) > 1 else ""
        for measure, least, most in _ENDS:
            if sentence := _ends(group, measure, least, most):
                yield f"{measure}{among}: {sentence}."
    if len(groups) > 1:
        yield "Runs whose snapshots are of different steps, or that count different blocks, are not ranked together."
    told: set[Run] = set()
    for joint, found in joints:
        parts = [] if told.issuperset(joint.runs) else [starts_sentence(joint)]
        told.update(joint.runs)
        if spread := _spread(found):
            parts.append(spread if parts else f"{join_names([run.name for run in joint.runs])}: {spread}")
        yield from [f"{'; '.join(parts)}."] if parts else []
    said_of: dict[str, list[str]] = {}
    for run in runs:
        if suggestion := report.suggestion(run.trajectory):
            said_of.setdefault(suggestion, []).append(run.name)
    yield from (f"{join_names(names)}: {suggestion}" for suggestion, names in said_of.items())


def starts_sentence(joint: Joint) -> str:
    """Return a sentence on which runs start from the same parameters, and how far apart the others start."""
    names = [[run.name for run in some] for some in joint.runs_by_start()]
    together, alone = [some for some in names if len(some) > 1], [some[0] for some in names if len(some) == 1]
    if not together:
        return f"{join_names(alone)} are of one model, but start from different parameters, {start_distances(joint)}"
    said = [f"{join_names(together[0])} start from the same parameters"]
    said += [f"{join_names(some)} from others" for some in together[1:]]
    said += [f"{join_names(alone)} {'each ' * (len(alone) > 1)}from others"] if alone else []
    if alone or len(together) > 1:
        said.append(f"the starts are {start_distances(joint)}")
    return "; ".join(said)


def start_distances(joint: Joint) -> str:
    """Return the distances between different starts as text, also relative to the displacements of the runs."""
    first, second = np.nonzero(np.triu(joint.start_distances))
    distances = joint.start_distances[first, second]
    lengths = np.array([run.summary["displacement"] for run in joint.runs])
    shorter = np.minimum(lengths[first], lengths[second])
    apart = f"{_span(distances)} apart"
    if not (shorter > 0).all():  # a single snapshot, or a run that stood still
        return apart
    return f"{apart}, {_span(distances / shorter)} times the displacements"


def _span(values: Array) -> str:
    """Return the smallest and the largest of some values as text, with two digits."""
    least, most = (f"{value:.2g}" for value in (values.min(), values.max()))
    return least if least == most else f"{least} to {most}"


def _spread(found: Sequence[Parting]) -> str:
    """Return a phrase on how far apart the directions are at the end; empty if there are none."""
    ends = {p: p.angles[-1] for p in found if len(p.angles) and not np.isnan(p.angles[-1])}
    if not ends:
        return ""
    near, far = min(ends, key=ends.__getitem__), max(ends, key=ends.__getitem__)
    if near is far:
        return f"at the end their directions from θ_0 differ by {near.at_the_end()}"
    return (
        f"at the end the directions from θ_0 of {join_names(near.names)} are closest ({near.at_the_end()}), those of "
        f"{join_names(far.names)} farthest apart ({far.at_the_end()})"
    )


def _of_the_same(runs: Sequence[Run]) -> list[list[Run]]:
    """Group runs with snapshots at the same steps and the same counted blocks; only their measures can be ranked."""
    groups: dict[tuple[object, ...], list[Run]] = {}
    for run in runs:
        blocks = [run.trajectory.blocks[i] for i in run.trajectory.select()]
        counted = frozenset((run.known_as(block.name), block.numel) for block in blocks)
        groups.setdefault((tuple(run.trajectory.steps.tolist()), counted), []).append(run)
    return list(groups.values())


def _ends(runs: Sequence[Run], measure: str, least: str, most: str) -> str:
    """Return a phrase on which run has the smallest and which the largest value, as far as errors permit."""
    runs = [run for run in runs if run.summary[measure] == run.summary[measure]]
    if len(runs) < 2:
        return ""
    low, high = (_leading(runs, measure, pick) for pick in (min, max))
    same = "" if any(run.errors.get(measure) for run in runs) else ", the same within rounding,"
    if len(low) == len(high) == len(runs):
        return f"{join_names([_valued(run, measure) for run in runs])}{same} are not told apart"
    return "; ".join(
        f"{some[0].name} {phrase} ({_value(some[0], measure)})"
        if len(some) == 1
        else f"which of {join_names([_valued(run, measure) for run in some])}{same} {phrase} is not told apart"
        for some, phrase in ((low, least), (high, most))
    )


def _leading(runs: Sequence[Run], measure: str, pick: Callable[[Sequence[float]], float]) -> list[Run]:
    """Return the run at one end, and those that it leads by no more than ``_resolution``."""
    values = [run.summary[measure] for run in runs]
    best = runs[values.index(pick(values))]
    return [best] + [
        run
        for run, value in zip(runs, values, strict=True)
        if run is not best and abs(value - best.summary[measure]) <= _resolution(run, best, measure)
    ]


def _resolution(one: Run, other: Run, measure: str) -> float:
    """Return the smallest difference at which the values of two runs count as different.

    It is the larger of twice the error of the difference and two units of the last digit that is shown. The error
    includes that of rounding the parameters, which exact values have too.
    """
    errors = [some.get(measure, 0.0) for run in (one, other) for some in (run.errors, run.rounding_errors)]
    largest = max(abs(run.summary[measure]) for run in (one, other))
    unit = 10.0 ** (floor(log10(largest)) + 1 - report.DIGITS) if largest > 0 else 0.0
    return max(2 * hypot(*errors), 2 * unit)


def _value(run: Run, measure: str) -> str:
    return report.format_value(measure, run.summary[measure], run.errors)


def _valued(run: Run, measure: str) -> str:
    return f"{run.name} at {_value(run, measure)}"
