"""What a comparison of runs says at a glance, in sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import hypot

import numpy as np

from lightning_traj import report
from lightning_traj.joint import Joint
from lightning_traj.labels import in_words
from lightning_traj.parting import Parting
from lightning_traj.runs import Run

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
        among = f" (among {in_words([run.name for run in group])})" if len(groups) > 1 else ""
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
            parts.append(spread if parts else f"{in_words([run.name for run in joint.runs])}: {spread}")
        yield from [f"{'; '.join(parts)}."] if parts else []
    said_of: dict[str, list[str]] = {}
    for run in runs:
        if suggestion := report.suggestion(run.trajectory):
            said_of.setdefault(suggestion, []).append(run.name)
    yield from (f"{in_words(names)}: {suggestion}" for suggestion, names in said_of.items())


def starts_sentence(joint: Joint) -> str:
    """Which runs start from the same parameters, in words."""
    names = [[run.name for run in some] for some in joint.runs_by_start()]
    together, alone = [some for some in names if len(some) > 1], [some[0] for some in names if len(some) == 1]
    if not together:
        return f"{in_words(alone)} are of one model, but start from different parameters"
    said = [f"{in_words(together[0])} start from the same parameters"]
    said += [f"{in_words(some)} from others" for some in together[1:]]
    said += [f"{in_words(alone)} {'each ' * (len(alone) > 1)}from others"] if alone else []
    return "; ".join(said)


def _spread(found: Sequence[Parting]) -> str:
    """How far apart directions are at the end, in words."""
    ends = {p: p.angles[-1] for p in found if len(p.angles) and not np.isnan(p.angles[-1])}
    if not ends:
        return ""
    near, far = min(ends, key=ends.__getitem__), max(ends, key=ends.__getitem__)
    if near is far:
        return f"at the end their directions from θ_0 differ by {near.at_the_end()}"
    return (
        f"at the end the directions from θ_0 of {in_words(near.names)} are closest ({near.at_the_end()}), those of "
        f"{in_words(far.names)} farthest apart ({far.at_the_end()})"
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
    """Which run has the least and which the most of a measure, as far as standard errors let them be told apart."""
    runs = [run for run in runs if run.summary[measure] == run.summary[measure]]
    if len(runs) < 2:
        return ""
    low, high = (_leading(runs, measure, pick) for pick in (min, max))
    if len(low) == len(high) == len(runs):
        return f"{in_words([_valued(run, measure) for run in runs])} are not told apart"
    return "; ".join(
        f"{some[0].name} {phrase} ({_value(some[0], measure)})"
        if len(some) == 1
        else f"which of {in_words([_valued(run, measure) for run in some])} {phrase} is not told apart"
        for some, phrase in ((low, least), (high, most))
    )


def _leading(runs: Sequence[Run], measure: str, pick: Callable[[Sequence[float]], float]) -> list[Run]:
    """The run at one end, and those that it leads by no more than twice the standard error of the difference."""
    values = [run.summary[measure] for run in runs]
    best = runs[values.index(pick(values))]
    return [best] + [
        run
        for run, value in zip(runs, values, strict=True)
        if run is not best
        and abs(value - best.summary[measure]) <= 2 * hypot(run.errors.get(measure, 0.0), best.errors.get(measure, 0.0))
    ]


def _value(run: Run, measure: str) -> str:
    return report.format_value(measure, run.summary[measure], run.errors)


def _valued(run: Run, measure: str) -> str:
    return f"{run.name} at {_value(run, measure)}"
