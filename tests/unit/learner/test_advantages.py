"""Advantages: by hand, against a reference in float64 that shares no code, and by what must not matter."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.advantages import advantages
from learner.settings import AdvantageSettings, BatchSettings
from learner.trajectory import Cell, Role, Trajectory, VersionSpan
from tests.examples import examples

CELLS = BatchSettings().cells

SOLVE, PROPOSE = Cell("deduction", Role.SOLVE), Cell("deduction", Role.PROPOSE)
NORMALISED: list[dict[str, Any]] = [
    {"estimator": estimator, "weighting": weighting}
    for estimator in ("trr++", "reinforce++", "group")
    for weighting in ("sequence", "token")
]
ALL: list[dict[str, Any]] = [*NORMALISED, {"estimator": "group", "group_std": False}, {"estimator": "reinforce"}]
Row = tuple[Cell, float, int, int]
"""Cell, reward, response tokens, prompt."""


def make(cell: Cell, reward: float, tokens: int = 1, prompt: int = 1) -> Trajectory:
    return Trajectory(
        "run", "a", 0, 0, "e", cell, np.array([prompt], np.int32), np.zeros(tokens, np.int32),
        np.zeros(tokens, np.float32), (VersionSpan(0, 0, tokens),), reward,
    )  # fmt: skip


def got(rows: list[Row], **chosen: Any) -> list[float]:
    result = advantages([make(*row) for row in rows], AdvantageSettings(**chosen))
    assert result.dtype == np.float32
    assert result.shape == (len(rows),)
    assert np.isfinite(result).all()
    return [float(x) for x in result]


def peers_of(row: Row, rows: list[Row], estimator: str) -> list[Row]:
    """Whom a trajectory is compared with, itself included."""
    same: dict[str, Callable[[Row], bool]] = {
        "trr++": lambda other: other[0] == row[0],
        "reinforce++": lambda other: True,
        "group": lambda other: other[0] == row[0] and other[3] == row[3],
    }
    return [other for other in rows if same[estimator](other)]


def reference(rows: list[Row], estimator: str, weighting: str = "sequence", group_std: bool = True) -> list[float]:
    """Trajectory by trajectory, with Python's own floats (64 bits) and exact sums; token weighting repeats a reward."""
    result = []
    for row in rows:
        if estimator == "reinforce":
            result.append(row[1])
            continue
        rewards = [
            other[1] for other in peers_of(row, rows, estimator) for _ in range(other[2] if weighting == "token" else 1)
        ]
        mean = math.fsum(rewards) / len(rewards)
        variance = math.fsum((reward - mean) ** 2 for reward in rewards) / len(rewards)
        if len(set(rewards)) == 1:
            result.append(0.0)
        else:
            result.append((row[1] - mean) / (math.sqrt(variance) if group_std else 1.0))
    return result


rewards = st.sampled_from([-1.0, -0.5, 0.0, 0.1, 0.25, 1.0])
rows_of = st.lists(
    st.tuples(st.sampled_from(CELLS), rewards, st.integers(1, 9), st.integers(1, 3)), min_size=1, max_size=24
)


def test_two_roles_of_one_kind_are_two_cells() -> None:
    rows = [(SOLVE, 1.0), (PROPOSE, 0.5), (SOLVE, 1.0), (SOLVE, -0.5), (PROPOSE, -1.0)]
    # solve: mean 0.5, variance (0.25 + 0.25 + 1) / 3 = 0.5; propose: mean -0.25, deviation 0.75
    half = 0.5 / math.sqrt(0.5)
    found = advantages([make(*row) for row in rows], AdvantageSettings())
    np.testing.assert_allclose(found, [half, 1, half, -2 * half, -1], rtol=1e-6)


def test_token_weighting_by_hand() -> None:
    # mean (2 * 1 + 6 * -1) / 8 = -0.5; variance (2 * 2.25 + 6 * 0.25) / 8 = 0.75
    batch = [make(SOLVE, 1.0, tokens=2), make(SOLVE, -1.0, tokens=6), make(PROPOSE, 1.0, 3), make(PROPOSE, 1.0, 9)]
    found = advantages(batch, AdvantageSettings(weighting="token"))
    np.testing.assert_allclose(found, [1.5 / math.sqrt(0.75), -0.5 / math.sqrt(0.75), 0, 0], rtol=1e-6)


def test_reinforce_plus_plus_has_one_cell() -> None:
    # mean 0.25, deviation 0.75, over both roles
    assert got([(SOLVE, 1.0, 1, 1), (PROPOSE, -0.5, 1, 1)], estimator="reinforce++") == [1.0, -1.0]


