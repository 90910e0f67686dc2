"""Every model family against transformers, on every layout of tensor and pipeline ranks: loaded, trained, exported.

Tiny random models in float32, on CPU. Not exercised here: vLLM (tests/integration/test_model_parity.py), CUDA.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from learner.batching.packing import TokenSequence, pack
from learner.model.architecture import Architecture
from learner.model.convert import HfReader, Layout
from learner.model.policy import PolicyModel
from learner.model.process_groups import init_parallel
from learner.settings import ModelSettings, OptimizerSettings, ParallelSettings
from tests.ranks import run_ranks
from tests.unit.learner import tiny
from tests.unit.learner.reference import (
    Values,
    differences,
    gradients,
    num_response_tokens,
    policy_values,
    torch_adam,
    transformers_loss,
    transformers_values,
    write_folder,
)
from tests.unit.learner.tiny import VOCAB

LR = 1e-2
# With this eps, Adam does not blow rounding errors of gradients near zero up to whole steps.
OPTIMIZER = OptimizerSettings(lr=LR, weight_decay=0.1, clip_grad=0.0, eps=1e-3)
SHAPE: dict[str, Any] = tiny.SHAPE | {"num_hidden_layers": 2}
ROPE_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
MOE: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 12}
FAMILIES = {
    "llama-tied": ("llama", {"tie_word_embeddings": True, "rope_theta": 5000.0}),
    "llama-untied": ("llama", {"head_dim": 16, "rms_norm_eps": 1e-3, "num_key_value_heads": 4}),
    "llama-3": ("llama", {"rope_parameters": ROPE_LLAMA3}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-mlp-biases": ("llama", {"mlp_bias": True}),
    "qwen2": ("qwen2", {}),
    "qwen2.5": ("qwen2", {"tie_word_embeddings": True, "rope_theta": 1e6}),
    "qwen3": ("qwen3", {"tie_word_embeddings": True, "head_dim": 12}),
    "qwen3-moe": ("qwen3_moe", MOE | {"norm_topk_prob": True, "mlp_only_layers": [0]}),
    "qwen3-moe-raw": ("qwen3_moe", MOE | {"norm_topk_prob": False, "tie_word_embeddings": True}),
}
# On four ranks; data-parallel ranks compute the same batch, and each half of its loss.
LAYOUTS = {
    "TP2xPP2": ParallelSettings(tensor=2, pipeline=2),
    "TP2xDP2": ParallelSettings(tensor=2, data=2),
    "PP2xDP2": ParallelSettings(pipeline=2, data=2),
}


def batch() -> list[TokenSequence]:
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, VOCAB, size) for size in (9, 30, 1)]
    lengths = [(6, 1, 40), (25,), (3, 3)]
    return [(prompt, rng.integers(0, VOCAB, n)) for prompt, group in zip(prompts, lengths, strict=True) for n in group]


def build(folder: Path, parallel: ParallelSettings, dtype: str = "float32") -> PolicyModel:
    return PolicyModel(folder, ModelSettings.model_validate({"dtype": dtype}), OPTIMIZER, parallel)


def folder_weights(folder: Path) -> dict[str, Tensor]:
    with HfReader(folder) as reader:
        return {name: reader.read(name, Layout.WHOLE, 0, 1) for name in reader.names}


def assert_exports(policy: PolicyModel, expected: dict[str, Tensor]) -> None:
    exported = {name: tensor.clone() for name, tensor in policy.export()}
    assert exported.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in exported.items())


def run_layout(folder: Path, parallel: ParallelSettings, out: Path) -> None:
    """On every rank: load, export, load the export, train a step, export; findings of ranks with logits go to `out`."""
    policy = build(folder, parallel)
    assert_exports(policy, folder_weights(folder))
    loaded = policy_values(policy, pack(batch(), 60))
    policy.save_hf(out / "same")
    torch.distributed.barrier()
    again = build(out / "same", parallel)
    assert_exports(again, folder_weights(folder))
    gradients(policy, pack(batch(), 60), num_response_tokens(batch()) * parallel.data)
    norm, updated = policy.step(LR)
    assert updated
    trained = policy_values(policy, pack(batch(), 60))
    policy.save_hf(out / "trained")
    torch.distributed.barrier()
    assert_exports(policy, folder_weights(out / "trained"))
    again.load_hf(out / "trained")
    assert_exports(again, folder_weights(out / "trained"))
    if policy.architecture.experts:  # checkpoints of dense models have tests of their own
        policy.save_checkpoint(out / "checkpoint")
        again = build(folder, parallel)
        again.load_checkpoint(out / "checkpoint")
        assert_exports(again, folder_weights(out / "trained"))
    if policy.gpt.post_process:
        torch.save((loaded, norm, trained), out / f"rank-{torch.distributed.get_rank()}.pt")


def run_rank(rank: int, parallel: ParallelSettings, folders: dict[str, Path], out: Path) -> None:
    torch.set_num_threads(1)
    init_parallel(parallel, rank, 4, torch.distributed.FileStore(str(out / "store"), 4), timeout=60.0)
    for family, folder in folders.items():
        run_layout(folder, parallel, out / family)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    import transformers as tf

    return {
        name: write_folder(tmp_path_factory.mktemp(name), tf.AutoConfig.for_model(model_type, **SHAPE | changes))
        for name, (model_type, changes) in FAMILIES.items()
    }


@pytest.fixture(scope="module")
def expected(folders: dict[str, Path]) -> dict[str, tuple[Values, float, Values]]:
    """What transformers and torch find: values, the gradient's norm, and values after a step of AdamW."""
    import transformers as tf

    found = {}
    for name, folder in folders.items():
        reference = tf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        adam = torch_adam(reference, OPTIMIZER)
        loaded = transformers_values(reference, batch())
        transformers_loss(loaded).backward()
        norm = float(torch.nn.utils.clip_grad_norm_(reference.parameters(), float("inf")))
        adam.step()
        with torch.no_grad():
            trained = transformers_values(reference, batch())
        found[name] = [(a.detach(), b.detach()) for a, b in loaded], norm, trained
    return found


