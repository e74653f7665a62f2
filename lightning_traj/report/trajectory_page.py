"""Report of one trajectory as a single HTML file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from lightning_traj.measures import MEASURES, SATURATED, shown_in
from lightning_traj.plots import layer_figures, series_figures, to_png
from lightning_traj.plots import trajectory as plot
from lightning_traj.report import page
from lightning_traj.report import summary as report
from lightning_traj.report.page import Markup
from lightning_traj.trajectory import Trajectory, grouped

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def trajectory_report(
    trajectory: Trajectory,
    *,
    title: str,
    source: Mapping[str, str] | None = None,
    findings: Sequence[str] | None = None,
) -> str:
    """Return a report of one trajectory: an HTML page that needs no other files, with its pictures inside.

    Args:
        trajectory: Trajectory to report on.
        title: Heading of the page.
        source: Facts about the origin of the snapshots, such as ``{"folder": …}``, shown as they are.
        findings: Problems of the snapshots, one sentence each; None: those that were found when the snapshots were read
            from checkpoints. A run that was recorded in training has none, and the page has no such section then.

    Returns:
        Source of the page, to be written as UTF-8. Texts are escaped, and browsers load and run nothing.
    """
    steps = trajectory.steps
    said = report.suggestion(trajectory)
    lead = f"{len(trajectory)} snapshots, steps {steps[0]:,} to {steps[-1]:,}; {trajectory.counted()}"
    values, errors = trajectory.summary(), trajectory.standard_errors()
    source_of = trajectory.provenance.source
    found = [finding.text for finding in source_of.findings] if findings is None and source_of else findings
    return page.page(
        title,
        page.header(title, lead),
        *([page.paragraph(said, "said")] if said else []),
        page.cards(
            (name, report.format_value(name, values[name], errors), MEASURES[name].meaning)
            for name in shown_in("card")
            if values[name] == values[name]
        ),
        *([] if found is None else [page.section("What is wrong with the snapshots", _listed(found))]),
        page.section("What this is of", page.facts([*(source or {}).items(), *recorded(trajectory)])),
        page.section("Measures at the newest snapshot", *_summary(values, errors)),
        page.section("The path as a whole", *_whole(trajectory, errors)),
        page.section("Over time", *_over_time(trajectory)),
        page.section("By layer and role", *_by_layer(trajectory)),
        page.footer(),
    )


def drawn(draw: Callable[[], Figure]) -> bytes:
    """Return a figure as PNG for a page."""
    return to_png(draw(), page.SHARPNESS)


def recorded(trajectory: Trajectory) -> Iterator[tuple[str, str]]:
    """Yield facts about how a trajectory was recorded and which blocks are counted: name and text."""
    provenance = trajectory.provenance
    steps, epochs = trajectory.steps, trajectory.epochs
    yield (
        "snapshots",
        f"{len(trajectory)}, at steps {steps[0]:,} to {steps[-1]:,}, epochs {epochs[0]:g} to {epochs[-1]:g}",
    )
    if provenance.is_sketched:
        dim = provenance.sketch_dim
        yield (
            "recorded as",
            f"sketches of {dim:,} numbers a block (seed {provenance.seed}); blocks of at most {dim:,} whole",
        )
    else:
        yield "recorded as", "full snapshots: values are exact"
    yield "counted", f"{trajectory.counted()}: every block that has changed since θ_0"
    told = ("blocks", "include", "exclude", "root", "max_snapshots")
    yield from ((name, str(value)) for name in told if (value := getattr(provenance, name)) not in (None, ""))
    if provenance.source and (given := provenance.source.hyperparameters):
        yield "hyperparameters", ", ".join(f"{name}={value}" for name, value in given.items())
    if count := len(trajectory.windows.steps):
        yield "windows of single steps", f"{count}, of {max(trajectory.windows.counts)} steps at most"


# Sections ---------------------------------------------------------------------------------------------------


def _listed(findings: Sequence[str]) -> Markup:
    return page.bullets(findings) if findings else page.paragraph("Nothing found.")


def _summary(values: Mapping[str, float], errors: Mapping[str, float]) -> Iterator[Markup]:
    rows = [
        (name, report.format_value(name, value, errors), MEASURES[name].range, MEASURES[name].meaning)
        for name, value in values.items()
        if value == value
    ]
    yield page.table("Measures", ["measure", "value", "range", "meaning"], rows, words=["range", "meaning"])
    if errors:
        yield page.paragraph(
            "Values are estimates from sketches; after ± is their standard error, where there is a formula for it."
        )
    if undefined := [name for name, value in values.items() if value != value]:
        yield page.paragraph(f"Undefined: {', '.join(undefined)}.")


def _whole(trajectory: Trajectory, errors: Mapping[str, float]) -> Iterator[Markup]:
    yield page.paragraph(
        "How to read a map: a block on the diagonal is a stretch without much turning; an edge is an event, such as a "
        "drop of the learning rate; one colour from some time on means that the direction has been found."
    )
    n = len(trajectory)
    pictures = [
        (
            drawn(lambda: plot.trajectory_map(trajectory, errors=errors)),
            f"Trajectory map: angles between all pairs of {n} snapshots, seen from the origin.",
            "Angles between all pairs of snapshots, seen from the origin.",
        ),
        (
            drawn(lambda: plot.relative_map(trajectory, errors=errors)),
            f"Relative trajectory map: angles between displacements of {n} snapshots, seen from the first.",
            "The same as seen from the first snapshot, θ_0.",
        ),
        (
            drawn(lambda: plot.path(trajectory)),
            "The path of the snapshots on its first two principal components, from start to end.",
            "The path on its first two principal components.",
        ),
        (
            drawn(lambda: plot.path_angles(trajectory)),
            "Angles along the path over time: turn since initialisation, and angle between successive updates.",
            "Angles along the path.",
        ),
    ]
    yield page.grid((page.picture(*some) for some in pictures), across=2)


def _over_time(trajectory: Trajectory) -> Iterator[Markup]:
    figures = series_figures({"": trajectory}) if len(trajectory) > 1 else {}
    if not figures:
        yield page.paragraph("There is one snapshot: nothing to draw over time.")
        return
    yield page.paragraph(
        "Each measure as it stood at each snapshot. A circle marks saturation: from there on the displacement from θ_0 "
        f"keeps within a cosine of {SATURATED} of the final one."
    )
    yield page.grid(
        page.picture(drawn(draw), f"{name} over time: {MEASURES[name].meaning}.") for name, draw in figures.items()
    )


def _by_layer(trajectory: Trajectory) -> Iterator[Markup]:
    figures = layer_figures(trajectory)
    yield page.grid(
        (page.picture(drawn(draw), f"By layer and role: {name.replace('_', ' ')}.") for name, draw in figures.items()),
        across=2,
    )
    for by in ("role", "depth", "layer"):
        count = len(grouped(trajectory, by))
        if by == "layer" and count == len(grouped(trajectory, "depth")):
            continue  # no layer repeats: each is a unit of depth
        columns, rows = report.group_rows(trajectory, by)
        yield page.folded(f"Table by {by} ({count})", page.table(f"By {by}", columns, rows))
