"""Log-probabilities of response tokens, computed without holding the logits of all of them.

Shapes: R response tokens, E hidden size, V rows of this rank's part of the vocabulary. `hidden_RE` is [R, E].
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from learner.model import compiled

CHUNK_ELEMENTS = {"cpu": 1 << 24, "cuda": 1 << 28}
"""Maximum number of logits that the forward pass holds at once, by type of device.

A GPU reads the vocabulary's matrix and its float32 gradient once a chunk, at less than the cost of the products only
where a chunk has some thousand rows. In bfloat16 2^28 logits are 0.5 GiB; the backward pass holds 2 GiB at once."""


class VocabLogprobs(torch.autograd.Function):
    """Log-probabilities and entropies of targets: (hidden_RE, weight_VE, targets_R, ...) -> two float32 [R].

    They are of softmax(logits / `temperature`), the distribution that sampling at this temperature draws from.

    The vocabulary is split over the ranks of `group`: this rank has rows `first` to `first + num_valid`; the rest of
    `weight` is padding. The gradient of `hidden` is this rank's part of the sum over ranks.

    The backward pass computes the logits again. With p the softmax, g the incoming gradient, t the target and T the
    temperature, the gradient of the logits is g / T (onehot(t) - p). g / T scales rows, so it multiplies [R, E]
    matrices, and p is the only [R, V] one. Where the entropy H has a gradient h, h / T p (E[z] - z) is added, with z =
    logits / T: as d H / d z_j = -p_j (log p_j + H).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_RE: Tensor,
        weight_VE: Tensor,
        targets_R: Tensor,
        first: int,
        num_valid: int,
        group: dist.ProcessGroup,
        temperature: float,
        compile_kernels: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Compute log-probabilities and entropies; see the class. `compile_kernels`: what is done with the logits is
        compiled (`compiled.py`)."""
        valid_VE = weight_VE[:num_valid]
        owned_R = (targets_R >= first) & (targets_R < first + num_valid)
        local_R = torch.where(owned_R, targets_R - first, 0)
        count = len(hidden_RE)
        lse_R, expected_R = (
            hidden_RE.new_empty(count, dtype=torch.float32),
            hidden_RE.new_empty(count, dtype=torch.float32),
        )
        picked_R = hidden_RE.new_empty(count, dtype=torch.float32)
        statistics = compiled.token_statistics if compile_kernels else token_statistics
        elements = CHUNK_ELEMENTS[hidden_RE.device.type]
        for rows in _chunks(count, num_valid, elements):
            logits_RV = hidden_RE[rows] @ valid_VE.t()
            picked_R[rows], lse_R[rows], expected_R[rows] = statistics(logits_RV, local_R[rows], temperature)
        local_lse_R = lse_R
        if group.size() > 1:
            picked_R = picked_R * owned_R
            top_R = lse_R.clone()
            dist.all_reduce(top_R, dist.ReduceOp.MAX, group)
            share_R = (lse_R - top_R).exp()
            sums = torch.stack((share_R, share_R * expected_R, picked_R))
            dist.all_reduce(sums, dist.ReduceOp.SUM, group)
            lse_R, expected_R, picked_R = sums[0].log() + top_R, sums[1] / sums[0], sums[2]
        ctx.save_for_backward(hidden_RE, weight_VE, local_R, owned_R, (local_lse_R - lse_R).exp(), expected_R)
        ctx.num_valid, ctx.temperature = num_valid, temperature
        ctx.set_materialize_grads(False)
        return picked_R - lse_R, lse_R - expected_R

    @staticmethod
    def backward(ctx: Any, grad_R: Tensor | None, grad_entropy_R: Tensor | None) -> tuple[Tensor | None, ...]:
        """Compute the gradients of hidden states and weight; see the class."""
        hidden_RE, weight_VE, local_R, owned_R, share_R, expected_R = ctx.saved_tensors
        valid_VE = weight_VE[: ctx.num_valid]
        grad_hidden_RE = torch.empty_like(hidden_RE)
        grad_weight_VE = torch.zeros_like(weight_VE, dtype=torch.float32)
        grad_valid_VE = grad_weight_VE[: ctx.num_valid]
        grad_R = (torch.zeros_like(share_R) if grad_R is None else grad_R) / ctx.temperature
        toward_R1, away_R1 = (grad_R * owned_R)[:, None], (grad_R * share_R)[:, None]
        # Half the bytes an element of the forward pass; and each chunk costs a pass over the weight's gradient.
        elements = 2 * CHUNK_ELEMENTS[hidden_RE.device.type]
        for rows in _chunks(len(hidden_RE), ctx.num_valid, elements):
            logits_RV = hidden_RE[rows] @ valid_VE.t()
            if ctx.temperature != 1.0:
                logits_RV /= ctx.temperature
            probs_RV = torch.softmax(logits_RV, dim=1)
            grad_hidden_RE[rows] = toward_R1[rows] * valid_VE[local_R[rows]] - away_R1[rows] * (probs_RV @ valid_VE)
            grad_valid_VE -= probs_RV.t() @ (away_R1[rows] * hidden_RE[rows]).to(weight_VE.dtype)
            if grad_entropy_R is not None:
                scale_R1 = (grad_entropy_R[rows] * share_R[rows] / ctx.temperature)[:, None]
                spread_RV = (probs_RV * (expected_R[rows, None] - logits_RV) * scale_R1).to(weight_VE.dtype)
                grad_hidden_RE[rows] += spread_RV @ valid_VE
                grad_valid_VE += spread_RV.t() @ hidden_RE[rows]
        grad_valid_VE.index_add_(0, local_R, toward_R1 * hidden_RE)
        return grad_hidden_RE, grad_weight_VE.to(weight_VE.dtype), *(None,) * 6


def token_statistics(logits_RV: Tensor, picked_R: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return, of logits / `temperature`, each row's logit at `picked_R`, log-sum-exp and expectation under its softmax,
    float32 [R]. Float32 logits are changed."""
    logits_RV = logits_RV.float()
    if temperature != 1.0:
        logits_RV /= temperature
    picked = logits_RV.gather(1, picked_R[:, None]).squeeze(1)
    top_R1 = logits_RV.amax(dim=1, keepdim=True)
    weights_RV = (logits_RV - top_R1).exp_()
    total_R = weights_RV.sum(dim=1)
    return picked, total_R.log() + top_R1.squeeze(1), torch.linalg.vecdot(weights_RV, logits_RV) / total_R


def _chunks(num_rows: int, num_columns: int, num_elements: int) -> list[slice]:
    size = max(1, num_elements // num_columns)
    return [slice(start, start + size) for start in range(0, num_rows, size)]
