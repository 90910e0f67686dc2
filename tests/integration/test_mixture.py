"""A real engine with a mixture of experts: its weights, expert by expert, and what it computes with them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import torch
from safetensors.torch import load_file, save_file
from vllm._custom_ops import cpu_prepack_moe_weight

from actors.engine.generation import Completion, Sampling
from actors.engine.serial_engine import SerialEngine
from actors.fused_experts import places_in
from actors.settings import EngineSettings
from launch.cluster.verify import differences
from launch.models import prepare
from learner.weights.local import LocalChannel
from learner.weights.manifest import checksum, manifest_of
from tests.integration.random_model import TOKENIZER, write_random_model

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

Weights = dict[str, torch.Tensor]

PROMPT = list(range(100, 130))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen3-MoE of a plain layer and one of four experts, whose 48 features a CPU's kernel pads to 64."""
    import transformers as tf

    tokenizer = tf.AutoTokenizer.from_pretrained(prepare(TOKENIZER))
    config = tf.Qwen3MoeConfig(
        hidden_size=64,
        intermediate_size=96,
        moe_intermediate_size=48,
        num_experts=4,
        num_experts_per_tok=2,
        mlp_only_layers=[0],
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        vocab_size=len(tokenizer),
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.1,
        bos_token_id=0,
        eos_token_id=0,
    )
    return write_random_model(tmp_path_factory.mktemp("model"), config)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(model: Path) -> AsyncIterator[SerialEngine]:
    settings = EngineSettings(dtype="float32", max_model_len=256, max_num_seqs=4, kv_cache_gib=0.125, threads=1)
    engine = SerialEngine(model, settings, seed=1)
    await engine.start()
    yield engine
    await engine.close()


async def assert_computes_with(engine: SerialEngine, weights: Weights, model: Path) -> None:
    """`azr verify` finds no difference, and the log-probabilities are those of transformers."""
    assert differences(checksum(weights.items()), await engine.checksums()) == []
    completion = await engine.generate(PROMPT, Sampling(max_tokens=12), "checked")
    expected = reference_logprobs(model, weights, completion)
    torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-4, rtol=0)


def reference_logprobs(model: Path, weights: Weights, completion: Completion) -> torch.Tensor:
    """[R]: what transformers makes of the same tokens."""
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as folder:  # from a file: in memory, transformers fuses experts as well
        shutil.copy(model / "config.json", folder)
        save_file(weights, f"{folder}/model.safetensors", metadata={"format": "pt"})
        reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = torch.tensor([*PROMPT, *completion.token_ids])
    with torch.no_grad():
        logits = reference(tokens[None]).logits[0, len(PROMPT) - 1 : -1]
    logprobs: torch.Tensor = logits.log_softmax(-1).gather(1, tokens[len(PROMPT) :, None])[:, 0]
    return logprobs


async def test_updates_reach_every_expert(engine: SerialEngine, model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    assert "model.layers.1.mlp.experts.3.down_proj.weight" in weights
    await assert_computes_with(engine, weights, model)
    channel = LocalChannel("mixture-test")
    await engine.join(channel.open(2), 1)
    draw = torch.Generator().manual_seed(2)
    for version in (1, 2):
        weights = {name: w + 0.02 * torch.randn(w.shape, generator=draw) for name, w in weights.items()}
        manifest = manifest_of(weights.items())
        channel.send(weights.items(), manifest)
        await engine.update_weights(manifest, version)
        await assert_computes_with(engine, weights, model)
    channel.close()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
async def test_the_order_of_a_kernel_is_found_by_packing_places(dtype: torch.dtype) -> None:
    weight = torch.randn(2, 96, 416).to(dtype)  # more elements than bfloat16 counts at once
    packed = cpu_prepack_moe_weight(weight, "vec")
    assert not torch.equal(packed, weight)
    rows = torch.empty_like(weight).flatten(1)
    rows[:, places_in(lambda matrices: cpu_prepack_moe_weight(matrices, "vec"), 96, 416, dtype)] = packed.flatten(1)
    assert torch.equal(rows.view_as(weight), weight)
    with pytest.raises(ValueError, match="does more to its weights"):
        places_in(lambda matrices: matrices.relu() * 0, 4, 4, dtype)
