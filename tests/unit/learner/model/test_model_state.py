"""A policy's state goes from one parallel layout to another: the same bits in between, and the same training
afterwards.

Tiny random models, on CPU.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from megatron.core import dist_checkpointing, parallel_state
from torch import Tensor

from learner.batching.packing import MicroBatch, TokenSequence, pack_ranks
from learner.checkpoint import CheckpointError, Checkpoints, Finish
from learner.model.megatron_on_cpu import megatron_calls
from learner.model.policy import PolicyModel
from learner.model.process_groups import init_parallel
from learner.model.state import rectangles
from learner.ranks import Ranks
from learner.settings import ModelSettings, OptimizerSettings, ParallelSettings
from tests.ranks import run_ranks
from tests.unit.learner.tiny import EXPERTS, SHAPE, VOCAB, weights

LR = 1e-3
OPTIMIZER = OptimizerSettings(lr=LR, weight_decay=0.1, clip_grad=0.5, beta2=0.95, eps=1e-3)
LAYOUTS = {
    "tensor": ParallelSettings(tensor=2),
    "data": ParallelSettings(data=2),
    "pipeline": ParallelSettings(pipeline=2),
    "data-plain": ParallelSettings(data=2, distributed_optimizer=False),
}
"""The state goes from one rank through these, in this order, and back to one rank."""
MODELS = {"untied": "float32", "tied": "bfloat16", "experts": "float32"}
"""Names of models, and the dtype that each is tried with."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random models by name."""
    import transformers as tf

    shape = SHAPE | {"num_hidden_layers": 2, "max_position_embeddings": 64}
    configs = {
        "untied": tf.Qwen2Config(**shape, tie_word_embeddings=False),
        "tied": tf.Qwen2Config(**shape, tie_word_embeddings=True),
        "experts": tf.Qwen3MoeConfig(**shape, **EXPERTS, tie_word_embeddings=False, head_dim=8),
    }
    found = {}
    for name, config in configs.items():
        torch.manual_seed(1)
        found[name] = tmp_path_factory.mktemp(name)
        tf.AutoModelForCausalLM.from_config(config).save_pretrained(found[name])
    return found


def sequences() -> list[TokenSequence]:
    rng = np.random.default_rng(0)
    return [(rng.integers(0, VOCAB, 6), rng.integers(0, VOCAB, size)) for size in (5, 3, 8, 2)]


def build(folder: Path, dtype: str, parallel: ParallelSettings) -> PolicyModel:
    return PolicyModel(folder, ModelSettings.model_validate({"dtype": dtype}), OPTIMIZER, parallel)


def train(policy: PolicyModel, parallel: ParallelSettings, steps: int) -> None:
    micros = pack_ranks(sequences(), 30, parallel.data)[parallel_state.get_data_parallel_rank()]

    def loss(_: int, micro: MicroBatch, logprobs: Tensor, entropy: Tensor) -> Tensor:
        weights = np.sin(1.0 + 3.0 * micro.sequence_index + micro.token_index)
        return -(logprobs * torch.from_numpy(weights).float()).sum() / 18

    for _ in range(steps):
        policy.zero_grad()
        policy.forward_backward(micros, loss)
        assert policy.step(LR)[1]


def run_rank(rank: int, folders: dict[str, Path], out: Path) -> None:
    """Each layout loads what the one before saved, saves it again, takes a step, and saves that."""
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(str(out / "store"), 2)
    for model, dtype in MODELS.items():
        before = out / f"one-{model}"
        for name, parallel in LAYOUTS.items():
            init_parallel(parallel, rank, 2, store, timeout=60.0)
            policy = build(folders[model], dtype, parallel)
            policy.load_checkpoint(before)
            loaded = weights(policy)
            policy.save_checkpoint(out / f"{name}-{model}-again")
            train(policy, parallel, 1)
            random = torch.rand(2)
            policy.save_checkpoint(before := out / f"{name}-{model}")
            following = torch.rand(2)
            torch.save((loaded, weights(policy)), out / f"{name}-{model}-{rank}.pt")
            policy.load_checkpoint(before)
            assert torch.equal(torch.rand(2), following) and not torch.equal(random, following)

    save_together(rank, policy, out / "checkpoints")


def save_together(rank: int, policy: PolicyModel, directory: Path) -> None:
    """Checkpoints of two ranks in the background: one that is complete, and one that a rank fails to write."""
    checkpoints = Checkpoints(directory, keep=2)

    def begin(folder: Path) -> Finish:
        copy = policy.state.copy()

        def finish(group: torch.distributed.ProcessGroup | None) -> None:
            (folder / "model").mkdir(exist_ok=True)
            copy.write(folder / "model", group)

        return finish

    def fail(group: object) -> None:
        if rank == 1:
            raise OSError("the disk is full")

    checkpoints.save(1, Ranks(rank, 2), begin)
    train(policy, ParallelSettings(data=2), 1)  # collectives of training, while those of the checkpoint go on
    checkpoints.wait()
    checkpoints.save(2, Ranks(rank, 2), lambda folder: fail)
    with pytest.raises(CheckpointError, match="disk is full" if rank == 1 else "another learner rank"):
        checkpoints.wait()
    assert checkpoints.latest() == directory / "step_00000001"
    policy.load_checkpoint(directory / "step_00000001" / "model")


