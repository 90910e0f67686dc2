"""Advantages, by hand and by what must not matter."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from executor.tasks import Kind
from learner.advantages import advantages
from learner.settings import AdvantageSettings
from learner.trajectory import CELLS, Cell, Role, Trajectory, VersionSpan

SOLVE, PROPOSE = Cell(Kind.DEDUCTION, Role.SOLVE), Cell(Kind.DEDUCTION, Role.PROPOSE)


def make(cell: Cell, reward: float, tokens: int = 1) -> Trajectory:
    return Trajectory(
        "run", "a", 0, 1, 0, "e", cell, np.array([1], np.int32), np.zeros(tokens, np.int32),
        np.zeros(tokens, np.float32), (VersionSpan(0, 0, tokens),), reward,
    )  # fmt: skip


def test_two_roles_of_one_kind_are_two_cells() -> None:
    batch = [make(SOLVE, 1.0), make(PROPOSE, 0.5), make(SOLVE, 1.0), make(SOLVE, -0.5), make(PROPOSE, -1.0)]
    # solve: mean 0.5, variance (0.25 + 0.25 + 1) / 3 = 0.5; propose: mean -0.25, deviation 0.75
    half = 0.5 / math.sqrt(0.5)
    got = advantages(batch, AdvantageSettings())
    np.testing.assert_allclose(got, [half, 1, half, -2 * half, -1], rtol=1e-6)
    assert got.dtype == np.float32
    assert got.shape == (5,)


def test_token_weighting_by_hand() -> None:
    # mean (2 * 1 + 6 * -1) / 8 = -0.5; variance (2 * 2.25 + 6 * 0.25) / 8 = 0.75
    batch = [make(SOLVE, 1.0, tokens=2), make(SOLVE, -1.0, tokens=6), make(PROPOSE, 1.0, 3), make(PROPOSE, 1.0, 9)]
    got = advantages(batch, AdvantageSettings(weighting="token"))
    np.testing.assert_allclose(got, [1.5 / math.sqrt(0.75), -0.5 / math.sqrt(0.75), 0, 0], rtol=1e-6)


@pytest.mark.parametrize("weighting", ["sequence", "token"])
@pytest.mark.parametrize("rewards", [[0.3], [0.1, 0.1, 0.1], [-1.0, -1.0]])
def test_a_cell_of_one_or_of_equals_teaches_nothing(weighting: str, rewards: list[float]) -> None:
    batch = [make(SOLVE, reward, tokens=index + 1) for index, reward in enumerate(rewards)]
    got = advantages(batch, AdvantageSettings(weighting=weighting))  # type: ignore[arg-type]
    assert got.tolist() == [0.0] * len(rewards)


def test_reinforce_keeps_the_reward_even_in_a_cell_of_one() -> None:
    assert advantages([make(SOLVE, 0.75), make(PROPOSE, -1.0)], AdvantageSettings(estimator="reinforce")).tolist() == [
        0.75,
        -1.0,
    ]


members = st.lists(
    st.tuples(st.sampled_from(CELLS), st.sampled_from([-1.0, -0.5, 0.0, 0.25, 1.0]), st.integers(1, 9)),
    min_size=1,
    max_size=24,
)


@pytest.mark.parametrize("weighting", ["sequence", "token"])
@settings(max_examples=50, deadline=None)
@given(members)
def test_every_cell_has_mean_0_and_deviation_1_or_nothing(weighting: str, rows: list[tuple[Cell, float, int]]) -> None:
    got = advantages([make(*row) for row in rows], AdvantageSettings(weighting=weighting))  # type: ignore[arg-type]
    for cell in CELLS:
        inside = [i for i, row in enumerate(rows) if row[0] == cell]
        if not inside:
            continue
        values = got[inside].astype(np.float64)
        weights = [rows[i][2] if weighting == "token" else 1 for i in inside]
        if len({rows[i][1] for i in inside}) == 1:
            assert not values.any()
        else:
            assert np.average(values, weights=weights) == pytest.approx(0, abs=1e-5)
            assert np.average(values**2, weights=weights) == pytest.approx(1, abs=1e-5)


@settings(max_examples=30, deadline=None)
@given(members, st.randoms(use_true_random=False))
def test_the_order_of_the_batch_does_not_matter(rows: list[tuple[Cell, float, int]], random: object) -> None:
    order = list(range(len(rows)))
    random.shuffle(order)  # type: ignore[attr-defined]
    batch = [make(*row) for row in rows]
    straight = advantages(batch, AdvantageSettings())
    shuffled = advantages([batch[i] for i in order], AdvantageSettings())
    np.testing.assert_allclose(shuffled, straight[order], atol=1e-6)
