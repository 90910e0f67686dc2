"""The policy against transformers and against itself: parity, shared prompts, export, resume, parallel layouts.

Tiny random models, on CPU. Not exercised: CUDA, NCCL and the attention kernels of GPUs.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor

from learner import attention, convert, cpu, cpu_attention, logprobs
from learner.architecture import Architecture
from learner.model import PolicyModel
from learner.packing import MicroBatch, TokenSequence, empty_micro_batch, pack, pack_ranks
from learner.parallel import init_parallel
from learner.settings import ModelSettings, OptimizerSettings, ParallelSettings

VOCAB = 131
LR = 1e-3
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
# With this eps, Adam does not blow rounding errors of gradients near zero up to whole steps.
OPTIMIZER = OptimizerSettings(lr=LR, weight_decay=0.1, clip_grad=0.5, beta2=0.95, eps=1e-3)


@pytest.fixture(autouse=True)
def alone() -> None:
    """Every test but the spawned ones is a world of one rank."""
    torch.set_num_threads(1)
    init_parallel(ParallelSettings(), rank=0, world_size=1)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random models as Hugging Face folders, float32, by name."""
    import transformers as tf

    configs = {
        "llama": tf.LlamaConfig(**SHAPE, tie_word_embeddings=True, rope_theta=5000.0),
        "llama-untied": tf.LlamaConfig(**SHAPE, tie_word_embeddings=False, head_dim=16, rms_norm_eps=1e-3),
        "qwen2": tf.Qwen2Config(**SHAPE, tie_word_embeddings=True),
        "qwen3": tf.Qwen3Config(**SHAPE, tie_word_embeddings=True, head_dim=12),
    }
    found = {}
    for name, config in configs.items():
        torch.manual_seed(1)
        reference = tf.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in reference.parameters():
                if parameter.ndim == 1:  # norms and biases start at one and zero, which hide mistakes
                    parameter.add_(torch.randn_like(parameter) * 0.2)
        found[name] = tmp_path_factory.mktemp(name)
        reference.save_pretrained(found[name])
    return found


def build(folder: Path, dtype: str = "float32", parallel: ParallelSettings | None = None) -> PolicyModel:
    return PolicyModel(
        folder, ModelSettings.model_validate({"dtype": dtype}), OPTIMIZER, parallel or ParallelSettings()
    )


def batch() -> list[TokenSequence]:
    """Shared prompts with responses of very different lengths, lone sequences, responses of one token."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, VOCAB, size) for size in (9, 5, 1, 7)]
    lengths = [(6, 1, 13, 5, 6), (4,), (3, 3), (1, 1)]
    return [(prompt, rng.integers(0, VOCAB, n)) for prompt, group in zip(prompts, lengths, strict=True) for n in group]


def weigh(micro: MicroBatch, logprobs: Tensor) -> Tensor:
    """A loss that treats every response token differently, normalised over the whole batch."""
    weights = np.sin(1.0 + 3.0 * micro.sequence_index + micro.token_index)
    return -(logprobs * torch.from_numpy(weights).float()).sum() / sum(len(response) for _, response in batch())


def gather(micros: list[MicroBatch], values: list[Tensor]) -> list[Tensor]:
    """Values of packed response tokens, back in the sequences' order."""
    out = [torch.empty(len(response)) for _, response in batch()]
    for micro, value in zip(micros, values, strict=True):
        for owner, place, item in zip(micro.sequence_index, micro.token_index, value.detach(), strict=True):
            out[owner][place] = item
    return out


def gradients(policy: PolicyModel, micros: list[MicroBatch]) -> tuple[list[Tensor], dict[str, Tensor]]:
    policy.zero_grad()
    found = []

    def loss(_: int, micro: MicroBatch, values: Tensor, entropy: Tensor) -> Tensor:
        found.append(values)
        return weigh(micro, values)

    policy.forward_backward(micros, loss)
    return gather(micros, found), {name: p.main_grad.clone() for name, p in policy.gpt.named_parameters()}


def train(policy: PolicyModel, micros: list[MicroBatch], steps: int) -> list[float]:
    norms = []
    for _ in range(steps):
        gradients(policy, micros)
        norm, updated = policy.step(LR)
        assert updated
        norms.append(norm)
    return norms


def weights(policy: PolicyModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in policy.export()}


