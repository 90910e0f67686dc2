"""The loss against its formulas, written again here, token by token in Python's floats; and what must hold of it.

How the loss meets the model, micro-batches and ranks is in test_trainer.py.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from learner.losses import DIAGNOSTICS, PolicyLoss, diagnostics, entropy_bonus, policy_loss, token_weights
from learner.settings import LossSettings
from tests.examples import examples

CORRECTIONS = ("clip", "decoupled", "tis", "none")


@dataclass(frozen=True)
class Token:
    theta: float
    prox: float
    behave: float
    entropy: float = 1.0


@dataclass(frozen=True)
class Sequence:
    advantage: float
    tokens: tuple[Token, ...]


def surrogate(ratio: float, advantage: float, s: LossSettings) -> tuple[float, float]:
    """PPO's objective, to be made large, and its derivative by the ratio."""
    clipped = min(max(ratio, 1 - s.clip_low), 1 + s.clip_high)
    objective, slope = (ratio * advantage, advantage)
    if clipped * advantage < ratio * advantage:
        objective, slope = clipped * advantage, 0.0
    if s.dual_clip is not None and advantage < 0 and objective < s.dual_clip * advantage:
        objective, slope = s.dual_clip * advantage, 0.0
    return objective, slope


def reference_token(t: Token, advantage: float, s: LossSettings) -> tuple[float, float]:
    """A token's loss and its derivative by log pi_theta."""
    if s.correction == "clip":
        ratio = math.exp(t.theta) / math.exp(t.behave)
        objective, slope = surrogate(ratio, advantage, s)
        return -objective, -slope * ratio
    if s.correction == "decoupled":
        ratio = math.exp(t.theta) / math.exp(t.prox)
        weight = min(math.exp(t.prox) / math.exp(t.behave), s.importance_cap)
        objective, slope = surrogate(ratio, advantage, s)
        return -weight * objective, -weight * slope * ratio
    if s.correction == "tis":
        weight = min(math.exp(t.theta) / math.exp(t.behave), s.importance_cap)
        return -weight * advantage, -weight * advantage
    return -advantage, -advantage


def reference(batch: list[Sequence], s: LossSettings) -> tuple[float, list[float]]:
    """The batch's loss and its gradient by every log pi_theta, end to end."""
    num_tokens = sum(len(q.tokens) for q in batch)
    loss, gradient = 0.0, []
    for q in batch:
        found = [reference_token(t, q.advantage, s) for t in q.tokens]
        share = {
            "token": 1 / num_tokens,
            "sequence": 1 / len(q.tokens) / len(batch),
            "fixed": 1 / (s.fixed_length or 1) / len(batch),
        }[s.aggregation]
        loss += sum(value for value, _ in found) * share
        gradient += [slope * share for _, slope in found]
    return loss, gradient


