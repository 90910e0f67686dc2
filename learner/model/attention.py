"""Core attention of the transformer layers: grouped queries over shared prompts.

A `TreePlan` says once for a micro-batch which rows attend to which, and holds the rotary table; the `TreeAttention` of
every layer follows it. Shapes: T rows, H query heads, G key/value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn.functional import pad, scaled_dot_product_attention

from learner.batching.packing import MicroBatch, Segment
from learner.model.context_parallel import heads_to_rows, rows_to_heads
from learner.model.cpu_attention import CpuPlan, CpuTreeAttention, plan_cpu
from learner.model.kernels import Rotate
from learner.model.megatron import TransformerConfig


@dataclass(frozen=True, slots=True)
class Branches:
    """Responses of one segment that are computed together, padded to the longest of them."""

    start: int
    prompt_start: int
    prompt_stop: int
    row_lens: tuple[int, ...]
    """Rows of each response, longest first."""
    mask: Tensor
    """[longest, prompt + longest], added to the scores: a row sees the prompt, and its response up to itself."""

    @property
    def stop(self) -> int:
        """Row after the last row."""
        return self.start + sum(self.row_lens)


@dataclass
class TreePlan:
    """Attention pattern and rotary table of a micro-batch. Passed through Megatron-Core as `packed_seq_params`."""

    cos: Tensor
    """[T, 1, D / 2], in the dtype of the activations; `sin` alike."""
    sin: Tensor

    blocks: list[tuple[int, int] | Branches] = field(default_factory=list)
    """Blocks of rows, in order. (start, stop) is plain causal attention among these rows."""
    cpu: CpuPlan | None = None
    """The plan of the CPU kernels, in place of `blocks`."""
    context: ProcessGroup | None = None
    """Context-parallel ranks that share the rows (`context_parallel.py`); None if this rank has all rows."""
    qkv_format: str = "tree"
    """Megatron-Core reads it; any value but its own "thd" leaves the layout [T, 1, ...] alone."""


def plan_attention(
    micro: MicroBatch, inv_freq: Tensor, dtype: torch.dtype, cpu_kernels: bool, context: ProcessGroup | None = None
) -> TreePlan:
    """Build the attention plan of the whole micro-batch `micro`, on the device of `inv_freq` [D / 2], the rotary
    frequencies (float32)."""
    positions = torch.from_numpy(micro.position_ids).to(inv_freq.device, torch.float32)
    angles = torch.outer(positions, inv_freq)[:, None, :]
    plan = TreePlan(cos=angles.cos().to(dtype), sin=angles.sin().to(dtype), context=context)
    if cpu_kernels:
        plan.cpu = plan_cpu(micro)
    else:
        for segment in micro.segments:
            plan.blocks.extend(_segment_blocks(segment, inv_freq.device, dtype))
    return plan


def _segment_blocks(segment: Segment, device: torch.device, dtype: torch.dtype) -> Iterator[tuple[int, int] | Branches]:
    prompt_stop = segment.start + segment.prompt_len
    if len(segment.response_lens) == 1:
        yield segment.start, segment.stop
        return
    yield segment.start, prompt_stop
    row_lens = [length - 1 for length in segment.response_lens if length > 1]
    start = prompt_stop
    while row_lens:
        # Responses at least half as long as the longest share its padding: at most half of the work is wasted.
        count = sum(2 * rows >= row_lens[0] for rows in row_lens)
        together, row_lens = row_lens[:count], row_lens[count:]
        visible = torch.ones(together[0], segment.prompt_len + together[0], dtype=torch.bool, device=device)
        hidden = ~visible.tril(segment.prompt_len)
        mask = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, float("-inf"))
        yield Branches(start, segment.start, prompt_stop, tuple(together), mask)
        start += sum(together)


class TreeAttention(torch.nn.Module):
    """Megatron-Core's core attention module; follows the plan that comes as `packed_seq_params`.

    It applies the rotary embedding itself (half-split, as Hugging Face does), so that the table is computed once for
    all layers.
    """

    def __init__(self, config: TransformerConfig, *_: Any, **__: Any) -> None:
        super().__init__()

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, _: None, *, packed_seq_params: TreePlan, **__: Any
    ) -> Tensor:
        """Compute [T, 1, H, D], [T, 1, G, D], [T, 1, G, D] -> [T, 1, H * D]; with context parallelism T counts this
        rank's rows."""
        plan = packed_seq_params
        query, key, value = query.squeeze(1), key.squeeze(1), value.squeeze(1)
        if plan.context is not None:
            query, key, value = rows_to_heads(query, key, value, len(plan.cos), plan.context)
        table = (plan.cos, plan.sin)
        if plan.cpu is not None:
            out: Tensor = CpuTreeAttention.apply(query, key, value, plan.cpu, *table)  # type: ignore[no-untyped-call]
        else:
            query, key = (Rotate.apply(x, *table) for x in (query, key))  # type: ignore[no-untyped-call]
            out = _attend(query, key, value, plan)
        if plan.context is not None:
            out = heads_to_rows(out, plan.context)
        return out.flatten(1).unsqueeze(1)


def _attend(query: Tensor, key: Tensor, value: Tensor, plan: TreePlan) -> Tensor:
    """[T, H, D], [T, G, D] twice -> [T, H, D], on `scaled_dot_product_attention`."""
    return torch.cat(
        [
            _branches(query, key, value, block) if isinstance(block, Branches) else _causal(query, key, value, *block)
            for block in plan.blocks
        ]
    )


def _causal(query: Tensor, key: Tensor, value: Tensor, start: int, stop: int) -> Tensor:
    q, k, v = (x[start:stop].transpose(0, 1).unsqueeze(0) for x in (query, key, value))
    out = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return out.squeeze(0).transpose(0, 1)


def _branches(query: Tensor, key: Tensor, value: Tensor, block: Branches) -> Tensor:
    longest, count = block.row_lens[0], len(block.row_lens)

    def padded(x: Tensor) -> Tensor:
        """[rows, heads, D] -> [count, longest, heads, D]; what fills the padding is never seen by a real row."""
        parts: Sequence[Tensor] = x[block.start : block.stop].split(block.row_lens)
        return torch.stack([pad(part, (0, 0, 0, 0, 0, longest - len(part))) for part in parts])

    def with_prompt(x: Tensor) -> Tensor:
        prompt = x[block.prompt_start : block.prompt_stop].expand(count, -1, -1, -1)
        return torch.cat((prompt, padded(x)), dim=1).transpose(1, 2)

    q, k, v = padded(query).transpose(1, 2), with_prompt(key), with_prompt(value)
    # CUDA's kernels that take a mask know no grouped queries.
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    out = scaled_dot_product_attention(q, k, v, attn_mask=block.mask).transpose(1, 2)
    return torch.cat([part[:rows] for part, rows in zip(out, block.row_lens, strict=True)])
