"""What tells runs apart, in a table: a row a run on pages and in files, a column a run on a terminal."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from os import PathLike
from typing import Any

from rich.markup import escape
from rich.table import Table

from lightning_traj import report
from lightning_traj.files import replace_atomically
from lightning_traj.labels import in_words
from lightning_traj.runs import Run

COMPARED = (
    "mds",
    "mds_relative",
    "path_length",
    "displacement",
    "tortuosity",
    "effective_rank",
    "saturation",
    "direction_drift",
    "oscillation_cosine",
)


def comparison_rows(runs: Sequence[Run]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the table as text, a row a run: measures with standard errors, empty where undefined."""
    differing, _ = split_hyperparameters(runs)
    counted = [run.trajectory.counted() for run in runs]
    defined = [name for name in COMPARED if any(run.summary[name] == run.summary[name] for run in runs)]
    columns = ["run", *differing, "snapshots", "steps", *(["counted"] if len(set(counted)) > 1 else []), *defined]
    rows = []
    for i, run in enumerate(runs):
        trajectory, values = run.trajectory, run.summary
        cells = [run.name, *(some[i] for some in differing.values())]
        cells += [f"{len(trajectory):,}", f"{trajectory.steps[0]:,} to {trajectory.steps[-1]:,}"]
        cells += [counted[i]] if len(set(counted)) > 1 else []
        cells += [
            report.format_value(name, values[name], run.errors) if values[name] == values[name] else ""
            for name in defined
        ]
        rows.append(cells)
    return columns, rows


def shared_sentence(runs: Sequence[Run]) -> str:
    """What all runs have in common, in a sentence: hyperparameters and what is counted."""
    _, shared = split_hyperparameters(runs)
    counted = {run.trajectory.counted() for run in runs}
    said = [f"{name}={value}" for name, value in shared.items()]
    unknown = [run.name for run in runs if not run.hyperparameters]
    parts = [f"In all {'other ' if unknown else ''}runs: {', '.join(said)}."] if said else []
    if unknown and len(unknown) < len(runs):
        parts.insert(0, f"No hyperparameters are known of {in_words(unknown)}.")
    if len(counted) == 1:
        parts.append(f"Counted in all runs: {counted.pop()}.")
    return " ".join(parts)


def comparison_table(runs: Sequence[Run]) -> Table:
    """The table for a terminal: a column a run, since a row of it all is wider than most."""
    columns, rows = comparison_rows(runs)
    table = Table(
        title=f"{len(runs)} runs", title_justify="left", caption=escape(shared_sentence(runs)), caption_justify="left"
    )
    table.add_column("", no_wrap=True)
    for name, *_ in rows:
        table.add_column(escape(name), justify="right", overflow="fold")
    for place, column in enumerate(columns[1:], start=1):
        table.add_row(escape(column), *(escape(row[place]) for row in rows))
    return table


def write_csv(runs: Sequence[Run], path: str | PathLike[str]) -> None:
    """Write a row a run: its file, what is counted, all its hyperparameters, all measures and standard errors.

    Values are as exact as they are known, empty where undefined.
    """
    names = list(dict.fromkeys(name for run in runs for name in run.hyperparameters))
    errors = [name for name in runs[0].summary if any(name in run.errors for run in runs)]
    rows = []
    for run in runs:
        trajectory = run.trajectory
        row: dict[str, Any] = {"run": run.name, "path": run.path, "snapshots": len(trajectory)}
        row |= {"first_step": int(trajectory.steps[0]), "last_step": int(trajectory.steps[-1])}
        row |= {"counted": trajectory.counted()}
        row |= {f"hparams/{name}": run.hyperparameters.get(name, "") for name in names}
        row |= {name: repr(value) if value == value else "" for name, value in run.summary.items()}
        row |= {f"{name}_stderr": repr(run.errors[name]) if name in run.errors else "" for name in errors}
        rows.append(row)
    with replace_atomically(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def split_hyperparameters(runs: Sequence[Run]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Hyperparameters that differ, each as the runs have it (empty where one doesn't), and those that all share.

    Runs of which none are known have no say in it.
    """
    names = list(dict.fromkeys(name for run in runs for name in run.hyperparameters))
    values = {name: [str(run.hyperparameters.get(name, "")) for run in runs] for name in names}
    known = [i for i, run in enumerate(runs) if run.hyperparameters]
    differing = {name: some for name, some in values.items() if len({some[i] for i in known}) > 1}
    return differing, {name: some[known[0]] for name, some in values.items() if name not in differing}
