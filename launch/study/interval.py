"""The statistics of a comparison: an interval of the difference of two arms' means, and the verdict by a margin.

The unit is a run: each gives one accuracy, and runs of two arms are independent, also those with one seed. (A seed
fixes the draws of a run, not the order in which requests arrive, so runs with one seed share little; pairing them would
halve the degrees of freedom for nothing.) The interval is Welch's, for unequal variances:

    d = mean(arm) - mean(baseline)         se^2 = s_a^2 / n_a + s_b^2 / n_b
    d +- t(1 - alpha, df) se                df = se^4 / ((s_a^2 / n_a)^2 / (n_a - 1) + (s_b^2 / n_b)^2 / (n_b - 1))

B. L. Welch, Biometrika 34 (1947) 28-35. Non-inferiority by an interval: G. Piaggio et al., Reporting of noninferiority
and equivalence randomized trials, JAMA 308 (2012) 2594-2604; S. Wellek, Testing Statistical Hypotheses of Equivalence
and Noninferiority, 2nd ed. 2010, chapters 1 and 2.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean, variance

import mpmath

MOST_SEEDS = 1000
"""Largest number of seeds that `seeds_needed` tries."""
POWER = 0.8
"""Probability with which that number of seeds tells."""
MOST_FREEDOM = 1e6
"""Degrees of freedom from which the t distribution is taken for the normal one."""


class Verdict(StrEnum):
    """What an interval says about an arm."""

    NON_INFERIOR = "non-inferior"
    """The whole interval is above -margin: the arm loses less than the margin, if it loses anything."""
    INFERIOR = "inferior"
    """The whole interval is below -margin: the arm loses more than the margin."""
    UNCLEAR = "cannot tell"
    """The interval has -margin in it."""
    TOO_FEW = "cannot tell: too few seeds"
    """There is no interval: it needs two runs of each arm."""
    NOT_MEASURED = "cannot tell: not measured"
    """No run of the arm, or of its baseline, has a measurement."""


@dataclass(frozen=True)
class Sample:
    """The results of an arm's runs."""

    values: tuple[float, ...]
    """One a run."""
    least_variance: float = 0.0
    """Variance that the measurement alone gives a run's value. A sample variance below it is chance, as where two runs
    happen to agree, and is replaced by it."""

    @property
    def mean(self) -> float:
        """The mean of the runs; NaN without any."""
        return fmean(self.values) if self.values else math.nan

    @property
    def spread(self) -> float:
        """The variance of a run's value; NaN for fewer than two runs."""
        return max(variance(self.values), self.least_variance) if len(self.values) > 1 else math.nan


@dataclass(frozen=True)
class Difference:
    """Arm minus baseline, with its interval."""

    mean: float
    low: float
    high: float
    df: float
    """Degrees of freedom."""

    def verdict(self, margin: float) -> Verdict:
        """The verdict by a margin, which is positive; more is better."""
        if self.low > -margin:
            return Verdict.NON_INFERIOR
        return Verdict.INFERIOR if self.high < -margin else Verdict.UNCLEAR


def difference(arm: Sample, baseline: Sample, alpha: float) -> Difference | None:
    """The difference of two arms with its two-sided interval of confidence 1 - 2 alpha. None for fewer than two runs of
    either, which have no variance."""
    if min(len(arm.values), len(baseline.values)) < 2:
        return None
    parts = [(sample.spread / len(sample.values), len(sample.values) - 1) for sample in (arm, baseline)]
    return _welch(arm.mean - baseline.mean, parts, alpha)


def change(arm: Sample, start: Sample, alpha: float) -> Difference | None:
    """The difference of an arm's runs to one measurement that they have in common, that of the initial model. Its
    sampling noise is there once, and is known, so it has no degrees of freedom of its own: Welch's interval with
    s_b^2 / n_b = `start.least_variance`, as if of infinitely many. None for fewer than two runs."""
    if len(arm.values) < 2 or not start.values:
        return None
    parts = [(arm.spread / len(arm.values), len(arm.values) - 1), (start.least_variance, math.inf)]
    return _welch(arm.mean - start.mean, parts, alpha)


def _welch(mean: float, parts: Sequence[tuple[float, float]], alpha: float) -> Difference:
    """The interval of a difference. `parts`: (variance of a side's mean, its degrees of freedom)."""
    total = sum(part for part, _ in parts)
    if total == 0:
        return Difference(mean, mean, mean, math.inf)
    inverse = sum((part / total) ** 2 / freedom for part, freedom in parts)  # no square of a tiny variance
    df = min(1 / inverse, MOST_FREEDOM) if inverse else MOST_FREEDOM
    half = t_quantile(1 - alpha, df) * math.sqrt(total)
    return Difference(mean, mean - half, mean + half, df)


def seeds_needed(spread: float, margin: float, alpha: float) -> int | None:
    """The number of seeds with which two equal arms are told non-inferior in a share `POWER` of all studies: the
    smallest n with (t(1 - alpha, df) + t(POWER, df)) sqrt(2 spread / n) < margin, df = 2n - 2. None above `MOST_SEEDS`.

    `spread`: variance of a run's value. Source: S. A. Julious, Sample sizes for clinical trials with normal data,
    Statistics in Medicine 23 (2004) 1921-1986, section on non-inferiority.
    """

    def enough(n: int) -> bool:
        df = 2 * n - 2
        return (t_quantile(1 - alpha, df) + t_quantile(POWER, df)) * math.sqrt(2 * spread / n) < margin

    numbers = range(2, MOST_SEEDS + 1)
    place = bisect_left(numbers, True, key=enough)  # with more seeds the interval only shrinks
    return numbers[place] if place < len(numbers) else None


def measurement_variance(counts: Sequence[tuple[int, int]]) -> float:
    """The variance of a mean over kinds of tasks that sampling the tasks gives, each kind a binomial.

    `counts`: (solved, tasks) of each kind. The shares are those of Laplace, (solved + 1) / (tasks + 2), so that a kind
    of which none or all were solved is not taken for certain.
    """
    if not counts or any(tasks < 1 for _, tasks in counts):
        return 0.0
    shares = [((solved + 1) / (tasks + 2), tasks) for solved, tasks in counts]
    return sum(share * (1 - share) / tasks for share, tasks in shares) / len(counts) ** 2


def t_quantile(probability: float, df: float) -> float:
    """The quantile of Student's t distribution with `df` degrees of freedom, for a probability above 0.5.

    From the regularised incomplete beta function I: P(T > t) = I_{df / (df + t^2)}(df / 2, 1 / 2) / 2.
    """
    tail = 1 - probability

    def excess(t: float) -> float:
        return float(mpmath.betainc(df / 2, 0.5, 0, df / (df + t * t), regularized=True)) / 2 - tail

    low, high = 0.0, 1.0
    while excess(high) > 0:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return (low + high) / 2
