"""Fine-tuning a tiny model: the numbers of a plain torch loop, resumes bit for bit, two ranks like one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from learner.model.policy import PolicyModel
from learner.model.process_groups import init_parallel
from learner.ranks import Ranks
from learner.schedule import CheckpointSchedule
from learner.settings import ModelSettings, OptimizerSettings, ParallelSettings
from learner.sft.data import Data, Example, weights_of
from learner.sft.settings import SftLearnerSettings, SftSettings
from learner.sft.trainer import Metrics, SftHooks, SftTrainer, fine_tune, learning_rate
from tests.ranks import run_ranks
from tests.unit.learner.tiny import SHAPE, VOCAB

SEED = 3
OPTIMIZER = OptimizerSettings(lr=1e-3, warmup_steps=1, weight_decay=0.1, clip_grad=0.5, beta2=0.95, eps=1e-3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama in float32."""
    import transformers as tf

    torch.manual_seed(1)
    config = tf.LlamaConfig(**SHAPE | {"num_hidden_layers": 2}, tie_word_embeddings=True)
    path = tmp_path_factory.mktemp("llama")
    tf.AutoModelForCausalLM.from_config(config).save_pretrained(path)
    return path


def make_data() -> Data:
    """Shared prompts, lengths from 1 on, weights that differ."""
    draw = np.random.default_rng(0)

    def example(index: int) -> Example:
        prompt = np.random.default_rng(100 + index // 2).integers(0, VOCAB, 3 + index // 2)
        return Example(prompt, draw.integers(0, VOCAB, 1 + index % 7), float(1 + index % 3))

    return Data([example(i) for i in range(12)], [example(i) for i in range(20, 25)], 0)


def make_trainer(folder: Path, parallel: ParallelSettings | None = None, rank: int = 0) -> SftTrainer:
    layout = parallel or ParallelSettings()
    policy = PolicyModel(folder, ModelSettings(dtype="float32"), OPTIMIZER, layout)
    sft = SftSettings(data="unused", batch_size=5, epochs=2, schedule="linear")
    learner = SftLearnerSettings(micro_batch_tokens=64, optimizer=OPTIMIZER, parallel=layout)
    return SftTrainer(policy, make_data(), sft, learner, Ranks(rank, layout.world_size), SEED, rank)


@pytest.fixture
def alone() -> None:
    torch.set_num_threads(1)
    init_parallel(ParallelSettings(), rank=0, world_size=1)


def weights(trainer: SftTrainer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.policy.export()}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor], atol: float = 0.0) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=atol, rtol=0)


def plain_loss(model: Any, examples: list[Example]) -> Tensor:
    """The weighted mean over response tokens, one example at a time, as a textbook has it."""
    total, count = torch.zeros(()), 0.0
    for example in examples:
        ids = torch.from_numpy(np.concatenate([example.prompt_ids, example.response_ids]))[None]
        labels = ids.clone()
        labels[:, : len(example.prompt_ids)] = -100
        mean = model(input_ids=ids, labels=labels).loss
        total = total + example.weight * mean * len(example.response_ids)
        count += example.weight * len(example.response_ids)
    return total / count