def test_group_compares_responses_to_one_prompt() -> None:
    rows = [(SOLVE, 1.0, 1, 1), (SOLVE, -0.5, 1, 1), (SOLVE, 1.0, 1, 2), (SOLVE, 1.0, 1, 2), (PROPOSE, 0.5, 1, 1)]
    assert got(rows, estimator="group") == [1.0, -1.0, 0.0, 0.0, 0.0]
    assert got(rows, estimator="group", group_std=False) == [0.75, -0.75, 0.0, 0.0, 0.0]


def test_reinforce_keeps_the_reward_even_in_a_cell_of_one() -> None:
    assert got([(SOLVE, 0.75, 1, 1), (PROPOSE, -1.0, 1, 1)], estimator="reinforce") == [0.75, -1.0]


@pytest.mark.parametrize("chosen", [c for c in ALL if c["estimator"] != "reinforce"], ids=str)
@pytest.mark.parametrize("rewards", [[0.3], [0.1, 0.1, 0.1], [-1.0, -1.0], [0.1 + 0.2, 0.3]], ids=str)
def test_one_sample_and_equal_rewards_teach_nothing(chosen: dict[str, Any], rewards: list[float]) -> None:
    assert got([(SOLVE, reward, index + 1, 1) for index, reward in enumerate(rewards)], **chosen) == [0.0] * len(
        rewards
    )


@pytest.mark.parametrize("chosen", ALL, ids=str)
def test_an_empty_batch_has_no_advantages(chosen: dict[str, Any]) -> None:
    assert got([], **chosen) == []


def test_an_empty_or_degenerate_cell_leaves_the_others_alone() -> None:
    two = [(SOLVE, 1.0, 1, 1), (SOLVE, 0.0, 1, 1)]
    assert got(two) == [1.0, -1.0]
    assert got([*two, (PROPOSE, 0.7, 1, 1)]) == [1.0, -1.0, 0.0]


@pytest.mark.parametrize("chosen", ALL, ids=str)
@examples(60)
@given(rows_of)
def test_equals_the_reference(chosen: dict[str, Any], rows: list[Row]) -> None:
    np.testing.assert_allclose(got(rows, **chosen), reference(rows, **chosen), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chosen", NORMALISED, ids=str)
@examples(40)
@given(rows_of)
def test_peers_have_mean_0_and_deviation_1_or_nothing(chosen: dict[str, Any], rows: list[Row]) -> None:
    found = got(rows, **chosen)
    for row in rows:
        peers = peers_of(row, rows, chosen["estimator"])
        inside = [i for i, other in enumerate(rows) if other in peers]
        values = np.array([found[i] for i in inside])
        weights = [rows[i][2] if chosen["weighting"] == "token" else 1 for i in inside]
        if len({rows[i][1] for i in inside}) == 1:
            assert not values.any()
        else:
            assert np.average(values, weights=weights) == pytest.approx(0, abs=1e-5)
            assert np.average(values**2, weights=weights) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("chosen", [c for c in ALL if c["estimator"] != "reinforce"], ids=str)
@examples(40)
@given(rows_of, st.floats(-3, 3))
def test_a_reward_for_everybody_changes_nothing(chosen: dict[str, Any], rows: list[Row], shift: float) -> None:
    moved = [(cell, reward + shift, tokens, prompt) for cell, reward, tokens, prompt in rows]
    np.testing.assert_allclose(got(moved, **chosen), got(rows, **chosen), rtol=1e-4, atol=1e-5)


@examples(40)
@given(rows_of, st.sampled_from(CELLS), st.floats(-3, 3), st.floats(0.1, 10))
def test_trr_does_not_see_how_a_cell_is_shifted_or_scaled(
    rows: list[Row], cell: Cell, shift: float, scale: float
) -> None:
    moved = [(c, scale * reward + shift if c == cell else reward, tokens, p) for c, reward, tokens, p in rows]
    np.testing.assert_allclose(got(moved), got(rows), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chosen", ALL, ids=str)
@examples(30)
@given(st.data())
def test_the_order_of_the_batch_does_not_matter(chosen: dict[str, Any], data: st.DataObject) -> None:
    rows = data.draw(rows_of)
    order = data.draw(st.permutations(range(len(rows))))
    shuffled = got([rows[i] for i in order], **chosen)
    np.testing.assert_allclose(shuffled, [got(rows, **chosen)[i] for i in order], atol=1e-6)


@pytest.mark.parametrize("estimator", ["trr++", "reinforce++", "group"])
@examples(30)
@given(rows_of, st.integers(1, 50))
def test_at_equal_lengths_tokens_weigh_like_sequences(estimator: str, rows: list[Row], tokens: int) -> None:
    equal = [(cell, reward, tokens, prompt) for cell, reward, _, prompt in rows]
    by_token = got(equal, estimator=estimator, weighting="token")
    np.testing.assert_allclose(by_token, got(equal, estimator=estimator, weighting="sequence"), rtol=1e-5, atol=1e-6)
