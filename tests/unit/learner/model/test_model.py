"""The policy against transformers and against itself: parity, shared prompts, export, resume.

Tiny random models, on CPU. Not exercised: CUDA, NCCL and compiled kernels.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.attention import flex_attention

from learner.batching.packing import MicroBatch, empty_micro_batch, pack
from learner.model import convert, kernels, logprobs
from learner.model import policy as policy_module
from learner.model.megatron_on_cpu import megatron_calls
from learner.model.policy import PolicyModel
from learner.model.process_groups import init_parallel
from learner.model.recompute import recomputable
from learner.settings import ParallelSettings
from tests.unit.learner import reference
from tests.unit.learner.tiny import (
    LR,
    OPTIMIZER,
    VOCAB,
    assert_equal,
    batch,
    build,
    weigh,
    weights,
    write_folders,
)


@pytest.fixture(autouse=True)
def alone() -> None:
    """Every test but the spawned ones is a world of one rank."""
    torch.set_num_threads(1)
    init_parallel(ParallelSettings(), rank=0, world_size=1)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_folders(tmp_path_factory.mktemp("models"))


def gradients(policy: PolicyModel, micros: list[MicroBatch]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Log-probabilities by sequence and gradients by name, of one pass over the batch."""
    values, grads = reference.gradients(policy, micros, reference.num_response_tokens(batch()))
    return [logprobs for logprobs, _ in values], grads


def train(policy: PolicyModel, micros: list[MicroBatch], steps: int) -> list[float]:
    norms = []
    for _ in range(steps):
        gradients(policy, micros)
        norm, updated = policy.step(LR)
        assert updated
        norms.append(norm)
    return norms


def assert_close(first: dict[str, Tensor], second: dict[str, Tensor], atol: float) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], atol=atol, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(
    ("name", "temperature"),
    [("llama", 1.0), ("llama-untied", 0.7), ("llama-untied", 1.0), ("qwen2", 1.0), ("qwen3", 1.0)],
)
def test_two_steps_are_those_of_transformers_and_torch(folders: dict[str, Path], name: str, temperature: float) -> None:
    """Log-probabilities, entropies, gradients, clipping and AdamW, every sequence run alone by the reference."""
    import transformers as tf

    theirs = tf.AutoModelForCausalLM.from_pretrained(folders[name], dtype=torch.float32)
    adam = reference.torch_adam(theirs, OPTIMIZER)
    policy = build(folders[name], temperature=temperature)
    micros = pack(batch(), 40)
    for _ in range(2):
        expected = reference.transformers_values(theirs, batch(), temperature)
        adam.zero_grad()
        reference.transformers_loss(expected).backward()

        values, _ = reference.gradients(policy, micros, reference.num_response_tokens(batch()))
        assert reference.differences(values, expected).max() < 1e-4
        assert reference.differences(reference.policy_values(policy, micros), values).max() < 1e-5
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), OPTIMIZER.clip_grad)
        assert norm > OPTIMIZER.clip_grad
        adam.step()
        assert policy.step(LR) == (pytest.approx(float(norm), rel=1e-4), True)
    assert_close(weights(policy), {name: p.detach() for name, p in theirs.named_parameters()}, atol=1e-2 * LR)


