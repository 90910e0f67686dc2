"""Core attention of the transformer layers: grouped queries over shared prompts.

A `TreePlan` says once for a micro-batch which rows attend to which, and holds the rotary table; the `TreeAttention` of
every layer follows it: on a CPU by the kernels of `cpu_attention.py`, elsewhere by one call of torch's FlexAttention.
Shapes: T rows, H query heads, G key/value heads, D head size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import pad

from learner.batching.packing import MicroBatch
from learner.model import compiled
from learner.model.block_mask import tree_block_mask
from learner.model.context_parallel import heads_to_rows, rows_to_heads
from learner.model.cpu_attention import CpuPlan, CpuTreeAttention, plan_cpu
from learner.model.kernels import Rotate
from learner.model.megatron import TransformerConfig

MIN_HEAD_SIZE = 16
"""The least head size of FlexAttention's kernels; smaller heads are padded with zeros."""


@dataclass
class TreePlan:
    """Attention pattern and rotary table of a micro-batch. Passed through Megatron-Core as `packed_seq_params`."""

    cos: Tensor
    """[T, 1, D / 2], in the dtype of the activations; `sin` alike."""
    sin: Tensor

    cpu: CpuPlan | None = None
    """The plan of the CPU kernels; None: FlexAttention follows `blocks`."""
    blocks: BlockMask | None = None
    compiled: bool = False
    """Whether FlexAttention and the rotary embedding are compiled. Uncompiled, FlexAttention holds all H T^2 scores."""
    context: ProcessGroup | None = None
    """Context-parallel ranks that share the rows (`context_parallel.py`); None if this rank has all rows."""
    qkv_format: str = "tree"
    """Megatron-Core reads it; any value but its own "thd" leaves the layout [T, 1, ...] alone."""


def plan_attention(
    micro: MicroBatch,
    inv_freq: Tensor,
    dtype: torch.dtype,
    cpu_kernels: bool,
    context: ProcessGroup | None = None,
    compile_kernels: bool = False,
) -> TreePlan:
    """Build the attention plan of the whole micro-batch `micro`, on the device of `inv_freq` [D / 2], the rotary
    frequencies (float32)."""
    positions = torch.from_numpy(micro.position_ids).to(inv_freq.device, torch.float32)
    angles = torch.outer(positions, inv_freq)[:, None, :]
    plan = TreePlan(angles.cos().to(dtype), angles.sin().to(dtype), compiled=compile_kernels, context=context)
    if cpu_kernels:
        plan.cpu = plan_cpu(micro)
    else:
        plan.blocks = tree_block_mask(micro, inv_freq.device)
    return plan


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
            assert plan.blocks is not None
            rotate = compiled.rotate if plan.compiled else Rotate.apply
            out = _flex(rotate(query, *table), rotate(key, *table), value, plan.blocks, plan.compiled)
        if plan.context is not None:
            out = heads_to_rows(out, plan.context)
        return out.flatten(1).unsqueeze(1)


def _flex(query: Tensor, key: Tensor, value: Tensor, blocks: BlockMask, compile_kernel: bool) -> Tensor:
    """[T, H, D], [T, G, D] twice -> [T, H, D]."""
    num_rows, _, dim = query.shape
    padding = (0, max(0, MIN_HEAD_SIZE - dim), 0, 0, 0, blocks.seq_lengths[0] - num_rows)
    # Padding has to be finite: a score that is hidden has weight 0, and 0 times what lies there must be 0.
    q, k, v = ((pad(x, padding) if any(padding) else x).transpose(0, 1).unsqueeze(0) for x in (query, key, value))
    attend: Any = flex_attention
    if compile_kernel:
        attend = compiled.flex_attention
    out: Tensor = attend(q, k, v, block_mask=blocks, scale=1.0 / math.sqrt(dim), enable_gqa=True)
    return out.squeeze(0).transpose(0, 1)[:num_rows, :, :dim]
