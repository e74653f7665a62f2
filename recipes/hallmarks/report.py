"""What a claim's runs come to: a page of Markdown with its tables and its verdict, and a figure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import floor, isfinite, log10
from statistics import mean, stdev

import numpy as np
from matplotlib.figure import Figure

from lightning_traj.plots.canvas import GREY, add_panel, new_figure, own_style
from lightning_traj.plots.lines import COLOURS
from recipes.hallmarks.claims import Claim, Runs
from recipes.hallmarks.sweep import Line
from recipes.hallmarks.verdict import Effect, judge
from recipes.markdown import markdown_table


def values_of(lines: Mapping[str, Sequence[Line]]) -> Runs:
    """What was noted of each run, and the momentum that it was set to."""
    return {
        variant: [{"momentum": run["setting"].get("momentum"), **run["values"]} for run in runs]
        for variant, runs in lines.items()
    }


def page(number: str, claim: Claim, effects: Sequence[Effect], lines: Mapping[str, Sequence[Line]]) -> str:
    """Everything that was found about a claim, in Markdown."""
    return (
        "\n\n".join(
            [
                f"# {number}: {judge(effects)}",
                claim.text,
                f"![{claim.text}]({number}.png)",
                "## Effects",
                effects_table(effects),
                "An effect is supported where its 95 % confidence interval over seeds (Student's t) lies above the "
                "bound, not supported where none of it does, undecided otherwise. Those in bold decide.",
                "## Runs",
                runs_table(claim, values_of(lines)),
                f"Means ± standard deviation over seeds. {claim.remark}",
                "## Counted, and made on",
                made_on(lines),
            ]
        )
        + "\n"
    )


def summary(found: Mapping[str, tuple[Claim, Sequence[Effect]]]) -> str:
    """A row for each claim: the verdict, and the effects that decide it."""
    rows = [
        (
            f"[{number}]({number}.md)",
            claim.text,
            f"**{judge(effects)}**",
            "<br>".join(f"{effect.name}: {interval(effect)}" for effect in effects if effect.decides),
        )
        for number, (claim, effects) in found.items()
    ]
    return markdown_table(("", "claim", "verdict", "measured effects, with 95 % intervals"), rows)


def effects_table(effects: Iterable[Effect]) -> str:
    rows = []
    for effect in effects:
        name = f"**{effect.name}**" if effect.decides else effect.name
        each = ", ".join(f"{value:.{decimals(effect)}f}" for value in effect.values)
        rows.append((name, interval(effect), f"> {effect.above:g}", each, str(effect.verdict)))
    return markdown_table(("effect", "mean, 95 % interval", "claimed", "each seed", "verdict"), rows)


def runs_table(claim: Claim, runs: Runs) -> str:
    rows = []
    for variant, each in runs.items():
        cells = [spread([number(run) for run in each]) for number in claim.columns.values()]
        rows.append((variant, *cells))
    return markdown_table(("", *claim.columns), rows)


def made_on(lines: Mapping[str, Sequence[Line]]) -> str:
    """What was counted, the seeds, time, machine and versions."""
    runs = list({id(run): run for some in lines.values() for run in some}.values())
    counts = [run["values"]["counted"] for run in runs]
    counted = dict.fromkeys(f"{each['all']} (without norms and biases: {each['weights']})" for each in counts)
    seeds = ", ".join(map(str, dict.fromkeys(run["seed"] for run in runs)))
    machines = dict.fromkeys("; ".join(f"{name} {value}" for name, value in run["machine"].items()) for run in runs)
    seconds = [run["seconds"] for run in runs]
    bullets = [
        *(f"Counted: {each}." for each in counted),
        f"Seeds {seeds}; {len(runs)} runs of {min(seconds):.0f} to {max(seconds):.0f} s, together "
        f"{sum(seconds) / 60:.0f} minutes.",
        *(f"{each}." for each in machines),
        "Settings: " + "; ".join(f"{name} {value}" for name, value in common(runs).items()) + ".",
    ]
    return "\n".join(f"- {bullet}" for bullet in bullets)


def common(runs: Sequence[Line]) -> dict[str, object]:
    """What all runs are set to alike, if it is set to something."""
    first, *others = (run["setting"] for run in runs)
    return {
        name: value
        for name, value in first.items()
        if value is not None and all(other[name] == value for other in others)
    }


# The figure -------------------------------------------------------------------------------------------------


@own_style()
def figure(number: str, claim: Claim, effects: Sequence[Effect], lines: Mapping[str, Sequence[Line]]) -> Figure:
    """The first column, a dot a seed, and the curves, a line a seed, in the same colours. 11 inches wide."""
    label, column = next(iter(claim.columns.items()))
    height = 1.9 + 0.34 * max(len(lines), 7)
    drawn = new_figure(
        11,
        height,
        f"{number}: {judge(effects)}",
        f"{claim.text} Dots and lines are seeds, bars means.",
    )
    dots = add_panel(drawn, 3.2, 0.6, 2.6, height - 1.5)
    curves = add_panel(drawn, 6.9, 0.6, 3.8, height - 1.5)
    colours = dict(zip(lines, COLOURS * len(lines), strict=False))
    for place, (variant, runs) in enumerate(values_of(lines).items()):
        found = [column(run) for run in runs]
        dots.plot(found, [place] * len(runs), "o", color=colours[variant], alpha=0.6, ms=6, mew=0)
        dots.plot([mean(found)] * 2, [place - 0.3, place + 0.3], color=colours[variant], lw=2)
        for run in runs:
            x, y = claim.curves.values(run)
            curves.plot(np.array(x, dtype=float), np.array(y, dtype=float), color=colours[variant], alpha=0.6, lw=1)
    dots.set(yticks=range(len(lines)), yticklabels=list(lines), xlabel=label)
    dots.set_ylim(len(lines) - 0.5, -0.5)
    dots.grid(axis="x", color="0.9")
    dots.locator_params(axis="x", nbins=5)
    dots.ticklabel_format(axis="x", useOffset=False)
    curves.set(xlabel=f"{claim.curves.x} (colours as on the left)", ylabel=claim.curves.label)
    curves.grid(color="0.9")
    for axes in (dots, curves):
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=GREY)
    return drawn


# Cells ------------------------------------------------------------------------------------------------------


def interval(effect: Effect) -> str:
    digits = decimals(effect)
    return (
        f"{effect.mean:.{digits}f} ± {effect.margin:.{digits}f}"
        if isfinite(effect.margin)
        else f"{effect.mean:.{digits}f}"
    )


def decimals(effect: Effect) -> int:
    """So many that the first two digits of the interval's half are told."""
    return two_digits(effect.margin if isfinite(effect.margin) and effect.margin > 0 else abs(effect.mean) or 1.0)


def two_digits(scale: float) -> int:
    """Decimals that tell two digits of this; four where it tells nothing."""
    return min(8, max(0, 1 - floor(log10(scale)))) if isfinite(scale) and scale > 0 else 4


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation, to two digits of the latter."""
    if len(values) < 2 or not all(map(isfinite, values)):
        return ", ".join(f"{value:.4g}" for value in values)
    deviation = stdev(values)
    digits = two_digits(deviation)
    return f"{mean(values):.{digits}f} ± {deviation:.{digits}f}"
