"""The experts of a mixture in a vLLM worker: their weights, expert by expert, and a reload that vLLM leaves half done.

vLLM keeps the experts of a layer in two tensors: gate and up projections [X, 2 F, E], down projections [X, E, F]. On a
CPU their elements are in the order in which its kernel reads them. Shapes: X experts, E features, F the worker's
features of an expert.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import torch
from vllm._custom_ops import cpu_prepack_moe_weight
from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts

from actors.shard import Shard

_PLAIN = ("TritonExperts", "BatchedTritonExperts")
"""Kernels of vLLM that read weights as they are loaded."""


def expert_shards(prefix: str, module: RoutedExperts) -> Iterator[Shard]:
    """The shards of each expert's projections, under Hugging Face names. `prefix`: the module's name in the model.
    Raises NotImplementedError for a kernel whose order of weights is not known."""
    name = prefix.removesuffix(".routed_experts")
    gate_up, down = _in_rows(module, module.w13_weight), _in_rows(module, module.w2_weight)
    size, padded = module.moe_config.intermediate_size_per_partition, gate_up.shape[1] // 2
    for expert in range(len(gate_up)):
        gate, up = gate_up[expert].split(padded)
        yield Shard(f"{name}.{expert}.gate_proj.weight", gate[:size].clone(), dim=0)
        yield Shard(f"{name}.{expert}.up_proj.weight", up[:size].clone(), dim=0)
        yield Shard(f"{name}.{expert}.down_proj.weight", down[expert, :, :size].clone(), dim=1)


def repack_after_reload(model: torch.nn.Module) -> None:
    """Let experts that are loaded again be put into the order of the CPU's kernel again. vLLM does that at the first
    loading alone, and its kernel then takes the rows of new weights for its own order."""
    for module in model.modules():
        if isinstance(module, RoutedExperts) and isinstance(_kernel(module), CPUUnquantizedExperts):
            _repack(module.quant_method)


def places_in(
    pack: Callable[[torch.Tensor], torch.Tensor], rows: int, columns: int, dtype: torch.dtype
) -> torch.Tensor:
    """int64 [rows * columns]: the place, counted by rows, from which `pack` takes each element of a matrix.

    `pack` puts the elements of each matrix of [X, rows, columns] into another order. Raises ValueError where it does
    more than that.
    """
    numel, integer = rows * columns, {2: torch.int16, 4: torch.int32}[dtype.itemsize]
    bits = 8 * dtype.itemsize - 1  # without the sign
    places = torch.arange(numel)
    found = torch.zeros(numel, dtype=torch.int64)
    for shift in range(0, max(1, (numel - 1).bit_length()), bits):
        digits = (places >> shift & (1 << bits) - 1).to(integer).view(dtype)
        found |= pack(digits.view(1, rows, columns)).contiguous().view(integer).view(-1).to(torch.int64) << shift
    if not torch.equal(found.sort().values, places):
        raise ValueError("the kernel does more to its weights than to put them into another order")
    return found


def _in_rows(module: RoutedExperts, weight: torch.Tensor) -> torch.Tensor:
    """The weights of a layer's experts, as [X, rows, columns] in the order in which they are loaded."""
    kernel = _kernel(module)
    if isinstance(kernel, CPUUnquantizedExperts):
        if kernel._use_zentorch:
            return weight.detach()
        rows = torch.empty_like(weight).flatten(1)
        rows[:, _cpu_places(kernel.isa, *weight.shape[1:], weight.dtype)] = weight.detach().flatten(1)
        return rows.view_as(weight)
    if type(kernel).__name__ in _PLAIN:
        return weight.detach()
    raise NotImplementedError(
        f"the experts of this engine run on {type(kernel).__name__}, which keeps weights in an order of its own: they "
        "cannot be compared"
    )


@lru_cache(maxsize=8)
def _cpu_places(isa: str, rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    return places_in(lambda matrices: cpu_prepack_moe_weight(matrices, isa), rows, columns, dtype)


def _kernel(module: RoutedExperts) -> Any:
    kernel = getattr(module.quant_method, "moe_kernel", None)
    return None if kernel is None else kernel.fused_experts


def _repack(method: Any) -> None:
    process = method.process_weights_after_loading

    def process_and_repack(layer: torch.nn.Module) -> None:
        process(layer)
        method.moe_kernel.fused_experts.process_weights_after_loading(layer)

    method.process_weights_after_loading = process_and_repack