def test_shared_prompts_change_nothing(folders: dict[str, Path]) -> None:
    policy = build(folders["llama"])
    together = pack(batch(), 1000)
    alone = reference.apart(batch())
    assert len(together) == 1
    assert together[0].num_tokens < sum(micro.num_tokens for micro in alone)
    values, grads = gradients(policy, together)
    values_apart, grads_apart = gradients(policy, alone)
    torch.testing.assert_close(values, values_apart, atol=1e-5, rtol=0)
    assert_close(grads, grads_apart, atol=1e-6)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_a_model_with_flex_attention_is_the_model_with_the_cpu_kernels(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that a GPU computes but the compilation."""
    policy = build(folders["qwen3"])
    micros = pack(batch(), 40)
    values, grads = gradients(policy, micros)
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)  # as in test_tree_attention.py
    monkeypatch.setattr(policy_module, "plan_attention", partial(policy_module.plan_attention, cpu_kernels=False))
    flex_values, flex_grads = gradients(policy, micros)
    torch.testing.assert_close(values, flex_values, atol=1e-5, rtol=0)
    assert_close(grads, flex_grads, atol=1e-5)


@pytest.mark.parametrize("recompute", ["selective", "full"])
@pytest.mark.parametrize("name", ["llama", "qwen3", "qwen3-moe"])
def test_recomputed_activations_give_the_same_bits(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, name: str, recompute: str
) -> None:
    calls = 0
    forward = kernels._RmsNorm.forward

    def counted(*args: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return forward(*args)

    monkeypatch.setattr(kernels._RmsNorm, "forward", staticmethod(counted))
    micros = pack(batch(), 40)
    values, grads = gradients(build(folders[name]), micros)
    once, calls = calls, 0
    values_again, grads_again = gradients(build(folders[name], recompute=recompute), micros)
    assert calls > once, "the backward pass computes norms again"
    torch.testing.assert_close(values, values_again, atol=0, rtol=0)
    assert_equal(grads, grads_again)


def test_a_recomputable_input_is_not_kept(folders: dict[str, Path]) -> None:
    linear = build(folders["llama"]).gpt.decoder.layers[0].self_attention.linear_qkv
    plain = torch.randn(50, 1, 32, requires_grad=True)
    out, _ = linear(plain.sin())
    (expected,) = torch.autograd.grad(out.square().sum(), plain)
    between = recomputable(torch.sin, plain)
    out, _ = linear(between)
    kept = StorageWeakRef(between.untyped_storage())
    del between
    assert kept.expired()
    (found,) = torch.autograd.grad(out.square().sum(), plain)
    assert torch.equal(found, expected)


def test_chunks_of_the_vocabulary_change_nothing(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    policy = build(folders["llama"])
    micros = pack(batch(), 1000)
    values, grads = gradients(policy, micros)
    monkeypatch.setitem(logprobs.CHUNK_ELEMENTS, "cpu", 3 * VOCAB)
    values_chunked, grads_chunked = gradients(policy, micros)
    torch.testing.assert_close(values, values_chunked, atol=1e-6, rtol=0)
    assert_close(grads, grads_chunked, atol=1e-6)


def test_bfloat16_is_near_float32(folders: dict[str, Path]) -> None:
    micros = pack(batch(), 40)
    values, grads = gradients(build(folders["llama"]), micros)
    rough, rough_grads = gradients(build(folders["llama"], "bfloat16"), micros)
    assert torch.cat(rough).dtype is torch.float32
    assert (torch.cat(values) - torch.cat(rough)).abs().mean() < 0.1
    for name, grad in grads.items():
        assert torch.nn.functional.cosine_similarity(grad.flatten(), rough_grads[name].flatten(), dim=0) > 0.99, name


@pytest.mark.parametrize("name", ["llama", "llama-untied", "qwen2", "qwen3"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_export_and_save_are_bit_exact(folders: dict[str, Path], tmp_path: Path, name: str, dtype: str) -> None:
    import transformers as tf

    policy = build(folders[name], dtype)
    reference = tf.AutoModelForCausalLM.from_pretrained(folders[name], dtype=getattr(torch, dtype))
    assert_equal(weights(policy), dict(reference.named_parameters()))
    train(policy, pack(batch(), 40), 1)
    trained = weights(policy)
    policy.save_hf(tmp_path)
    reloaded = tf.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert reloaded.dtype is getattr(torch, dtype)
    assert_equal(trained, dict(reloaded.named_parameters()))
    again = build(folders[name], dtype)
    again.load_hf(tmp_path)
    assert_equal(trained, weights(again))


def test_large_folders_are_written_in_several_files(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert, "FILE_BYTES", 20_000)
    build(folders["llama"]).save_hf(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_equal(weights(build(tmp_path)), weights(build(folders["llama"])))


def test_loading_a_folder_replaces_the_master_weights(folders: dict[str, Path]) -> None:
    policy = build(folders["llama"], "bfloat16")
    train(policy, pack(batch(), 40), 2)
    policy.load_hf(folders["llama"])
    before = weights(policy)
    gradients(policy, pack(batch(), 40))
    policy.step(0.0)
    assert_equal(before, weights(policy))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_resume_is_bit_exact(folders: dict[str, Path], tmp_path: Path, dtype: str) -> None:
    micros = pack(batch(), 40)
    policy = build(folders["llama"], dtype)
    train(policy, micros, 2)
    policy.save_checkpoint(tmp_path)
    random = torch.rand(3)
    norms = train(policy, micros, 2)
    resumed = build(folders["llama"], dtype)
    resumed.load_checkpoint(tmp_path)
    assert torch.equal(torch.rand(3), random)
    assert train(resumed, micros, 2) == norms
    assert_equal(weights(policy), weights(resumed))


def test_a_gradient_that_is_not_finite_changes_nothing(folders: dict[str, Path]) -> None:
    micros = pack(batch(), 1000)
    policy = build(folders["llama"], "bfloat16")
    policy.zero_grad()
    policy.forward_backward(micros[:1], lambda _, micro, values, entropy: values.sum() * float("nan"))
    before = weights(policy)
    norm, updated = policy.step(LR)
    assert not updated
    assert not np.isfinite(norm)
    assert_equal(before, weights(policy))
    other = build(folders["llama"], "bfloat16")
    train(policy, micros, 1)
    train(other, micros, 1)
    assert_equal(weights(policy), weights(other))


def test_an_empty_micro_batch_is_skipped(folders: dict[str, Path]) -> None:
    policy = build(folders["llama"])
    policy.zero_grad()
    assert policy.logprobs([empty_micro_batch()]) == []
    policy.forward_backward([empty_micro_batch()], lambda *_: pytest.fail("there is nothing to lose"))
    assert policy.step(LR)[0] == 0.0
    micros = pack(batch(), 40)
    indices: list[int] = []

    def loss(index: int, micro: MicroBatch, values: Tensor, entropy: Tensor) -> Tensor:
        indices.append(index)
        return weigh(micro, values)

    policy.forward_backward([micros[0], empty_micro_batch(), micros[1]], loss)
    assert indices == [0, 2]


def test_the_bridge_ends_with_its_context() -> None:
    with megatron_calls():
        assert torch.zeros(2, device="cuda").device.type == "cpu"
        assert torch.zeros(2).cuda().type() == "torch.cuda.FloatTensor"
        assert torch.device(torch.cuda.current_device()).type == "cpu"
    assert torch.zeros(2).type() == "torch.FloatTensor"
    with pytest.raises((AssertionError, RuntimeError)):
        torch.zeros(2, device="cuda")


def test_deterministic_mode_gives_the_same_bits(folders: dict[str, Path]) -> None:
    micros = pack(batch(), 40)
    try:
        policies = [build(folders["llama"], deterministic=True) for _ in range(2)]
        assert torch.are_deterministic_algorithms_enabled()
        assert train(policies[0], micros, 3) == train(policies[1], micros, 3)
        assert_equal(*(weights(policy) for policy in policies))
    finally:
        torch.use_deterministic_algorithms(False)
