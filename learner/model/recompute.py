"""Activations that the backward pass computes again, so that they need no memory in between.

`selective`: the outputs of norms and of SwiGLU, which the linear layers after them would keep. They cost passes over
memory and no products. `full`: everything of a layer but its input, for another forward pass (Chen et al. 2016,
https://arxiv.org/abs/1604.06174).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from learner.model.megatron import ColumnParallelLinear, RowParallelLinear, TransformerLayer

_RECIPE = "azr_recipe"
"""Attribute of a tensor that says how it was computed."""


def recomputable(function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """Return `function(*inputs)`, which a linear layer of this file does not keep for its backward pass.

    `function` must not keep its output itself, and nobody may change the inputs until then.
    """
    out = function(*inputs)
    if out.requires_grad:
        setattr(out, _RECIPE, (function, inputs))
    return out


@contextlib.contextmanager
def _not_saving(x: Tensor) -> Iterator[None]:
    """Within this context, what keeps `x` for its backward pass keeps how to compute it, if `x` is `recomputable`."""
    recipe = getattr(x, _RECIPE, None)
    if recipe is None:
        yield
        return
    function, inputs = recipe
    place, size = x.data_ptr(), x.numel()
    del x

    def pack(saved: Tensor) -> Tensor | torch.Size:
        return saved.shape if (saved.data_ptr(), saved.numel()) == (place, size) else saved

    def unpack(packed: Tensor | torch.Size) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        with torch.no_grad():
            again: Tensor = function(*inputs)
        return again.view(packed)

    with saved_tensors_hooks(pack, unpack):
        yield


class ColumnParallel(ColumnParallelLinear):  # type: ignore[misc]
    """Megatron-Core's column-parallel linear layer, which keeps no input that is `recomputable`."""

    def forward(self, input_: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Compute [..., E] -> ([..., columns of this rank], bias or None)."""
        with _not_saving(input_):
            return super().forward(input_, *args, **kwargs)


class RowParallel(RowParallelLinear):  # type: ignore[misc]
    """Megatron-Core's row-parallel linear layer, which keeps no input that is `recomputable`."""

    def forward(self, input_: Tensor) -> Any:
        """Compute [..., columns of this rank] -> ([..., E], bias or None)."""
        with _not_saving(input_):
            return super().forward(input_)


class RecomputedLayer(TransformerLayer):  # type: ignore[misc]
    """A transformer layer that keeps its input alone."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute what Megatron-Core's layer computes; `hidden_states` [T, 1, E] comes as a keyword."""
        if not torch.is_grad_enabled():
            return super().forward(*args, **kwargs)
        hidden = kwargs.pop("hidden_states")
        return checkpoint(super().forward, hidden, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
