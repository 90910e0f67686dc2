"""The policy loss and its diagnostics, per response token.

One formula, PPO's clipped surrogate (Schulman et al. 2017, eq. 7), with an anchor and a weight that the correction
picks::

    ratio = pi_theta / pi_anchor
    loss  = -weight * min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A)

    correction  pi_anchor     weight
    clip        pi_behave     1
    decoupled   pi_prox       min(pi_prox / pi_behave, cap)       Hilton et al. 2022, eq. 2; cap: AReaL, Fu et al. 2025
    tis         sg(pi_theta)  min(sg(pi_theta) / pi_behave, cap)  Espeholt et al. 2018 (IMPALA); Yao et al. 2025
    none        sg(pi_theta)  1                                   Williams 1992 (REINFORCE)

sg stops the gradient. With sg(pi_theta) as the anchor the ratio is 1, never clipped, and its gradient is that of
log pi_theta. pi_prox is the policy at the start of the batch's first update: with one update it is sg(pi_theta), and
then `decoupled` is `tis`. Weights carry no gradient.

With an entropy floor, -bonus * H is added for every token, where H is the entropy of the token's distribution and the
bonus depends on the batch (`entropy_bonus`).

Log-probabilities, pi_theta's and pi_behave's, are of the distribution that is sampled: softmax(logits / temperature).

Shapes: R response tokens of one micro-batch. Everything is summed here and divided by counts over the *global* batch,
so neither micro-batches nor ranks change the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from learner.settings import LossSettings

DIAGNOSTICS = (
    "tokens",
    "clipped_low",
    "clipped_high",
    "clipped_dual",
    "truncated",
    "ratio",
    "ratio_squared",
    "kl_behave",
    "kl_prox",
    "entropy",
)
"""Names of the sums in `PolicyLoss.sums`. `ratio` is pi_theta / pi_behave for every correction."""
MAX_LOG_RATIO = 20.0
"""Bound of log-ratios, on either side. A larger one counts as this and has no gradient; exp would overflow soon
after."""


@dataclass(frozen=True)
class PolicyLoss:
    """Loss and diagnostics of one micro-batch's response tokens."""

    loss: Tensor
    """Scalar with gradient: the weighted sum over tokens."""
    sums: Tensor
    """Float64 [len(DIAGNOSTICS)]; add up over micro-batches and ranks."""
    max_ratio: Tensor
    """Float64 scalar: maximum of pi_theta / pi_behave; 0 without tokens."""


def policy_loss(
    logprobs_R: Tensor,
    behave_logprobs_R: Tensor,
    advantages_R: Tensor,
    weights_R: Tensor,
    entropy_R: Tensor,
    settings: LossSettings,
    prox_logprobs_R: Tensor | None = None,
    bonus: float = 0.0,
) -> PolicyLoss:
    """Compute the module's formula for R response tokens, summed with `weights_R` (see `token_weights`).

    `logprobs_R` carries the gradient, and `entropy_R` one for the entropy's `bonus`; `behave_logprobs_R`,
    `advantages_R` and `weights_R` are float32 without one. `prox_logprobs_R`: log pi_prox for `decoupled`; None means
    that no update came since the start of the batch, so that pi_prox is `logprobs_R` without its gradient.

    Dual clip c (Ye et al. 2020) bounds the loss where A < 0: loss = min(loss, -weight * c * A). Like the clip range it
    acts on `clip` and `decoupled` only, since the ratio of the others is 1.
    """
    current_R = logprobs_R.detach()
    prox_R = current_R if prox_logprobs_R is None else prox_logprobs_R
    importance_R = torch.ones_like(current_R)
    match settings.correction:
        case "clip":
            anchor_R = behave_logprobs_R
        case "decoupled":
            anchor_R = prox_R
            importance_R = _ratio(prox_R - behave_logprobs_R)
        case "tis":
            anchor_R = current_R
            importance_R = _ratio(current_R - behave_logprobs_R)
        case "none":
            anchor_R = current_R
    ratio_R = _ratio(logprobs_R - anchor_R)
    clipped_R = ratio_R.clamp(1 - settings.clip_low, 1 + settings.clip_high)
    per_token_R = torch.maximum(-ratio_R * advantages_R, -clipped_R * advantages_R)
    if settings.dual_clip is not None:
        bounded_R = torch.minimum(per_token_R, -settings.dual_clip * advantages_R)
        per_token_R = torch.where(advantages_R < 0, bounded_R, per_token_R)
    loss = (per_token_R * importance_R.clamp(max=settings.importance_cap) * weights_R).sum()
    if bonus:
        loss = loss - bonus * (entropy_R * weights_R).sum()

    with torch.no_grad():
        falls_R, rises_R = advantages_R < 0, advantages_R > 0
        log_ratio_R = current_R.double() - behave_logprobs_R
        importance_ratio_R = _ratio(log_ratio_R)
        columns = {
            "tokens": torch.ones_like(log_ratio_R),
            "clipped_low": falls_R & (ratio_R < 1 - settings.clip_low),
            "clipped_high": rises_R & (ratio_R > 1 + settings.clip_high),
            "clipped_dual": falls_R & (ratio_R > (settings.dual_clip or float("inf"))),
            "truncated": importance_R > settings.importance_cap,
            "ratio": importance_ratio_R,
            "ratio_squared": importance_ratio_R.square(),
            "kl_behave": _kl(log_ratio_R),
            "kl_prox": _kl(prox_R.double() - behave_logprobs_R),
            "entropy": entropy_R,
        }
        sums = torch.stack([columns[name].double().sum() for name in DIAGNOSTICS])
        # The padding is the maximum of a micro-batch without tokens.
        max_ratio = torch.nn.functional.pad(importance_ratio_R, (0, 1)).max()
    return PolicyLoss(loss, sums, max_ratio)


