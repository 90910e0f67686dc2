"""Every parallel layout against one rank: the same batch gives the same loss, gradients and weights.

Tiny random models over gloo; each layout is set up in turn in one world of two ranks and one of four. Not exercised:
NCCL and CUDA.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import finalize_model_grads
from torch import Tensor

from learner.batching.packing import MicroBatch, empty_micro_batch, pack, pack_ranks
from learner.model import convert, logprobs
from learner.model.context_parallel import local_part
from learner.model.logprobs import VocabLogprobs
from learner.model.megatron_on_cpu import megatron_calls
from learner.model.pipeline_parallel import split_layers
from learner.model.policy import PolicyModel
from learner.model.process_groups import data_rank, init_parallel
from learner.settings import ParallelSettings
from tests.ranks import run_ranks
from tests.unit.learner.tiny import LR, VOCAB, assert_equal, batch, build, weigh, weights, write_folders

STEPS = 3
BUDGET = 30


class Case(NamedTuple):
    """A layout, as settings, and what runs under it."""

    layout: str
    model: str
    dtype: str = "float32"

    @property
    def parallel(self) -> ParallelSettings:
        """`tensor=2 data=2` as settings."""
        return ParallelSettings.model_validate(dict(item.split("=") for item in self.layout.split()))


CASES = [
    Case("tensor=2", "llama"),
    Case("tensor=2", "llama-untied"),
    Case("tensor=2", "qwen3"),
    Case("tensor=2", "qwen2", "bfloat16"),
    Case("pipeline=2", "llama"),
    Case("pipeline=2", "llama-untied"),
    Case("pipeline=2", "qwen2"),
    Case("pipeline=2", "qwen3", "bfloat16"),
    Case("context=2", "llama"),
    Case("context=2 distributed_optimizer=false", "qwen3"),
    Case("context=2", "qwen2", "bfloat16"),
    Case("data=2", "llama"),
    Case("data=2 distributed_optimizer=false", "llama"),
    Case("data=2", "qwen2", "bfloat16"),
    Case("data=2 distributed_optimizer=false", "qwen2", "bfloat16"),
    Case("tensor=2 data=2", "qwen3"),
    Case("tensor=2 data=2 distributed_optimizer=false", "llama-untied"),
    Case("tensor=2 pipeline=2", "qwen3"),
    Case("pipeline=2 data=2", "llama"),
    Case("pipeline=2 data=2 distributed_optimizer=false", "qwen2"),
    Case("context=2 data=2", "qwen2"),
    Case("tensor=2 context=2", "llama"),
    Case("tensor=2 pipeline=2", "qwen3-moe"),
    Case("context=2 data=2", "qwen3-moe"),
    Case("pipeline=2 context=2", "llama-untied"),
]


@dataclass
class Found:
    """What a layout computed, whole: the same numbers on every rank of it."""

    loss: float
    gradients: dict[str, Tensor]
    norms: list[float]
    weights: dict[str, Tensor]
    logprobs: Tensor
    """[tokens of the batch], in the sequences' order."""
    entropies: Tensor


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_folders(tmp_path_factory.mktemp("models"))


def micros_of(case: Case) -> list[MicroBatch]:
    """This rank's share, several micro-batches with an empty one between them."""
    micros = pack_ranks(batch(), BUDGET, case.parallel.data)[data_rank()]
    return [*micros[:1], empty_micro_batch(), *micros[1:]]


def total(values: Tensor, case: Case) -> Tensor:
    """Sum over ranks of what each has a part of, tensor-parallel ranks the same one."""
    dist.all_reduce(values)
    return values / case.parallel.tensor


