"""Attention over shared prompts on CPUs: forward on torch's flash kernel, backward on plain matrix products.

Attention to a prompt and attention within a response are computed separately and merged by their log-sum-exps, so that
all responses of a segment meet their prompt in one product, and responses of all segments are computed together. The
backward pass uses matrix products, because torch's own is written for few long sequences: on many short ones in
bfloat16 it is several times slower.

Shapes: T rows, H query heads, G key/value heads, D head size, L lengths.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from learner.batching.packing import MicroBatch, Segment
from learner.model.kernels import rotate

SCORES = 1 << 22
"""Maximum number of scores that the backward pass holds at once."""
DENSE_ROWS = 1024
"""Maximum rows of a segment that is computed as one masked block; the mask has their square."""
DENSE_WASTE = 5
"""A segment is computed as one masked block if the block has at most this many times the segment's scores. Measured: on
short responses the copies that separate parts need cost more than the masked scores."""


@dataclass(frozen=True, slots=True)
class CpuPlan:
    """The parts into which the attention of a micro-batch is divided."""

    dense: tuple[tuple[int, int, Tensor, Tensor], ...]
    """(start, stop, visible, mask): a whole segment as one block, where that costs little more. `visible`, float32
    [rows, rows], is 1 where a row attends to another, else 0; `mask` is its logarithm."""
    causal: tuple[tuple[int, int], ...]
    """(start, stop): rows with causal attention among themselves: prompts, and prompts with their only response."""
    cross: tuple[tuple[int, int, int, int], ...]
    """(start, stop, prompt_start, prompt_stop): rows of responses, which attend to all of a prompt."""
    leaves: tuple[Tensor, ...]
    """[count, longest] each: rows of responses with causal attention among their own, padded with repeated rows."""
    leaf_masks: tuple[Tensor, ...]
    """[count, longest] each: true where `leaves` is no padding."""


def plan_cpu(micro: MicroBatch) -> CpuPlan:
    """Divide the attention of `micro` into the parts of a `CpuPlan`."""
    dense: list[tuple[int, int, Tensor, Tensor]] = []
    causal: list[tuple[int, int]] = []
    cross: list[tuple[int, int, int, int]] = []
    responses: list[tuple[int, int]] = []
    for segment in micro.segments:
        if len(segment.response_lens) == 1:
            causal.append((segment.start, segment.stop))
            continue
        if segment.stop - segment.start <= DENSE_ROWS:
            visible = _visible(segment)
            if visible.numel() <= DENSE_WASTE * int(visible.sum()):
                dense.append((segment.start, segment.stop, visible, visible.log()))
                continue
        row = segment.start + segment.prompt_len
        causal.append((segment.start, row))
        if segment.stop > row:
            cross.append((row, segment.stop, segment.start, row))
        for length in segment.response_lens:
            if length > 1:
                responses.append((length - 1, row))
            row += length - 1
    responses.sort(reverse=True)
    leaves, masks = [], []
    while responses:
        longest = responses[0][0]
        # Responses at least half as long as the longest share its padding.
        count = sum(2 * rows >= longest for rows, _ in responses)
        together, responses = responses[:count], responses[count:]
        lengths, starts = (torch.tensor(column)[:, None] for column in zip(*together, strict=True))
        places = torch.arange(longest)
        leaves.append(starts + places.minimum(lengths - 1))
        masks.append(places < lengths)
    return CpuPlan(tuple(dense), tuple(causal), tuple(cross), tuple(leaves), tuple(masks))


def _visible(segment: Segment) -> Tensor:
    """Float32 [rows, rows]: 1 where a row of the segment attends to another, else 0."""
    rows = torch.arange(segment.stop - segment.start)
    lengths = [segment.prompt_len, *(length - 1 for length in segment.response_lens)]
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return (((owner[:, None] == owner) | (owner == 0)) & (rows[:, None] >= rows)).float()


class CpuTreeAttention(torch.autograd.Function):
    """Attention with rotary embedding: (query [T, H, D], key [T, G, D], value [T, G, D], plan, cos, sin) -> [T, H,
    D]."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, plan: CpuPlan, cos: Tensor, sin: Tensor) -> Tensor:
        """Compute the output; see the class."""
        q, k, v = rotate(query, cos, sin), rotate(key, cos, sin), value.contiguous()
        out = torch.empty_like(q)
        lse = q.new_empty(q.shape[:2], dtype=torch.float32)
        for start, stop, _, mask in plan.dense:
            rows = slice(start, stop)
            out[None, rows], lse[None, rows] = _flash(q[None, rows], k[None, rows], v[None, rows], False, mask)
        for start, stop in plan.causal:
            rows = slice(start, stop)
            out[None, rows], lse[None, rows] = _flash(q[None, rows], k[None, rows], v[None, rows], causal=True)
        for leaf, mask in zip(plan.leaves, plan.leaf_masks, strict=True):
            leaf_out, leaf_lse = _flash(q[leaf], k[leaf], v[leaf], causal=True)
            out[leaf[mask]], lse[leaf[mask]] = leaf_out[mask], leaf_lse[mask]
        for start, stop, prompt_start, prompt_stop in plan.cross:
            rows, prompt = slice(start, stop), slice(prompt_start, prompt_stop)
            cross_out, cross_lse = _flash(q[None, rows], k[None, prompt], v[None, prompt], causal=False)
            merged = torch.logaddexp(lse[rows], cross_lse[0])
            own = out[rows].float().mul_((lse[rows] - merged).exp_()[:, :, None])
            out[rows] = own.add_(cross_out[0].float().mul_((cross_lse[0] - merged).exp_()[:, :, None]))
            lse[rows] = merged
        ctx.save_for_backward(q, k, v, out, lse, cos, sin)
        ctx.plan = plan
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradients of query, key and value."""
        # With the merged log-sum-exp and output, each part's probabilities and gradients are its share of the whole's.
        q, k, v, out, lse, cos, sin = ctx.saved_tensors
        plan: CpuPlan = ctx.plan
        delta = (grad.float() * out).sum(-1)
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)

        def part(rows: Any, keys: Any, causal: bool) -> tuple[Tensor, Tensor, Tensor]:
            return _part_backward(q[rows], k[keys], v[keys], grad[rows], lse[rows], delta[rows], causal)

        for start, stop, visible, _ in plan.dense:
            rows = slice(start, stop)
            dq[rows], dk[rows], dv[rows] = (
                x[0]
                for x in _part_backward(
                    q[None, rows], k[None, rows], v[None, rows], grad[None, rows], lse[None, rows], delta[None, rows],
                    True, visible,
                )
            )  # fmt: skip
        for start, stop in plan.causal:
            rows = slice(start, stop)
            dq[None, rows], dk[None, rows], dv[None, rows] = part((None, rows), (None, rows), True)
        for leaf, mask in zip(plan.leaves, plan.leaf_masks, strict=True):
            # A padding row repeats a real one; without a gradient of its own it adds nothing to the keys that it sees.
            leaf_grad = grad[leaf] * mask[:, :, None, None]
            parts = _part_backward(
                q[leaf], k[leaf], v[leaf], leaf_grad, lse[leaf], delta[leaf] * mask[:, :, None], True
            )
            for total, share in zip((dq, dk, dv), parts, strict=True):
                total[leaf[mask]] = share[mask].to(total.dtype)
        for start, stop, prompt_start, prompt_stop in plan.cross:
            rows, prompt = slice(start, stop), slice(prompt_start, prompt_stop)
            dq_part, dk_part, dv_part = part((None, rows), (None, prompt), False)
            dq[None, rows] += dq_part
            dk[None, prompt] += dk_part
            dv[None, prompt] += dv_part
        return rotate(dq, cos, -sin), rotate(dk, cos, -sin), dv, None, None, None


def _flash(
    query: Tensor, key: Tensor, value: Tensor, causal: bool, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """[B, L, heads, D] -> output [B, L, H, D] and log-sum-exp [B, L, H], float32."""
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), 0.0, causal, attn_mask=mask
    )
    return out.transpose(1, 2), lse.transpose(1, 2)


def _part_backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    grad: Tensor,
    lse: Tensor,
    delta: Tensor,
    causal: bool,
    visible: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query [B, L, H, D], key and value [B, K, G, D]; `lse` and `delta` [B, L, H] are float32.

    Scores are computed in float32, products of probabilities in the dtype of the inputs. Queries are computed in chunks
    of rows; under a causal mask a chunk meets no keys after its last row. `visible` [L, K] is 0 where a row is not
    seen.
    """
    batch, num_rows, num_heads, dim = query.shape
    num_keys, groups = key.shape[1], key.shape[2]
    shared = num_heads // groups
    scale = 1.0 / math.sqrt(dim)

    def by_group(x: Tensor) -> Tensor:
        """[B, L, H, ...] -> [B G, H / G, L, ...]"""
        grouped: Tensor = x.unflatten(2, (groups, -1)).movedim(1, 3).flatten(0, 1)
        return grouped

    q, g, bias, d = (by_group(x) for x in (query, grad, lse, delta))
    k, v = (x.transpose(1, 2).flatten(0, 1) for x in (key, value))
    k32 = k.float()
    dq = torch.empty_like(q)
    dk, dv = torch.zeros_like(k32), torch.zeros_like(k32)
    size = max(1, SCORES // (batch * num_heads * num_keys))
    for start in range(0, num_rows, size):
        stop = min(start + size, num_rows)
        seen = stop if causal else num_keys
        q_chunk, g_chunk = q[:, :, start:stop].flatten(1, 2), g[:, :, start:stop].flatten(1, 2)
        bias_chunk, d_chunk = (x[:, :, start:stop].flatten(1, 2).unsqueeze(2) for x in (bias, d))
        probs = torch.baddbmm(bias_chunk, q_chunk.float(), k32[:, :seen].mT, beta=-1, alpha=scale)
        if visible is None:
            probs.exp_()
        else:
            # A score that is not seen may be large; and minus infinity, whose exponential is slow, is no way to hide
            # it.
            probs.clamp_max_(0.0).exp_().unflatten(1, (shared, -1)).mul_(visible[start:stop, :seen])
        if causal and visible is None:
            probs.unflatten(1, (shared, -1)).tril_(start)
        dv[:, :seen] += probs.to(g.dtype).mT @ g_chunk
        scores = (g_chunk @ v[:, :seen].mT).float().sub_(d_chunk).mul_(probs).to(q.dtype)
        dq[:, :, start:stop] = (scores @ k[:, :seen]).mul_(scale).unflatten(1, (shared, -1))
        dk[:, :seen] += scores.mT @ q_chunk
    dk *= scale
    dq = dq.unflatten(0, (batch, groups)).movedim(3, 1).flatten(2, 3)
    return dq, *(x.unflatten(0, (batch, groups)).transpose(1, 2) for x in (dk, dv))
