"""Comparison of several runs as a single HTML file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from lightning_traj.compare.divergence import PARTED, Parting
from lightning_traj.compare.joint import Joint
from lightning_traj.compare.runs import Run, left_out
from lightning_traj.compare.table import comparison_rows, shared_sentence
from lightning_traj.compare.words import at_a_glance, starts_sentence
from lightning_traj.measures import MEASURES, SATURATED
from lightning_traj.report import page
from lightning_traj.report import summary as report
from lightning_traj.text import join_names


def comparison_report(
    runs: Sequence[Run], joints: Sequence[tuple[Joint, Sequence[Parting]]], pictures: Mapping[str, bytes]
) -> str:
    """Return an HTML page that compares runs and needs no other files.

    Args:
        runs: Runs to compare.
        joints: Groups of runs that can be compared snapshot by snapshot, and where each two of them part, as
            ``joint_partings`` returns them.
        pictures: PNG files by the names of ``comparison_figures``. Those that are missing are left out of the page.

    Returns:
        Source of the page, to be written as UTF-8. Texts are escaped, and browsers load and run nothing.
    """
    columns, rows = comparison_rows(runs)
    shared = shared_sentence(runs)
    parts = [
        page.header(f"Comparison of {len(runs)} runs", join_names([run.name for run in runs])),
        page.section("At a glance", page.bullets(at_a_glance(runs, joints))),
        page.section(
            "The runs",
            page.table("Runs", columns, rows),
            *([page.paragraph(shared)] if shared else []),
            *_what_measures_mean(runs),
            page.folded("Files", page.facts((run.name, run.path) for run in runs)),
        ),
        page.section("Over time", *_over_time(pictures)),
        page.section(
            "Maps, on one scale of colours",
            page.paragraph(
                "Angles between all pairs of a run's snapshots: bright where they point the same way. A block on the "
                "diagonal is a stretch without much turning; an edge is an event, such as a drop of the learning rate."
            ),
            page.grid(_shown(pictures, ["maps", "relative_maps"], _MAPS), across=2 if len(runs) in (2, 4) else 1),
        ),
    ]
    if "layers_by_runs" in pictures:
        parts.append(page.section("By layer", *_shown(pictures, ["layers_by_runs"], _LAYERS)))
    for number, (joint, found) in enumerate(joints, start=1):
        nth = f"_{number}" if number > 1 else ""
        parts += _joint_sections(joint, found, pictures, nth, whole=len(joint.runs) == len(runs))
    sources = {run.name: source for run in runs if (source := run.trajectory.provenance.source)}
    if wrong := {name: source.findings for name, source in sources.items() if source.findings}:
        parts.append(
            page.section(
                "What is wrong with the runs",
                page.bullets(f"{name}: {finding}" for name, its in wrong.items() for finding in its),
            )
        )
    if apart := left_out(runs):
        parts.append(
            page.section(
                "Not compared snapshot by snapshot",
                page.paragraph("Everything above is of each run on its own. Between these runs there are no angles:"),
                page.bullets(apart),
            )
        )
    return page.page(f"Comparison of {len(runs)} runs", *parts, page.footer())


# Sections ---------------------------------------------------------------------------------------------------

_MAPS = {
    "maps": "Trajectory maps of all runs, seen from the origin, on one scale of colours.",
    "relative_maps": "Maps of all runs relative to their θ_0, on one scale of colours.",
}
_LAYERS = {"layers_by_runs": "Heatmaps of MDS and relative MDS, layers by runs, at the newest snapshot."}
_JOINT = {
    "joint_map": "Joint map: angles between all snapshots of all runs, seen from the origin.",
    "joint_relative_map": "Joint map of angles between all displacements, each from the θ_0 of its own run.",
    "joint_path": "The paths of all runs on the first two principal components of all their snapshots.",
}
_PARTINGS = {
    "partings": "Angles between the displacements of each two runs at the same steps. A marker stands where they part; "
    "dashed: the angle from which they count as parted; bands: two standard errors to each side."
}


def _shown(
    pictures: Mapping[str, bytes], names: Sequence[str], alts: Mapping[str, str], nth: str = ""
) -> list[page.Markup]:
    return [page.picture(pictures[name + nth], alts[name], alts[name]) for name in names if name + nth in pictures]


def _what_measures_mean(runs: Sequence[Run]) -> Iterator[page.Markup]:
    _, rows = comparison_rows(runs)
    yield page.folded(
        "What the measures mean", page.facts((name, MEASURES[name].meaning) for name, *_ in rows if name in MEASURES)
    )
    if any(run.errors for run in runs):
        yield page.paragraph("After ± is the standard error of values that are estimated from sketches.")


def _over_time(pictures: Mapping[str, bytes]) -> Iterator[page.Markup]:
    names = [name.removeprefix("series_") for name in pictures if name.startswith("series_")]
    if not names:
        yield page.paragraph("No run has a second snapshot: there is nothing to draw over time.")
        return
    yield page.paragraph(
        "Each measure as it stood at each snapshot. A marker is where a run's direction saturated: from there on its "
        f"displacement from θ_0 keeps within a cosine of {SATURATED} of the final one."
    )
    yield page.grid(
        page.picture(pictures[f"series_{name}"], f"{name} of all runs over time: {MEASURES[name].meaning}.")
        for name in names
    )


def _joint_sections(
    joint: Joint, found: Sequence[Parting], pictures: Mapping[str, bytes], nth: str, whole: bool
) -> Iterator[page.Markup]:
    of = "" if whole else f": {join_names([run.name for run in joint.runs])}"
    start = f"{starts_sentence(joint)}: there is no θ_0 common to all, to look from and to part from."
    if joint.same_start:
        start = "They start from the same parameters θ_0, so that displacements have a common origin."
    elif joint.same_origin:
        start = (
            f"{starts_sentence(joint)}. That is little beside their displacements, so each run is seen from its own "
            "θ_0 in the relative map and where directions from θ_0 are compared."
        )
    yield page.section(
        f"All snapshots together{of}",
        page.paragraph(
            "These runs are of one model, and were sketched with the same random numbers. Their saved rows therefore "
            f"give the angle between any two snapshots of any two runs. {start} Counted: {joint.counted}."
        ),
        page.grid(_shown(pictures, [*_JOINT], _JOINT, nth), across=2),
    )
    if not found:
        return
    rows = [
        (
            join_names(parting.names),
            _same_until(parting),
            _parted(parting),
            parting.at_the_end(),
            f"{parting.steps[-1]:,}" if len(parting.steps) else "none in common",
        )
        for parting in found
    ]
    yield page.section(
        f"Where two runs part{of}",
        page.paragraph(
            "They part at the first step at which both have a snapshot and the angle between their displacements from "
            f"θ_0 exceeds {PARTED:.1f}° (a cosine below {report.CLOSE}) by more than twice its standard error. They "
            "are the same up to a step if all that was saved of them up to there is, to the precision in which it was "
            "saved."
        ),
        page.table("Where runs part", ["runs", "the same up to step", "part at step", "angle", "at step"], rows),
        *_shown(pictures, [*_PARTINGS], _PARTINGS, nth),
    )


def _same_until(parting: Parting) -> str:
    if not len(parting.steps):
        return ""
    return "nowhere: starts differ" if parting.same_until is None else f"{parting.same_until:,}"


def _parted(parting: Parting) -> str:
    if parting.parted is None:
        return "never" if len(parting.steps) else ""
    return f"{parting.parted:,}" + " (first in common)" * bool(parting.parted == parting.steps[0])