def assert_close(first: dict[str, Tensor], second: dict[str, Tensor], atol: float) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], atol=atol, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.parametrize("name", ["llama", "llama-untied", "qwen2", "qwen3"])
def test_two_steps_are_those_of_transformers_and_torch(folders: dict[str, Path], name: str) -> None:
    """Log-probabilities, entropies, gradients, clipping and AdamW, every sequence run alone by the reference."""
    import transformers as tf

    reference = tf.AutoModelForCausalLM.from_pretrained(folders[name], dtype=torch.float32)
    decayed = [p for p in reference.parameters() if p.ndim > 1]
    plain = [p for p in reference.parameters() if p.ndim == 1]
    adam = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": OPTIMIZER.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=LR,
        betas=(OPTIMIZER.beta1, OPTIMIZER.beta2),
        eps=OPTIMIZER.eps,
    )
    policy = build(folders[name])
    micros = pack(batch(), 40)
    for _ in range(2):
        values, entropies, loss = [], [], torch.zeros(())
        for index, (prompt, response) in enumerate(batch()):
            (alone,) = pack([(prompt, response)], 1)
            ids = torch.from_numpy(np.concatenate((prompt, response)))
            table = torch.log_softmax(reference(ids[None]).logits[0, len(prompt) - 1 : -1], dim=-1)
            values.append(table.gather(1, torch.from_numpy(response)[:, None])[:, 0])
            entropies.append(-(table.exp() * table).sum(-1))
            alone.sequence_index[:] = index
            loss = loss + weigh(alone, values[-1])
        adam.zero_grad()
        loss.backward()

        policy.zero_grad()
        ours: list[tuple[Tensor, Tensor]] = []

        def weighted(_: int, micro: MicroBatch, found: Tensor, entropy: Tensor) -> Tensor:
            ours.append((found, entropy))  # noqa: B023
            return weigh(micro, found)

        policy.forward_backward(micros, weighted)
        torch.testing.assert_close(gather(micros, [found for found, _ in ours]), values, atol=1e-4, rtol=0)
        torch.testing.assert_close(gather(micros, [found for _, found in ours]), entropies, atol=1e-4, rtol=0)

        norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), OPTIMIZER.clip_grad)
        assert norm > OPTIMIZER.clip_grad
        adam.step()
        assert policy.step(LR) == (pytest.approx(float(norm), rel=1e-4), True)
    assert_close(weights(policy), {name: p.detach() for name, p in reference.named_parameters()}, atol=1e-2 * LR)


def test_shared_prompts_change_nothing(folders: dict[str, Path]) -> None:
    policy = build(folders["llama"])
    together = pack(batch(), 1000)
    apart = []
    for index, item in enumerate(batch()):
        (micro,) = pack([item], 1)
        micro.sequence_index[:] = index
        apart.append(micro)
    assert len(together) == 1
    assert together[0].num_tokens < sum(micro.num_tokens for micro in apart)
    values, grads = gradients(policy, together)
    values_apart, grads_apart = gradients(policy, apart)
    torch.testing.assert_close(values, values_apart, atol=1e-5, rtol=0)
    assert_close(grads, grads_apart, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cpu_attention_is_scaled_dot_product_attention(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """The path that GPUs take, on CPU, against the one that CPUs take, cut into small chunks."""
    (micro,) = pack(batch(), 1000)
    torch.manual_seed(0)
    inputs = [torch.randn(micro.num_tokens, 1, heads, 16, dtype=dtype, requires_grad=True) for heads in (6, 2, 2)]
    grad = torch.randn(micro.num_tokens, 1, 96, dtype=dtype)
    monkeypatch.setattr(cpu_attention, "SCORES", 300)
    found = []
    for cpu_kernels in (True, False):
        plan = attention.plan_attention(micro, torch.tensor([1.0, 0.3, 0.1, 0.02] * 2), dtype, cpu_kernels)
        out = attention.TreeAttention(None)(*inputs, None, packed_seq_params=plan)
        found.append((out, *torch.autograd.grad(out, inputs, grad)))
    tolerance = 1e-5 if dtype is torch.float32 else 0.05
    torch.testing.assert_close(found[0], found[1], atol=tolerance, rtol=tolerance)


def test_chunks_of_the_vocabulary_change_nothing(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    policy = build(folders["llama"])
    micros = pack(batch(), 1000)
    values, grads = gradients(policy, micros)
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", 3 * VOCAB)
    values_chunked, grads_chunked = gradients(policy, micros)
    torch.testing.assert_close(values, values_chunked, atol=1e-6, rtol=0)
    assert_close(grads, grads_chunked, atol=1e-6)


def test_bfloat16_is_near_float32(folders: dict[str, Path]) -> None:
    micros = pack(batch(), 40)
    values, grads = gradients(build(folders["llama"]), micros)
    rough, rough_grads = gradients(build(folders["llama"], "bfloat16"), micros)
    assert torch.cat(rough).dtype is torch.float32
    assert (torch.cat(values) - torch.cat(rough)).abs().mean() < 0.05
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


def test_an_empty_micro_batch_is_harmless(folders: dict[str, Path]) -> None:
    policy = build(folders["llama"])
    policy.zero_grad()
    ((_, values, entropy),) = policy.logprobs([empty_micro_batch()])
    policy.forward_backward([empty_micro_batch()], lambda _, micro, values, entropy: values.sum())
    assert values.shape == entropy.shape == (0,)
    assert policy.step(LR)[0] == 0.0


def test_the_bridge_ends_with_its_context() -> None:
    with cpu.megatron_calls():
        assert torch.zeros(2, device="cuda").device.type == "cpu"
        assert torch.zeros(2).cuda().type() == "torch.cuda.FloatTensor"
        assert torch.device(torch.cuda.current_device()).type == "cpu"
    assert torch.zeros(2).type() == "torch.FloatTensor"
    with pytest.raises((AssertionError, RuntimeError)):
        torch.zeros(2, device="cuda")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "mamba"}, "mamba"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope type"),
        ({"mlp_bias": True}, "MLP bias"),
    ],
)
def test_an_unknown_architecture_is_refused(
    folders: dict[str, Path], tmp_path: Path, changes: dict[str, object], named: str
) -> None:
    config = json.loads((folders["llama"] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ValueError, match=named):
        Architecture.read(tmp_path)


def test_layouts_that_do_not_fit_are_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="4 ranks, not 1"):
        init_parallel(ParallelSettings(tensor=2, data=2), rank=0, world_size=1)
    with pytest.raises(ValueError, match="heads"):
        build(folders["llama"], parallel=ParallelSettings(tensor=3))