@pytest.fixture(scope="module")
def out(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one rank saves after two steps, then what two ranks make of it."""
    out = tmp_path_factory.mktemp("states")
    alone()
    for model, dtype in MODELS.items():
        policy = build(folders[model], dtype, ParallelSettings())
        train(policy, ParallelSettings(), 2)
        policy.save_checkpoint(out / f"one-{model}")
        torch.save(weights(policy), out / f"one-{model}.pt")
    run_ranks(run_rank, (folders, out), 2)
    return out


def alone() -> None:
    torch.set_num_threads(1)
    init_parallel(ParallelSettings(), rank=0, world_size=1)


def contents(directory: Path) -> dict[str, Tensor]:
    """Whole tensors of a checkpoint by key, without the padding of the vocabulary, which is checked to be zero."""
    with megatron_calls():
        found = dist_checkpointing.load_plain_tensors(str(directory))
    tensors = {key: tensor for key, tensor in found.items() if isinstance(tensor, Tensor)}
    for key, tensor in tensors.items():
        if len(tensor) == VOCAB + 1:
            assert not tensor[VOCAB:].any(), key
            tensors[key] = tensor[:VOCAB]
    return tensors


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.slow
def test_another_layout_has_the_same_masters_and_moments(out: Path, model: str, name: str) -> None:
    alone()
    before = ["one", *LAYOUTS][list(LAYOUTS).index(name)]
    saved, again = contents(out / f"{before}-{model}"), contents(out / f"{name}-{model}-again")
    assert saved.keys() == again.keys()
    assert len(saved) >= 3 * 16
    for key, tensor in saved.items():
        assert tensor.dtype is torch.float32
        assert torch.equal(tensor, again[key]), key
        assert tensor.any(), key


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.slow
def test_another_layout_exports_the_same_weights(out: Path, model: str, name: str) -> None:
    before = ["one", *LAYOUTS][list(LAYOUTS).index(name)]
    saved = torch.load(out / f"one-{model}.pt") if before == "one" else torch.load(out / f"{before}-{model}-0.pt")[1]
    for rank in range(2):
        loaded, _ = torch.load(out / f"{name}-{model}-{rank}.pt")
        assert saved.keys() == loaded.keys()
        assert all(torch.equal(tensor, loaded[key]) for key, tensor in saved.items())


@pytest.mark.parametrize("model", ["untied", "experts"])
@pytest.mark.slow
def test_training_goes_on_as_on_one_rank(out: Path, folders: dict[str, Path], model: str) -> None:
    alone()
    policy = build(folders[model], "float32", ParallelSettings())
    policy.load_checkpoint(out / f"one-{model}")
    for name in LAYOUTS:
        train(policy, ParallelSettings(), 1)
        _, found = torch.load(out / f"{name}-{model}-0.pt")
        for key, tensor in weights(policy).items():
            torch.testing.assert_close(found[key], tensor, atol=1e-2 * LR, rtol=0, msg=f"{name}: {key}")


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.slow
def test_one_rank_goes_on_from_two(out: Path, folders: dict[str, Path], model: str) -> None:
    alone()
    last = list(LAYOUTS)[-1]
    policy = build(folders[model], MODELS[model], ParallelSettings())
    policy.load_checkpoint(out / f"{last}-{model}")
    _, saved = torch.load(out / f"{last}-{model}-0.pt")
    assert all(torch.equal(tensor, saved[key]) for key, tensor in weights(policy).items())


@pytest.mark.slow
def test_another_dtype_reads_the_masters(out: Path, folders: dict[str, Path]) -> None:
    alone()
    policy = build(folders["untied"], "bfloat16", ParallelSettings())
    policy.load_checkpoint(out / "one-untied")
    saved = torch.load(out / "one-untied.pt")
    assert all(torch.equal(tensor, saved[key].bfloat16()) for key, tensor in weights(policy).items())


def test_a_copy_is_of_its_moment(folders: dict[str, Path], tmp_path: Path) -> None:
    """Also before the first step, when Adam has no state yet."""
    alone()
    policy = build(folders["tied"], "bfloat16", ParallelSettings())
    before = weights(policy)
    copy = policy.state.copy()
    train(policy, ParallelSettings(), 2)
    trained = weights(policy)
    copy.write(tmp_path)
    policy.load_checkpoint(tmp_path)
    assert all(torch.equal(tensor, before[key]) for key, tensor in weights(policy).items())
    train(policy, ParallelSettings(), 2)
    assert all(torch.equal(tensor, trained[key]) for key, tensor in weights(policy).items())


@pytest.mark.slow
def test_two_ranks_write_one_checkpoint_in_the_background(out: Path) -> None:
    """Of what goes on in the ranks, see `save_together`."""
    alone()
    files = {path.name for path in (out / "checkpoints" / "step_00000001" / "model").iterdir()}
    assert {"random_00000.safetensors", "random_00001.safetensors", "metadata.json", ".metadata"} <= files
    saved, kept = contents(out / "data-plain-experts"), contents(out / "checkpoints" / "step_00000001" / "model")
    assert all(torch.equal(tensor, kept[key]) for key, tensor in saved.items())


@pytest.mark.parametrize("shape", [(7,), (4, 5), (1, 6), (6, 1)])
def test_rectangles_cover_a_run_of_elements_in_order(shape: tuple[int, ...]) -> None:
    whole = torch.arange(torch.Size(shape).numel()).view(shape)
    for start in range(whole.numel()):
        for stop in range(start + 1, whole.numel() + 1):
            parts = list(rectangles(shape, start, stop))
            assert len(parts) <= 3
            found = [
                whole[tuple(slice(o, o + s) for o, s in zip(offsets, sizes, strict=True))].flatten()
                for offsets, sizes in parts
            ]
            assert torch.cat(found).tolist() == list(range(start, stop))