def columns(batch: list[Sequence], s: LossSettings, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    lengths = [len(q.tokens) for q in batch]
    tokens = [t for q in batch for t in q.tokens]
    rows = {
        "logprobs_R": [t.theta for t in tokens],
        "behave_logprobs_R": [t.behave for t in tokens],
        "advantages_R": [q.advantage for q in batch for _ in q.tokens],
        "weights_R": np.repeat(token_weights(lengths, s), lengths).tolist(),
        "entropy_R": [t.entropy for t in tokens],
        "prox_logprobs_R": [t.prox for t in tokens],
    }
    return {name: torch.tensor(values, dtype=dtype) for name, values in rows.items()}


def compute(given: dict[str, Tensor], s: LossSettings) -> tuple[PolicyLoss, Tensor]:
    """The loss and its gradient by the log-probabilities."""
    logprobs = given["logprobs_R"].clone().requires_grad_()
    result = policy_loss(**(given | {"logprobs_R": logprobs}), settings=s)
    (gradient,) = torch.autograd.grad(result.loss, logprobs)
    return result, gradient


def measured(batch: list[Sequence], s: LossSettings) -> tuple[float, list[float], dict[str, float]]:
    result, gradient = compute(columns(batch, s), s)
    return result.loss.item(), gradient.tolist(), diagnostics(result.sums, s)


def every_setting() -> list[LossSettings]:
    return [
        LossSettings.model_validate(
            {
                "correction": correction,
                "dual_clip": dual,
                "clip_low": low,
                "clip_high": high,
                "aggregation": aggregation,
                "fixed_length": 7,
                "importance_cap": 1.5,
            }
        )
        for correction, dual, (low, high), aggregation in itertools.product(
            CORRECTIONS, (None, 2.5), ((0.2, 0.2), (0.1, 0.4)), ("token", "sequence", "fixed")
        )
    ]


@st.composite
def tokens(draw: st.DrawFn) -> Token:
    behave = draw(st.floats(-8, -0.01))
    prox = behave + draw(st.floats(-3, 3))
    return Token(prox + draw(st.floats(-3, 3)), prox, behave, draw(st.floats(0, 5)))


def batches(token: st.SearchStrategy[Token] | None = None) -> st.SearchStrategy[list[Sequence]]:
    some = st.lists(tokens() if token is None else token, min_size=1, max_size=5).map(tuple)
    return st.lists(st.builds(Sequence, st.floats(-4, 4), some), min_size=1, max_size=4)


def chosen(**settings_: Any) -> LossSettings:
    return LossSettings.model_validate(settings_)


@pytest.mark.parametrize(
    "s", every_setting(), ids=lambda s: f"{s.correction}-{s.dual_clip}-{s.clip_high}-{s.aggregation}"
)
@examples(25)
@given(batch=batches())
def test_loss_and_gradient_follow_the_formulas(s: LossSettings, batch: list[Sequence]) -> None:
    loss, gradient, _ = measured(batch, s)
    expected_loss, expected_gradient = reference(batch, s)
    # The aggregation's weights are float32.
    assert loss == pytest.approx(expected_loss, rel=1e-6, abs=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("s", every_setting()[::5])
@given(batch=batches(st.floats(-8, -0.01).map(lambda p: Token(p, p, p))))
def test_equal_policies_are_on_policy(s: LossSettings, batch: list[Sequence]) -> None:
    """Every correction is then plain policy gradient, and its loss the weighted mean of -A."""
    loss, gradient, numbers = measured(batch, s)
    plain = columns(batch, s)
    logprobs = plain["logprobs_R"].clone().requires_grad_()
    (-plain["weights_R"] * plain["advantages_R"] * logprobs).sum().backward()
    assert logprobs.grad is not None
    assert loss == pytest.approx(float(-(plain["weights_R"] * plain["advantages_R"]).sum()), abs=1e-12)
    np.testing.assert_allclose(gradient, logprobs.grad.numpy(), atol=1e-12)
    assert numbers.pop("ess") == pytest.approx(1.0)
    assert numbers.pop("entropy") == pytest.approx(1.0)
    assert set(numbers.values()) == {0.0}


def same(first: tuple[PolicyLoss, Tensor], second: tuple[PolicyLoss, Tensor]) -> None:
    assert torch.equal(first[0].loss, second[0].loss)
    assert torch.equal(first[1], second[1])


@given(batch=batches(), dual=st.sampled_from([None, 2.5]))
def test_decoupled_from_the_behaviour_policy_is_clip(batch: list[Sequence], dual: float | None) -> None:
    given_ = columns(batch, chosen())
    given_["prox_logprobs_R"] = given_["behave_logprobs_R"]
    same(
        compute(given_, chosen(correction="decoupled", dual_clip=dual)),
        compute(given_, chosen(correction="clip", dual_clip=dual)),
    )


@given(batch=batches(), dual=st.sampled_from([None, 2.5]))
def test_decoupled_before_any_update_is_tis(batch: list[Sequence], dual: float | None) -> None:
    given_ = columns(batch, chosen())
    found = compute(given_, chosen(correction="tis", dual_clip=dual))
    for prox in (None, given_["logprobs_R"]):
        now: Any = given_ | {"prox_logprobs_R": prox}
        same(compute(now, chosen(correction="decoupled", dual_clip=dual)), found)


@given(batch=batches())
def test_tis_weighs_the_gradient_of_none(batch: list[Sequence]) -> None:
    given_ = columns(batch, chosen())
    none = compute(given_, chosen(correction="none"))
    weight = (given_["logprobs_R"] - given_["behave_logprobs_R"]).exp()
    for cap in (1.0, 1.7, 1e9):
        _, gradient = compute(given_, chosen(correction="tis", importance_cap=cap))
        torch.testing.assert_close(gradient, none[1] * weight.clamp(max=cap))
    # Nothing but its own probability matters to the one; to the other, only the ratio does.
    same(compute(given_ | {"behave_logprobs_R": given_["behave_logprobs_R"] - 1}, chosen(correction="none")), none)
    shifted = {name: given_[name] - 0.5 for name in ("logprobs_R", "behave_logprobs_R")}
    torch.testing.assert_close(
        compute(given_ | shifted, chosen(correction="tis"))[1], compute(given_, chosen(correction="tis"))[1]
    )


@pytest.mark.parametrize("correction", CORRECTIONS)
@given(data=st.data())
def test_any_split_adds_up_to_the_batch(correction: str, data: st.DataObject) -> None:
    """Micro-batches and ranks are subsets of the tokens, some of them empty; here in any order."""
    s = chosen(correction=correction, dual_clip=2.5)
    given_ = columns(data.draw(batches()), s)
    size = len(given_["logprobs_R"])
    whole, gradient = compute(given_, s)
    owner = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=size, max_size=size)))
    parts = [compute({name: column[owner == part] for name, column in given_.items()}, s) for part in range(4)]
    torch.testing.assert_close(sum(result.loss for result, _ in parts), whole.loss)
    torch.testing.assert_close(sum(result.sums for result, _ in parts), whole.sums)
    assert max(float(result.max_ratio) for result, _ in parts) == float(whole.max_ratio)
    assert diagnostics(sum(result.sums for result, _ in parts), s) == pytest.approx(
        diagnostics(whole.sums, s), abs=1e-12
    )
    for part, (_, found) in enumerate(parts):
        torch.testing.assert_close(found, gradient[owner == part])


