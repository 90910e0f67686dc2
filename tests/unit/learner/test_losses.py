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


def surrogate(shift: list[float], advantage: list[float], settings: LossSettings) -> tuple[list[float], float]:
    """Gradient of each token's log-probability and the clip fraction, where the behaviour's log-probability is -2."""
    behave = torch.full((len(shift),), -2.0)
    logprobs = (behave + torch.tensor(shift)).requires_grad_()
    ones = torch.ones_like(behave)
    result = policy_loss(logprobs, behave, torch.tensor(advantage), ones, ones, settings)
    result.loss.backward()
    assert logprobs.grad is not None
    return logprobs.grad.tolist(), diagnostics(result.sums)["clip_fraction"]


def test_the_ratio_is_clipped_only_where_going_on_would_pay() -> None:
    up, down = math.log(1.5), math.log(0.5)
    gradient, clipped = surrogate([up, down, up, down], [1.0, -1.0, -1.0, 1.0], LossSettings())
    assert gradient == pytest.approx([0, 0, 1.5, -0.5])
    assert clipped == 0.5


def test_the_clip_range_is_asymmetric() -> None:
    shift, advantage = [math.log(1.3), math.log(0.85)], [1.0, -1.0]
    assert surrogate(shift, advantage, LossSettings(clip_low=0.1, clip_high=0.4))[0] == pytest.approx([-1.3, 0])
    assert surrogate(shift, advantage, LossSettings(clip_low=0.2, clip_high=0.2))[0] == pytest.approx([0, 0.85])


def test_dual_clip_bounds_only_negative_advantages() -> None:
    shift, advantage = [math.log(5.0), math.log(2.5), math.log(5.0)], [-1.0, -1.0, 1.0]
    assert surrogate(shift, advantage, LossSettings())[0] == pytest.approx([5, 2.5, 0])
    assert surrogate(shift, advantage, LossSettings(dual_clip=3.0))[0] == pytest.approx([0, 2.5, 0])


def test_without_correction_the_ratio_has_no_say() -> None:
    gradient, clipped = surrogate([1.0, -1.0, 3.0], [2.0, -0.5, 0.0], LossSettings(correction="none"))
    assert gradient == pytest.approx([-2, 0.5, 0])
    assert clipped == 0


def test_at_equal_policies_clip_and_none_have_the_same_gradient() -> None:
    advantage = [1.0, -2.0, 0.5]
    clip, _ = surrogate([0.0] * 3, advantage, LossSettings())
    none, _ = surrogate([0.0] * 3, advantage, LossSettings(correction="none"))
    assert clip == pytest.approx([-1, 2, -0.5])
    assert none == pytest.approx([-1, 2, -0.5])


def test_micro_batches_add_up_to_the_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    columns = [torch.randn(7, generator=generator, dtype=torch.float64) for _ in range(3)]
    weights, entropy = torch.rand(2, 7, generator=generator, dtype=torch.float64)

    def loss(rows: slice) -> tuple[float, torch.Tensor]:
        result = policy_loss(*(column[rows] for column in columns), weights[rows], entropy[rows], LossSettings())
        return float(result.loss), result.sums

    whole, first, rest = loss(slice(None)), loss(slice(0, 3)), loss(slice(3, None))
    assert whole[0] == pytest.approx(first[0] + rest[0])
    torch.testing.assert_close(whole[1], first[1] + rest[1])


def test_diagnostics_by_hand() -> None:
    ratio = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    ones = torch.ones_like(ratio)
    result = policy_loss(ratio.log(), 0 * ones, ones, ones, torch.tensor([1.0, 2.0, 6.0]), LossSettings())
    assert diagnostics(result.sums) == pytest.approx(
        {
            "clip_fraction": 1 / 3,
            "kl_behave": (0.5 - 1 + math.log(2) + 2 - 1 - math.log(2)) / 3,
            "ess": 3.5**2 / (3 * 5.25),
            "entropy": 3.0,
        }
    )


def test_policies_far_apart_give_finite_numbers() -> None:
    gradient, _ = surrogate([60.0, -60.0, 60.0], [-1.0, 1.0, 1.0], LossSettings())
    assert all(math.isfinite(number) for number in gradient)
