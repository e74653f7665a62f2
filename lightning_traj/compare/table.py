"""Tables of what distinguishes runs: one column a run for readers, one row a run in CSV files."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from os import PathLike
from typing import Any

from rich.markup import escape
from rich.table import Table

from lightning_traj.checkpoints import split_hyperparameters
from lightning_traj.compare.runs import Run
from lightning_traj.files import replace_atomically
from lightning_traj.measures import shown_in
from lightning_traj.report import summary as report
from lightning_traj.text import join_names


def comparison_rows(runs: Sequence[Run]) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows of the table as text, one column a run: hyperparameters that differ, and measures.

    Measures have their standard errors, and saturation has its epoch or step. Cells of undefined values are empty.
    """
    differing, _ = split_hyperparameters([run.hyperparameters for run in runs])
    trajectories = [run.trajectory for run in runs]
    counted = [trajectory.counted() for trajectory in trajectories]
    defined = [name for name in shown_in("comparison") if any(run.summary[name] == run.summary[name] for run in runs)]
    rows = {
        **differing,
        "snapshots": [f"{len(trajectory):,}" for trajectory in trajectories],
        "steps": [f"{trajectory.steps[0]:,} to {trajectory.steps[-1]:,}" for trajectory in trajectories],
        **({"counted": counted} if len(set(counted)) > 1 else {}),
        **{name: [_value(run, name) for run in runs] for name in defined},
    }
    return ["run", *(run.name for run in runs)], [[name, *cells] for name, cells in rows.items()]


def _value(run: Run, name: str) -> str:
    value = run.summary[name]
    if value != value:
        return ""
    at = f" ({report.saturated_at(run.trajectory)})" if name == "saturation" else ""
    return report.format_value(name, value, run.errors) + at


def shared_sentence(runs: Sequence[Run]) -> str:
    """Return sentences with the hyperparameters and the counted blocks that all runs have in common."""
    _, shared = split_hyperparameters([run.hyperparameters for run in runs])
    counted = {run.trajectory.counted() for run in runs}
    said = [f"{name}={value}" for name, value in shared.items()]
    unknown = [run.name for run in runs if not run.hyperparameters]
    parts = [f"In all {'other ' if unknown else ''}runs: {', '.join(said)}."] if said else []
    if unknown and len(unknown) < len(runs):
        parts.insert(0, f"No hyperparameters are known of {join_names(unknown)}.")
    if len(counted) == 1:
        parts.append(f"Counted in all runs: {counted.pop()}.")
    return " ".join(parts)


def comparison_table(runs: Sequence[Run]) -> Table:
    """Return the table for a terminal."""
    columns, rows = comparison_rows(runs)
    table = Table(
        title=f"{len(runs)} runs", title_justify="left", caption=escape(shared_sentence(runs)), caption_justify="left"
    )
    table.add_column("", no_wrap=True)
    for name in columns[1:]:
        table.add_column(escape(name), justify="right", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def write_csv(runs: Sequence[Run], path: str | PathLike[str]) -> None:
    """Write one row a run: file, counted blocks, all hyperparameters, all measures and their standard errors.

    Values have all their digits; undefined ones are empty.
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