def by_token(case: Case, found: list[tuple[MicroBatch, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    lengths = [len(response) for _, response in batch()]
    starts = np.cumsum([0, *lengths])
    values = torch.zeros(2, sum(lengths))
    for micro, *pair in found:
        values[:, starts[micro.sequence_index] + micro.token_index] += torch.stack(pair).detach()
    return tuple(total(values, case))


def gradients(policy: PolicyModel, micros: list[MicroBatch], case: Case) -> tuple[float, dict[str, Tensor]]:
    """The loss, and the whole accumulated gradients under Hugging Face names."""
    loss = torch.zeros((), dtype=torch.float64)
    indices: list[int] = []

    def add(index: int, micro: MicroBatch, values: Tensor, entropy: Tensor) -> Tensor:
        assert len(values) == len(entropy) == micro.num_targets
        indices.append(index)
        found = weigh(micro, values)
        loss.add_(found.detach())
        return found

    policy.zero_grad()
    policy.forward_backward(micros, add)
    assert indices == ([i for i, micro in enumerate(micros) if micro.num_tokens] if policy.gpt.post_process else [])
    with megatron_calls():
        finalize_model_grads([policy._ddp], force_all_reduce=True)
    with pytest.MonkeyPatch.context() as patch:
        named = [(name, parameter.main_grad) for name, parameter in policy._parameters()]
        patch.setattr(policy, "_parameters", lambda: iter(named))
        patch.setattr(policy, "dtype", torch.float32)
        return float(total(loss, case)), weights(policy)


def assert_tied(policy: PolicyModel) -> None:
    """Both copies of a tied embedding have the same bits."""
    group = parallel_state.get_embedding_group(check_initialized=False)
    if policy.architecture.tied and parallel_state.is_rank_in_embedding_group() and group.size() > 1:
        mine = policy.gpt.shared_embedding_or_output_weight().detach()
        copies = [torch.empty_like(mine) for _ in range(group.size())]
        dist.all_gather(copies, mine, group=group)
        assert all(torch.equal(copy, mine) for copy in copies)


def compute(case: Case, folder: Path, out: Path | None = None) -> Found:
    """Under the layout that is set up. With `out`, folders are written and loaded again."""
    policy = build(folder, case.dtype, case.parallel)
    assert_tied(policy)
    assert_equal(weights(policy), weights_of(folder, case.dtype))
    micros = micros_of(case)
    values = policy.logprobs(micros)
    assert len(values) == (len(micros) - 1 if policy.gpt.post_process else 0)
    logprobs, entropies = by_token(case, values)
    loss, grads = gradients(policy, micros, case)
    norms = []
    for _ in range(STEPS):
        policy.zero_grad()
        policy.forward_backward(micros, lambda _, micro, values, entropy: weigh(micro, values))
        norm, updated = policy.step(LR)
        assert updated
        norms.append(norm)
        assert_tied(policy)
    found = Found(loss, grads, norms, weights(policy), logprobs, entropies)
    if out is not None:
        policy.save_hf(out)
        dist.barrier()
        again = build(folder, case.dtype, case.parallel)
        again.load_hf(out)
        assert_tied(again)
        assert_equal(found.weights, weights(again))
    return found


def weights_of(folder: Path, dtype: str) -> dict[str, Tensor]:
    with convert.HfReader(folder) as reader:
        return {name: reader.read(name, convert.Layout.WHOLE, 0, 1).to(getattr(torch, dtype)) for name in reader.names}


def run_rank(rank: int, size: int, folders: dict[str, Path], out: Path) -> None:
    """What each spawned rank does: every layout of that size in turn, its findings to a file."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(out / f"store-{size}"), size)
    for number, case in enumerate(CASES):
        if case.parallel.world_size == size:
            init_parallel(case.parallel, rank, size, store, timeout=60.0)
            torch.save(vars(compute(case, folders[case.model], out / f"hf-{number}")), out / f"{number}-{rank}.pt")
    if size == 2:
        init_parallel(ParallelSettings(tensor=2), rank, size, store, timeout=60.0)
        torch.save([vocabulary(*case) for case in VOCABULARY_CASES], out / f"vocabulary-{rank}.pt")


def logits_inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states [R, E], output matrix [V, E], targets [R] and weights of a loss [R]."""
    torch.manual_seed(5)
    return torch.randn(40, 32), torch.randn(VOCAB, 32), torch.randint(0, VOCAB, (40,)), torch.randn(40)


VOCABULARY_CASES = ((False, 1.0), (True, 1.0), (True, 0.7))
"""(in several chunks, temperature)"""


def vocabulary(chunked: bool, temperature: float) -> list[Tensor]:
    """Log-probabilities, entropies and gradients from this rank's shard of the vocabulary, padded to an even number."""
    hidden, weight, targets, scale = logits_inputs()
    group = parallel_state.get_tensor_model_parallel_group()
    rows = (VOCAB + 1) // 2
    first = group.rank() * rows
    num_valid = min(rows, VOCAB - first)
    shard = torch.zeros(rows, 32)
    shard[:num_valid] = weight[first : first + num_valid]
    hidden.requires_grad_()
    shard.requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        if chunked:
            patch.setitem(logprobs.CHUNK_ELEMENTS, "cpu", 7 * rows)
        values, entropy = VocabLogprobs.apply(hidden, shard, targets, first, num_valid, group, temperature)
        ((values - entropy.roll(1)) * scale).sum().backward()
    dist.all_reduce(hidden.grad)
    return [values.detach(), entropy.detach(), hidden.grad, shard.grad]


def findings(size: int, folders: dict[str, Path], out: Path) -> Path:
    """The folder with the findings of all layouts of `size` ranks."""
    run_ranks(run_rank, (size, folders, out), size)
    return out


@pytest.fixture(scope="module")
def two(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return findings(2, folders, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def four(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return findings(4, folders, tmp_path_factory.mktemp("four"))


@pytest.fixture(scope="module")
def alone(folders: dict[str, Path]) -> dict[tuple[str, str], Found]:
    """One rank's findings, by model and dtype."""
    torch.set_num_threads(1)
    init_parallel(ParallelSettings(), rank=0, world_size=1)
    kinds = {(case.model, case.dtype): Case("tensor=1", case.model, case.dtype) for case in CASES}
    return {kind: compute(case, folders[case.model]) for kind, case in kinds.items()}


def largest(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert list(one) == list(other)
    return max(float((tensor - other[name]).float().abs().max()) for name, tensor in one.items())


@pytest.mark.parametrize(
    ("ranks", "number"),
    [
        pytest.param(ranks, number, id="-".join(case), marks=pytest.mark.slow)
        for number, case in enumerate(CASES)
        for ranks in [{2: "two", 4: "four"}[case.parallel.world_size]]
    ],
)
def test_a_layout_equals_one_rank(
    request: pytest.FixtureRequest, alone: dict[tuple[str, str], Found], ranks: str, number: int
) -> None:
    out: Path = request.getfixturevalue(ranks)
    case = CASES[number]
    one = alone[case.model, case.dtype]
    for rank in range(case.parallel.world_size):
        found = Found(**torch.load(out / f"{number}-{rank}.pt"))
        differences = (
            abs(found.loss - one.loss) / abs(one.loss),
            largest(one.gradients, found.gradients),
            float((found.logprobs - one.logprobs).abs().max()),
            float((found.entropies - one.entropies).abs().max()),
            largest(one.weights, found.weights),
        )
        if case.dtype == "float32":
            assert found.norms == pytest.approx(one.norms, rel=1e-5)
            # The loss is a sum of terms of both signs; the largest gradients are about 1, and weights move by 3e-3.
            limits = (5e-6, 1e-5, 2e-5, 2e-5, 5e-7)
            assert all(off < limit for off, limit in zip(differences, limits, strict=True)), differences
        else:
            assert found.norms == pytest.approx(one.norms, rel=0.05)
            assert differences[2] < 0.2
            for name, tensor in one.weights.items():
                cosine = torch.nn.functional.cosine_similarity(
                    one.gradients[name].flatten(), found.gradients[name].flatten(), dim=0
                )
                assert cosine > 0.99, name
                assert (tensor - found.weights[name]).float().abs().mean() < 0.2 * LR, name


@pytest.mark.slow
def test_sharded_logprobs_are_a_softmax_in_float64(two: Path) -> None:
    """Vocabulary over two ranks, in one chunk and in several, at temperatures: values and gradients."""
    hidden, weight, targets, scale = logits_inputs()
    ranks = [torch.load(two / f"vocabulary-{rank}.pt") for rank in range(2)]
    for case, (_, temperature) in enumerate(VOCABULARY_CASES):
        exact, matrix = hidden.double().requires_grad_(), weight.double().requires_grad_()
        table = torch.log_softmax(exact @ matrix.T / temperature, dim=1)
        values = table.gather(1, targets[:, None])[:, 0]
        entropy = -(table.exp() * table).sum(1)
        ((values - entropy.roll(1)) * scale).sum().backward()
        for found in ranks:
            for ours, theirs in zip(found[case][:3], (values.detach(), entropy.detach(), exact.grad), strict=True):
                torch.testing.assert_close(ours.double(), theirs, atol=2e-5, rtol=1e-5)
        whole = torch.cat([found[case][3] for found in ranks])
        torch.testing.assert_close(whole[:VOCAB].double(), matrix.grad, atol=2e-5, rtol=1e-5)
        assert not whole[VOCAB:].any()


def test_context_parts_are_the_whole() -> None:
    for micro in pack(batch(), BUDGET):
        parts = [local_part(micro, rank, 3) for rank in range(3)]
        assert len({part.num_tokens for part in parts}) == 1
        interleaved = np.stack([part.input_ids for part in parts], axis=1).ravel()
        assert (interleaved[: micro.num_tokens] == micro.input_ids).all()
        assert sum(part.num_targets for part in parts) == micro.num_targets
        for rank, part in enumerate(parts):
            whole = {(s, t): (row, target) for s, t, row, target in zip(*tokens(micro), strict=True)}
            for s, t, row, target in zip(*tokens(part), strict=True):
                assert whole[s, t] == (row * 3 + rank, target)


def tokens(micro: MicroBatch) -> tuple[np.ndarray, ...]:
    return micro.sequence_index, micro.token_index, micro.logit_rows, micro.targets


def test_layers_are_cut_evenly() -> None:
    stages = split_layers(30, 4)
    assert [stage.count("decoder") for stage in stages] == [8, 8, 7, 7]
    assert stages[0][0] == "embedding"
    assert stages[-1][-1] == "loss"


@pytest.mark.parametrize(
    ("layout", "mend"),
    [
        ({"tensor": 3}, "set tensor to a divisor of 2"),
        ({"tensor": 2, "context": 3}, "set context to a divisor of 2"),
        ({"pipeline": 4}, "set pipeline to at most 3"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(folders: dict[str, Path], layout: dict[str, int], mend: str) -> None:
    init_parallel(ParallelSettings(), rank=0, world_size=1)
    with pytest.raises(ValueError, match=mend):
        build(folders["llama"], parallel=ParallelSettings.model_validate(layout))


def test_groups_of_the_same_single_rank_are_one() -> None:
    """Each of gloo's has a thread that wakes up a hundred times a second."""
    init_parallel(ParallelSettings(), 0, 1)
    groups = [
        parallel_state.get_tensor_model_parallel_group(),
        parallel_state.get_pipeline_model_parallel_group(),
        parallel_state.get_context_parallel_group(),
        parallel_state.get_data_parallel_group(),
    ]
    assert len({id(group) for group in groups}) == 1
    assert dist.get_world_size(groups[0]) == 1


def test_a_wrong_number_of_ranks_is_refused() -> None:
    with pytest.raises(ValueError, match="needs 16 ranks, not 1"):
        init_parallel(ParallelSettings(tensor=2, pipeline=2, context=2, data=2), rank=0, world_size=1)


def test_a_loss_without_a_gradient_is_refused(folders: dict[str, Path]) -> None:
    init_parallel(ParallelSettings(), rank=0, world_size=1)
    with pytest.raises(ValueError, match="must depend on the log-probabilities"):
        build(folders["llama"]).forward_backward(pack(batch(), BUDGET), lambda *_: torch.zeros(()))
