"""95% intervals of held-out rates, and of differences between two policies on the same tasks.

A task is solved several times, and the tasks of one program resemble each other, so solutions are not independent. The
independent unit is the program: variances are those of sums over programs (Miller 2024, "Adding Error Bars to Evals",
arXiv:2411.00640, sections 2.2 and 4.2: clustered standard errors, and paired differences).

The mean over kinds weighs each kind alike. With K kinds, n_k tasks of kind k and r_i the share of task i's solutions
that are correct, m = sum_i w_i r_i with w_i = 1 / (K n_k), and with C programs

    SE^2 = C / (C - 1) * sum over programs of (sum of its tasks' w_i (r_i - m_k(i)))^2

where m_k is the mean of kind k. Rates of few per cent are not normally distributed, so the interval of a rate is
Wilson's, with the effective number of samples m (1 - m) / SE^2 (Dean and Pagano 2015, "Evaluating Confidence Interval
Methods for Binomial Proportions in Clustered Surveys"); without any variance it is C. The interval of a difference is
d +- 1.96 SE, of the differences r_i - s_i on the tasks that both have; without any difference +- 3 / C, the rule of
three (Hanley and Lippman-Hand 1983).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

Z = 1.959964
"""The 97.5% quantile of the normal distribution."""


class Solved(NamedTuple):
    """How often one task was solved."""

    program: str
    kind: str
    share: float
    """Correct solutions / solutions. In a difference: that of one policy minus that of another."""


class Estimate(NamedTuple):
    """A rate or a difference of rates, with its 95% interval."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether a difference is beyond its interval."""
        return self.low > 0 or self.high < 0


def rate(solved: Sequence[Solved]) -> Estimate:
    """The mean over kinds of the shares, with Wilson's interval. ValueError without a task."""
    mean, variance, programs = _mean(solved)
    effective = mean * (1 - mean) / variance if variance else float(programs)
    centre = (mean + Z**2 / (2 * effective)) / (1 + Z**2 / effective)
    spread = math.sqrt(mean * (1 - mean) / effective + (Z / (2 * effective)) ** 2)
    half = Z * spread / (1 + Z**2 / effective)
    return Estimate(mean, max(0.0, centre - half), min(1.0, centre + half))


def difference(differences: Sequence[Solved]) -> Estimate:
    """The mean over kinds of differences of shares. ValueError without a task.

    With one program there is no variance to estimate: the interval is then the whole range, -1 to 1. Equal differences
    have none either.
    """
    mean, variance, programs = _mean(differences)
    half = Z * math.sqrt(variance) or 3.0 / programs
    return Estimate(mean, mean - half, mean + half) if programs > 1 else Estimate(mean, -1.0, 1.0)


def _mean(solved: Sequence[Solved]) -> tuple[float, float, int]:
    """(mean over kinds, its variance, number of programs); the variance of one program is 0."""
    if not solved:
        raise ValueError("no task was measured")
    by_kind: dict[str, list[float]] = defaultdict(list)
    for one in solved:
        by_kind[one.kind].append(one.share)
    means = {kind: sum(shares) / len(shares) for kind, shares in by_kind.items()}
    sums: dict[str, float] = defaultdict(float)
    for one in solved:
        sums[one.program] += (one.share - means[one.kind]) / (len(means) * len(by_kind[one.kind]))
    programs = len(sums)
    variance = programs / (programs - 1) * sum(total**2 for total in sums.values()) if programs > 1 else 0.0
    return sum(means.values()) / len(means), variance, programs
