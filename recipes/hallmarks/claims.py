"""The paper's hallmarks as claims: the runs that each asks for, and the effects that decide it.

Source: Singh, He, Hofmann and Schölkopf, arXiv:2403.07379; the numbers H1 to H7, and the bounds, are this recipe's.
The bounds, and the rule of verdict.py, were set before the runs were made; those of H3 and H4 anew after a pilot, in
which they followed from the drops of the learning rate: runs without drops decide too since then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import log2, log10, nan
from statistics import mean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_traj.measures import SATURATED
from recipes.hallmarks.runs import Images, Setting, Text, quarter
from recipes.hallmarks.verdict import Effect

Values = Mapping[str, Any]
"""What was noted of a run."""

Number = Callable[[Values], float]

Runs = Mapping[str, Sequence[Values]]
"""By variant, one a seed, the seeds in the same order."""

REDUNDANT = 0.5  # H3: share of training after saturation; "most of training"
ALIKE = 0.9  # H3, H4: cosine; "close to 1"
UNDONE = 0.5  # H4: share of the length of the steps of the last quarter that leads nowhere
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
    values: Callable[[Values], tuple[Sequence[float], Sequence[float]]]


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
    columns: Mapping[str, Number]
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


def in_quarter(name: str, which: int) -> Number:
    """Mean of a series over the first to fourth quarter of the epochs; where it is undefined, it is left out."""

    def of(values: Values) -> float:
        epochs, series = (np.array(column) for column in (values["epochs"], values["series"][name]))
        chosen = series[(np.ceil(4 * epochs / epochs[-1]) == which) & ~np.isnan(series)]
        return float(chosen.mean()) if chosen.size else nan

    return of


def undone(values: Values) -> float:
    """Share of the length of the last quarter's steps that leads nowhere: 1 − ‖Σu‖ / Σ‖u‖."""
    steps = late_steps(values)
    lengths = np.array(values["series"]["oscillation_step_length"])[-len(steps) :]  # means over a window of each epoch
    return 1 - values["last_quarter"] / float(steps @ lengths)


def undone_by_noise(values: Values) -> float:
    """The same of as many steps of noise in many dimensions, under the momentum of the run.

    Steps i and j then have the cosine β^|i − j|.
    """
    beta, n = values["momentum"], int(late_steps(values).sum())
    lags = np.arange(1, n)
    return 1 - float(np.sqrt(n + 2 * ((n - lags) * beta**lags).sum())) / n


def late_steps(values: Values) -> NDArray[np.float64]:
    """Optimizer steps of each epoch of the last quarter."""
    return np.diff(np.array(values["steps"], dtype=float))[-quarter(len(values["steps"])) :]


def direction_known(values: Values) -> float:
    """Cosine of the direction at the start of the last quarter with the final one."""
    return values["final_direction"][-1 - quarter(len(values["steps"]))]


def saturation_of_walk(values: Values) -> float:
    """Saturation that a random walk in many dimensions with the same distances between snapshots has."""
    squares = np.cumsum(np.square(values["series"]["update_length"][1:]))
    return (1 + int(np.argmax(np.sqrt(squares / squares[-1]) >= SATURATED))) / len(squares)


def heterogeneity(values: Values) -> float:
    """Largest less smallest ω of q, k and v, the mean over layers."""
    return mean(row["heterogeneity"] for row in values["attention"].values())


def of_middle(values: Values) -> float:
    return mean([row["heterogeneity"] for row in values["attention"].values()][1:-1])


def of_ends(values: Values) -> float:
    first, *_, last = values["attention"].values()
    return mean([first["heterogeneity"], last["heterogeneity"]])


def relative(values: Values) -> float:
    """Heterogeneity of middle layers in multiples of 1 − ω, ω being the mean over their q, k and v."""
    middle = list(values["attention"].values())[1:-1]
    return of_middle(values) / (1 - mean(row[role] for row in middle for role in "qkv"))


def against(name: str) -> Callable[[Values], tuple[Sequence[float], Sequence[float]]]:
    return lambda values: (values["epochs"], values["series"][name])


