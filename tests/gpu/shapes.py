"""The models and batches of these tests: shapes that are trained in practice on a GPU, tiny ones on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from learner.batching.packing import TokenSequence
from learner.device import device
from tests.unit.learner import tiny
from tests.unit.learner.reference import write_folder

ON_GPU = torch.cuda.is_available()
LAYERS = 4
"""Of each model: the layers are alike, and random weights of all of them would take minutes to write and read."""
REAL: dict[str, dict[str, Any]] = {
    "qwen2": {  # Qwen2.5-0.5B
        "hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14, "num_key_value_heads": 2,
        "vocab_size": 151_936, "tie_word_embeddings": True, "rope_theta": 1e6,
    },
    "qwen3": {  # Qwen3-0.6B
        "hidden_size": 1024, "intermediate_size": 3072, "num_attention_heads": 16, "num_key_value_heads": 8,
        "head_dim": 128, "vocab_size": 151_936, "tie_word_embeddings": True, "rope_theta": 1e6,
    },
    "llama": {  # Llama-3.2-1B
        "hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32, "num_key_value_heads": 8,
        "head_dim": 64, "vocab_size": 128_256, "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
}  # fmt: skip
"""Model families, and the sizes of a model of each."""
TINY = tiny.SHAPE | {"num_hidden_layers": 2}


def write_model(family: str, folder: Path) -> Path:
    """Write a random model of `family` into `folder`; returns the folder."""
    import transformers as tf

    size = REAL[family]
    shape = TINY | {"tie_word_embeddings": True}
    if ON_GPU:
        # Activations that neither vanish nor grow: a mistake in the attention then shows in the output.
        scale = 1.0 / size["hidden_size"] ** 0.5
        shape = {"num_hidden_layers": LAYERS, "max_position_embeddings": 8192, "initializer_range": scale} | size
    return write_folder(folder, tf.AutoConfig.for_model(family, **shape), device())


def sequences_of(*groups: tuple[int, tuple[int, ...]]) -> list[TokenSequence]:
    """Random sequences: for each (prompt length, response lengths), the responses to one prompt. On a CPU a tenth as
    long."""
    rng = np.random.default_rng(0)
    vocab = min(shape["vocab_size"] for shape in REAL.values()) if ON_GPU else tiny.VOCAB

    def tokens(length: int) -> np.ndarray:
        return rng.integers(0, vocab, length if ON_GPU else -(-length // 10))

    found = []
    for prompt_length, lengths in groups:
        prompt = tokens(prompt_length)
        found += [(prompt, tokens(length)) for length in lengths]
    return found
