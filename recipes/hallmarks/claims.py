"""The paper's hallmarks as claims: the runs that each asks for, and the effects that decide it.

Source: Singh, He, Hofmann and Schölkopf, arXiv:2403.07379; the numbers H1 to H7, and the bounds, are this recipe's.
The bounds, and the rule of verdict.py, were set before the runs were made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import log2, log10, nan
from statistics import mean
from typing import Any

import numpy as np

from recipes.hallmarks.runs import Images, Setting, Text
from recipes.hallmarks.verdict import Effect

Values = Mapping[str, Any]
"""What was noted of a run."""

Runs = Mapping[str, Sequence[Values]]
"""By variant, one a seed, the seeds in the same order."""

REDUNDANT = 0.5  # H3: share of training after saturation; "most of training"
LATE_COSINE = 0.9  # H3: between any two snapshots of the second half; "close to 1"
CANCELLED = 0.5  # H4: share of the length of late steps that other steps of their window undo
STILLED = 10.0  # H4: turn of the direction in an early epoch, in multiples of that in a late one
POINTS = 1.0  # H7: of accuracy that may be lost
FREEZING = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75)  # H7: shares of the epochs


@dataclass(frozen=True)
class Base:
    """What the sweeps start from, and the levels of their factors.

    Attributes:
        images: of H1 to H4 and H7.
        text: of H5 and H6.
        learning_rates, batch_sizes: of H2; the learning rates also of H4.
        widths: of H5 and H6.
    """

    images: Images = field(default_factory=Images)
    text: Text = field(default_factory=Text)
    learning_rates: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3)
    batch_sizes: tuple[int, ...] = (16, 64, 256)
    widths: tuple[int, ...] = (32, 64, 128, 256)


@dataclass(frozen=True)
class Curves:
    """What is drawn of each run, beside the columns."""

    label: str
    x: str
    values: Callable[[Values], tuple[Sequence[float | None], Sequence[float | None]]]


@dataclass(frozen=True)
class Claim:
    """One of H1 to H7.

    Attributes:
        text: What is claimed.
        variants: Settings of the runs, by name.
        effects: What follows from the runs.
        columns: What is listed of each variant, and drawn of the first one.
        curves: What is drawn beside it.
        remark: What a reader has to know.
    """

    text: str
    variants: Callable[[Base], dict[str, Setting]]
    effects: Callable[[Runs, Base], list[Effect]]
    columns: Mapping[str, Callable[[Values], float]]
    curves: Curves
    remark: str


# Of one run -------------------------------------------------------------------------------------------------


def omega(values: Values) -> float:
    return values["summary"]["all"]["mds"]


def omega_of_weights(values: Values) -> float:
    return values["summary"]["weights"]["mds"]


def saturation(values: Values) -> float:
    return values["summary"]["all"]["saturation"]


def late_cosine(values: Values) -> float:
    return values["late_cosine"]


def accuracy(values: Values) -> float:
    return 100 * values["val/accuracy"][-1]


def loss(values: Values) -> float:
    return values["val/loss"][-1]


def over_quarter(name: str, quarter: int) -> Callable[[Values], float]:
    """Mean of a series over a quarter of the epochs, counted from 0; where it is undefined, it is left out."""

    def of(values: Values) -> float:
        epochs, series = (np.array(column, dtype=float) for column in (values["epochs"], values["series"][name]))
        ends = epochs[-1] * np.array([quarter, quarter + 1]) / 4
        chosen = series[(epochs > ends[0]) & (epochs <= ends[1]) & ~np.isnan(series)]
        return float(chosen.mean()) if chosen.size else nan

    return of


def cancelled(quarter: int) -> Callable[[Values], float]:
    """Share of the length of steps that others of their window undo: 1 − ‖Σu‖ / Σ‖u‖, the mean over a quarter."""
    return lambda values: 1 - over_quarter("oscillation_linearity", quarter)(values)


def heterogeneity(values: Values, middle: bool | None = None) -> float:
    """Largest less smallest ω of q, k and v, the mean over layers: all, or the middle, or the first and the last."""
    layers = [row["heterogeneity"] for row in values["attention"].values()]
    return mean(layers if middle is None else layers[1:-1] if middle else [layers[0], layers[-1]])


def against(name: str) -> Callable[[Values], tuple[Sequence[float | None], Sequence[float | None]]]:
    return lambda values: (values["epochs"], values["series"][name])


# Over seeds -------------------------------------------------------------------------------------------------


def of_each_seed(runs: Runs, variants: Sequence[str], number: Callable[..., float]) -> tuple[float, ...]:
    """A number that depends on the runs of some variants with the same seed."""
    return tuple(number(*values) for values in zip(*(runs[variant] for variant in variants), strict=True))


def difference(
    runs: Runs, larger: str, smaller: str, number: Callable[[Values], float], name: str = "ω", decides: bool = False
) -> Effect:
    values = of_each_seed(runs, (larger, smaller), lambda a, b: number(a) - number(b))
    return Effect(f"{name} ({larger}) − {name} ({smaller})", values, decides=decides)


def slope(runs: Runs, levels: Mapping[str, float], number: Callable[[Values], float]) -> tuple[float, ...]:
    """Least-squares slope of a number over the levels of its variants, of each seed."""
    x = list(levels.values())
    return of_each_seed(runs, list(levels), lambda *values: float(np.polyfit(x, [*map(number, values)], 1)[0]))


# H1 ---------------------------------------------------------------------------------------------------------


def toggles(base: Base) -> dict[str, Setting]:
    images = base.images
    tenfold = replace(images, momentum=0.0, learning_rate=round(images.learning_rate / (1 - images.momentum), 9))
    return {
        "neither": replace(images, momentum=0.0, weight_decay=0.0),
        "momentum only": replace(images, weight_decay=0.0),
        "weight decay only": replace(images, momentum=0.0),
        "both": images,
        "neither, larger learning rate": replace(tenfold, weight_decay=0.0),
        "weight decay only, larger learning rate": tenfold,
    }


def together(runs: Runs, base: Base) -> list[Effect]:
    alone = ("neither", "momentum only", "weight decay only", "both")

    def drop_more_than_sum(neither: Values, momentum: Values, decay: Values, both: Values) -> float:
        return omega(momentum) + omega(decay) - omega(neither) - omega(both)

    return [
        Effect(
            "lowest ω without one of them, or both − ω (both)",
            of_each_seed(runs, alone, lambda *values: min(map(omega, values[:-1])) - omega(values[-1])),
        ),
        Effect(
            "the same, without norms and biases",
            of_each_seed(
                runs, alone, lambda *values: min(map(omega_of_weights, values[:-1])) - omega_of_weights(values[-1])
            ),
            decides=False,
        ),
        Effect(
            "drop of ω by both − sum of the drops by each alone",
            of_each_seed(runs, alone, drop_more_than_sum),
            decides=False,
        ),
        difference(runs, "weight decay only, larger learning rate", "both", omega),
    ]


# H2 ---------------------------------------------------------------------------------------------------------


def rates(base: Base) -> dict[str, Setting]:
    return {f"learning rate {rate:g}": replace(base.images, learning_rate=rate) for rate in base.learning_rates}


def batches(base: Base) -> dict[str, Setting]:
    return {f"batch {size}": replace(base.images, batch_size=size) for size in base.batch_sizes}


def by_learning_rate(runs: Runs, base: Base) -> list[Effect]:
    names = dict(zip(rates(base), map(log10, base.learning_rates), strict=True))
    falls = [-value for value in slope(runs, names, omega)]
    weights = [-value for value in slope(runs, names, omega_of_weights)]
    return [
        Effect("fall of ω for a tenfold learning rate (slope)", tuple(falls)),
        Effect("the same, without norms and biases", tuple(weights), decides=False),
        *(difference(runs, lower, higher, omega) for lower, higher in pairwise(names)),
        *(difference(runs, larger, smaller, omega) for smaller, larger in pairwise(batches(base))),
    ]


# H3 ---------------------------------------------------------------------------------------------------------


def settling(base: Base) -> dict[str, Setting]:
    return {"as it is": base.images, "learning rate never dropped": replace(base.images, drops=())}


def saturates(runs: Runs, base: Base) -> list[Effect]:
    effects = []
    for variant, decides in zip(settling(base), (True, False), strict=True):
        said = "" if decides else f" ({variant})"
        effects += [
            Effect(
                f"share of training after saturation{said}",
                of_each_seed(runs, [variant], lambda values: 1 - saturation(values)),
                above=REDUNDANT,
                decides=decides,
            ),
            Effect(
                f"smallest cosine between snapshots of the second half{said}",
                of_each_seed(runs, [variant], late_cosine),
                above=LATE_COSINE,
                decides=decides,
            ),
        ]
    return effects


# H4 ---------------------------------------------------------------------------------------------------------


def oscillating(base: Base) -> dict[str, Setting]:
    return settling(base) | {name: setting for name, setting in rates(base).items() if setting != base.images}


def oscillates(runs: Runs, base: Base) -> list[Effect]:
    def stilled(values: Values) -> float:
        return over_quarter("apex_angle", 0)(values) / over_quarter("apex_angle", 3)(values)

    effects = []
    for variant in settling(base):
        decides = variant == "as it is"
        said = "" if decides else f" ({variant})"
        effects += [
            Effect(
                f"share of late steps' length that is undone within a window{said}",
                of_each_seed(runs, [variant], cancelled(3)),
                above=CANCELLED,
                decides=decides,
            ),
            Effect(
                f"turn of the direction in an epoch, early / late{said}",
                of_each_seed(runs, [variant], stilled),
                above=STILLED,
                decides=decides,
            ),
            Effect(
                f"share undone, late − early{said}",
                of_each_seed(runs, [variant], lambda values: cancelled(3)(values) - cancelled(0)(values)),
                decides=False,
            ),
        ]
    return effects


# H5 ---------------------------------------------------------------------------------------------------------


def widths(base: Base) -> dict[str, Setting]:
    return {f"width {width}": replace(base.text, width=width) for width in base.widths}


def grows(runs: Runs, base: Base) -> list[Effect]:
    levels = dict(zip(widths(base), map(log2, base.widths), strict=True))
    return [
        Effect(
            "rise of ω for a doubled width (slope), without norms and biases", slope(runs, levels, omega_of_weights)
        ),
        Effect("the same, of all parameters", slope(runs, levels, omega), decides=False),
        *(difference(runs, wider, narrower, omega_of_weights) for narrower, wider in pairwise(levels)),
    ]


# H6 ---------------------------------------------------------------------------------------------------------


def differs(runs: Runs, base: Base) -> list[Effect]:
    levels = dict(zip(widths(base), map(log2, base.widths), strict=True))

    def middle_less_outer(*values: Values) -> float:
        return mean(heterogeneity(run, True) - heterogeneity(run, False) for run in values)

    return [
        Effect(
            "heterogeneity of middle layers − of the first and the last, mean over widths",
            of_each_seed(runs, list(levels), middle_less_outer),
        ),
        Effect(
            "fall of heterogeneity for a doubled width (slope), all layers",
            tuple(-value for value in slope(runs, levels, heterogeneity)),
        ),
        Effect(
            "the same, middle layers",
            tuple(-value for value in slope(runs, levels, lambda values: heterogeneity(values, True))),
            decides=False,
        ),
        *(difference(runs, narrower, wider, heterogeneity, "heterogeneity") for narrower, wider in pairwise(levels)),
    ]


# H7 ---------------------------------------------------------------------------------------------------------


def freezing(base: Base) -> dict[str, float]:
    """Shares of the epochs, by variant; those that come to the same epoch are one."""
    return {f"BatchNorm only, from epoch {base.images.epoch(share)}": share for share in FREEZING}


def frozen(base: Base) -> dict[str, Setting]:
    variants = {name: replace(base.images, frozen_from=share) for name, share in freezing(base).items()}
    return {"everything": base.images, **variants}


def suffices(runs: Runs, base: Base) -> list[Effect]:
    everything, *others = frozen(base)
    shares = list(freezing(base).values())

    def gained(full: Values, norms: Values) -> float:
        return accuracy(norms) - accuracy(full)

    def gained_once_redundant(full: Values, *norms: Values) -> float:
        after = [run for run, share in zip(norms, shares, strict=True) if share >= saturation(full)]
        return gained(full, after[0]) if after else nan

    return [
        Effect(
            "points above everything, frozen at the first of these epochs at which the direction was saturated",
            of_each_seed(runs, [everything, *others], gained_once_redundant),
            above=-POINTS,
        ),
        *(
            Effect(
                f"points above everything: {other}",
                of_each_seed(runs, [everything, other], gained),
                above=-POINTS,
                decides=False,
            )
            for other in others
        ),
    ]


CLAIMS: Mapping[str, Claim] = {
    "H1": Claim(
        "Momentum and weight decay together promote directional exploration: ω is lowest with both on.",
        toggles,
        together,
        {"ω": omega, "ω without norms and biases": omega_of_weights, "accuracy, %": accuracy},
        Curves("turn since initialisation, degrees", "epoch", against("turn")),
        "Momentum makes steps 1 / (1 − momentum) times as long; the two last variants have no momentum, and a learning "
        "rate that makes up for it.",
    ),
    "H2": Claim(
        "Larger learning rates explore more: ω falls. Batch sizes are measured and reported.",
        lambda base: rates(base) | batches(base),
        by_learning_rate,
        {"ω": omega, "ω without norms and biases": omega_of_weights, "accuracy, %": accuracy},
        Curves("turn since initialisation, degrees", "epoch", against("turn")),
        "One factor at a time; all runs have the same number of epochs, so smaller batches make more steps.",
    ),
    "H3": Claim(
        "The direction saturates early: most of training is redundant.",
        settling,
        saturates,
        {"saturation": saturation, "smallest late cosine": late_cosine, "ω": omega, "accuracy, %": accuracy},
        Curves(
            "cosine with the final direction, θ_T − θ_0",
            "epoch",
            lambda values: (values["epochs"][1:], values["final_direction"]),
        ),
        "Saturation is the share of training after which the cosine of θ_t − θ_0 with θ_T − θ_0 stays above 0.9.",
    ),
    "H4": Claim(
        "Late in training the activity is in oscillation between steps, not in the direction.",
        oscillating,
        oscillates,
        {
            "share undone, first quarter": cancelled(0),
            "last quarter": cancelled(3),
            "cosine of successive steps, first quarter": over_quarter("oscillation_cosine", 0),
            "cosine, last quarter": over_quarter("oscillation_cosine", 3),
            "turn of the direction in an epoch, first quarter, degrees": over_quarter("apex_angle", 0),
            "turn, last quarter, degrees": over_quarter("apex_angle", 3),
        },
        Curves(
            "share of steps' length that is undone",
            "epoch",
            lambda values: (
                values["epochs"],
                [None if value is None else 1 - value for value in values["series"]["oscillation_linearity"]],
            ),
        ),
        "Of the steps u of a window, 1 − ‖Σu‖ / Σ‖u‖ is undone. Turns are those of θ_t − θ_0 from one epoch to the "
        "next.",
    ),
    "H5": Claim(
        "Scale regularises: ω grows with the size of the model.",
        widths,
        grows,
        {"ω without norms and biases": omega_of_weights, "ω": omega, "validation loss": loss},
        Curves(
            "turn since initialisation, degrees",
            "step",
            lambda values: (values["steps"], values["series"]["turn"]),
        ),
        "The same data and the same number of steps for all widths.",
    ),
    "H6": Claim(
        "q, k and v of middle layers move differently, and scale makes them alike.",
        widths,
        differs,
        {
            "heterogeneity": heterogeneity,
            "of middle layers": lambda values: heterogeneity(values, True),
            "of the first and the last": lambda values: heterogeneity(values, False),
        },
        Curves(
            "largest − smallest ω of q, k and v",
            "layer",
            lambda values: (
                list(range(1, len(values["attention"]) + 1)),
                [row["heterogeneity"] for row in values["attention"].values()],
            ),
        ),
        "Heterogeneity of a layer is the largest less the smallest ω of its q, k and v matrices.",
    ),
    "H7": Claim(
        "Once the direction is redundant, training only BatchNorm's scalars matches training everything.",
        frozen,
        suffices,
        {"accuracy, %": accuracy, "ω": omega, "saturation": saturation},
        Curves(
            "validation accuracy, %",
            "epoch",
            lambda values: (
                list(range(1, len(values["val/accuracy"]) + 1)),
                [100 * share for share in values["val/accuracy"]],
            ),
        ),
        f"Matches: at most {POINTS:g} points of accuracy are lost. The direction is saturated once the cosine of "
        "θ_t − θ_0 with θ_T − θ_0, in the run that trains everything with the same seed, stays above 0.9.",
    ),
}
