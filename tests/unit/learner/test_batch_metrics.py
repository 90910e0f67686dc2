"""The numbers of a step that any training has, on a batch small enough to count by hand."""

from __future__ import annotations

import numpy as np
import pytest

from learner.metrics.batch import describe_advantages, describe_ages
from learner.trajectory import Role, Status
from tests.unit.batches import make

BATCH = [
    make("deduction", Role.PROPOSE, 0.5, {"valid": 1.0, "solve_rate": 0.5}, ((3, 0, 4), (4, 4, 10))),
    make("deduction", Role.PROPOSE, -1.0, {"valid": 0.0}, status=Status.TRUNCATED),
    make("deduction", Role.SOLVE, 1.0, {"correct": 1.0, "replayed": 0.0}),
    make("deduction", Role.SOLVE, -0.5, {"correct": 0.0, "replayed": 0.0}, prompt=1, first=7),
    make("deduction", Role.SOLVE, 1.0, {"correct": 1.0, "replayed": 1.0}, ((4, 0, 4),), prompt=2),
    make("induction", Role.SOLVE, -1.0, {"correct": 0.0, "replayed": 1.0}),
]
ARRIVED = {0: 5}
"""All of these tests' trajectories are of slot 0."""


def test_the_age_is_the_sum_of_its_parts() -> None:
    ages = describe_ages(BATCH, 8, {0: 6})
    assert ages["age_mean"] == pytest.approx(3.5)
    assert ages["age/generation"] == pytest.approx(1 / 6)
    assert ages["age/queue"] == pytest.approx(8 / 6)  # the newest tokens are of 4, 5, 5, 5, 4, 5
    assert ages["age/publish"] == 2
    assert sum(ages[f"age/{part}"] for part in ("generation", "queue", "publish")) == pytest.approx(ages["age_mean"])


def test_advantages_by_cell() -> None:
    got = describe_advantages(BATCH, np.array([1, -1, 0.5, 0.5, 0.5, 0], np.float32))
    assert got == pytest.approx(
        {
            "advantage_mean/deduction/propose": 0.0,
            "advantage_std/deduction/propose": 1.0,
            "advantage_mean/deduction/solve": 0.5,
            "advantage_std/deduction/solve": 0.0,
            "advantage_mean/induction/solve": 0.0,
            "advantage_std/induction/solve": 0.0,
        }
    )
