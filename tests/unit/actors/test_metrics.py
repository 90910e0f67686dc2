"""The numbers of a step, on a batch small enough to count by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from actors.metrics import SOLVE_RATE_BINS, describe_batch, solve_rate_bin
from actors.parsing import FormatError
from actors.propose import ProposalOutcome
from learner.metrics.batch import describe_ages
from learner.trajectory import Role, Status, Trajectory
from tests.unit.batches import make


def proposal(parts: dict[str, float], reward: float = 0.0, outcome: str = "valid") -> Trajectory:
    return make("deduction", Role.PROPOSE, reward, parts, outcome=outcome)


def solution(prompt: int, first: int, outcome: str = "wrong", **parts: float) -> Trajectory:
    """`first`: the first token of its response, and its answer."""
    parts = {"answer": float(first)} | parts
    return make("deduction", Role.SOLVE, 0.0, parts, outcome=outcome, prompt=prompt, first=first)


BATCH = [
    make("deduction", Role.PROPOSE, 0.5, {"valid": 1.0, "solve_rate": 0.5}, ((3, 0, 4), (4, 4, 10))),
    make("deduction", Role.PROPOSE, -1.0, {"valid": 0.0}, status=Status.TRUNCATED),
    make("deduction", Role.SOLVE, 1.0, {"correct": 1.0, "replayed": 0.0, "answer": 1.0}),
    make("deduction", Role.SOLVE, -0.5, {"correct": 0.0, "replayed": 0.0, "answer": 2.0}, prompt=1, first=7),
    make("deduction", Role.SOLVE, 1.0, {"correct": 1.0, "replayed": 1.0, "answer": 3.0}, ((4, 0, 4),), prompt=2),
    make("induction", Role.SOLVE, -1.0, {"correct": 0.0, "replayed": 1.0, "answer": 4.0}),
]
ARRIVED = {0: 5}
"""All of these tests' trajectories are of slot 0."""


def test_rates_rewards_and_ages() -> None:
    numbers = describe_batch(BATCH) | describe_ages(BATCH, 5, ARRIVED)
    assert numbers == pytest.approx(
        {
            "trajectories/deduction/propose": 2,
            "trajectories/deduction/solve": 3,
            "trajectories/induction/solve": 1,
            "reward/deduction/propose": -0.25,
            "reward/deduction/solve": 0.5,
            "reward/induction/solve": -1.0,
            "response_tokens/deduction/propose": 6.0,
            "response_tokens/deduction/solve": 8 / 3,
            "response_tokens/induction/solve": 2.0,
            "prompt_tokens/deduction/propose": 1.0,
            "prompt_tokens/deduction/solve": 1.0,
            "prompt_tokens/induction/solve": 1.0,
            "truncated/deduction/propose": 0.5,
            "truncated/deduction/solve": 0.0,
            "truncated/induction/solve": 0.0,
            "valid_rate/deduction": 0.5,
            **{f"learnability/deduction/{name}": float(name == "25_50") for name in SOLVE_RATE_BINS},
            "solve_rate/deduction": 2 / 3,
            "solve_rate_fresh/deduction": 0.5,
            "solve_rate_replayed/deduction": 1.0,
            "replayed/deduction": 1 / 3,
            "answer_diversity/deduction": 1.0,  # of the task with two answers; one answer says nothing
            "distinct_answers/deduction": 1.0,
            "distinct_answers/induction": 1.0,
            "solve_rate/induction": 0.0,
            "solve_rate_replayed/induction": 0.0,
            "replayed/induction": 1.0,
            "age_mean": 0.5,  # ages 2, 0, 0, 0, 1, 0
            "age_max": 2.0,
            "age/generation": 1 / 6,  # one rollout went from version 3 to 4
            "age/queue": 1 / 3,  # and came in one version later, as another did
            "age/publish": 0.0,
            "spanning": 1 / 6,
            "batch_size": 6,
            "reward_mean": 0.0,
        }
    )
    assert all(type(value) in (float, int) for value in numbers.values()), "JSON and msgpack carry no numpy"


def test_an_empty_cell_is_absent_and_not_zero() -> None:
    numbers = describe_batch(BATCH)
    assert not [name for name in numbers if "abduction" in name]
    assert "valid_rate/induction" not in numbers
    assert "solve_rate_fresh/induction" not in numbers, "its only solution was a replay"
    assert not [name for name in numbers if name.startswith(("duplicates", "ignores_input", "complexity", "outcome"))]


def test_outcomes_are_shares_by_reason_and_unreadable_replies_are_format_errors() -> None:
    rejected = ["valid", "valid", "nondeterministic", "no_input", "no_program"]
    judged = ["correct", "wrong", "unparseable", "no_output"]
    batch = [proposal({}, outcome=outcome) for outcome in rejected]
    batch += [solution(1, 0, outcome) for outcome in judged]
    numbers = describe_batch(batch)
    outcomes = {name.removeprefix("outcome/deduction/"): v for name, v in numbers.items() if name.startswith("outcome")}
    assert outcomes == pytest.approx(
        {"propose/valid": 0.4, "propose/nondeterministic": 0.2, "propose/no_input": 0.2, "propose/no_program": 0.2}
        | {f"solve/{outcome}": 0.25 for outcome in judged}
    )
    assert numbers["format_errors/deduction/propose"] == pytest.approx(0.4)
    assert numbers["format_errors/deduction/solve"] == pytest.approx(0.5), "an unparseable answer is one as well"


