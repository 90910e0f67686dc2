"""The learner against transformers and torch on the same device, and against itself: shared prompts, packing.

Random models, of real widths on a GPU. Not exercised: several ranks, mixtures of experts.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from learner.batching.packing import pack
from learner.device import device
from learner.model.policy import PolicyModel
from learner.model.process_groups import init_parallel
from learner.settings import KernelSettings, ModelSettings, OptimizerSettings, ParallelSettings
from tests.gpu.kernels import take_gpu_kernels
from tests.gpu.shapes import REAL, sequences_of, write_model
from tests.unit.learner.reference import (
    Values,
    apart,
    differences,
    gradients,
    num_response_tokens,
    torch_adam,
    transformers_loss,
    transformers_values,
)

BUDGET = 8192
MIXED = sequences_of((700, (180, 1, 420, 95, 7, 300)), (64, (512,)), (1, (30, 30)), (333, (1, 40)), (1500, (800,)))
SHARED = sequences_of((920, (600, 250, 250, 10, 1, 90, 333, 128)))
DISTINCT = sequences_of((900, (600,)), (20, (250,)), (300, (1,)), (1, (700,)), (128, (128,)))
# With this eps, Adam does not blow rounding errors of gradients near zero up to whole steps.
OPTIMIZER = OptimizerSettings(lr=1e-3, weight_decay=0.1, clip_grad=0.0, beta2=0.95, eps=1e-3)

Record = Callable[[str, object], None]


@pytest.fixture(autouse=True)
def one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test is a world of one rank, and takes a GPU's kernels on any device."""
    init_parallel(ParallelSettings(), rank=0, world_size=1)
    take_gpu_kernels(monkeypatch)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models by family."""
    return {family: write_model(family, tmp_path_factory.mktemp(family)) for family in REAL}


def build(folder: Path, dtype: str = "float32", compiled: bool = True) -> PolicyModel:
    model, kernels = ModelSettings.model_validate({"dtype": dtype}), KernelSettings(compile=compiled)
    return PolicyModel(folder, model, OPTIMIZER, ParallelSettings(), kernels=kernels)


def reference(folder: Path, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    import transformers as tf

    found = tf.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    return found.to(device())


def reference_values(folder: Path, dtype: torch.dtype) -> Values:
    with torch.no_grad():
        return transformers_values(reference(folder, dtype), MIXED)


@pytest.mark.parametrize("family", REAL)
def test_float32_is_that_of_transformers(folders: dict[str, Path], family: str, record_property: Record) -> None:
    """Log-probabilities and entropies, the gradient's norm, and log-probabilities after a step of AdamW."""
    theirs = reference(folders[family])
    adam = torch_adam(theirs, OPTIMIZER)
    expected = transformers_values(theirs, MIXED)
    policy = build(folders[family])
    micros = pack(MIXED, BUDGET)
    assert sum(micro.num_tokens for micro in micros) < sum(len(prompt) + len(response) for prompt, response in MIXED)
    loaded, _ = gradients(policy, micros, num_response_tokens(MIXED))
    off = float(differences(loaded, expected).max())
    record_property(f"{family}_float32_max", off)
    assert off < 1e-4

    transformers_loss(expected).backward()
    norm = float(torch.nn.utils.get_total_norm([p.grad for p in theirs.parameters() if p.grad is not None]))
    adam.step()
    del expected
    ours, updated = policy.step(OPTIMIZER.lr)
    assert updated
    record_property(f"{family}_grad_norm_off", abs(ours / norm - 1))
    assert ours == pytest.approx(norm, rel=1e-4)
    with torch.no_grad():
        stepped = transformers_values(theirs, MIXED)
    # With gradients again: a kernel without would be compiled for these values alone.
    trained, _ = gradients(policy, micros, num_response_tokens(MIXED))
    moved, off = float(differences(trained, loaded).max()), float(differences(trained, stepped).max())
    record_property(f"{family}_step_off", off / moved)
    assert moved > 1e-2, "a step that changes nothing shows nothing"
    assert off < 1e-2 * moved


@pytest.mark.parametrize("family", REAL)
def test_bfloat16_is_as_near_to_float32_as_transformers_is(
    folders: dict[str, Path], family: str, record_property: Record
) -> None:
    exact = reference_values(folders[family], torch.float32)
    ours, _ = gradients(build(folders[family], "bfloat16"), pack(MIXED, BUDGET), num_response_tokens(MIXED))
    noise = {
        "ours": differences(ours, exact),
        "transformers": differences(reference_values(folders[family], torch.bfloat16), exact),
    }
    for name, off in noise.items():
        record_property(f"{family}_bfloat16_mean_{name}", float(off.mean()))
        record_property(f"{family}_bfloat16_max_{name}", float(off.max()))
    assert 0 < noise["ours"].mean() < 1.5 * noise["transformers"].mean()


@pytest.mark.parametrize("packed", ["shared", "distinct"])
def test_what_is_packed_together_is_what_is_computed_alone(
    folders: dict[str, Path], packed: str, record_property: Record
) -> None:
    """Log-probabilities and gradients of responses that share their prompt, and of sequences that share nothing.

    Each alone without compilation: kernels for the length of each would take minutes.
    """
    sequences = SHARED if packed == "shared" else DISTINCT
    together, alone = pack(sequences, BUDGET), apart(sequences)
    assert len(together) == 1
    values, grads = gradients(build(folders["qwen3"]), together, num_response_tokens(sequences))
    plain = build(folders["qwen3"], compiled=False)
    values_alone, grads_alone = gradients(plain, alone, num_response_tokens(sequences))
    off = float(differences(values, values_alone).max())
    grads_off = max(float((grads[name] - each).norm() / each.norm()) for name, each in grads_alone.items())
    record_property(f"{packed}_float32_max", off)
    record_property(f"{packed}_gradients_off", grads_off)
    assert off < 1e-4
    assert grads_off < 1e-4
