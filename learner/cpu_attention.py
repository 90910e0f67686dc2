"""Attention over shared prompts, for CPUs.

Segments of some hundred rows, which is what self-play makes, are computed whole, under masks, several of similar length
in one call of torch's flash kernels: what their many small parts would cost is the calls, not the arithmetic.

Of longer segments, attention to a prompt and attention within a response are computed apart and merged by their
log-sum-exps, so that all responses meet their prompt in one product, and nothing is masked away. Their backward pass uses
matrix products. Shapes: T rows, H query heads, G key/value heads, D head size, L lengths.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from learner.kernels import rotate
from learner.packing import MicroBatch, Segment

SCORES = 1 << 22
"""Scores that the backward pass holds at once."""
BLOCK_ROWS = 1024
"""Rows of a segment that is computed whole, at most; its mask has their square."""
BLOCK_WASTE = 8
"""A segment is computed whole where that has at most this many times its scores."""
BLOCK_PADDING = 1.5
"""Segments share a call where the longest has at most this many times the rows of the shortest."""


@dataclass(frozen=True, slots=True)
class Block:
    """B segments that are computed in one call, padded to the L rows of the longest."""

    rows: Tensor
    """[B, L]: their rows; padding repeats the last one."""
    real: Tensor
    """[B, L]: which of them are no padding."""
    mask: Tensor
    """[B, 1, L, L], in the dtype of the activations, to add to the scores: 0 where a row attends to another, else -inf."""


@dataclass(frozen=True, slots=True)
class CpuPlan:
    """The parts into which the attention of a micro-batch falls."""

    blocks: tuple[Block, ...]
    """Segments that are computed whole."""
    causal: tuple[tuple[int, int], ...]
    """(start, stop): rows that attend to one another, causally: prompts, and prompts with their only response."""
    cross: tuple[tuple[int, int, int, int], ...]
    """(start, stop, prompt_start, prompt_stop): rows of responses, which attend to all of a prompt."""
    leaves: tuple[Tensor, ...]
    """[count, longest] each: rows of responses that attend causally to their own, padded with repeated rows."""
    leaf_masks: tuple[Tensor, ...]
    """[count, longest] each: which of them are no padding."""


def plan_cpu(micro: MicroBatch, dtype: torch.dtype = torch.float32) -> CpuPlan:
    """Lay out the attention of `micro`; `dtype` of the activations."""
    whole: list[tuple[Segment, Tensor]] = []
    causal: list[tuple[int, int]] = []
    cross: list[tuple[int, int, int, int]] = []
    responses: list[tuple[int, int]] = []
    for segment in micro.segments:
        if segment.stop - segment.start <= BLOCK_ROWS:
            visible = _visible(segment)
            if visible.numel() <= BLOCK_WASTE * int(visible.sum()):
                whole.append((segment, visible))
                continue
        if len(segment.response_lens) == 1:
            causal.append((segment.start, segment.stop))
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
    return CpuPlan(_blocks(whole, dtype), tuple(causal), tuple(cross), tuple(leaves), tuple(masks))


def _visible(segment: Segment) -> Tensor:
    """Bool [rows, rows]: whether a row of the segment attends to another."""
    rows = torch.arange(segment.stop - segment.start)
    lengths = [segment.prompt_len, *(length - 1 for length in segment.response_lens)]
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return ((owner[:, None] == owner) | (owner == 0)) & (rows[:, None] >= rows)


def _blocks(whole: list[tuple[Segment, Tensor]], dtype: torch.dtype) -> tuple[Block, ...]:
    """Segments, each with what is visible, by similar length."""
    blocks = []
    whole = sorted(whole, key=lambda item: (-len(item[1]), item[0].start))
    while whole:
        longest = len(whole[0][1])
        count = sum(BLOCK_PADDING * len(visible) >= longest for _, visible in whole)
        together, whole = whole[:count], whole[count:]
        lengths = torch.tensor([[len(visible)] for _, visible in together])
        starts = torch.tensor([[segment.start] for segment, _ in together])
        places = torch.arange(longest)
        # Padding attends to itself: a row that attends to nothing would be NaN.
        seen = torch.eye(longest, dtype=torch.bool).repeat(count, 1, 1)
        for index, (_, visible) in enumerate(together):
            seen[index, : len(visible), : len(visible)] = visible
        mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, float("-inf")).unsqueeze(1)
        blocks.append(Block(starts + places.minimum(lengths - 1), places < lengths, mask))
    return tuple(blocks)


class CpuTreeAttention(torch.autograd.Function):
    """(query [T, H, D], key [T, G, D], value [T, G, D], plan, cos, sin) -> [T, H, D], rotary embedding included."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, plan: CpuPlan, cos: Tensor, sin: Tensor) -> Tensor:
        """See the class."""
        q, k, v = rotate(query, cos, sin), rotate(key, cos, sin), value.contiguous()
        out = torch.empty_like(q)
        lse = q.new_empty(q.shape[:2], dtype=torch.float32)
        for block in plan.blocks:
            block_out, block_lse = _flash(q[block.rows], k[block.rows], v[block.rows], False, block.mask)
            taken = block.rows[block.real]
            out[taken], lse[taken] = block_out[block.real], block_lse[block.real]
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
        """Gradients of query, key and value."""
        # With the merged log-sum-exp and output, each part's probabilities and gradients are its share of the whole's.
        q, k, v, out, lse, cos, sin = ctx.saved_tensors
        plan: CpuPlan = ctx.plan
        delta = (grad.float() * out).sum(-1)
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)

        def part(rows: Any, keys: Any, causal: bool) -> tuple[Tensor, Tensor, Tensor]:
            return _part_backward(q[rows], k[keys], v[keys], grad[rows], lse[rows], delta[rows], causal)

        for block in plan.blocks:
            taken = block.rows[block.real]
            for total, share in zip((dq, dk, dv), _block_backward(q, k, v, grad, out, lse, block), strict=True):
                total[taken] = share[block.real].to(total.dtype)
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


