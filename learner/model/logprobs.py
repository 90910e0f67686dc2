"""Log-probabilities of response tokens, computed without holding the logits of all of them.

Shapes: R response tokens, E hidden size, V rows of this rank's part of the vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

CHUNK_ELEMENTS = 1 << 24
"""Maximum number of logits that the forward pass holds at once."""


class VocabLogprobs(torch.autograd.Function):
    """Log-probabilities and entropies of targets: (hidden [R, E], weight [V, E], targets [R], ...) -> two float32 [R].

    The vocabulary is split over the ranks of `group`: this rank has rows `first` to `first + num_valid`; the rest of
    `weight` is padding. The gradient of `hidden` is this rank's part of the sum over ranks. The entropy has no
    gradient.

    The backward pass computes the logits again. With p the softmax, g the incoming gradient and t the target, the
    gradient of the logits is g (onehot(t) - p). g scales rows, so it multiplies [R, E] matrices, and p is the only [R,
    V] one.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, first: int, num_valid: int, group: dist.ProcessGroup
    ) -> tuple[Tensor, Tensor]:
        """Compute log-probabilities and entropies; see the class."""
        valid = weight[:num_valid]
        owned = (targets >= first) & (targets < first + num_valid)
        local = torch.where(owned, targets - first, 0)
        count = len(hidden)
        lse, expected = hidden.new_empty(count, dtype=torch.float32), hidden.new_empty(count, dtype=torch.float32)
        picked = hidden.new_empty(count, dtype=torch.float32)
        for rows in _chunks(count, num_valid, CHUNK_ELEMENTS):
            logits = (hidden[rows] @ valid.t()).float()
            picked[rows] = logits.gather(1, local[rows, None]).squeeze(1)
            top = logits.amax(dim=1, keepdim=True)
            weights = (logits - top).exp_()
            total = weights.sum(dim=1)
            lse[rows] = total.log() + top.squeeze(1)
            expected[rows] = torch.linalg.vecdot(weights, logits) / total
        local_lse = lse
        if group.size() > 1:
            picked = picked * owned
            top = lse.clone()
            dist.all_reduce(top, dist.ReduceOp.MAX, group)
            share = (lse - top).exp()
            sums = torch.stack((share, share * expected, picked))
            dist.all_reduce(sums, dist.ReduceOp.SUM, group)
            lse, expected, picked = sums[0].log() + top, sums[1] / sums[0], sums[2]
        ctx.save_for_backward(hidden, weight, local, owned, (local_lse - lse).exp())
        ctx.num_valid = num_valid
        entropy = lse - expected
        ctx.mark_non_differentiable(entropy)
        return picked - lse, entropy

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradients of hidden states and weight; see the class."""
        hidden, weight, local, owned, share = ctx.saved_tensors
        valid = weight[: ctx.num_valid]
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        grad_valid = grad_weight[: ctx.num_valid]
        toward, away = (grad * owned)[:, None], (grad * share)[:, None]
        # Half the bytes an element of the forward pass; and each chunk costs a pass over the weight's gradient.
        for rows in _chunks(len(hidden), ctx.num_valid, 2 * CHUNK_ELEMENTS):
            probs = torch.softmax(hidden[rows] @ valid.t(), dim=1)
            grad_hidden[rows] = toward[rows] * valid[local[rows]] - away[rows] * (probs @ valid)
            grad_valid -= probs.t() @ (away[rows] * hidden[rows]).to(weight.dtype)
        grad_valid.index_add_(0, local, toward * hidden)
        return grad_hidden, grad_weight.to(weight.dtype), None, None, None, None


def _chunks(num_rows: int, num_columns: int, num_elements: int) -> list[slice]:
    size = max(1, num_elements // num_columns)
    return [slice(start, start + size) for start in range(0, num_rows, size)]