def test_the_metrics_know_every_outcome_of_an_episode() -> None:
    for outcome in (*ProposalOutcome, *FormatError):
        numbers = describe_batch([proposal({}, outcome=outcome.value)])
        assert numbers["format_errors/deduction/propose"] == isinstance(outcome, FormatError), outcome


def test_every_reward_term_has_a_mean_and_together_they_are_the_reward() -> None:
    batch = [
        proposal({"reward/learnability": 0.5, "reward/complexity": 0.25}, 0.75),
        proposal({"reward/learnability": 0.25}, 0.25),
        proposal({"reward/format": -1.0}, -1.0),
    ]
    numbers = describe_batch(batch)
    terms = {name: value for name, value in numbers.items() if name.startswith("reward/deduction/propose/")}
    assert terms == pytest.approx(
        {
            "reward/deduction/propose/learnability": 0.25,
            "reward/deduction/propose/complexity": 0.25 / 3,
            "reward/deduction/propose/format": -1 / 3,
        }
    )
    assert sum(terms.values()) == pytest.approx(numbers["reward/deduction/propose"])


def test_what_is_known_of_programs_is_averaged_over_those_it_is_known_of() -> None:
    batch = [
        proposal({"valid": 1.0, "duplicate": 1.0, "ignores_input": 0.0, "nodes": 10.0, "complexity": 1.0,
                  "distance": 0.5}),
        proposal({"valid": 1.0, "duplicate": 0.0, "ignores_input": 1.0, "nodes": 30.0, "complexity": 2.0,
                  "distance": 0.1}),
        proposal({"valid": 0.0}, -1.0, "error"),
    ]  # fmt: skip
    numbers = describe_batch(batch)
    found = {
        name: numbers[f"{name}/deduction"]
        for name in ("duplicates", "ignores_input", "nodes", "complexity", "distance")
    }
    assert found == pytest.approx(
        {"duplicates": 0.5, "ignores_input": 0.5, "nodes": 20.0, "complexity": 1.5, "distance": 0.3}
    )


def test_learnability_is_a_histogram_of_solve_rates() -> None:
    edges = {
        0.0: "0",
        1e-9: "0_25",
        0.25: "0_25",
        0.26: "25_50",
        0.5: "25_50",
        0.75: "50_75",
        0.99: "75_100",
        1.0: "100",
    }
    assert {rate: solve_rate_bin(rate) for rate in edges} == edges
    batch = [proposal({"valid": 1.0, "solve_rate": rate}) for rate in (0.0, 0.0, 0.125, 1.0)] + [
        proposal({"valid": 0.0})
    ]
    numbers = describe_batch(batch)
    shares = [numbers[f"learnability/deduction/{name}"] for name in SOLVE_RATE_BINS]
    assert shares == [0.5, 0.25, 0, 0, 0, 0.25]


def test_answer_diversity_is_over_tasks_that_were_tried_more_than_once() -> None:
    batch = [solution(1, 5) for _ in range(4)]  # all the same: 0
    batch += [solution(2, first) for first in (1, 1, 2)]  # two of three: 1/2
    batch += [solution(3, 9)]
    assert describe_batch(batch)["answer_diversity/deduction"] == pytest.approx(0.25)


def test_solutions_that_estimate_are_counted() -> None:
    batch = [solution(1, 0, estimate=1.0), solution(1, 0, estimate=0.0)]
    assert describe_batch(batch)["estimates/deduction"] == pytest.approx(0.5)


def made(
    slot: int, role: Role, reward: float, parts: dict[str, float], versions: tuple[tuple[int, int, int], ...]
) -> Trajectory:
    status = Status.TRUNCATED if versions[-1][2] > 3 else Status.STOPPED
    return replace(make("deduction", role, reward, parts, versions, status), slot=slot)


def test_a_batch_is_described_by_what_is_in_it() -> None:
    batch = [
        made(0, Role.PROPOSE, 0.5, {"valid": 1.0}, ((2, 0, 2),)),
        made(
            1,
            Role.PROPOSE,
            -1.0,
            {"valid": 0.0},
            (
                (1, 0, 1),
                (2, 1, 4),
            ),
        ),
        made(2, Role.SOLVE, 1.0, {"correct": 1.0, "replayed": 1.0}, ((2, 0, 2),)),
        made(3, Role.SOLVE, -0.5, {"correct": 0.0, "replayed": 0.0}, ((2, 0, 2),)),
    ]
    numbers = describe_batch(batch) | describe_ages(batch, 3, {0: 2, 1: 3, 2: 2, 3: 3})
    assert numbers["valid_rate/deduction"] == 0.5
    assert numbers["solve_rate/deduction"] == 0.5
    assert numbers["solve_rate_fresh/deduction"] == 0.0
    assert numbers["reward/deduction/propose"] == -0.25
    assert numbers["truncated/deduction/propose"] == 0.5
    assert numbers["age_max"] == 2
    assert numbers["age_mean"] == pytest.approx(1.25)
    assert numbers["age/generation"] == pytest.approx(0.25)
    assert numbers["age/queue"] == pytest.approx(0.5)
    assert numbers["age/publish"] == pytest.approx(0.5)
    assert numbers["spanning"] == 0.25
    assert not any("abduction" in name for name in numbers), "an empty cell has no rate"


def test_answers_are_compared_whatever_was_thought_before_them() -> None:
    batch = [solution(1, first, answer=7.0) for first in range(4)]
    numbers = describe_batch(batch)
    assert (numbers["answer_diversity/deduction"], numbers["distinct_answers/deduction"]) == (0.0, 0.25)
