"""Mixture of experts in place of a layer's MLP: a router and Megatron-Core's experts.

Megatron-Core's own `MoELayer` cannot be used: its dispatchers expect each rank to hold different rows, so that under
tensor parallelism it trains only with sequence parallelism, and its router needs Transformer Engine. Here every
tensor-parallel rank has all rows and a slice of every expert, so nothing is dispatched: rows are grouped by expert,
computed and put back, and the slices' outputs are summed, as those of an MLP are.

Shapes: T rows, E features, X experts, K experts per row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from learner.model.kernels import SwiGlu
from learner.model.megatron import (
    ColumnParallelLinear,
    MegatronModule,
    MLPSubmodules,
    RowParallelLinear,
    SequentialMLP,
    TransformerConfig,
    copy_to_tensor_model_parallel_region,
    get_default_pg_collection,
    reduce_from_tensor_model_parallel_region,
)


class Router(MegatronModule):
    """Chooses the experts of each row by the largest softmax probabilities."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        weight = torch.empty(config.num_moe_experts, config.hidden_size, dtype=config.params_dtype)
        self.weight = torch.nn.Parameter(weight)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return, for rows [T, E], the weights [T, K] of the chosen experts and their indices [T, K]."""
        logits = x @ self.weight.t()
        probs, chosen = logits.softmax(-1, dtype=torch.float32).topk(self.config.moe_router_topk, dim=-1)
        if not self.config.moe_router_pre_softmax:
            probs = probs / probs.sum(-1, keepdim=True)
        return probs.to(logits.dtype), chosen


class Mixture(MegatronModule):
    """Sums, for each row, the weighted outputs of the gated MLPs that the router chooses; no row is dropped."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        parts = MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear, activation_func=SwiGlu)
        self.router = Router(config)
        self.experts = SequentialMLP(config.num_moe_experts, config, parts, get_default_pg_collection())

    def forward(self, x: Tensor, **_: Any) -> tuple[Tensor, None]:
        """Compute [T, 1, E] -> [T, 1, E], and no bias for Megatron-Core's layer to add."""
        rows = x.flatten(0, 1)
        probs, chosen = self.router(rows)
        order = chosen.flatten().argsort(stable=True)
        counts = chosen.flatten().bincount(minlength=self.config.num_moe_experts)
        owners = order // chosen.shape[1]
        # A slice gives its rank only a part of the gradients of what is whole on every rank.
        rows, probs = copy_to_tensor_model_parallel_region(rows), copy_to_tensor_model_parallel_region(probs)
        out, _ = self.experts(rows[owners], counts, probs.flatten()[order])
        summed = torch.zeros_like(rows).index_add(0, owners, out)
        return reduce_from_tensor_model_parallel_region(summed).view(x.shape), None

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Return every expert's tensors separately; Megatron-Core's experts would stack them along a further
        dimension."""
        state: dict[str, Any] = self.router.sharded_state_dict(f"{prefix}router.", sharded_offsets, metadata)
        for index, expert in enumerate(self.experts.local_experts):
            state |= expert.sharded_state_dict(f"{prefix}experts.local_experts.{index}.", sharded_offsets, metadata)
        return state
