"""Tables of a trajectory, for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote

from rich.console import Console
from rich.table import Table

from lightning_traj.blocks import Select
from lightning_traj.table import MEASURES
from lightning_traj.trajectory import Trajectory


def summary_table(trajectory: Trajectory, select: Select = None) -> Table:
    """The summary as a table: measure, value with standard error and unit, meaning; undefined values are left out."""
    values, errors = trajectory.summary(select), trajectory.standard_errors(select)
    span = f"{len(trajectory)} snapshots, steps {trajectory.steps[0]} to {trajectory.steps[-1]}"
    table = Table(title=f"Trajectory: {span}\n{trajectory.counted(select)}", title_justify="left")
    table.add_column("measure", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("meaning")
    for name, value in values.items():
        if value == value:
            table.add_row(name, format_value(name, value, errors), MEASURES[name].meaning)
    return table


def format_value(name: str, value: float, errors: Mapping[str, float]) -> str:
    """A value with its standard error, where there is one, to the digits that it supports, and its unit."""
    unit = "°" if MEASURES[name].unit == "degrees" else ""
    error = errors.get(name, 0.0)
    if not error:
        # Beside sketched values, one without an error is an estimate all the same: three digits of it.
        return f"{value:.3g}{unit}" if any(errors.values()) else f"{value:.6g}{unit}"
    # Two digits of the error, and no digit of the value beyond them.
    decimals = max(0, 1 - int(f"{error:e}".partition("e")[2]))
    return f"{value:.{decimals}f} ± {error:.{decimals}f}{unit}"


def print_summary(trajectory: Trajectory, name: str, file: Path | None, event_folders: Sequence[str]) -> None:
    """Print the summary, and where the rest of it is: the file, and the folders to point TensorBoard at."""
    console = Console()
    console.print(summary_table(trajectory))
    lines = [] if file is None else [f"Trajectory: {file}"]
    lines += [f"Charts ({name}/…): tensorboard --logdir {quote(folder)}" for folder in event_folders]
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)
