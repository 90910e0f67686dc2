"""A real model: SmolLM2-135M-Instruct in the learner against transformers, token by token."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from launch.models import prepare
from learner.model import PolicyModel
from learner.packing import TokenSequence, pack
from learner.parallel import init_parallel
from learner.settings import ModelSettings, OptimizerSettings, ParallelSettings

MODEL_DIR = prepare("smollm2-135m-instruct")

pytestmark = pytest.mark.integration

PROMPTS = {
    "Each example is a Python function f, an input, and its output.\n```python\ndef f(": [
        "x):\n    return x + 1\n```\n```input\n3\n```\n```output\n4\n```",
        "a, b):\n    return sorted(a + b)[::-1]\n```",
        "s: str):\n    return ''.join(reversed(s))\n```\n```input\n'abc'\n```",
        "n",
    ],
    "The capital of France is": [" Paris, which lies on the Seine."],
}


def batch() -> list[TokenSequence]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    return [
        (np.array(tokenizer.encode(prompt)), np.array(tokenizer.encode(response)))
        for prompt, responses in PROMPTS.items()
        for response in responses
    ]


def build(dtype: str) -> PolicyModel:
    init_parallel(ParallelSettings(), rank=0, world_size=1)
    settings = ModelSettings.model_validate({"dtype": dtype})
    return PolicyModel(MODEL_DIR, settings, OptimizerSettings(), ParallelSettings())


@pytest.mark.parametrize(("dtype", "largest", "mean"), [("float32", 1e-4, 1e-5), ("bfloat16", 0.5, 0.05)])
def test_logprobs_are_those_of_transformers_in_float32(dtype: str, largest: float, mean: float) -> None:
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
    policy = build(dtype)
    sequences = batch()
    (micro,) = pack(sequences, 4096)
    assert micro.num_tokens < sum(len(prompt) + len(response) - 1 for prompt, response in sequences)
    with torch.no_grad():
        ((_, logprobs, entropy),) = policy.logprobs([micro])
        off = torch.zeros(2, 0)
        for index, (prompt, response) in enumerate(sequences):
            ids = torch.from_numpy(np.concatenate((prompt, response)))
            table = torch.log_softmax(reference(ids[None]).logits[0, len(prompt) - 1 : -1], dim=-1)
            expected = table.gather(1, torch.from_numpy(response)[:, None])[:, 0]
            own = torch.from_numpy(micro.sequence_index == index)
            differences = (logprobs[own] - expected, entropy[own] + (table.exp() * table).sum(-1))
            off = torch.cat((off, torch.stack(differences).abs()), dim=1)
    assert off.max() < largest
    assert off.mean() < mean


def test_a_trained_folder_loads_in_transformers_bit_for_bit(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    policy = build("bfloat16")
    original = AutoModelForCausalLM.from_pretrained(MODEL_DIR).state_dict()
    assert all(torch.equal(tensor, original[name]) for name, tensor in policy.export())
    (micro,) = pack(batch(), 4096)
    before = 0.0
    for step in range(3):
        policy.zero_grad()
        if step == 0:
            before = float(policy.logprobs([micro])[0][1].mean())
        policy.forward_backward([micro], lambda _, part, logprobs, entropy: -logprobs.mean())
        assert policy.step(1e-4)[1]
    assert policy.logprobs([micro])[0][1].mean() > before + 0.1
    policy.save_hf(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    trained = dict(policy.export())
    assert reloaded.dtype is torch.bfloat16
    assert trained.keys() == dict(reloaded.named_parameters()).keys()
    assert all(torch.equal(tensor, trained[name]) for name, tensor in reloaded.named_parameters())
    assert AutoTokenizer.from_pretrained(tmp_path).encode("def f(") == AutoTokenizer.from_pretrained(MODEL_DIR).encode(
        "def f("
    )
