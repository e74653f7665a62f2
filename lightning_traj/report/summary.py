"""Tables and sentences that sum up a trajectory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from shlex import quote

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lightning_traj import measures
from lightning_traj.blocks import Select
from lightning_traj.measures import MEASURES, shown_in
from lightning_traj.trajectory import Times, Trajectory

CLOSE = 0.99  # cosine between directions that differ by less than 1 %
DIGITS = 6  # significant digits of an exact value


def summary_table(trajectory: Trajectory, select: Select = None, title: str = "Trajectory") -> Table:
    """Return the defined values of the summary as a table: measure, value with standard error and unit, meaning."""
    values, errors = trajectory.summary(select), trajectory.standard_errors(select)
    span = f"{len(trajectory)} snapshots, steps {trajectory.steps[0]} to {trajectory.steps[-1]}"
    table = Table(title=f"{title}: {span}\n{trajectory.counted(select)}", title_justify="left")
    table.add_column("measure", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("meaning")
    for name, value in values.items():
        if value == value:
            table.add_row(name, format_value(name, value, errors), MEASURES[name].meaning)
    return table


def format_value(name: str, value: float, errors: Mapping[str, float]) -> str:
    """Return a value with its standard error, to the digits that the error supports, and its unit."""
    unit = "°" if MEASURES[name].unit == "degrees" else ""
    error = errors.get(name, 0.0)
    if not error:
        # If other values have errors, this one is an estimate too, although its error is unknown: show three digits.
        return f"{value:.3g}{unit}" if any(errors.values()) else f"{value:.{DIGITS}g}{unit}"
    return with_error(value, error, unit)


def with_error(value: float, error: float, unit: str = "") -> str:
    """Return a value ± its standard error, with two digits of the error and the same decimals of the value."""
    decimals = max(0, 1 - int(f"{error:e}".partition("e")[2]))
    return f"{value:.{decimals}f} ± {error:.{decimals}f}{unit}"


def group_table(trajectory: Trajectory, by: str = "layer", select: Select = None) -> Table:
    """Return a table of the measures that distinguish groups of blocks, one row a group (see ``Trajectory.table``)."""
    table = Table(title=f"Trajectory by {by}\n{trajectory.counted(select)}", title_justify="left")
    columns, rows = group_rows(trajectory, by, select)
    table.add_column(columns[0], overflow="fold", min_width=12)  # names stay, however many measures there are
    for column in columns[1:]:
        table.add_column(column.replace("_", " "), justify="right", no_wrap=False)
    for label, *cells in rows:
        table.add_row(escape(label), *cells)
    return table


def group_rows(trajectory: Trajectory, by: str = "layer", select: Select = None) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows of ``group_table`` as text; cells of undefined values are empty."""
    # Lengths come last, because they say more about the size of a group than about its direction.
    columns = sorted(shown_in("table"), key=lambda name: MEASURES[name].group == "Length")
    rows = []
    for label, row in trajectory.table(by, select).items():
        values = (f"{row[name]:.4g}" if row[name] == row[name] else "" for name in columns)
        rows.append([label or "(root)", f"{row['blocks']:,}", f"{row['numel']:,}", *values])
    return [by, "blocks", "parameters", *columns], rows


def suggestion(trajectory: Trajectory, select: Select = None) -> str:
    """Return a sentence that says when the direction from θ_0 came within 1 % of its final one; empty if undefined."""
    index = measures.saturation_index(trajectory.displacement_gram(select), CLOSE)
    if len(trajectory) < 3 or index is None:
        return ""
    unit, last = Times(trajectory).unit, _time_of(trajectory, -1)
    if index == len(trajectory) - 1:
        return f"The direction from θ_0 still changed by more than 1 % before the last snapshot, at {unit} {last}."
    first = _time_of(trajectory, index)
    return f"The direction from θ_0 was within 1 % of its final one from {unit} {first} of {last} on."


def saturated_at(trajectory: Trajectory) -> str:
    """Return the epoch or step at which the direction saturated, such as ``"epoch 4"``; empty where undefined."""
    index = measures.saturation_index(trajectory.displacement_gram())
    return "" if index is None else f"{Times(trajectory).unit} {_time_of(trajectory, index)}"


def _time_of(trajectory: Trajectory, index: int) -> str:
    time = float(Times(trajectory).values[index])
    return f"{time:,.4g}" if time < 10_000 else f"{time:,.0f}"


def print_summary(
    trajectory: Trajectory, name: str, track: str, file: str | None, event_folders: Sequence[str]
) -> None:
    """Print the summary, a suggestion that follows from it, and the places of the file and of the events.

    Args:
        trajectory: Trajectory to sum up.
        name: Prefix of the tags in TensorBoard.
        track: Quantity that was recorded, such as ``"weights"``.
        file: Path of the trajectory file; None: none was written.
        event_folders: Folders to point TensorBoard at.
    """
    console = Console()
    weights = track in ("weights", "average")  # the direction from θ_0 means nothing for other quantities
    console.print(summary_table(trajectory, title="Trajectory" if track == "weights" else f"Trajectory, {track}"))
    lines = [
        line
        for line in (suggestion(trajectory) if weights else "", "" if file is None else f"Trajectory: {file}")
        if line
    ]
    lines += [f"Charts ({name}/…): tensorboard --logdir {quote(folder)}" for folder in event_folders]
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)
