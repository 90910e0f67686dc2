"""Frequencies of the rotary position embedding, plain or stretched to longer contexts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Rope:
    """The `rope_parameters` of a Hugging Face configuration, or the keys that transformers had before version 5."""

    theta: float = 10000.0
    """Base of the wavelengths."""
    factor: float = 1.0
    """Factor by which wavelengths are stretched: all (`linear`), or the longest (`llama3`)."""
    low_freq_factor: float | None = None
    """`llama3` only, else None: wavelengths above original_positions / low_freq_factor are stretched in full."""
    high_freq_factor: float = 1.0
    """`llama3` only: wavelengths below original_positions / high_freq_factor stay as they are."""
    original_positions: int = 0
    """`llama3` only: context length before stretching, in tokens."""

    @classmethod
    def read(cls, config: dict[str, Any]) -> Rope:
        """Read a whole `config.json`. Raises ValueError for a type that is not `default`, `linear` or `llama3`."""
        # Before transformers 5: `rope_theta` beside a `rope_scaling` whose type was once called "type".
        found = {"rope_theta": config.get("rope_theta")} | (config.get("rope_scaling") or {})
        found |= config.get("rope_parameters") or {}
        kind = found.get("rope_type") or found.get("type") or "default"
        theta = float(found["rope_theta"] or 10000.0)
        if found.get("partial_rotary_factor", 1.0) != 1.0:
            raise ValueError("unsupported rope: a rotary embedding of a part of each head (partial_rotary_factor)")
        if kind == "default":
            return cls(theta)
        if kind == "linear":
            return cls(theta, factor=float(found["factor"]))
        if kind == "llama3":
            return cls(
                theta,
                factor=float(found["factor"]),
                low_freq_factor=float(found["low_freq_factor"]),
                high_freq_factor=float(found["high_freq_factor"]),
                original_positions=int(found["original_max_position_embeddings"]),
            )
        raise ValueError(f"unsupported rope type {kind!r}: it is not one of default, linear, llama3")

    def inverse_frequencies(self, head_dim: int, device: torch.device | None = None) -> Tensor:
        """Return radians per position of each pair of features, float32 [D / 2].

        Plain: theta^(-2i / D) (Su et al. 2021, RoFormer). `linear`: divided by the factor (Chen et al. 2023, position
        interpolation). `llama3`: divided for long wavelengths, unchanged for short ones, and in between interpolated
        linearly in the frequency (Llama 3.1's reference code, `apply_scaling` of llama-models).
        """
        exponents = torch.arange(0, head_dim, 2, device=device).float() / head_dim
        plain = 1.0 / self.theta**exponents
        if self.low_freq_factor is None:
            return plain / self.factor
        # 0 at the longest wavelength that is stretched in part, 1 at the shortest.
        periods = self.original_positions * plain / (2 * math.pi)
        kept = ((periods - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)).clamp(0.0, 1.0)
        return (1 - kept) * plain / self.factor + kept * plain
