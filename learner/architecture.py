"""What the learner needs to know of a Hugging Face model's configuration."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Architecture:
    """What the learner needs to know of a Hugging Face `config.json`."""

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_heads: int
    num_query_groups: int
    head_dim: int
    vocab_size: int
    norm_eps: float
    rope_theta: float
    qkv_bias: bool
    qk_norm: bool
    tied: bool

    @classmethod
    def read(cls, model_dir: Path) -> Architecture:
        """From `model_dir/config.json`; raises ValueError for a model that is not a dense Llama, Qwen2 or Qwen3."""
        config: dict[str, Any] = json.loads((model_dir / "config.json").read_text())
        model_type = config["model_type"]
        if model_type not in ("llama", "qwen2", "qwen3"):
            raise ValueError(f"{model_dir}: model type {model_type!r} is not one of llama, qwen2, qwen3")
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        unsupported = {
            "rope type": rope.get("rope_type", "default") != "default",
            "sliding window": bool(config.get("use_sliding_window")),
            "MLP bias": bool(config.get("mlp_bias")),
            "attention bias": model_type != "qwen2" and bool(config.get("attention_bias")),
            "activation": config.get("hidden_act", "silu") != "silu",
        }
        if any(unsupported.values()):
            raise ValueError(
                f"{model_dir}: unsupported {', '.join(name for name, found in unsupported.items() if found)}"
            )
        return cls(
            num_layers=config["num_hidden_layers"],
            hidden_size=config["hidden_size"],
            ffn_hidden_size=config["intermediate_size"],
            num_heads=config["num_attention_heads"],
            num_query_groups=config.get("num_key_value_heads") or config["num_attention_heads"],
            head_dim=config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
            vocab_size=config["vocab_size"],
            norm_eps=config["rms_norm_eps"],
            rope_theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0),
            qkv_bias=model_type == "qwen2",
            qk_norm=model_type == "qwen3",
            tied=bool(config.get("tie_word_embeddings")),
        )