def entropy_bonus(behave_logprobs: Sequence[np.ndarray], settings: LossSettings) -> float:
    """The weight of the entropy in the loss of a batch: `entropy_weight` * (1 - H / `entropy_floor`), at least 0.

    `behave_logprobs`: of every response of the batch, under the policy that sampled it. H is the mean of -log p over
    all tokens, an estimate of that policy's entropy without bias: it is known before the first forward pass, the same
    on every rank, and no state of the run. Skywork-OR1 (He et al. 2025, section 4.2.4) holds a target entropy too, with
    a weight that goes up or down by a step a batch; an entropy bonus as such is A3C's (Mnih et al. 2016).
    """
    if not settings.entropy_floor:
        return 0.0
    tokens = sum(len(one) for one in behave_logprobs)
    entropy = -float(sum(one.sum(dtype=np.float64) for one in behave_logprobs)) / tokens
    return settings.entropy_weight * max(0.0, 1.0 - entropy / settings.entropy_floor)


def token_weights(lengths: Sequence[int], settings: LossSettings) -> np.ndarray:
    """Return the weight of each response token of each sequence, float32 [B], with which a sum over tokens is the
    wanted mean.

    `lengths`: response tokens of all B sequences of one optimizer step, those of other ranks included. With N tokens in
    all: `token` 1 / N; `sequence` 1 / (B * length), a mean of means; `fixed` 1 / (B * fixed_length), so that a token
    counts the same however long its response is and whatever else is in the batch (Dr. GRPO, Liu et al. 2025).
    """
    tokens = np.array(lengths, dtype=np.float64)
    match settings.aggregation:
        case "token":
            weights = np.full(len(tokens), 1.0 / tokens.sum())
        case "sequence":
            weights = 1.0 / (len(tokens) * tokens)
        case "fixed":
            assert settings.fixed_length is not None  # the settings' own check
            weights = np.full(len(tokens), 1.0 / (len(tokens) * settings.fixed_length))
    return weights.astype(np.float32)


def diagnostics(sums: Tensor, settings: LossSettings) -> dict[str, float]:
    """Turn sums over the global batch into means over its response tokens.

    `clip_fraction`: share of tokens whose gradient the clip range takes away, below (`_low`: A < 0) and above (`_high`:
    A > 0); `clip_fraction_dual`: share whose loss the dual clip bounds; `truncated_weights`: share whose weight is
    above the cap. `kl_behave`: KL(behave || theta); for `decoupled` also `kl_prox`: KL(behave || prox). `ess`:
    effective sample size of the weights w = pi_theta / pi_behave as a share of the tokens, (sum w)^2 / (tokens * sum
    w^2) (Kong 1992); 1 on policy.
    """
    total = dict(zip(DIAGNOSTICS, sums.tolist(), strict=True))
    tokens = total["tokens"]
    numbers = {
        "clip_fraction": (total["clipped_low"] + total["clipped_high"]) / tokens,
        "clip_fraction_low": total["clipped_low"] / tokens,
        "clip_fraction_high": total["clipped_high"] / tokens,
        "clip_fraction_dual": total["clipped_dual"] / tokens,
        "truncated_weights": total["truncated"] / tokens,
        "kl_behave": total["kl_behave"] / tokens,
        "ess": total["ratio"] ** 2 / (tokens * total["ratio_squared"]),
        "entropy": total["entropy"] / tokens,
    }
    return numbers | ({"kl_prox": total["kl_prox"] / tokens} if settings.correction == "decoupled" else {})


def _ratio(log_ratio_R: Tensor) -> Tensor:
    return log_ratio_R.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def _kl(log_ratio_R: Tensor) -> Tensor:
    """Terms of KL(q || p) >= 0 for tokens that q sampled, from log p - log q: p/q - 1 - log(p/q), Schulman's k3
    estimator. Float64, and expm1: close policies leave nothing of it in float32."""
    return log_ratio_R.clamp(max=MAX_LOG_RATIO).expm1() - log_ratio_R.clamp(max=MAX_LOG_RATIO)
