"""Architecture of a Hugging Face model, as far as the learner needs it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from learner.batching.balance import CostModel
from learner.model.rope import Rope

FAMILIES = ("llama", "qwen2", "qwen3", "qwen3_moe")
"""Values of Hugging Face's `model_type` that `Architecture.read` accepts."""


@dataclass(frozen=True, slots=True)
class Experts:
    """The mixture of experts of a model: gated MLPs among which a router chooses, in some of the layers."""

    number: int
    """Experts per layer."""
    hidden_size: int
    """Intermediate size of one expert."""
    per_token: int
    """Experts that compute one token."""
    normalized: bool
    """Whether the weights of a token's experts sum to one."""
    layers: tuple[bool, ...]
    """For each layer, whether it has experts; the others have a plain MLP."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """Sizes and options of a Hugging Face `config.json`."""

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_heads: int
    num_query_groups: int
    head_dim: int
    vocab_size: int
    norm_eps: float
    rope: Rope
    qkv_bias: bool
    """Whether queries, keys and values have biases."""
    attention_out_bias: bool
    """Whether the attention's output projection has a bias."""
    mlp_bias: bool
    qk_norm: bool
    tied: bool
    """Whether the output matrix is the embedding matrix."""
    experts: Experts | None
    """The mixture of experts; None for a dense model."""

    @classmethod
    def read(cls, model_dir: Path) -> Architecture:
        """Read `model_dir/config.json`. Raises ValueError for a model type outside of `FAMILIES`, or an option that is
        not supported."""
        config: dict[str, Any] = json.loads((model_dir / "config.json").read_text())
        model_type = config["model_type"]
        if model_type not in FAMILIES:
            raise ValueError(f"{model_dir}: model type {model_type!r} is not one of {', '.join(FAMILIES)}")
        unsupported = {
            "sliding window": bool(config.get("use_sliding_window")),
            "activation": config.get("hidden_act", "silu") != "silu",
        }
        if any(unsupported.values()):
            raise ValueError(
                f"{model_dir}: unsupported {', '.join(name for name, found in unsupported.items() if found)}"
            )
        try:
            rope = Rope.read(config)
        except ValueError as error:
            raise ValueError(f"{model_dir}: {error}") from None
        # Qwen2 has biases on queries, keys and values, and no key that says so.
        attention_bias = model_type != "qwen2" and bool(config.get("attention_bias"))
        return cls(
            num_layers=config["num_hidden_layers"],
            hidden_size=config["hidden_size"],
            ffn_hidden_size=config["intermediate_size"],
            num_heads=config["num_attention_heads"],
            num_query_groups=config.get("num_key_value_heads") or config["num_attention_heads"],
            head_dim=config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
            vocab_size=config["vocab_size"],
            norm_eps=config["rms_norm_eps"],
            rope=rope,
            qkv_bias=attention_bias or model_type == "qwen2",
            attention_out_bias=attention_bias,
            mlp_bias=model_type == "llama" and bool(config.get("mlp_bias")),
            qk_norm=model_type in ("qwen3", "qwen3_moe"),
            tied=bool(config.get("tie_word_embeddings")),
            experts=_experts(config) if model_type == "qwen3_moe" else None,
        )

    @property
    def cost(self) -> CostModel:
        """Floating-point operations of a training step, two a multiply-add.

        With E hidden size, H and G query and key/value heads of size D, F feed-forward size, V vocabulary, a layer's
        matrices have w = E D (2 H + 2 G) + 3 E F weights: 2 w a row forward, twice that backward. A pair is two
        products of D forward and five backward (the scores again, and four gradients) for each query head. A response
        token's logits are computed twice, and twice more for the gradients of both factors.
        """
        weights = self.hidden_size * (
            self.head_dim * 2 * (self.num_heads + self.num_query_groups) + 3 * self.ffn_hidden_size
        )
        return CostModel(
            per_row=6 * weights * self.num_layers,
            per_pair=14 * self.num_heads * self.head_dim * self.num_layers,
            per_target=8 * self.hidden_size * self.vocab_size,
        )

    def inverse_frequencies(self, device: torch.device | None = None) -> Tensor:
        """Return the rotary frequencies, float32 [D / 2]: see `Rope.inverse_frequencies`."""
        return self.rope.inverse_frequencies(self.head_dim, device)


def _experts(config: dict[str, Any]) -> Experts | None:
    every = config.get("decoder_sparse_step", 1)
    dense = config.get("mlp_only_layers") or []
    layers = tuple(layer not in dense and (layer + 1) % every == 0 for layer in range(config["num_hidden_layers"]))
    if not any(layers):
        return None
    return Experts(
        number=config.get("num_experts") or config["num_local_experts"],
        hidden_size=config["moe_intermediate_size"],
        per_token=config["num_experts_per_tok"],
        normalized=bool(config.get("norm_topk_prob")),
        layers=layers,
    )
