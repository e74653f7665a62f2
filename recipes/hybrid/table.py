"""The table of a comparison, in Markdown, from its lines of JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import mean, median, stdev
from typing import Any

from recipes.markdown import markdown_table

Row = Mapping[str, Any]
REFERENCE = "everything"
MARGIN = 0.5  # points of accuracy below the reference's final one: as good as that
COLUMNS = (
    "trained",
    "seeds",
    "changed from epoch",
    "accuracy, %",
    "points above everything",
    "training loss",
    "an epoch after / before",
    f"epochs to within {MARGIN} points",
    "their cost in full epochs",
)


def comparison_table(rows: Sequence[Row]) -> str:
    """A line for each variant: means over seeds, ± standard deviation of one seed; medians of epochs and costs."""
    reference = {row["seed"]: row for row in rows if row["variant"] == REFERENCE}
    lines = []
    for variant in dict.fromkeys(row["variant"] for row in rows):
        runs = [row for row in rows if row["variant"] == variant and row["seed"] in reference]
        finals = {row["seed"]: row["accuracy"][-1] for row in runs}
        targets = {seed: reference[seed]["accuracy"][-1] - MARGIN for seed in finals}
        reached = [(row, epochs) for row in runs if (epochs := epochs_to(row, targets[row["seed"]]))]
        missed = len(runs) - len(reached)  # a median without them would be of the better seeds alone
        never = f"never for {missed} of {len(runs)}" if reached else "never"
        changed = [row for row in runs if changed_from(row) < len(row["cpu"])]
        lines.append(
            (
                variant,
                str(len(runs)),
                ", ".join(str(changed_from(row)) for row in changed),
                spread(finals.values(), 1),
                spread((final - reference[seed]["accuracy"][-1] for seed, final in finals.items()), 1, "+"),
                spread((row["train_loss"][-1] for row in runs), 3),
                f"{median(map(epoch_ratio, changed)):.2f}" if changed else "",
                never if missed else f"{median(epochs for _, epochs in reached):g}",
                "" if missed else f"{median(cost(row, epochs) for row, epochs in reached):.1f}",
            )
        )
    return markdown_table(COLUMNS, lines)


def epochs_to(row: Row, target: float) -> int:
    """Epochs until the validation accuracy was first as high; 0: never."""
    return next((epoch for epoch, value in enumerate(row["accuracy"], start=1) if value >= target - 1e-3), 0)


def changed_from(row: Row) -> int:
    """The first epoch that was not like all others before: something was frozen, or a line search made."""
    if "line search" in row["variant"]:
        return 1  # the first one has no weights to look back on
    frozen = (event for event in row["events"] if ": frozen " in event)
    first = next(frozen, f"epoch {len(row['cpu'])},")
    return int(first.partition(",")[0].removeprefix("epoch "))


def epoch_ratio(row: Row) -> float:
    """CPU time of an epoch's steps after the change, as a multiple of before, in the same run: medians."""
    start, seconds = changed_from(row), row["cpu"]
    return median(seconds[start:]) / median(seconds[1:start] or seconds[:1])


def cost(row: Row, epochs: int) -> float:
    """What the first epochs cost, in epochs of training everything."""
    before = min(epochs, changed_from(row))
    return before + (epochs - before) * (epoch_ratio(row) if epochs > before else 0.0)


def spread(values: Iterable[float], decimals: int, sign: str = "") -> str:
    """Mean ± standard deviation."""
    values = list(values)
    deviation = f" ± {stdev(values):.{decimals}f}" if len(values) > 1 else ""
    return f"{mean(values):{sign}.{decimals}f}{deviation}"