@pytest.mark.parametrize("correction", CORRECTIONS)
@given(batch=batches(), other=tokens(), advantage=st.floats(-4, 4))
def test_a_token_knows_nothing_of_the_others(
    correction: str, batch: list[Sequence], other: Token, advantage: float
) -> None:
    """Whatever the other sequences' tokens are: only their number may matter, to the mean."""
    for aggregation in ("token", "sequence", "fixed"):
        s = chosen(correction=correction, aggregation=aggregation, fixed_length=3)
        changed = [batch[0], *(Sequence(advantage, (other,) * len(q.tokens)) for q in batch[1:])]
        size = len(batch[0].tokens)
        assert measured(batch, s)[1][:size] == measured(changed, s)[1][:size]


@pytest.mark.parametrize("correction", CORRECTIONS)
@given(batch=batches())
def test_a_step_makes_good_tokens_likelier(correction: str, batch: list[Sequence]) -> None:
    s = chosen(correction=correction)
    advantages = columns(batch, s)["advantages_R"].numpy()
    gradient = np.array(measured(batch, s)[1])
    assert (gradient * advantages <= 0).all()
    assert correction in ("clip", "decoupled") or (gradient[abs(advantages) > 1e-9] != 0).all()


@pytest.mark.parametrize("correction", CORRECTIONS)
@given(behave=st.floats(-6, -3), shifts=st.lists(st.floats(-2, 2), min_size=2, max_size=2).map(sorted))
def test_the_loss_falls_as_good_tokens_get_likelier(correction: str, behave: float, shifts: list[float]) -> None:
    s = chosen(correction=correction)
    less, more = ([Sequence(1.0, (Token(behave + shift, behave, behave),))] for shift in shifts)
    assert measured(more, s)[0] <= measured(less, s)[0]


def test_the_ratio_is_clipped_only_where_going_on_would_pay() -> None:
    rows = [(1.5, 1), (0.65, -1), (1.5, -1), (0.5, 1), (1.6, 1), (1.35, 1), (0.75, -1), (2.5, -1)]
    batch = [Sequence(advantage, (Token(math.log(ratio) - 2, -2, -2),)) for ratio, advantage in rows]
    s = chosen(clip_low=0.3, clip_high=0.4, dual_clip=2.0)
    _, gradient, numbers = measured(batch, s)
    assert [8 * slope for slope in gradient] == pytest.approx([0, 0, 1.5, -0.5, 0, -1.35, 0.75, 0])
    assert numbers["clip_fraction_low"] == 1 / 8
    assert numbers["clip_fraction_high"] == 2 / 8
    assert numbers["clip_fraction"] == 3 / 8
    assert numbers["clip_fraction_dual"] == 1 / 8


