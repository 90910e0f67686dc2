"""The numbers of a step, on a batch small enough to count by hand."""

from __future__ import annotations

import numpy as np
import pytest

from executor.tasks import Kind
from learner.metrics import describe_batch
from learner.trajectory import Cell, Role, Status, Trajectory, VersionSpan


def make(
    kind: Kind,
    role: Role,
    reward: float,
    parts: dict[str, float],
    versions: tuple[tuple[int, int, int], ...] = ((5, 0, 2),),
    status: Status = Status.STOPPED,
) -> Trajectory:
    spans = tuple(VersionSpan(*span) for span in versions)
    tokens = spans[-1].end
    return Trajectory(
        "run", "a", 0, 1, 0, "e", Cell(kind, role), np.array([1], np.int32), np.zeros(tokens, np.int32),
        np.zeros(tokens, np.float32), spans, reward, parts, status,
    )  # fmt: skip


BATCH = [
    make(Kind.DEDUCTION, Role.PROPOSE, 0.5, {"valid": 1.0, "solve_rate": 0.5}, ((3, 0, 4), (4, 4, 10))),
    make(Kind.DEDUCTION, Role.PROPOSE, -1.0, {"valid": 0.0}, status=Status.TRUNCATED),
    make(Kind.DEDUCTION, Role.SOLVE, 1.0, {"correct": 1.0, "replayed": 0.0}),
    make(Kind.DEDUCTION, Role.SOLVE, -0.5, {"correct": 0.0, "replayed": 0.0}),
    make(Kind.DEDUCTION, Role.SOLVE, 1.0, {"correct": 1.0, "replayed": 1.0}, ((4, 0, 4),)),
    make(Kind.INDUCTION, Role.SOLVE, -1.0, {"correct": 0.0, "replayed": 1.0}),
]


def test_rates_rewards_and_ages() -> None:
    numbers = describe_batch(BATCH, 5)
    assert numbers == pytest.approx(
        {
            "reward/deduction/propose": -0.25,
            "reward/deduction/solve": 0.5,
            "reward/induction/solve": -1.0,
            "response_tokens/deduction/propose": 6.0,
            "response_tokens/deduction/solve": 8 / 3,
            "response_tokens/induction/solve": 2.0,
            "truncated/deduction/propose": 0.5,
            "truncated/deduction/solve": 0.0,
            "truncated/induction/solve": 0.0,
            "valid_rate/deduction": 0.5,
            "solve_rate/deduction": 2 / 3,
            "solve_rate_fresh/deduction": 0.5,
            "solve_rate/induction": 0.0,
            "age_mean": 0.5,  # ages 2, 0, 0, 0, 1, 0
            "age_max": 2.0,
            "age_generation": 1 / 6,  # one rollout went from version 3 to 4
            "age_queue": 1 / 3,  # and waited one version, as another did
            "spanning": 1 / 6,
            "batch_size": 6,
            "reward_mean": 0.0,
        }
    )
    assert all(type(value) in (float, int) for value in numbers.values()), "JSON and msgpack carry no numpy"


def test_an_empty_cell_is_absent_and_not_zero() -> None:
    numbers = describe_batch(BATCH, 5)
    assert not [name for name in numbers if "abduction" in name]
    assert "valid_rate/induction" not in numbers
    assert "solve_rate_fresh/induction" not in numbers, "its only solution was a replay"


def test_the_age_is_the_sum_of_its_parts() -> None:
    numbers = describe_batch(BATCH, 8)
    assert numbers["age_mean"] == pytest.approx(3.5)
    assert numbers["age_generation"] + numbers["age_queue"] == pytest.approx(numbers["age_mean"])
