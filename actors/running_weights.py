"""The weights that a vLLM worker computes with, under Hugging Face names: its shards, or whole tensors.

With tensor parallelism a worker has a shard of most tensors: rows of the projections into heads and feed-forward
columns, columns of those back, rows of the embedding and the output head. The rest (norms, biases of the projections
back) every worker has in full.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from vllm.distributed.parallel_state import get_tp_group
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    LinearBase,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
)
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

from actors.fused_experts import expert_shards
from actors.shard import Shard

# Rows of the identity that are pushed through a layer at once, to read its weight back.
_PROBE_ROWS = 512


def own_weights(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The shards of this worker, without padding."""
    rank = get_tp_group().rank_in_group
    for shard in shards(model):
        yield shard.name, shard.unpadded(rank)


def whole_weights(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Whole tensors, put together from the shards of all workers, each of which has to call this at the same time.

    A worker's own shard is always in its wholes, also where another worker has the same: a worker that differs from the
    others has wholes that differ from theirs.
    """
    group = get_tp_group()
    for shard in shards(model):
        yield shard.name, shard.part if shard.dim is None else shard.whole(group.rank_in_group, _gather(shard, group))


def shards(model: torch.nn.Module) -> Iterator[Shard]:
    """The weights that this worker's part of `model` computes with.

    A linear layer's weight is read by pushing the identity through the very kernel that generation uses: on a CPU
    that kernel holds the only copy, in a layout of its own. Each result is one product with 1, so it is exact. The
    output head is read likewise even where it is tied, so that a stale copy shows (as `lm_head.weight`).
    """
    packed: dict[str, list[str]] = getattr(model, "packed_modules_mapping", {})
    for prefix, module in model.named_modules():
        if isinstance(module, LinearBase):
            yield from _unpack(prefix, module, packed)
        elif isinstance(module, ParallelLMHead):
            weight = _probe(module, module.embedding_dim)
            yield Shard(f"{prefix}.weight", weight, dim=0, size=module.org_vocab_size)
        elif isinstance(module, VocabParallelEmbedding):
            weight = module.get_parameter("weight").detach().clone()
            yield Shard(f"{prefix}.weight", weight, dim=0, size=module.org_vocab_size)
        elif isinstance(module, RoutedExperts):
            yield from expert_shards(prefix, module)
        else:
            for name, parameter in module.named_parameters(recurse=False):
                yield Shard(f"{prefix}.{name}", parameter.detach().clone())


def _unpack(prefix: str, module: Any, packed: dict[str, list[str]]) -> Iterator[Shard]:
    """A linear layer's weight and bias; merged ones (q, k and v; gate and up) taken apart."""
    parent, _, leaf = prefix.rpartition(".")
    is_column, is_row = isinstance(module, ColumnParallelLinear), isinstance(module, RowParallelLinear)
    is_merged = isinstance(module, (QKVParallelLinear, MergedColumnParallelLinear))
    weight = _probe(module, module.input_size_per_partition if is_row else module.input_size)
    found = [Shard("weight", weight, dim=0 if is_column else 1 if is_row else None)]
    if module.bias is not None:
        bias = module.get_parameter("bias").detach().to(module.params_dtype)
        found.append(Shard("bias", bias, dim=0 if is_column else None))
    names = packed.get(leaf, [leaf]) if is_merged else [leaf]
    replicas = [1] * len(names)
    if isinstance(module, QKVParallelLinear):
        replicas = [1, module.num_kv_head_replicas, module.num_kv_head_replicas]
    for shard in found:
        parts = shard.part.split(module.output_partition_sizes) if is_merged else [shard.part]
        for name, part, times in zip(names, parts, replicas, strict=True):
            full = f"{parent}.{name}.{shard.name}"
            yield replace(shard, name=full, part=part.contiguous(), replicas=times)


def _probe(module: Any, num_inputs: int) -> torch.Tensor:
    """The weight [outputs, inputs] that a layer multiplies with."""
    dtype, device = module.weight.dtype, module.weight.device
    columns = []
    for start in range(0, num_inputs, _PROBE_ROWS):
        rows = min(_PROBE_ROWS, num_inputs - start)
        unit = torch.zeros(rows, num_inputs, dtype=dtype, device=device)
        unit[torch.arange(rows), torch.arange(start, start + rows)] = 1
        columns.append(module.quant_method.apply(module, unit, None).clone())
    return torch.cat(columns).t().contiguous()


def _gather(shard: Shard, group: Any) -> list[torch.Tensor]:
    """The parts of all workers, by rank, in main memory; a collective of the workers."""
    mine = shard.part.cpu().contiguous()
    if group.world_size == 1:
        return [mine]
    parts = [torch.empty_like(mine) for _ in range(group.world_size)]
    # As bytes: gloo does not have every dtype.
    dist.all_gather([part.view(torch.uint8) for part in parts], mine.view(torch.uint8), group=group.cpu_group)
    return parts
