"""The rule by which claims are judged, the same for all, stated before any run.

An effect is a number a seed, signed so that the claim says that it is larger than a bound. Its 95 % confidence
interval is that of Student's t over the seeds. The effect is

- supported, if the whole interval lies above the bound,
- not supported, if none of it does,
- undecided otherwise, and where there are fewer than two seeds, or a seed without a value.

A claim is supported if all effects that decide it are, not supported if one of them is not, undecided otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from math import inf, isfinite, nan, sqrt
from statistics import mean, stdev

from scipy.stats import t

CONFIDENCE = 0.95


class Verdict(StrEnum):
    SUPPORTED = "supported"
    NOT_SUPPORTED = "not supported"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Effect:
    """Something that was measured with each seed.

    Attributes:
        name: What it is.
        values: One a seed; NaN where undefined.
        above: The claim says that it is larger than this.
        decides: Whether the verdict on the claim depends on it; otherwise it is only reported.
    """

    name: str
    values: tuple[float, ...]
    above: float = 0.0
    decides: bool = True

    @property
    def mean(self) -> float:
        return mean(self.values)

    @property
    def margin(self) -> float:
        """Half of the confidence interval; infinite for a single seed, NaN where a value is not finite."""
        n = len(self.values)
        if not all(map(isfinite, self.values)):
            return nan
        return float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * stdev(self.values) / sqrt(n) if n > 1 else inf

    @property
    def verdict(self) -> Verdict:
        if not isfinite(self.margin):
            return Verdict.UNDECIDED
        if self.mean - self.margin > self.above:
            return Verdict.SUPPORTED
        if self.mean + self.margin <= self.above:
            return Verdict.NOT_SUPPORTED
        return Verdict.UNDECIDED


def judge(effects: Iterable[Effect]) -> Verdict:
    """The verdict on a claim, from the effects that decide it."""
    verdicts = {effect.verdict for effect in effects if effect.decides}
    if verdicts == {Verdict.SUPPORTED}:
        return Verdict.SUPPORTED
    return Verdict.NOT_SUPPORTED if Verdict.NOT_SUPPORTED in verdicts else Verdict.UNDECIDED