def test_diagnostics_by_hand() -> None:
    ratios = (0.5, 1.0, 4.0)
    batch = [
        Sequence(
            -1.0, tuple(Token(math.log(r) - 3, math.log(r) / 2 - 3, -3, e) for r, e in zip(ratios, (1.0, 2.0, 6.0)))
        )
    ]
    everywhere = {
        "kl_behave": sum(r - 1 - math.log(r) for r in ratios) / 3,
        "ess": 5.5**2 / (3 * (0.25 + 1 + 16)),
        "entropy": 3.0,
    }
    nothing = dict.fromkeys(
        ("clip_fraction", "clip_fraction_low", "clip_fraction_high", "clip_fraction_dual", "truncated_weights"), 0.0
    )
    low = {"clip_fraction": 1 / 3, "clip_fraction_low": 1 / 3}
    kl_prox = sum(math.sqrt(r) - 1 - math.log(r) / 2 for r in ratios) / 3
    for correction, particular in {
        "clip": low | {"clip_fraction_dual": 1 / 3},
        # From pi_prox, the ratios are the square roots: 0.71, 1 and 2, and so are the weights.
        "decoupled": low | {"truncated_weights": 1 / 3, "kl_prox": kl_prox},
        "tis": {"truncated_weights": 1 / 3},
        "none": {},
    }.items():
        s = chosen(correction=correction, dual_clip=3.0, importance_cap=1.5)
        result, _ = compute(columns(batch, s), s)
        assert diagnostics(result.sums, s) == pytest.approx(nothing | everywhere | particular), correction
        assert float(result.max_ratio) == pytest.approx(4.0)


@pytest.mark.parametrize("correction", CORRECTIONS)
@given(shifts=st.lists(st.tuples(st.floats(-2, 2), st.floats(-2, 2)), min_size=1, max_size=20))
def test_diagnostics_are_bounded(correction: str, shifts: list[tuple[float, float]]) -> None:
    s = chosen(correction=correction, dual_clip=1.5)
    batch = [Sequence((-1.0) ** i, (Token(a - 4, b - 4, -4),)) for i, (a, b) in enumerate(shifts)]
    result, _ = compute(columns(batch, s, torch.float32), s)
    numbers = diagnostics(result.sums, s)
    assert 1 / len(shifts) - 1e-9 <= numbers["ess"] <= 1 + 1e-9
    assert numbers["kl_behave"] >= 0
    assert numbers.get("kl_prox", 0.0) >= 0
    assert all(0 <= numbers[name] <= 1 for name in numbers if name.startswith(("clip_fraction", "truncated")))


def test_the_kl_of_close_policies_is_not_lost_in_rounding() -> None:
    close = torch.full((1000,), -2.0)
    behave = close - 2.0**-11
    result = policy_loss(close, behave, close, close, close, chosen())
    assert diagnostics(result.sums, chosen())["kl_behave"] == pytest.approx(2.0**-23, rel=1e-3)


@pytest.mark.parametrize("s", every_setting()[::5])
def test_policies_far_apart_give_finite_numbers(s: LossSettings) -> None:
    batch = [
        Sequence(advantage, (Token(theta, prox, behave),))
        for advantage in (-1.0, 0.0, 1.0)
        for theta, prox, behave in itertools.product((0.0, -60.0, -1e4), repeat=3)
    ]
    result, gradient = compute(columns(batch, s, torch.float32), s)
    assert torch.isfinite(result.loss)
    assert torch.isfinite(gradient).all()
    assert all(math.isfinite(number) for number in diagnostics(result.sums, s).values())
    assert math.isfinite(result.max_ratio)


def test_no_tokens_are_no_loss() -> None:
    none = torch.zeros(0)
    result = policy_loss(none, none, none, none, none, chosen())
    assert float(result.loss) == 0
    assert result.sums.tolist() == [0.0] * len(DIAGNOSTICS)
    assert float(result.max_ratio) == 0


def test_the_entropy_bonus_falls_linearly_to_nothing_at_the_floor() -> None:
    def bonus(entropy: float, **given: float) -> float:
        # The mean is over tokens, whatever the length of a response.
        logprobs = [np.full(1, -entropy - 0.3, np.float32), np.full(3, -entropy + 0.1, np.float32)]
        return entropy_bonus(logprobs, chosen(**given))

    assert bonus(0.4) == 0, "off by default"
    found = [bonus(entropy, entropy_floor=0.8, entropy_weight=0.1) for entropy in (0.1, 0.4, 0.7, 0.8, 2.0)]
    np.testing.assert_allclose(found, [0.0875, 0.05, 0.0125, 0, 0], atol=1e-7)


def test_weights_by_hand() -> None:
    lengths = [1, 3]
    assert token_weights(lengths, chosen()).tolist() == [0.25, 0.25]
    np.testing.assert_allclose(token_weights(lengths, chosen(aggregation="sequence")), [1 / 2, 1 / 6])
    assert token_weights(lengths, chosen(aggregation="fixed", fixed_length=4)).tolist() == [0.125, 0.125]


def test_a_fixed_length_must_be_given() -> None:
    with pytest.raises(ValidationError, match="needs fixed_length: the number of tokens"):
        chosen(aggregation="fixed")
    with pytest.raises(ValidationError, match="greater than 0"):
        chosen(aggregation="fixed", fixed_length=0)
