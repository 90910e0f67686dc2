"""Layer functions with few passes over memory: RMSNorm, SwiGLU, rotary embedding.

torch composes each of them of about a dozen operations and saves every result for the backward pass. Here each is one
autograd function that saves its input. On CPUs, where such passes cost as much as the matrix products, that saves a
third of a step. On a GPU the modules use the functions of `compiled.py` (`GptConfig.compile_kernels`).

Shapes: T rows, E features, F feed-forward size, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

from learner.model import compiled
from learner.model.gpt_config import GptConfig
from learner.model.recompute import recomputable


class RmsNorm(torch.nn.Module):
    """Megatron-Core's norm module: x / rms(x) in float32, times a weight in the model's dtype."""

    def __init__(self, config: GptConfig, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self._compute = compiled.rms_norm if config.compile_kernels else _RmsNorm.apply
        self._recomputable = config.recompute == "selective"
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [..., E] -> [..., E]."""
        if self._recomputable:
            return recomputable(self._compute, x, self.weight, self.eps)
        out: Tensor = self._compute(x, self.weight, self.eps)
        return out


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x32 = x.to(torch.float32, copy=True)
        scale = torch.linalg.vector_norm(x32, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return x32.mul_(scale).to(x.dtype).mul_(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        # With n = x s and s = rsqrt(mean(x^2) + eps): dx = s (w g - n mean(n w g)), dw = sum over rows of n g.
        x, weight, scale = ctx.saved_tensors
        normed = x.float() * scale
        grad32, weight32 = grad.float(), weight.float()
        product = normed * grad32
        grad_weight = product.flatten(0, -2).sum(0)
        mean = (product @ weight32).div_(x.shape[-1]).unsqueeze(-1)
        grad_x = (grad32 * weight32).addcmul_(normed, mean, value=-1).mul_(scale)
        return grad_x.to(x.dtype), grad_weight.to(weight.dtype), None


class SwiGlu(torch.nn.Module):
    """Megatron-Core's activation module of a gated MLP: [..., 2 F] -> [..., F], silu(first half) * second half."""

    def __init__(self, config: GptConfig) -> None:
        super().__init__()
        self._compute = compiled.swiglu if config.compile_kernels else _SwiGlu.apply
        self._recomputable = config.recompute == "selective"

    def forward(self, x: Tensor) -> Tensor:
        """Compute [..., 2 F] -> [..., F]."""
        if self._recomputable:
            return recomputable(self._compute, x)
        out: Tensor = self._compute(x)
        return out

    def sharded_state_dict(self, *args: Any) -> dict[str, Any]:
        """Return no state: Megatron-Core's MLP asks each of its parts."""
        return {}


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        gate, up = x.chunk(2, dim=-1)
        return silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        gate, up = x.chunk(2, dim=-1)
        grad_x = torch.empty_like(x)
        grad_gate, grad_up = grad_x.chunk(2, dim=-1)
        torch.mul(silu(gate), grad, out=grad_up)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=grad_gate)
        return grad_x


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply the rotary embedding to [T, heads, D] with cos and sin [T, 1, D / 2]: halves (a, b) -> (a cos - b sin, b
    cos + a sin).

    Not differentiable; `Rotate` is. The inverse, and so the backward pass, is the rotation by -sin.
    """
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    (a, b), (out_a, out_b) = x.chunk(2, dim=-1), out.chunk(2, dim=-1)
    torch.mul(a, cos, out=out_a).addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=out_b).addcmul_(a, sin)
    return out


class Rotate(torch.autograd.Function):
    """Differentiable `rotate`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotate; see `rotate`."""
        ctx.save_for_backward(cos, sin)
        return rotate(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """Rotate the gradient back."""
        cos, sin = ctx.saved_tensors
        return rotate(grad, cos, -sin), None, None
