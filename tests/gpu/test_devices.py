"""What this device computes and saves, against a CPU in a process of its own: losses, optimizer steps, checkpoints.

In a dry run this side takes a GPU's kernels, and the other side the CPU's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core import dist_checkpointing
from torch import Tensor

from learner.model.megatron_on_cpu import megatron_calls
from learner.trajectory import dumps, loads
from tests.gpu.kernels import take_gpu_kernels
from tests.gpu.on_cpu import OnCpu
from tests.unit.learner.training import (
    LR,
    assert_same,
    batch_for,
    settings,
    train,
    trainer,
    weights,
    write_llama,
)

SHAPE = {"hidden_size": 256, "intermediate_size": 384, "num_attention_heads": 4, "num_key_value_heads": 2}
"""The smallest with heads of 64 features, which GPUs have kernels for."""
CHOSEN = {
    "clip": {"supervised": 0.7},
    "decoupled": {"updates_per_batch": 2},
    "tis": {"aggregation": "sequence"},
    "none": {},
}
"""Corrections, each with another setting of the loss."""

Steps = dict[str, tuple[dict[str, float], dict[str, Tensor]]]


def steps(folder: Path) -> Steps:
    """Numbers and weights after two batches, by correction."""
    batch = loads((folder / "batch").read_bytes())
    return {
        correction: train(folder / "model", batch, settings(correction=correction, **changes))
        for correction, changes in CHOSEN.items()
    }


def resumed(folder: Path) -> dict[str, Tensor]:
    """Weights as they are in `folder/here`, then after another batch; both are saved as checkpoints, too."""
    batch = loads((folder / "batch").read_bytes())
    one = trainer(folder / "model", settings())
    one.policy.load_checkpoint(folder / "here")
    loaded = weights(one.policy)
    one.policy.save_checkpoint(folder / "here-again")
    one.train(batch)
    one.policy.save_checkpoint(folder / "there")
    return {"loaded": loaded, "trained": weights(one.policy)}


def cpu_side(folder: Path) -> dict[str, Any]:
    """All that the CPU does."""
    torch.set_num_threads(4)
    return {"steps": steps(folder), "resumed": resumed(folder)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a batch for it, and a checkpoint of this device after one batch, in `here`."""
    folder = tmp_path_factory.mktemp("devices")
    write_llama(folder / "model", SHAPE)
    batch = batch_for(folder / "model")
    (folder / "batch").write_bytes(dumps(batch))
    one = trainer(folder / "model", settings())
    one.train(batch)
    one.policy.save_checkpoint(folder / "here")
    saved = weights(one.policy)
    one.train(batch)
    torch.save((saved, weights(one.policy)), folder / "here.pt")
    return folder


@pytest.fixture(scope="module")
def both(folder: Path) -> tuple[dict[str, Any], Steps]:
    """What the CPU found, and the steps on this device: both at once."""
    there = OnCpu(cpu_side, folder)
    with pytest.MonkeyPatch.context() as patch:
        take_gpu_kernels(patch)
        here = steps(folder)
    return there.result(), here


@pytest.mark.parametrize("correction", CHOSEN)
def test_losses_and_steps_are_the_cpus(
    both: tuple[dict[str, Any], Steps], correction: str, record_property: Callable[[str, object], None]
) -> None:
    """Loss, gradient norm, diagnostics and weights of two steps."""
    there, here = both[0]["steps"][correction], both[1][correction]
    off = max(float((tensor - there[1][name]).abs().max()) for name, tensor in here[1].items())
    record_property(f"{correction}_loss_off", abs(here[0]["loss"] - there[0]["loss"]))
    record_property(f"{correction}_weights_off", off)
    assert_same(here, there)


def test_a_checkpoint_of_this_device_is_the_same_bits_on_the_cpu(
    both: tuple[dict[str, Any], Steps], folder: Path
) -> None:
    """Weights, masters and moments; and another step from there is what this device computes."""
    found = both[0]["resumed"]
    saved, trained = torch.load(folder / "here.pt")
    assert saved.keys() == found["loaded"].keys()
    assert all(torch.equal(tensor, found["loaded"][name]) for name, tensor in saved.items())
    assert_same_bits(folder / "here", folder / "here-again")
    for name, tensor in found["trained"].items():
        torch.testing.assert_close(tensor, trained[name], atol=1e-2 * LR, rtol=1e-4, msg=name)


def test_a_checkpoint_of_the_cpu_is_the_same_bits_on_this_device(
    both: tuple[dict[str, Any], Steps], folder: Path
) -> None:
    one = trainer(folder / "model", settings())
    one.policy.load_checkpoint(folder / "there")
    expected = both[0]["resumed"]["trained"]
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(one.policy).items())
    one.policy.save_checkpoint(folder / "there-again")
    assert_same_bits(folder / "there", folder / "there-again")


def contents(directory: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint by key."""
    with megatron_calls():
        found = dist_checkpointing.load_plain_tensors(str(directory))
    return {key: tensor.cpu() for key, tensor in found.items() if isinstance(tensor, Tensor)}


def assert_same_bits(first: Path, second: Path) -> None:
    """Every tensor of two checkpoints: masters and both moments."""
    saved, again = contents(first), contents(second)
    assert saved.keys() == again.keys() and len(saved) > 30
    assert all(torch.equal(tensor, again[key]) and tensor.any() for key, tensor in saved.items())
