"""Context parallelism: splits the rows of a micro-batch over ranks.

Context rank r of C has rows r, r + C, r + 2C, ... of the micro-batch, which is padded to a multiple of C. It computes
everything on them but attention: norms, projections, MLPs, logits. Around the core attention, ranks exchange rows for
heads (DeepSpeed-Ulysses, https://arxiv.org/abs/2309.14509): each rank attends over all rows for H / C of its query
heads, so that attention over shared prompts, its plan and its kernels stay as they are. This is exact, and balanced for
any lengths; a ring, or gathered keys, would leave ranks with different segments. H must be divisible by C.

Key/value heads are repeated only as often as needed: lcm(G, C) of them travel.

Shapes: T rows of a micro-batch, C context ranks, H query heads, G key/value heads, D head size, R response tokens.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn.functional import pad

from learner.batching.packing import MicroBatch
from learner.model.megatron import tensor_parallel


def local_part(micro: MicroBatch, rank: int, size: int) -> MicroBatch:
    """Return the rows of `micro` that context rank `rank` of `size` has, padding included, with the response tokens
    they predict.

    Its `logit_rows` count these rows; its `segments` remain those of the whole micro-batch.
    """
    if size == 1:
        return micro
    padding = -micro.num_tokens % size
    mine = micro.logit_rows % size == rank
    return replace(
        micro,
        input_ids=np.pad(micro.input_ids, (0, padding))[rank::size],
        position_ids=np.pad(micro.position_ids, (0, padding))[rank::size],
        logit_rows=micro.logit_rows[mine] // size,
        targets=micro.targets[mine],
        sequence_index=micro.sequence_index[mine],
        token_index=micro.token_index[mine],
    )


def rows_to_heads(
    query: Tensor, key: Tensor, value: Tensor, num_rows: int, group: ProcessGroup
) -> tuple[Tensor, Tensor, Tensor]:
    """Exchange rows for heads: [T / C, H, D], [T / C, G, D] twice -> [T, H / C, D], [T, lcm(G, C) / C, D] twice.

    The result has all rows and this rank's heads. `num_rows`: T without padding. Differentiable. Collective over the
    context ranks `group`, in the backward pass too.
    """
    size = group.size()
    repeats = math.lcm(key.shape[1], size) // key.shape[1]
    if repeats > 1:
        key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
    by_rank = torch.cat([x.unflatten(1, (size, -1)) for x in (query, key, value)], dim=2).transpose(0, 1)
    exchanged: Tensor = tensor_parallel.all_to_all(group, by_rank)
    rows = exchanged.transpose(0, 1).flatten(0, 1)[:num_rows]
    heads, groups = query.shape[1] // size, key.shape[1] // size
    return rows[:, :heads], rows[:, heads : heads + groups], rows[:, heads + groups :]


def heads_to_rows(out: Tensor, group: ProcessGroup) -> Tensor:
    """Exchange heads for rows, for the attention's output: [T, H / C, D] -> [T / C, H, D]. Padding rows are zero."""
    size = group.size()
    padded = pad(out, (0, 0, 0, 0, 0, -len(out) % size))
    by_rank = padded.unflatten(0, (-1, size)).transpose(0, 1)
    exchanged: Tensor = tensor_parallel.all_to_all(group, by_rank)
    return exchanged.transpose(0, 1).flatten(1, 2)
