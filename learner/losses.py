"""The policy loss and its diagnostics, per response token, in float32.

Shapes: R response tokens of one micro-batch. Everything is summed here and divided by counts over the *global* batch, so
neither micro-batches nor ranks change the result.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from learner.settings import LossSettings

DIAGNOSTICS = ("tokens", "clipped", "kl", "weight", "weight_squared", "entropy")


@dataclass(frozen=True)
class TokenLoss:
    """`loss`: scalar with gradient, already weighted. `sums`: float64 [len(DIAGNOSTICS)], to be added up over micro-batches."""

    loss: torch.Tensor
    sums: torch.Tensor


def policy_loss(
    logprobs_R: torch.Tensor,
    behave_logprobs_R: torch.Tensor,
    advantages_R: torch.Tensor,
    weights_R: torch.Tensor,
    entropy_R: torch.Tensor,
    settings: LossSettings,
) -> TokenLoss:
    """PPO's clipped surrogate against the behaviour policy (Schulman et al. 2017, eq. 7), with optional dual clip.

    ratio = exp(logprobs - behave_logprobs); loss = -min(ratio * A, clip(ratio, 1 - low, 1 + high) * A). With dual clip c
    (Ye et al. 2020), where A < 0: loss = min(loss, -c * A). `correction = none`: loss = -A * logprobs (REINFORCE).
    `weights_R` carries the aggregation: 1 / tokens of the global batch, or 1 / (sequences * tokens of the sequence).
    """
    log_ratio = logprobs_R - behave_logprobs_R
    ratio = log_ratio.clamp(-20, 20).exp()
    clipped = ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high)
    if settings.correction == "none":
        per_token = -advantages_R * logprobs_R
        outside = torch.zeros_like(ratio)
    else:
        per_token = torch.maximum(-ratio * advantages_R, -clipped * advantages_R)
        if settings.dual_clip is not None:
            bounded = torch.minimum(per_token, -settings.dual_clip * advantages_R)
            per_token = torch.where(advantages_R < 0, bounded, per_token)
        outside = (-clipped * advantages_R > -ratio * advantages_R).float()
    with torch.no_grad():
        # KL(behave || theta) = E_behave[ratio - 1 - log ratio] >= 0, term by term (Schulman's k3 estimator)
        kl = ratio - 1 - log_ratio
        sums = torch.stack(
            [
                torch.ones_like(ratio).sum(),
                outside.sum(),
                kl.sum(),
                ratio.sum(),
                ratio.square().sum(),
                entropy_R.sum(),
            ]
        ).double()
    return TokenLoss((per_token * weights_R).sum(), sums)


def diagnostics(sums: torch.Tensor) -> dict[str, float]:
    """From sums over the global batch: clip fraction, KL(behave || theta), entropy, and the effective sample size of the
    importance weights as a share of the tokens, (sum w)^2 / (n * sum w^2)."""
    tokens, clipped, kl, weight, weight_squared, entropy = sums.tolist()
    return {
        "clip_fraction": clipped / tokens,
        "kl_behave": kl / tokens,
        "ess": weight**2 / (tokens * weight_squared) if weight_squared else 0.0,
        "entropy": entropy / tokens,
    }