@pytest.mark.usefixtures("alone")
def test_three_steps_equal_a_plain_torch_loop(folder: Path) -> None:
    import transformers as tf

    trainer = make_trainer(folder)
    model = tf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-3)
    data = make_data()
    with torch.no_grad():
        expected = float(plain_loss(model, data.validation))
    assert trainer.validate()["validation_loss"] == pytest.approx(expected, abs=1e-5)
    for step, lr in enumerate([0.5e-3, 1e-3, 1e-3 * 3 / 4]):
        loss = plain_loss(model, [data.train[index] for index in trainer.order.batch(step)])
        adam.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        for group in adam.param_groups:
            group["lr"] = lr
        adam.step()
        numbers = trainer.train()
        assert numbers["lr"] == pytest.approx(lr)
        assert numbers["loss"] == pytest.approx(loss.item(), abs=1e-5)
        assert numbers["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
    ours, theirs = weights(trainer), dict(model.named_parameters())
    assert_equal(ours, {name: theirs[name].detach() for name in ours}, atol=1e-5)


def run(trainer: SftTrainer, save: Any = lambda: None, stop_at: int = 10**9) -> list[tuple[int, Metrics]]:
    rows: list[tuple[int, Metrics]] = []
    hooks = SftHooks(lambda: trainer.step >= stop_at, lambda step, numbers: rows.append((step, numbers)), save)
    schedule = CheckpointSchedule(2, 0, trainer.ranks, trainer.step)
    fine_tune(trainer, validate_every=2, schedule=schedule, hooks=hooks)
    return rows


@pytest.mark.usefixtures("alone")
def test_the_loop_lowers_the_loss_and_a_resumed_one_goes_on_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    whole = make_trainer(folder)
    saves: list[int] = []
    rows = run(whole, lambda: saves.append(whole.step))
    assert [step for step, _ in rows] == [0, 1, 2, 3, 4, 5]
    assert [step for step, numbers in rows if "validation_loss" in numbers] == [0, 2, 4, 5]
    assert saves == [2, 4, 5]
    assert rows[-1][1]["loss"] < rows[1][1]["loss"]
    assert rows[-1][1]["perplexity"] == pytest.approx(np.exp(rows[-1][1]["loss"]))

    first = make_trainer(folder)
    stopped = run(first, lambda: first.policy.save_checkpoint(tmp_path / str(first.step)), stop_at=3)
    assert [step for step, _ in stopped] == [0, 1, 2, 3]
    second = make_trainer(folder)
    second.policy.load_checkpoint(tmp_path / "3")
    second.step = 3
    resumed = run(second)
    assert [step for step, _ in resumed] == [4, 5], "step 0 is not measured again"
    for (_, one), (_, other) in zip(rows[-2:], resumed, strict=True):
        assert one["loss"] == other["loss"] and one["grad_norm"] == other["grad_norm"]
    assert_equal(weights(whole), weights(second))


def run_rank(rank: int, folder: Path, out: Path) -> None:
    torch.set_num_threads(1)
    parallel = ParallelSettings(data=2)
    init_parallel(parallel, rank, 2, torch.distributed.FileStore(str(out / "store"), 2), timeout=60.0)
    trainer = make_trainer(folder, parallel, rank)
    # Only rank 0 says stop, and only at step 3: the other one follows.
    rows = run(trainer, stop_at=3 if rank == 0 else 10**9)
    torch.save((rows, weights(trainer)), out / f"{rank}.pt")


@pytest.mark.usefixtures("alone")
@pytest.mark.slow
def test_two_data_parallel_ranks_equal_one(folder: Path, tmp_path: Path) -> None:
    run_ranks(run_rank, (folder, tmp_path), 2)
    alone = make_trainer(folder)
    rows = run(alone, stop_at=3)
    for rank in range(2):
        theirs, found = torch.load(tmp_path / f"{rank}.pt")
        assert [step for step, _ in theirs] == [0, 1, 2, 3]
        for (_, one), (_, other) in zip(rows, theirs, strict=True):
            for key in one.keys() & {"loss", "validation_loss", "grad_norm", "tokens_trained", "epoch"}:
                assert other[key] == pytest.approx(one[key], rel=1e-5), key
        assert_equal(weights(alone), found, atol=1e-5)


def test_weights_of_tokens_add_up_to_one() -> None:
    train = make_data().train
    each = weights_of(train)
    assert sum(w * len(e.response_ids) for w, e in zip(each, train, strict=True)) == pytest.approx(1.0)
    assert each[1] / each[0] == pytest.approx(2.0)


def rates(schedule: str, warmup: int, num_steps: int, share: float = 0.0) -> list[float]:
    sft = SftSettings.model_validate({"data": "x", "schedule": schedule, "final_lr_share": share})
    optimizer = OptimizerSettings(lr=8.0, warmup_steps=warmup)
    return [learning_rate(step, num_steps, sft, optimizer) for step in range(num_steps)]


def test_schedules() -> None:
    assert rates("constant", 3, 6) == [2, 4, 6, 8, 8, 8]
    assert rates("linear", 1, 5) == [4, 8, 6, 4, 2]
    assert rates("linear", 0, 4, share=0.5) == [8, 7, 6, 5]
    assert rates("cosine", 1, 5) == pytest.approx([4, 8, 8 * 0.8535534, 4, 8 * 0.1464466], rel=1e-6)
    assert rates("cosine", 9, 3) == pytest.approx([0.8, 1.6, 2.4])