def run_rank(rank: int, folders: dict[str, Path], out: Path) -> None:
    """What each of two spawned ranks does: two steps under either layout, a resume, and its findings to a file."""
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(str(out / "store"), 2)
    for layout, name, dtype in CASES:
        parallel = ParallelSettings.model_validate({layout: 2})
        init_parallel(parallel, rank, 2, store, timeout=60.0)
        policy = build(folders[name], dtype, parallel)
        micros = pack_ranks(batch(), 30, parallel.data)[rank if layout == "data" else 0]
        assert_equal(weights(policy), weights_of(folders[name], dtype))
        values, _ = gradients(policy, micros)
        norms = train(policy, micros, 1)
        policy.save_checkpoint(out / f"{layout}-{name}-{dtype}")
        norms += train(policy, micros, 1)
        found = weights(policy)
        resumed = build(folders[name], dtype, parallel)
        resumed.load_checkpoint(out / f"{layout}-{name}-{dtype}")
        train(resumed, micros, 1)
        assert_equal(found, weights(resumed))
        owners = sorted({int(owner) for micro in micros for owner in micro.sequence_index})
        values_by_owner = {owner: values[owner] for owner in owners}
        torch.save((values_by_owner, norms, found), out / f"{layout}-{name}-{dtype}-{rank}.pt")


CASES = [
    ("tensor", "llama", "float32"),
    ("tensor", "llama-untied", "float32"),
    ("tensor", "qwen3", "float32"),
    ("tensor", "qwen2", "bfloat16"),
    ("data", "llama", "float32"),
    ("data", "qwen2", "bfloat16"),
]


def weights_of(folder: Path, dtype: str) -> dict[str, Tensor]:
    with convert.HfReader(folder) as reader:
        return {name: reader.read(name, convert.Layout.WHOLE, 0, 1).to(getattr(torch, dtype)) for name in reader.names}


@pytest.fixture(scope="module")
def two_ranks(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ranks")
    mp.spawn(run_rank, args=(folders, out), nprocs=2)
    return out


@pytest.mark.parametrize(("layout", "name", "dtype"), CASES)
def test_two_ranks_equal_one(two_ranks: Path, folders: dict[str, Path], layout: str, name: str, dtype: str) -> None:
    policy = build(folders[name], dtype)
    micros = pack(batch(), 30)
    values, _ = gradients(policy, micros)
    norms = train(policy, micros, 2)
    single = weights(policy)
    tolerance = 1e-5 if dtype == "float32" else 0.2
    owners = set()
    for rank in range(2):
        rank_values, rank_norms, rank_weights = torch.load(two_ranks / f"{layout}-{name}-{dtype}-{rank}.pt")
        for owner, found in rank_values.items():
            torch.testing.assert_close(found, values[owner], atol=tolerance, rtol=0)
        owners |= rank_values.keys()
        assert rank_norms == pytest.approx(norms, rel=1e-4 if dtype == "float32" else 0.05)
        for hf_name, tensor in single.items():
            off = (tensor - rank_weights[hf_name]).float().abs()
            assert off.max() < 1e-2 * LR if dtype == "float32" else off.mean() < LR, hf_name
    assert owners == set(range(len(batch())))