def findings(layout: str, folders: dict[str, Path], out: Path) -> Path:
    """The folder with what the ranks of a layout found, by family."""
    run_ranks(run_rank, (LAYOUTS[layout], folders, out), 4)
    return out


@pytest.fixture(scope="module")
def one(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("one")
    torch.set_num_threads(1)
    init_parallel(ParallelSettings(), 0, 1)
    for family, folder in folders.items():
        run_layout(folder, ParallelSettings(), out / family)
    return out


@pytest.fixture(scope="module")
def tp2_pp2(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return findings("TP2xPP2", folders, tmp_path_factory.mktemp("tp2_pp2"))


@pytest.fixture(scope="module")
def tp2_dp2(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return findings("TP2xDP2", folders, tmp_path_factory.mktemp("tp2_dp2"))


@pytest.fixture(scope="module")
def pp2_dp2(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return findings("PP2xDP2", folders, tmp_path_factory.mktemp("pp2_dp2"))


@pytest.mark.parametrize(
    ("ranks", "logit_ranks"),
    [
        pytest.param("one", 1, id="one"),
        pytest.param("tp2_pp2", 2, id="TP2xPP2", marks=pytest.mark.slow),
        pytest.param("tp2_dp2", 4, id="TP2xDP2", marks=pytest.mark.slow),
        pytest.param("pp2_dp2", 2, id="PP2xDP2", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_that_of_transformers(
    request: pytest.FixtureRequest,
    expected: dict[str, tuple[Values, float, Values]],
    family: str,
    ranks: str,
    logit_ranks: int,
) -> None:
    import transformers as tf

    out: Path = request.getfixturevalue(ranks)
    loaded, norm, trained = expected[family]
    exported = tf.AutoModelForCausalLM.from_pretrained(out / family / "trained", dtype=torch.float32)
    with torch.no_grad():
        from_export = transformers_values(exported, batch())
    found = sorted((out / family).glob("rank-*.pt"))
    assert len(found) == logit_ranks
    for path in found:
        ours, our_norm, ours_trained = torch.load(path)
        assert differences(ours, loaded).max() < 2e-5
        assert our_norm == pytest.approx(norm, rel=1e-4)
        assert differences(ours_trained, from_export).max() < 2e-5
        assert differences(ours_trained, trained).max() < 1e-4
    assert differences(trained, loaded).max() > 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_goes_round_bit_for_bit(folders: dict[str, Path], tmp_path: Path, family: str) -> None:
    init_parallel(ParallelSettings(), 0, 1)
    rounded = {name: tensor.bfloat16() for name, tensor in folder_weights(folders[family]).items()}
    policy = build(folders[family], ParallelSettings(), "bfloat16")
    assert_exports(policy, rounded)
    policy.save_hf(tmp_path)
    assert_exports(build(tmp_path, ParallelSettings(), "bfloat16"), rounded)


@pytest.mark.parametrize(
    ("model_type", "rope"),
    [
        ("llama", {"rope_type": "default", "rope_theta": 12345.0}),
        ("qwen2", {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}),
        ("llama", ROPE_LLAMA3 | {"rope_theta": 5e5, "factor": 32.0, "original_max_position_embeddings": 8192}),
    ],
)
def test_rotary_frequencies_are_those_of_transformers_in_either_format(
    tmp_path: Path, model_type: str, rope: dict[str, Any]
) -> None:
    import transformers as tf
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = tf.AutoConfig.for_model(model_type, **SHAPE | {"hidden_size": 512, "rope_parameters": rope})
    config.save_pretrained(tmp_path)
    new = Architecture.read(tmp_path)
    old = json.loads((tmp_path / "config.json").read_text())
    scaling = dict(old.pop("rope_parameters"))
    old |= {"rope_theta": scaling.pop("rope_theta"), "torch_dtype": old.pop("dtype", "float32")}
    old["rope_scaling"] = None if rope["rope_type"] == "default" else scaling
    (tmp_path / "config.json").write_text(json.dumps(old))
    assert Architecture.read(tmp_path) == new

    if rope["rope_type"] == "default":
        reference = 1.0 / rope["rope_theta"] ** (torch.arange(0, 128, 2).float() / 128)
    else:
        reference, scale = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, torch.device("cpu"))
        assert scale == 1.0
    torch.testing.assert_close(new.inverse_frequencies(), reference, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mixtral"}, "model type 'mixtral' is not one of llama, qwen2, qwen3, qwen3_moe"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}, "unsupported rope type 'yarn'"),
        (
            {"rope_parameters": None, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
            "unsupported rope type 'dynamic'",
        ),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"use_sliding_window": True}, "unsupported sliding window"),
        ({"hidden_act": "gelu"}, "unsupported activation"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    folders: dict[str, Path], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    config = json.loads((folders["qwen2"] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ValueError, match=message):
        Architecture.read(tmp_path)


def test_a_folder_that_lacks_a_tensor_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    """A model without its biases, say, under a configuration that has them."""
    init_parallel(ParallelSettings(), 0, 1)
    config = json.loads((folders["llama-tied"] / "config.json").read_text()) | {"attention_bias": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(folders["llama-tied"] / "model.safetensors")
    with pytest.raises(ValueError, match=r"lacks the tensor model\.layers\.0\.self_attn\.\w+_proj\.bias"):
        build(tmp_path, ParallelSettings())