# Over seeds -------------------------------------------------------------------------------------------------


def of_each_seed(runs: Runs, variants: Sequence[str], number: Callable[..., float]) -> tuple[float, ...]:
    """A number that depends on the runs of some variants with the same seed."""
    return tuple(number(*values) for values in zip(*(runs[variant] for variant in variants), strict=True))


def difference(runs: Runs, larger: str, smaller: str, number: Number, name: str = "ω", decides: bool = False) -> Effect:
    values = of_each_seed(runs, (larger, smaller), lambda a, b: number(a) - number(b))
    return Effect(f"{name} ({larger}) − {name} ({smaller})", values, decides=decides)


def slope(runs: Runs, levels: Mapping[str, float], number: Number) -> tuple[float, ...]:
    """Least-squares slope of a number over the levels of its variants, of each seed."""
    x = list(levels.values())
    if len(set(x)) < 2:
        raise ValueError(f"{', '.join(levels)}: a slope takes two levels at least; pass more")
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


def of_both(runs: Runs, base: Base, measured: Iterable[tuple[str, Number, float, bool]]) -> list[Effect]:
    """Effects of the run as it is and of the one without drops: name, number, bound, and whether it decides."""
    return [
        Effect(f"{name} ({variant})", of_each_seed(runs, [variant], number), above, decides)
        for variant in settling(base)
        for name, number, above, decides in measured
    ]


def saturates(runs: Runs, base: Base) -> list[Effect]:
    measured: list[tuple[str, Number, float, bool]] = [
        ("share of training after saturation", lambda run: 1 - saturation(run), REDUNDANT, True),
        ("smallest cosine between snapshots of the second half", late_cosine, ALIKE, True),
        ("saturation of a random walk − saturation", lambda run: saturation_of_walk(run) - saturation(run), 0.0, False),
    ]
    return of_both(runs, base, measured)


# H4 ---------------------------------------------------------------------------------------------------------


def oscillating(base: Base) -> dict[str, Setting]:
    return settling(base) | {name: setting for name, setting in rates(base).items() if setting != base.images}


def oscillates(runs: Runs, base: Base) -> list[Effect]:
    noise = "share undone − that of noise under the same momentum"
    measured: list[tuple[str, Number, float, bool]] = [
        ("share undone of the last quarter's steps", undone, UNDONE, True),
        ("cosine of the direction three quarters through with the final one", direction_known, ALIKE, True),
        (noise, lambda run: undone(run) - undone_by_noise(run), 0.0, False),
    ]
    return of_both(runs, base, measured)


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

    def fall(number: Number) -> tuple[float, ...]:
        return tuple(-value for value in slope(runs, levels, number))

    def middle_less_ends(*values: Values) -> float:
        return mean(of_middle(run) - of_ends(run) for run in values)

    return [
        Effect(
            "heterogeneity of middle layers − of the first and the last, mean over widths",
            of_each_seed(runs, list(levels), middle_less_ends),
        ),
        Effect("fall of heterogeneity for a doubled width (slope), middle layers", fall(of_middle)),
        Effect("the same, all layers", fall(heterogeneity), decides=False),
        Effect("the same, middle layers, in multiples of 1 − ω", fall(relative), decides=False),
        *(
            difference(runs, narrower, wider, of_middle, "heterogeneity of middle layers")
            for narrower, wider in pairwise(levels)
        ),
    ]


# H7 ---------------------------------------------------------------------------------------------------------


def freezing(base: Base) -> dict[str, int]:
    """Epochs, by variant; shares that come to the same epoch are one."""
    epochs = dict.fromkeys(map(base.images.epoch, FREEZING))
    return {f"BatchNorm only, from epoch {epoch}": epoch for epoch in epochs}


def frozen(base: Base) -> dict[str, Setting]:
    variants = {name: replace(base.images, frozen_from=epoch) for name, epoch in freezing(base).items()}
    return {"everything": base.images, **variants}


