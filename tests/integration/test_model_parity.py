"""A real model, SmolLM2-135M-Instruct, in the learner against transformers, token by token; exported folders in
vLLM."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from launch.models import prepare
from learner.batching.packing import TokenSequence, pack
from learner.model.policy import PolicyModel
from learner.model.process_groups import init_parallel
from learner.settings import ModelSettings, OptimizerSettings, ParallelSettings
from tests.ranks import run_ranks

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


def build(dtype: str, model_dir: Path = MODEL_DIR) -> PolicyModel:
    init_parallel(ParallelSettings(), rank=0, world_size=1)
    settings = ModelSettings.model_validate({"dtype": dtype})
    return PolicyModel(model_dir, settings, OptimizerSettings(), ParallelSettings())


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


def run_rank(rank: int, parallel: ParallelSettings, sequences: list[TokenSequence], out: Path) -> None:
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(str(out / "store"), parallel.world_size)
    init_parallel(parallel, rank, parallel.world_size, store)
    policy = PolicyModel(MODEL_DIR, ModelSettings(dtype="float32"), OptimizerSettings(), parallel)
    for _, logprobs, entropy in policy.logprobs(pack(sequences, 4096)):
        torch.save((logprobs, entropy), out / f"{rank}.pt")


@pytest.mark.parametrize("parallel", [ParallelSettings(tensor=3), ParallelSettings(pipeline=2)], ids=["TP3", "PP2"])
def test_a_layout_of_ranks_computes_what_one_rank_does(tmp_path: Path, parallel: ParallelSettings) -> None:
    run_ranks(run_rank, (parallel, batch(), tmp_path), parallel.world_size)
    ((_, logprobs, entropy),) = build("float32").logprobs(pack(batch(), 4096))
    found = list(tmp_path.glob("*.pt"))
    assert len(found) == parallel.tensor
    for path in found:
        for ours, single in zip(torch.load(path), (logprobs, entropy), strict=True):
            torch.testing.assert_close(ours, single, atol=1e-4, rtol=0)


VLLM = """
import json, sys
from vllm import LLM, SamplingParams

folders, tokens = json.load(sys.stdin)
found = {}
for name, folder in folders.items():
    llm = LLM(
        folder, dtype="float32", enforce_eager=True, max_model_len=128, max_num_seqs=8, skip_tokenizer_init=True,
        enable_prefix_caching=False, kv_cache_memory_bytes=1 << 28, logprobs_mode="raw_logprobs",
    )
    sampling = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in tokens], sampling, use_tqdm=False)
    found[name] = [
        [entry[token].logprob for token, entry in zip(ids[1:], output.prompt_logprobs[1:])]
        for ids, output in zip(tokens, outputs)
    ]
    del llm
json.dump(found, open(sys.argv[1], "w"))
"""
TINY: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 512,
    "max_position_embeddings": 256,
    "initializer_range": 0.1,
}
ROPE_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "rope_parameters": ROPE_LLAMA3},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "norm_topk_prob": True},
}


def test_exported_folders_load_in_vllm_and_say_what_the_learner_says(tmp_path: Path) -> None:
    """All families, trained for a step, in one process of vLLM."""
    import transformers as tf

    rng = np.random.default_rng(0)
    sequences = [(rng.integers(0, 512, 1), rng.integers(0, 512, length)) for length in (50, 9)]
    policies = {}
    for name, changes in FAMILIES.items():
        torch.manual_seed(1)
        folder = tmp_path / f"{name}-source"
        tf.AutoModelForCausalLM.from_config(tf.AutoConfig.for_model(name, **TINY | changes)).save_pretrained(folder)
        policy = policies[name] = build("float32", folder)
        policy.zero_grad()
        policy.forward_backward(pack(sequences, 100), lambda _, part, logprobs, entropy: -logprobs.mean())
        assert policy.step(1e-2)[1]
        policy.save_hf(tmp_path / name)
    task = ({name: str(tmp_path / name) for name in FAMILIES}, [np.concatenate(s).tolist() for s in sequences])
    subprocess.run(
        [sys.executable, "-c", VLLM, str(tmp_path / "found.json")],
        input=json.dumps(task).encode(),
        env=os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=500,
    )
    found = json.loads((tmp_path / "found.json").read_text())
    for name, policy in policies.items():
        for (_, ours, _), theirs in zip(
            policy.logprobs([pack([s], 1)[0] for s in sequences]), found[name], strict=True
        ):
            torch.testing.assert_close(ours, torch.tensor(theirs), atol=1e-3, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
