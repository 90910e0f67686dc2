"""The attention pattern of a micro-batch for torch's FlexAttention: which blocks of rows meet, and which rows in them.

The rows of a micro-batch are those of trees, each node before its children (`packing.py`: a prompt, then its
responses). So a row `i` attends to a row `j` if `j <= i < stop[j]`, where `stop[j]` is the row after the last
descendant of `j`'s node: one number a row describes the whole pattern. Which blocks of `BLOCK` x `BLOCK` pairs hold
nothing, or nothing but visible pairs, follows from the least and the greatest stop of each block, without looking at
pairs: for T rows that takes (T / BLOCK)^2 comparisons and no memory in T^2.

Shapes: T rows, L rows with padding, N = L / BLOCK blocks.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from learner.batching.packing import MicroBatch

BLOCK = 128
"""Rows of a block: the size that FlexAttention's kernels are made for, in both directions."""


def padded_rows(rows: int) -> int:
    """Return the number of rows that `rows` are padded to for attention: 1 to 8, or 5, 6, 7, 8 times a power of two,
    blocks.

    A compiled kernel is for one number of rows. Four numbers to an octave keep kernels few (a batch whose micro-batches
    are between half full and full needs at most five) and the padding under a quarter. Padding costs little: no block
    of it meets another but itself.
    """
    blocks = -(-rows // BLOCK)
    step = 1 << max(0, (blocks - 1).bit_length() - 3)
    return -(-blocks // step) * step * BLOCK


def subtree_stops(micro: MicroBatch, num_rows: int) -> np.ndarray:
    """Return `stop[j]` of every row of `micro`, int32 [num_rows]. Rows after the last one are padding: each sees itself
    alone."""
    stops = np.arange(1, num_rows + 1, dtype=np.int32)
    for segment in micro.segments:
        row = segment.start + segment.prompt_len
        stops[segment.start : row] = segment.stop
        for length in segment.response_lens:
            stops[row : row + length - 1] = row + length - 1
            row += length - 1
    return stops


def tree_block_mask(micro: MicroBatch, device: torch.device) -> BlockMask:
    """Return the block mask of `micro`, for `padded_rows(T)` rows, on `device`."""
    stops = torch.from_numpy(subtree_stops(micro, padded_rows(micro.num_tokens))).to(device)

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < stops[key])

    by_block = stops.unflatten(0, (-1, BLOCK))
    least, most = by_block.amin(1), by_block.amax(1)
    blocks = torch.arange(len(by_block), device=device)
    before = blocks < blocks[:, None]
    # A block of queries before the diagonal sees something if its first row does, and everything if its last row does.
    some = before & (most > blocks[:, None] * BLOCK)
    full = before & (least >= (blocks[:, None] + 1) * BLOCK)
    partial = (some & ~full) | (blocks == blocks[:, None])
    return BlockMask.from_kv_blocks(
        *_ordered(partial), *_ordered(full), BLOCK_SIZE=BLOCK, mask_mod=visible, seq_lengths=(len(stops), len(stops))
    )


def _ordered(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of queries has in `chosen` [N, N], int32 [1, 1, N], and their numbers first in
    int32 [1, 1, N, N]."""
    numbers = torch.argsort(chosen.to(torch.int32), dim=1, descending=True, stable=True)
    return chosen.sum(1, dtype=torch.int32)[None, None], numbers.to(torch.int32)[None, None].contiguous()