def suffices(runs: Runs, base: Base) -> list[Effect]:
    everything, *others = frozen(base)
    epochs = list(freezing(base).values())

    def gained(full: Values, norms: Values) -> float:
        return accuracy(norms) - accuracy(full)

    def once_redundant(full: Values, *norms: Values) -> tuple[int, Values] | None:
        """The first of these epochs that is not before saturation, and the run that was frozen then."""
        later = [pair for pair in zip(epochs, norms, strict=True) if pair[0] >= saturation(full) * base.images.epochs]
        return later[0] if later else None

    def gained_once_redundant(full: Values, *norms: Values) -> float:
        found = once_redundant(full, *norms)
        return nan if found is None else gained(full, found[1])

    def gained_over_stopping(full: Values, *norms: Values) -> float:
        found = once_redundant(full, *norms)
        return nan if found is None else accuracy(found[1]) - 100 * full["val/accuracy"][found[0] - 1]

    return [
        Effect(
            "points above everything, frozen at the first of these epochs at which the direction was saturated",
            of_each_seed(runs, [everything, *others], gained_once_redundant),
            above=-POINTS,
        ),
        Effect(
            "points above stopping there",
            of_each_seed(runs, [everything, *others], gained_over_stopping),
            decides=False,
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
        "Momentum and weight decay together promote directional exploration: ω is lowest with both on, and falls by "
        "more than with either alone.",
        toggles,
        together,
        {"ω": omega, "ω without norms and biases": omega_of_weights, "accuracy, %": accuracy},
        Curves("turn since initialisation, degrees", "epoch", against("turn")),
        "Momentum makes steps 1 / (1 − momentum) times as long; the two last variants have none, and a learning rate "
        "that makes up for it: they tell how much of the effect is that of longer steps.",
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
            "cosine with the final direction",
            "epoch",
            lambda values: (values["epochs"][1:], values["final_direction"]),
        ),
        f"Saturation is the share of training after which the cosine of θ_t − θ_0 with θ_T − θ_0 stays above "
        f"{SATURATED}. Steps that become short with the learning rate change no direction, whatever the loss is "
        "like, so the run without drops has to pass too; a random walk has steps as long as the run's.",
    ),
    "H4": Claim(
        "Late in training the activity is in oscillation between steps, not in the direction.",
        oscillating,
        oscillates,
        {
            "share undone of the last quarter's steps": undone,
            "that of noise": undone_by_noise,
            "cosine of successive steps, last quarter": in_quarter("oscillation_cosine", 4),
            "share of reversals, last quarter": in_quarter("oscillation_reversals", 4),
            "turn of the direction in an epoch, first quarter, degrees": in_quarter("apex_angle", 1),
            "last quarter, degrees": in_quarter("apex_angle", 4),
        },
        Curves("cosine of successive steps", "epoch", against("oscillation_cosine")),
        "Of steps u, the share 1 − ‖Σu‖ / Σ‖u‖ of their length is undone; lengths are those of a window at the start "
        "of each epoch. Noise under momentum β has the cosine β^|i − j| between steps i and j. Turns are those of "
        "θ_t − θ_0 from one epoch to the next.",
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
            "heterogeneity of middle layers": of_middle,
            "of the first and the last": of_ends,
            "of middle layers, in multiples of 1 − ω": relative,
        },
        Curves(
            "largest − smallest ω of q, k and v",
            "layer",
            lambda values: (
                list(range(1, len(values["attention"]) + 1)),
                [row["heterogeneity"] for row in values["attention"].values()],
            ),
        ),
        "Heterogeneity of a layer is the largest less the smallest ω of its q, k and v matrices. Where ω grows, "
        "differences have less room: in multiples of 1 − ω they are told apart from that.",
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
        f"Matches: no more than {POINTS:g} points of accuracy lost. The direction is saturated once the cosine of "
        f"θ_t − θ_0 with θ_T − θ_0, in the run that trains everything with the same seed, stays above {SATURATED}. "
        "With so small a validation set, a point is a few images. recipes/hybrid has more controls.",
    ),
}
