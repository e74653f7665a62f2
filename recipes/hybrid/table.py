"""Tables of a comparison, in Markdown, from its lines of JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import nan
from statistics import mean, median, stdev
from typing import Any

Row = Mapping[str, Any]
REFERENCE = "everything"
MARGIN = 0.5  # points of accuracy: less than the reference's final accuracy by no more is "as good"


def comparison_table(rows: Sequence[Row]) -> str:
    """A line for each variant: means over seeds, ± standard deviation of one seed."""
    lines = [
        "| trained | seeds | frozen from epoch | accuracy, % | points more than everything | training loss | "
        f"CPU time to within {MARGIN} points | epochs to it |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    reference = {row["seed"]: row for row in rows if row["variant"] == REFERENCE}
    for variant in dict.fromkeys(row["variant"] for row in rows):
        runs = [row for row in rows if row["variant"] == variant and row["seed"] in reference]
        if not runs:
            continue
        final = [row["accuracy"][-1] for row in runs]
        less = [row["accuracy"][-1] - reference[row["seed"]]["accuracy"][-1] for row in runs]
        targets = [reference[row["seed"]]["accuracy"][-1] - MARGIN for row in runs]
        reached = [epochs_to(row, target) for row, target in zip(runs, targets, strict=True)]
        seconds = [sum(row["cpu"][:epochs]) if epochs else nan for row, epochs in zip(runs, reached, strict=True)]
        starts = ", ".join(frozen_from(row) for row in runs)
        found = [(s, e) for s, e in zip(seconds, reached, strict=True) if e]
        times = f"{median(s for s, _ in found):.1f} s" if found else "never"
        epochs = f"{median(e for _, e in found):g}" if found else ""
        never = f" ({len(runs) - len(found)} never)" if found and len(found) < len(runs) else ""
        lines.append(
            f"| {variant} | {len(runs)} | {starts} | {spread(final, 1)} | {spread(less, 1, sign=True)} | "
            f"{spread([row['train_loss'][-1] for row in runs], 3)} | {times}{never} | {epochs} |"
        )
    return "\n".join(lines)


def epochs_to(row: Row, target: float) -> int:
    """Epochs until the validation accuracy was first as high; 0: never."""
    return next((epoch for epoch, value in enumerate(row["accuracy"], start=1) if value >= target - 1e-3), 0)


def frozen_from(row: Row) -> str:
    """Epoch of the first freezing, from what was reported."""
    first = next((event for event in row["events"] if ": frozen " in event), "")
    return first.partition(",")[0].removeprefix("epoch ") or "–"


def spread(values: Iterable[float], decimals: int, sign: bool = False) -> str:
    """Mean ± standard deviation."""
    values = list(values)
    deviation = f" ± {stdev(values):.{decimals}f}" if len(values) > 1 else ""
    return f"{mean(values):{'+' if sign else ''}.{decimals}f}{deviation}"
