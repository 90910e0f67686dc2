"""Tiny random models of every family as Hugging Face folders, a batch for them, and a loss that tells its tokens
apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from learner.batching.packing import MicroBatch, TokenSequence
from learner.model.policy import PolicyModel
from learner.settings import KernelSettings, ModelSettings, OptimizerSettings, ParallelSettings
from tests.unit.learner.reference import num_response_tokens, token_loss, write_folder

VOCAB = 131
LR = 1e-3
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
# With this eps, Adam does not blow rounding errors of gradients near zero up to whole steps.
OPTIMIZER = OptimizerSettings(lr=LR, weight_decay=0.1, clip_grad=0.5, beta2=0.95, eps=1e-3)


def write_folders(base: Path) -> dict[str, Path]:
    """Random models in folders of `base`, float32, by name."""
    import transformers as tf

    configs = {
        "llama": tf.LlamaConfig(**SHAPE, tie_word_embeddings=True, rope_theta=5000.0),
        "llama-untied": tf.LlamaConfig(**SHAPE, tie_word_embeddings=False, head_dim=16, rms_norm_eps=1e-3),
        "qwen2": tf.Qwen2Config(**SHAPE, tie_word_embeddings=True),
        "qwen3": tf.Qwen3Config(**SHAPE, tie_word_embeddings=True, head_dim=12),
        "qwen3-moe": tf.Qwen3MoeConfig(**SHAPE, **EXPERTS, tie_word_embeddings=True, head_dim=12),
    }
    return {name: write_folder(base / name, config) for name, config in configs.items()}


def build(
    folder: Path,
    dtype: str = "float32",
    parallel: ParallelSettings | None = None,
    deterministic: bool = False,
    temperature: float = 1.0,
    recompute: str = "none",
) -> PolicyModel:
    model = ModelSettings.model_validate({"dtype": dtype, "deterministic": deterministic})
    kernels = KernelSettings.model_validate({"recompute": recompute})
    layout = parallel or ParallelSettings()
    return PolicyModel(folder, model, OPTIMIZER, layout, temperature=temperature, kernels=kernels)


def batch() -> list[TokenSequence]:
    """Shared prompts with responses of very different lengths, lone sequences, responses of one token."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, VOCAB, size) for size in (9, 5, 1, 7)]
    lengths = [(6, 1, 13, 5, 6), (4,), (3, 3), (1, 1)]
    return [(prompt, rng.integers(0, VOCAB, n)) for prompt, group in zip(prompts, lengths, strict=True) for n in group]


def weigh(micro: MicroBatch, logprobs: Tensor) -> Tensor:
    """A loss that treats every response token differently, normalised over the whole batch."""
    return token_loss(micro.sequence_index, micro.token_index, logprobs, num_response_tokens(batch()))


def weights(policy: PolicyModel) -> dict[str, Tensor]:
    return {name: tensor.to("cpu", copy=True) for name, tensor in policy.export()}


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
