"""What a comparison of runs says at a glance, in sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import floor, hypot, log10

import numpy as np

from lightning_traj.compare.divergence import Parting
from lightning_traj.compare.joint import Array, Joint
from lightning_traj.compare.runs import Run
from lightning_traj.report import summary as report
from lightning_traj.text import join_names

# Measures, and what a run does that has the least and the most of one.
_ENDS = (
    ("mds", "turns most as seen from the origin", "turns least"),
    ("displacement", "ends nearest to its start", "ends farthest from it"),
    ("tortuosity", "takes the straightest way there", "takes the most winding one"),
)


def at_a_glance(runs: Sequence[Run], joints: Sequence[tuple[Joint, Sequence[Parting]]]) -> Iterator[str]:
    """Which runs lead in which measure, which start together and how far apart they end, in sentences.

    Args:
        runs: What is compared.
        joints: Of those that can be compared snapshot by snapshot, with where they part (``parting.joint_partings``).
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
    """Which runs start from the same parameters, and how far apart the others start, in words."""
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
    """How far apart different starts are, in themselves and beside the displacements of the runs, in words."""
    first, second = np.nonzero(np.triu(joint.start_distances))
    distances = joint.start_distances[first, second]
    lengths = np.array([run.summary["displacement"] for run in joint.runs])
    shorter = np.minimum(lengths[first], lengths[second])
    apart = f"{_span(distances)} apart"
    if not (shorter > 0).all():  # of a single snapshot, or of one that stood still
        return apart
    return f"{apart}, {_span(distances / shorter)} times the displacements"


def _span(values: Array) -> str:
    """The least and the most of some values, in two digits."""
    least, most = (f"{value:.2g}" for value in (values.min(), values.max()))
    return least if least == most else f"{least} to {most}"


def _spread(found: Sequence[Parting]) -> str:
    """How far apart directions are at the end, in words."""
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
    """Runs whose snapshots are of the same steps, and that count the same blocks: only their measures can be ranked."""
    groups: dict[tuple[object, ...], list[Run]] = {}
    for run in runs:
        blocks = [run.trajectory.blocks[i] for i in run.trajectory.select()]
        counted = frozenset((run.known_as(block.name), block.numel) for block in blocks)
        groups.setdefault((tuple(run.trajectory.steps.tolist()), counted), []).append(run)
    return list(groups.values())


def _ends(runs: Sequence[Run], measure: str, least: str, most: str) -> str:
    """Which run has the least and which the most of a measure, as far as errors let them be told apart."""
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
    """The run at one end, and those that it leads by no more than ``_resolution``."""
    values = [run.summary[measure] for run in runs]
    best = runs[values.index(pick(values))]
    return [best] + [
        run
        for run, value in zip(runs, values, strict=True)
        if run is not best and abs(value - best.summary[measure]) <= _resolution(run, best, measure)
    ]


def _resolution(one: Run, other: Run, measure: str) -> float:
    """What two values have to differ by to be told apart.

    That is twice the error of their difference, of which exact values have a part, too: what rounding of the parameters
    does to them. And it is two units of the last digit that is shown: nobody could see a smaller lead.
    """
    errors = [some.get(measure, 0.0) for run in (one, other) for some in (run.errors, run.rounding_errors)]
    largest = max(abs(run.summary[measure]) for run in (one, other))
    unit = 10.0 ** (floor(log10(largest)) + 1 - report.DIGITS) if largest > 0 else 0.0
    return max(2 * hypot(*errors), 2 * unit)


def _value(run: Run, measure: str) -> str:
    return report.format_value(measure, run.summary[measure], run.errors)


def _valued(run: Run, measure: str) -> str:
    return f"{run.name} at {_value(run, measure)}"
