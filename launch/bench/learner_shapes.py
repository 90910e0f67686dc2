"""What `azr bench learner` measures on a GPU: shapes of models, mixes of lengths, operations and bytes of a step.

Weights and tokens are random: neither changes what is computed. Shapes: V vocabulary, E hidden size, F feed-forward
size, H query heads and G key/value heads of size D, L layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from launch.bench.learner_side import layer_flops, load_batch, num_pairs
from learner.batching.packing import MicroBatch, TokenSequence
from learner.model.architecture import Architecture

PEAKS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
}
"""Dense bfloat16 operations a second by a part of torch's name of the device, the first that fits.

NVIDIA's data sheets of the H100 (SXM: 1,979 10^12 operations/s "with sparsity", of which dense products get half), the
H200 (the same) and the A100."""


@dataclass(frozen=True)
class Shape:
    """A model to measure, in the terms of a Qwen2 configuration."""

    name: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    tie_word_embeddings: bool = True

    def write(self, folder: Path, device: Any) -> Path:
        """Write it with random weights in bfloat16, made on `device`, as transformers writes a model."""
        import torch
        import transformers

        fields = {key: value for key, value in vars(self).items() if key != "name"}
        config = transformers.Qwen2Config(**fields, rope_theta=1e6, bos_token_id=0, eos_token_id=1)
        torch.manual_seed(0)
        with device:
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.save_pretrained(folder)
        return folder


SHAPES = {
    "0.5b": Shape("0.5b", 896, 4864, 24, 14, 2, 151936),
    "1.5b": Shape("1.5b", 1536, 8960, 28, 12, 2, 151936),
    # 6 of 28 layers, and as much of the vocabulary, so that logits have the share of the whole model's step.
    "7b_slice": Shape("7b_slice", 3584, 18944, 6, 28, 4, 152064 * 6 // 28, tie_word_embeddings=False),
}
"""Qwen2.5's sizes."""
TINY = {name: replace(shape, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
                      num_key_value_heads=2, vocab_size=512) for name, shape in SHAPES.items()}  # fmt: skip
"""The same, for a CPU and for a first look."""


def peak_flops(device_name: str) -> float | None:
    """Return the entry of `PEAKS` for a device of this name."""
    return next((peak for part, peak in PEAKS.items() if part in device_name), None)


def step_flops(shape: Architecture, micros: Sequence[MicroBatch]) -> int:
    """Return the floating-point operations of a step's matrix products, two a multiply-add: those of the layers
    (`layer_flops`), and 6 V E for each response token, whose logits are a product forward and two backward.

    What is computed again in the backward pass (scores, logits, `learner.kernels.recompute`) is not counted. This is
    the numerator of the model FLOPs utilization (Chowdhery et al. 2022, https://arxiv.org/abs/2204.02311, appendix B),
    with the pairs and logits that there are in place of those of a full square.
    """
    rows, pairs = sum(micro.num_tokens for micro in micros), sum(map(num_pairs, micros))
    targets = sum(micro.num_targets for micro in micros)
    return layer_flops(shape, rows, pairs) + 6 * shape.vocab_size * shape.hidden_size * targets


def step_bytes(shape: Architecture, rows: int, recompute: str) -> int:
    """Estimate the most bytes that a step holds on a GPU at once, with `rows` rows in a micro-batch.

    A parameter has 20 bytes at most: the weight and its gradient in bfloat16, the gradient, the master weight and both
    moments in float32. Of a row each layer keeps, in bfloat16: the inputs of both norms, their outputs, q, k, v and the
    output of attention, twice in part where attention pads, and 3 F in the MLP. 8 GiB are for logits and kernels.
    """
    wide = shape.head_dim * (2 * shape.num_heads + 2 * shape.num_query_groups)
    weights = shape.hidden_size * (
        2 * shape.head_dim * (shape.num_heads + shape.num_query_groups) + 3 * shape.ffn_hidden_size
    )
    embeddings = shape.vocab_size * shape.hidden_size * (1 if shape.tied else 2)
    kept = {
        "none": 4 * shape.hidden_size + 1.5 * wide + 3 * shape.ffn_hidden_size,
        "selective": 2 * shape.hidden_size + 1.5 * wide + 2 * shape.ffn_hidden_size,
    }
    once = 2 * rows * int(kept["none"])
    layers = shape.num_layers * 2 * rows * int(kept.get(recompute, shape.hidden_size))
    return 20 * (weights * shape.num_layers + embeddings) + layers + once + (8 << 30)


def selfplay_mix(rows: int, vocab_size: int, longest: int) -> list[TokenSequence]:
    """Return sequences that are computed in `rows` rows or a few less, with the lengths of recorded self-play: prompts
    and their responses are as long as those of the recorded batch, drawn with replacement. `longest`: tokens of a
    sequence at most."""
    by_prompt: dict[bytes, tuple[int, list[int]]] = {}
    for prompt, response in load_batch():
        by_prompt.setdefault(prompt.tobytes(), (len(prompt), []))[1].append(len(response))
    recorded = list(by_prompt.values())
    draw = np.random.default_rng(0)
    return _sequences(rows, vocab_size, longest, iter(lambda: recorded[draw.integers(len(recorded))], None), draw)


def long_mix(rows: int, vocab_size: int, longest: int) -> list[TokenSequence]:
    """Return the same with lengths as of reasoning models: prompts of 100 to 500 tokens, four responses to each,
    lognormal with a median of 2,500 tokens and sigma 0.8, cut at `longest`, as a limit on generation does."""
    draw = np.random.default_rng(1)

    def groups() -> Iterator[tuple[int, list[int]]]:
        while True:
            yield int(draw.integers(100, 500)), [int(n) for n in np.exp(draw.normal(np.log(2500), 0.8, 4))]

    return _sequences(rows, vocab_size, longest, groups(), draw)


MIXES = {"self-play": selfplay_mix, "long": long_mix}


def _sequences(
    rows: int, vocab_size: int, longest: int, groups: Iterator[tuple[int, list[int]]], draw: np.random.Generator
) -> list[TokenSequence]:
    found: list[TokenSequence] = []
    computed = 0
    for prompt_len, response_lens in groups:
        prompt = draw.integers(0, vocab_size, min(prompt_len, longest // 2))
        computed += len(prompt)
        for length in (max(1, min(length, longest - len(prompt))) for length in response_lens):
            computed += length - 1
            if computed > rows:
                return found
            found.append((prompt, draw.integers(0, vocab_size, length)))
    raise AssertionError("there is always another group")