def _block_backward(
    query: Tensor, key: Tensor, value: Tensor, grad: Tensor, out: Tensor, lse: Tensor, block: Block
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query [B, L, H, D], key and value [B, L, G, D], float32, of the rows of `block`.

    In float32: torch's backward kernel is a third slower in bfloat16, and copies its inputs either way.
    """
    shared = query.shape[1] // key.shape[1]
    rows = block.rows

    def taken(x: Tensor, repeat: int = 1) -> Tensor:
        """[T, heads, ...] -> [B, heads * repeat, L, ...]"""
        return x[rows].float().repeat_interleave(repeat, dim=2).transpose(1, 2).contiguous()

    # A padding row repeats a real one; without a gradient of its own it adds nothing to any key.
    g = taken(grad).masked_fill_(~block.real[:, None, :, None], 0.0)
    dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        g, taken(query), taken(key, shared), taken(value, shared), taken(out), taken(lse), 0.0, False,
        attn_mask=block.mask.float(),
    )  # fmt: skip
    dk, dv = (x.unflatten(1, (-1, shared)).sum(2) for x in (dk, dv))
    return dq.transpose(1, 2), dk.transpose(1, 2), dv.transpose(1, 2)


def _part_backward(
    query: Tensor, key: Tensor, value: Tensor, grad: Tensor, lse: Tensor, delta: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query [B, L, H, D], key and value [B, K, G, D]; `lse` and `delta` [B, L, H] are float32.

    Scores are computed in float32, the products of probabilities in the dtype of the inputs. Queries are cut into
    chunks of rows, and under a causal mask a chunk meets no keys after its last row.
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
        probs = torch.baddbmm(bias_chunk, q_chunk.float(), k32[:, :seen].mT, beta=-1, alpha=scale).exp_()
        if causal:
            probs.unflatten(1, (shared, -1)).tril_(start)
        dv[:, :seen] += probs.to(g.dtype).mT @ g_chunk
        scores = (g_chunk @ v[:, :seen].mT).float().sub_(d_chunk).mul_(probs).to(q.dtype)
        dq[:, :, start:stop] = (scores @ k[:, :seen]).mul_(scale).unflatten(1, (shared, -1))
        dk[:, :seen] += scores.mT @ q_chunk
    dk *= scale
    dq = dq.unflatten(0, (batch, groups)).movedim(3, 1).flatten(2, 3)
    return dq, *(x.unflatten(0, (batch, groups)).transpose(1, 2) for x in (dk, dv))
