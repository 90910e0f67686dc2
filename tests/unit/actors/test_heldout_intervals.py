"""Intervals of held-out rates: against textbook numbers, and against repeated draws."""

from __future__ import annotations

import math
import random

import pytest

from actors.heldout.intervals import Solved, Z, difference, rate


def alone(shares: list[float], kind: str = "k") -> list[Solved]:
    """Tasks of one kind, each of a program of its own."""
    return [Solved(str(number), kind, share) for number, share in enumerate(shares)]


def wilson(correct: int, count: float) -> tuple[float, float]:
    """Wilson's score interval, as its article has it (1927)."""
    p, z = correct / count, Z
    centre = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    return centre - half, centre + half


def test_one_sample_of_each_of_many_programs_is_a_binomial_proportion() -> None:
    found = rate(alone([1.0] * 60 + [0.0] * 540))
    assert found.value == pytest.approx(0.1)
    assert (found.low, found.high) == pytest.approx(wilson(60, 600), rel=0.01)


def test_nothing_solved_still_has_an_upper_bound() -> None:
    found = rate(alone([0.0] * 100))
    assert (found.value, found.low) == (0.0, 0.0)
    assert found.high == pytest.approx(wilson(0, 100)[1])


def test_the_mean_weighs_kinds_alike_however_many_tasks_they_have() -> None:
    found = rate([*alone([1.0] * 10, "a"), *alone([0.0] * 90, "b")])
    assert found.value == pytest.approx(0.5)


def test_tasks_of_one_program_count_as_one() -> None:
    apart = rate(alone([1.0, 0.0] * 48))
    together = rate([Solved(str(number // 4), "k", float(number % 8 < 4)) for number in range(96)])
    assert together.value == pytest.approx(apart.value)
    assert (together.high - together.low) / (apart.high - apart.low) == pytest.approx(2.0, rel=0.1)


@pytest.mark.parametrize("spread", [0.0, 0.3])
def test_95_of_100_intervals_hold_the_truth(spread: float) -> None:
    """With tasks of unlike difficulty, programs with three tasks, and four samples each; seeded."""
    generator, hits, differences, runs = random.Random(7), 0, 0, 300
    for _ in range(runs):
        pairs = []
        for program in range(150):
            ease = generator.random() < spread
            for kind in "abc":
                chance = 0.6 if ease else 0.05
                shares = [sum(generator.random() < chance for _ in range(4)) / 4 for _ in range(2)]
                pairs.append((str(program), kind, *shares))
        truth = 0.05 + spread * 0.55
        found = rate([Solved(program, kind, first) for program, kind, first, _ in pairs])
        hits += found.low <= truth <= found.high
        change = difference([Solved(program, kind, second - first) for program, kind, first, second in pairs])
        differences += change.low <= 0.0 <= change.high
    assert 0.92 <= hits / runs <= 0.98
    assert 0.92 <= differences / runs <= 0.98


def test_pairing_finds_a_change_that_the_rates_alone_would_hide() -> None:
    before = [0.0, 1.0] * 50
    after = [min(1.0, share + 0.25 * (number % 3 == 0)) for number, share in enumerate(before)]
    change = difference(alone([late - early for early, late in zip(before, after, strict=True)]))
    first, second = rate(alone(before)), rate(alone(after))
    assert change.excludes_zero and change.value > 0
    assert first.high > second.low, "their intervals overlap"


def test_no_change_of_any_task_still_has_an_interval() -> None:
    change = difference(alone([0.0] * 100))
    assert (change.low, change.value, change.high) == (-0.03, 0.0, 0.03)


def test_one_program_proves_nothing() -> None:
    assert not difference([Solved("p", "k", 1.0)]).excludes_zero
    with pytest.raises(ValueError, match="no task was measured"):
        rate([])
