"""What a GPU computes by kernels that torch.compile makes: layer functions, each in one or two, and attention.

The layer functions compute what `kernels.py` computes. Those are written for CPUs, where a pass over memory is what
counts; a GPU would start a kernel for each of their operations. torch.compile needs no further library, and a compiler
for C where it runs.

A layer function is compiled at its first call for any number of rows, and for the other sizes that it meets. Attention
is compiled for each number of rows (`block_mask.padded_rows`).

Shapes: T rows, E features, F feed-forward size, D head size, R response tokens, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention as uncompiled_flex_attention
from torch.nn.functional import silu

MAX_KERNELS = 128
"""Compilations of one function in a process: attention has one for each number of padded rows up to two million, with
and without gradients. torch's own limit is 8; beyond it attention would be an error, and the others uncompiled."""


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalise [..., E] -> [..., E], as `kernels.RmsNorm` does."""
    out: Tensor = _compiled(_rms_norm)(_by_rows(x), weight, eps)
    return out


def swiglu(x: Tensor) -> Tensor:
    """Compute [..., 2 F] -> [..., F], as `kernels.SwiGlu` does."""
    out: Tensor = _compiled(_swiglu)(_by_rows(x))
    return out


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply the rotary embedding to [T, heads, D], as `kernels.rotate` does; differentiable."""
    out: Tensor = _compiled(_rotate)(_by_rows(x), _by_rows(cos), _by_rows(sin))
    return out


def token_statistics(logits_RV: Tensor, picked_R: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `logprobs.token_statistics` does; not differentiable."""
    found: tuple[Tensor, Tensor, Tensor] = _compiled(_token_statistics)(
        _by_rows(logits_RV), _by_rows(picked_R), temperature
    )
    return found


def flex_attention(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    """Compute torch's `flex_attention` by a kernel for exactly these sizes.

    Kernels for any number of rows are slower, and less tried. Where nothing can be compiled this is an error: torch
    would else compute all scores.
    """
    out: Tensor = _compiled(uncompiled_flex_attention, dynamic=False, fullgraph=True)(query, key, value, **options)
    return out


@functools.cache
def _compiled(function: Callable[..., Any], **options: bool) -> Callable[..., Any]:
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, MAX_KERNELS)
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, 8 * MAX_KERNELS)
    return torch.compile(function, **options)  # type: ignore[call-overload, no-any-return]


def _by_rows(x: Tensor) -> Tensor:
    """Tell torch.compile that the first dimension of `x` varies from call to call, and no other does."""
    torch._dynamo.maybe_mark_dynamic(x, 0)
    for dim in range(1, x.ndim):
        torch._dynamo.mark_static(x, dim)
    return x


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x32 = x.float()
    scale = torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
    return (x32 * scale).to(x.dtype) * weight


def _swiglu(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, dim=-1)
    return silu(gate) * up


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def _token_statistics(logits_RV: Tensor, picked_R: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    logits_RV = logits_RV.float() / temperature
    top_R1 = logits_RV.amax(dim=1, keepdim=True)
    weights_RV = (logits_RV - top_R1).exp()
    total_R = weights_RV.sum(dim=1)
    # Not `vecdot`: torch computes that by a matrix product, for which both factors would be written to memory.
    expected_R = (weights_RV * logits_RV).sum(dim=1) / total_R
    return logits_RV.gather(1, picked_R[:, None]).squeeze(1), total_R.log() + top_R1.squeeze(1), expected_R
