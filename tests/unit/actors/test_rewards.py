"""The whole reward table, and the measure of distance."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.rewards import Proposed, Solved, distance, reward_terms, saturating
from actors.settings import IntrinsicSettings, SelfPlaySettings

PAPER = SelfPlaySettings()


def terms(found: Proposed | Solved, **settings: Any) -> dict[str, float]:
    return reward_terms(found, SelfPlaySettings(**settings))


@pytest.mark.parametrize("compat", ["paper", "reference"])
@pytest.mark.parametrize(("num_correct", "n"), [(1, 8), (4, 8), (7, 8), (1, 2), (1, 3)])
def test_a_task_that_some_solve_pays_its_difficulty(compat: str, num_correct: int, n: int) -> None:
    solved = [True] * num_correct + [False] * (n - num_correct)
    assert terms(Proposed(solved), compat=compat) == {"difficulty": pytest.approx(1 - num_correct / n)}
    assert terms(Proposed(solved[::-1]), compat=compat) == terms(Proposed(solved), compat=compat)


@pytest.mark.parametrize("n", [1, 8])
@pytest.mark.parametrize("solved", [True, False])
@pytest.mark.parametrize(("compat", "reward"), [("paper", 0.0), ("reference", -0.5)])
def test_a_task_that_all_or_none_solve_teaches_nothing(n: int, solved: bool, compat: str, reward: float) -> None:
    assert terms(Proposed([solved] * n), compat=compat) == {"difficulty": reward}


@pytest.mark.parametrize("compat", ["paper", "reference"])
@pytest.mark.parametrize("novelty", ["off", "penalise", "reject"])
def test_no_valid_task_is_punished_most(compat: str, novelty: str) -> None:
    assert terms(Proposed(None), compat=compat, novelty=novelty) == {"invalid": -1.0}


@pytest.mark.parametrize(
    ("settings", "solved", "expected"),
    [
        ({}, [True, False], {"difficulty": 0.5}),
        ({"novelty": "penalise"}, [True, False], {"difficulty": 0.5, "duplicate": -0.5}),
        ({"novelty": "penalise", "duplicate_penalty": 0.2}, [True, False], {"difficulty": 0.5, "duplicate": -0.2}),
        ({"novelty": "penalise", "duplicate_penalty": 9.0}, [True, False], {"difficulty": 0.5, "duplicate": -1.0}),
        ({"novelty": "penalise"}, [True, True], {"difficulty": 0.0, "duplicate": -0.5}),
        ({"novelty": "penalise", "compat": "reference"}, [True], {"difficulty": -0.5, "duplicate": 0.0}),
        ({"novelty": "reject"}, None, {"duplicate": -0.5}),
    ],
)
def test_duplicates(settings: dict[str, Any], solved: list[bool] | None, expected: dict[str, float]) -> None:
    found = terms(Proposed(solved, duplicate=True), **settings)
    assert found == expected
    assert sum(found.values()) >= -0.5, "a sound task is never as bad as none"
    assert "duplicate" not in terms(Proposed([True, False]), **settings), "a new task is not punished"


MEASURES = {"complexity": 0.5, "halstead": 0.25, "distance": 0.75, "answer_diversity": 1.0}


def test_intrinsic_terms_are_off_until_they_have_a_weight() -> None:
    assert set(MEASURES) == set(IntrinsicSettings.model_fields)
    assert terms(Proposed([True, False], measures=MEASURES)) == {"difficulty": 0.5}


@pytest.mark.parametrize("name", list(MEASURES))
def test_an_intrinsic_term_is_its_weight_times_its_measure(name: str) -> None:
    on = {"intrinsic": {name: 0.4}}
    assert terms(Proposed([True, False], measures=MEASURES), **on) == {"difficulty": 0.5, name: 0.4 * MEASURES[name]}
    assert terms(Proposed([True, False]), **on) == {"difficulty": 0.5}, "not measured"
    assert terms(Proposed(None, measures=MEASURES), **on) == {"invalid": -1.0}, "only a valid task is paid"


@pytest.mark.parametrize(
    ("formatted", "correct", "expected"),
    [(True, True, {"correct": 1.0}), (True, False, {"wrong": -0.5}), (False, False, {"format": -1.0})],
)
def test_solutions(formatted: bool, correct: bool, expected: dict[str, float]) -> None:
    assert reward_terms(Solved(formatted, correct), PAPER) == expected


def test_sizes_saturate() -> None:
    assert [saturating(value, 10.0) for value in (0.0, 10.0, 30.0)] == [0.0, 0.5, 0.75]
    assert saturating(1e300, 10.0) <= 1.0


def by_the_book(one: str, other: str) -> int:
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        above, row = row, [i]
        for j, b in enumerate(other, 1):
            row.append(min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (a != b)))
    return row[-1]


@given(st.text(alphabet="abc", max_size=40), st.text(alphabet="abc", max_size=40))
def test_distance_is_levenshtein_over_the_longer(one: str, other: str) -> None:
    assert distance(one, other) == (by_the_book(one, other) / max(len(one), len(other)) if one or other else 0.0)
    assert distance(one, other) == distance(other, one)
    assert distance(one, one) == 0.0


def test_distance_of_long_shapes_takes_no_time() -> None:
    assert distance("ab" * 1000, "ba" * 1000) == 2 / 2000
    assert distance("a" * 2000, "b" * 2000) == 1.0
