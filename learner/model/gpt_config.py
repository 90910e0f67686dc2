"""Megatron-Core's configuration of a model, with what this project's layers are told beside it."""

from __future__ import annotations

from dataclasses import dataclass

from learner.model.megatron import TransformerConfig


@dataclass
class GptConfig(TransformerConfig):  # type: ignore[misc]
    """Every module of a model gets it when it is built."""

    compile_kernels: bool = False
    """Norms, SwiGLU, rotary embedding and attention are compiled (`compiled.py`)."""
    recompute: str = "none"
    """What the backward pass computes again: `none`, `selective` or `full` (`learner.kernels.recompute`).

    Megatron-Core's own recomputation (`recompute_granularity`) keeps the state of CUDA's random numbers, which a
    machine without CUDA does not have, and which a model without dropout does not need.
    """
