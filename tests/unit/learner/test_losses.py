from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from executor.tasks import Kind
from learner.advantages import advantages
from learner.losses import diagnostics, policy_loss
from learner.settings import AdvantageSettings, LossSettings
from learner.trajectory import Cell, Role, Trajectory, VersionSpan


def reference(logprob: float, behave: float, advantage: float, s: LossSettings) -> tuple[float, float]:
    """Loss and its derivative by the log-probability, in float64, straight from the formulas."""
    ratio = math.exp(logprob - behave)
    if s.correction == "none":
        return -advantage * logprob, -advantage
    clipped = min(max(ratio, 1 - s.clip_low), 1 + s.clip_high)
    if ratio * advantage <= clipped * advantage:
        loss, gradient = -ratio * advantage, -ratio * advantage
    else:
        loss, gradient = -clipped * advantage, 0.0
    if s.dual_clip is not None and advantage < 0 and loss > -s.dual_clip * advantage:
        loss, gradient = -s.dual_clip * advantage, 0.0
    return loss, gradient


@pytest.mark.parametrize(
    "settings",
    [
        LossSettings(),
        LossSettings(clip_low=0.1, clip_high=0.4),
        LossSettings(dual_clip=3.0),
        LossSettings(correction="none"),
    ],
    ids=["clip", "asymmetric", "dual", "none"],
)
@given(
    rows=st.lists(
        st.tuples(st.floats(-8, -0.01), st.floats(-3, 3), st.floats(-4, 4), st.floats(0.01, 1)), min_size=1, max_size=8
    )
)
def test_loss_and_gradient_follow_the_formulas(settings: LossSettings, rows: list[tuple[float, ...]]) -> None:
    behave, shift, advantage, weight = (torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True))
    # Away from the kinks, where any value between the one-sided derivatives would be right.
    ratio = shift.exp()
    for kink in (1 - settings.clip_low, 1 + settings.clip_high, settings.dual_clip or 1e9):
        shift = torch.where((ratio - kink).abs() < 1e-3, shift + 0.01, shift)
        ratio = shift.exp()
    logprobs = (behave + shift).requires_grad_()
    result = policy_loss(logprobs, behave, advantage, weight, torch.zeros_like(behave), settings)
    result.loss.backward()
    expected = [
        reference(p, b, a, settings)
        for p, b, a in zip(logprobs.tolist(), behave.tolist(), advantage.tolist(), strict=True)
    ]
    assert float(result.loss.detach()) == pytest.approx(
        sum(w * e[0] for w, e in zip(weight.tolist(), expected, strict=True)), abs=1e-9
    )
    np.testing.assert_allclose(
        logprobs.grad.numpy(), [w * e[1] for w, e in zip(weight.tolist(), expected, strict=True)], atol=1e-9
    )


def test_equal_policies_are_on_policy() -> None:
    logprobs = torch.tensor([-1.0, -2.0])
    result = policy_loss(logprobs, logprobs, torch.ones(2), torch.ones(2), torch.tensor([0.5, 1.5]), LossSettings())
    numbers = diagnostics(result.sums)
    assert numbers == pytest.approx({"clip_fraction": 0.0, "kl_behave": 0.0, "ess": 1.0, "entropy": 1.0})


@given(st.lists(st.floats(-2, 2), min_size=1, max_size=20))
def test_diagnostics_are_bounded(shifts: list[float]) -> None:
    shift = torch.tensor(shifts)
    result = policy_loss(
        shift - 3, torch.full_like(shift, -3), torch.ones_like(shift), torch.ones_like(shift), shift, LossSettings()
    )
    numbers = diagnostics(result.sums)
    assert 0 < numbers["ess"] <= 1 + 1e-6
    assert numbers["kl_behave"] >= -1e-6
    assert 0 <= numbers["clip_fraction"] <= 1


def trajectory(kind: Kind, reward: float, tokens: int = 2) -> Trajectory:
    return Trajectory(
        "run", "a", 0, 1, 0, "e", Cell(kind, Role.SOLVE), np.array([1], np.int32), np.arange(tokens, dtype=np.int32),
        np.zeros(tokens, np.float32), (VersionSpan(0, 0, tokens),), reward,
    )  # fmt: skip


def test_trr_normalises_each_cell_by_itself() -> None:
    batch = [
        trajectory(Kind.DEDUCTION, 1.0),
        trajectory(Kind.ABDUCTION, -1.0),
        trajectory(Kind.DEDUCTION, -1.0),
        trajectory(Kind.ABDUCTION, -0.5),
        trajectory(Kind.ABDUCTION, 0.0),
    ]
    got = advantages(batch, AdvantageSettings())
    third = math.sqrt(1.5)
    np.testing.assert_allclose(got, [1, -third, -1, 0, third], atol=1e-6)


def test_a_cell_without_a_difference_has_no_advantage() -> None:
    batch = [trajectory(Kind.DEDUCTION, 1.0), trajectory(Kind.ABDUCTION, -1.0), trajectory(Kind.ABDUCTION, -1.0)]
    assert advantages(batch, AdvantageSettings()).tolist() == [0, 0, 0]


def test_token_weighting_counts_tokens() -> None:
    batch = [trajectory(Kind.DEDUCTION, 1.0, tokens=3), trajectory(Kind.DEDUCTION, -1.0, tokens=1)]
    mean, std = 0.5, math.sqrt(0.75)
    got = advantages(batch, AdvantageSettings(weighting="token"))
    np.testing.assert_allclose(got, [(1 - mean) / std, (-1 - mean) / std], atol=1e-6)


def test_reinforce_is_the_reward() -> None:
    batch = [trajectory(Kind.DEDUCTION, 1.0), trajectory(Kind.DEDUCTION, -0.5)]
    assert advantages(batch, AdvantageSettings(estimator="reinforce")).tolist() == [1.0, -0.5]
