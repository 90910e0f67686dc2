"""The interval of a difference and the verdict: against published values, and by how often it holds."""

from __future__ import annotations

import math
import random
from statistics import NormalDist, fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.study.interval import (
    Difference,
    Sample,
    Verdict,
    change,
    difference,
    measurement_variance,
    seeds_needed,
    t_quantile,
)

# Tables of Student's t, as in every textbook.
TABLE = [(0.95, 1, 6.3138), (0.975, 1, 12.7062), (0.95, 2, 2.9200), (0.95, 4, 2.1318), (0.975, 10, 2.2281),
         (0.99, 5, 3.3649), (0.9, 30, 1.3104)]  # fmt: skip


@pytest.mark.parametrize(("probability", "df", "t"), TABLE)
def test_quantiles_are_those_of_the_tables(probability: float, df: float, t: float) -> None:
    assert t_quantile(probability, df) == pytest.approx(t, abs=6e-5)


def test_many_degrees_of_freedom_give_the_normal_distribution() -> None:
    assert t_quantile(0.95, 1e6) == pytest.approx(NormalDist().inv_cdf(0.95), abs=1e-5)


def test_the_interval_is_that_of_welch() -> None:
    """By hand: variances 1 and 4, se^2 = 1/3 + 4/3, df = (5/3)^2 / ((1/3)^2 / 2 + (4/3)^2 / 2) = 50/17."""
    found = difference(Sample((1.0, 2.0, 3.0)), Sample((2.0, 4.0, 6.0)), 0.05)
    assert found is not None
    assert (found.mean, found.df) == (-2.0, pytest.approx(50 / 17))
    half = t_quantile(0.95, 50 / 17) * math.sqrt(5 / 3)
    assert (found.low, found.high) == (pytest.approx(-2 - half), pytest.approx(-2 + half))


def test_the_interval_has_the_difference_as_often_as_it_says() -> None:
    draw = random.Random(5)

    def sample(mean: float, spread: float) -> Sample:
        return Sample(tuple(draw.gauss(mean, spread) for _ in range(3)))

    found = [difference(sample(0.3, 0.02), sample(0.35, 0.04), 0.05) for _ in range(300)]
    holds = sum(one is not None and one.low <= -0.05 <= one.high for one in found)
    assert 0.85 < holds / len(found) < 0.95


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.02, 0.01, Verdict.NON_INFERIOR),
        (0.01, 0.02, Verdict.NON_INFERIOR),
        (-0.04, 0.01, Verdict.UNCLEAR),
        (-0.04, -0.01, Verdict.UNCLEAR),
        (-0.09, -0.031, Verdict.INFERIOR),
        (-0.09, -0.03, Verdict.UNCLEAR),
        (-0.03, 0.0, Verdict.UNCLEAR),
    ],
)
def test_the_verdict_is_by_where_the_interval_lies(low: float, high: float, verdict: Verdict) -> None:
    assert Difference((low + high) / 2, low, high, 4.0).verdict(0.03) is verdict


@given(
    st.lists(st.floats(0, 1), min_size=2, max_size=6),
    st.lists(st.floats(0, 1), min_size=2, max_size=6),
    st.floats(0, 0.01),
)
def test_an_interval_has_its_mean_in_the_middle_and_is_no_narrower_than_the_measurement(
    arm: list[float], baseline: list[float], least: float
) -> None:
    found = difference(Sample(tuple(arm), least), Sample(tuple(baseline), least), 0.05)
    assert found is not None
    assert found.low <= found.mean <= found.high
    assert found.high - found.mean == pytest.approx(found.mean - found.low, abs=1e-9)
    noise = least * (1 / len(arm) + 1 / len(baseline))
    assert found.high - found.mean >= NormalDist().inv_cdf(0.95) * math.sqrt(noise) - 1e-9


def test_one_run_has_no_interval() -> None:
    assert difference(Sample((0.5,)), Sample((0.4, 0.5)), 0.05) is None


def test_a_kind_of_which_none_was_solved_is_not_taken_for_certain() -> None:
    assert measurement_variance([(0, 62), (31, 62)]) == pytest.approx((1 / 64 * 63 / 64 + 0.25) / 62 / 4)
    assert measurement_variance([]) == 0.0


@pytest.mark.parametrize("spread", [0.0004, 0.001, 0.01])
def test_the_seeds_that_are_needed_are_the_fewest_that_are_enough(spread: float) -> None:
    n = seeds_needed(spread, 0.03, 0.05)
    assert n is not None

    def reach(seeds: int) -> float:
        df = 2 * seeds - 2
        return (t_quantile(0.95, df) + t_quantile(0.8, df)) * math.sqrt(2 * spread / seeds)

    assert reach(n) < 0.03
    assert n == 2 or reach(n - 1) >= 0.03


def test_with_the_seeds_that_are_needed_four_of_five_studies_of_equal_arms_tell() -> None:
    """And with half of them fewer do: an interval that is as wide as the margin tells in every second study alone."""
    spread, margin, draw = 0.001, 0.03, random.Random(1)
    n = seeds_needed(spread, margin, 0.05)
    assert n is not None

    def told(seeds: int) -> float:
        arms = [[[draw.gauss(0.1, math.sqrt(spread)) for _ in range(seeds)] for _ in range(2)] for _ in range(300)]
        between = [difference(Sample(tuple(one)), Sample(tuple(other)), 0.05) for one, other in arms]
        return fmean(found is not None and found.low > -margin for found in between)

    assert 0.72 < told(n) < 0.9
    assert told(n // 2) < 0.65


def test_more_seeds_than_can_be_run_are_not_named() -> None:
    assert seeds_needed(1.0, 0.001, 0.05) is None


def test_a_change_counts_the_start_s_noise_once_however_many_runs_share_it() -> None:
    runs = Sample((0.5, 0.6, 0.7))
    for copies in (1, 3):
        found = change(runs, Sample((0.2,) * copies, 0.01), 0.05)
        assert found is not None
        # By hand: s^2 = 0.01, so SE^2 = 0.01 / 3 + 0.01 and df = 2 * 4^2.
        assert (found.mean, found.df) == (pytest.approx(0.4), pytest.approx(32))
        assert found.high - found.mean == pytest.approx(t_quantile(0.95, 32) * math.sqrt(0.04 / 3))
    exact = change(runs, Sample((0.2,)), 0.05)
    assert exact is not None
    assert exact.df == pytest.approx(2)
    assert change(Sample((0.5,)), Sample((0.2,)), 0.05) is None
    agreeing = change(Sample((0.5, 0.5)), Sample((0.2,), 0.01), 0.05)
    assert agreeing is not None
    assert agreeing.high - agreeing.mean == pytest.approx(1.6449 * 0.1, rel=1e-3), "normal: nothing is estimated"
