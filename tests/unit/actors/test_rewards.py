"""The whole reward table."""

from __future__ import annotations

import pytest

from actors.rewards import propose_reward, solve_reward


@pytest.mark.parametrize("compat", ["paper", "reference"])
@pytest.mark.parametrize(("num_correct", "n"), [(1, 8), (4, 8), (7, 8), (1, 2), (1, 3)])
def test_a_task_that_some_solve_pays_its_difficulty(compat: str, num_correct: int, n: int) -> None:
    solved = [True] * num_correct + [False] * (n - num_correct)
    assert propose_reward(solved, compat) == pytest.approx(1 - num_correct / n)  # type: ignore[arg-type]
    assert propose_reward(solved[::-1], compat) == propose_reward(solved, compat)  # type: ignore[arg-type]


@pytest.mark.parametrize("n", [1, 8])
@pytest.mark.parametrize("solved", [True, False])
@pytest.mark.parametrize(("compat", "reward"), [("paper", 0.0), ("reference", -0.5)])
def test_a_task_that_all_or_none_solve_teaches_nothing(n: int, solved: bool, compat: str, reward: float) -> None:
    assert propose_reward([solved] * n, compat) == reward  # type: ignore[arg-type]


@pytest.mark.parametrize("compat", ["paper", "reference"])
def test_no_valid_task_is_punished_most(compat: str) -> None:
    assert propose_reward(None, compat) == -1.0  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("formatted", "correct", "reward"), [(True, True, 1.0), (True, False, -0.5), (False, False, -1.0)]
)
def test_solutions(formatted: bool, correct: bool, reward: float) -> None:
    assert solve_reward(formatted, correct) == reward
