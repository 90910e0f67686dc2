"""A trainer on a tiny random model, its settings, a batch of trajectories for it, and what two batches come to."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from learner.model.policy import PolicyModel
from learner.model.process_groups import data_rank, init_parallel
from learner.ranks import Ranks
from learner.settings import BatchSettings, LearnerSettings, ModelSettings
from learner.sft.data import Example
from learner.trainer import Trainer
from learner.trajectory import Cell, Trajectory, VersionSpan
from tests.unit.learner.reference import write_folder

CELLS = BatchSettings().cells

VOCAB = 64
LR = 1e-2
VERSION = 3
TIMES = {"train_s", "forward_backward_s", "learner_tokens_per_s", "mismatch_s"}
"""Numbers that no two runs have in common."""
CUT = {"tokens_computed", "micro_batches"}
"""Numbers of how the work is cut."""
SHAPE = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2}
LENGTHS = ((3, 9, 1), (4, 4), (12,), (1, 2), (6, 5), (7,))
"""Response tokens of the batch's trajectories, by prompt."""


def settings(**chosen: Any) -> LearnerSettings:
    """`chosen` are the loss's, or the learner's where it has such a setting."""
    top = {name: chosen.pop(name) for name in list(chosen) if name in LearnerSettings.model_fields}
    loss = {"clip_low": 0.1, "clip_high": 0.15, "dual_clip": 1.3, "importance_cap": 1.2} | chosen
    # With this eps, Adam does not blow rounding errors of gradients near zero up to whole steps.
    optimizer = {"lr": LR, "eps": 1e-3, "clip_grad": 0.5}
    return LearnerSettings.model_validate(
        {"micro_batch_tokens": 4096, "loss": loss, "optimizer": optimizer, "advantage": {"estimator": "reinforce"}}
        | top
    )


def trainer(folder: Path, chosen: LearnerSettings, ranks: Ranks | None = None) -> Trainer:
    init_parallel(chosen.parallel, 0, 1) if ranks is None else None
    policy = PolicyModel(folder, ModelSettings(dtype="float32"), chosen.optimizer, chosen.parallel)
    return Trainer(policy, chosen, ranks or Ranks(), VERSION, data_rank())


def write_llama(folder: Path, shape: dict[str, int] = SHAPE) -> Path:
    """The folder of the model that is trained: two layers of `shape`, whose activations neither vanish nor grow."""
    import transformers as tf

    config = tf.LlamaConfig(
        **shape, num_hidden_layers=2, vocab_size=VOCAB, max_position_embeddings=256, tie_word_embeddings=True,
        initializer_range=1.2 / shape["hidden_size"] ** 0.5,
    )  # fmt: skip
    return write_folder(folder, config)


def trajectory(cell: Cell, prompt: np.ndarray, response: np.ndarray, reward: float) -> Trajectory:
    size = len(response)
    return Trajectory(
        "run", "a", 0, 0, "e", cell, prompt.astype(np.int32), response.astype(np.int32),
        np.zeros(size, np.float32), (VersionSpan(VERSION, 0, size),), reward,
    )  # fmt: skip


def batch_for(folder: Path, lengths: Sequence[Sequence[int]] = LENGTHS, longest_prompt: int = 8) -> list[Trajectory]:
    """Trajectories, several to a prompt, of a policy near the model's, half of them of its version."""
    rng = np.random.default_rng(0)
    found = []
    for cell, group in zip(itertools.cycle(CELLS[:3]), lengths):
        prompt = rng.integers(0, VOCAB, int(rng.integers(1, longest_prompt + 1)))
        found += [trajectory(cell, prompt, rng.integers(0, VOCAB, n), rng.normal()) for n in group]
    logprobs = trainer(folder, settings()).logprobs(found)
    return [
        replace(
            t,
            logprobs=np.minimum(ours + 0.25 * rng.normal(size=len(ours)), 0).astype(np.float32),
            versions=(VersionSpan(VERSION - index % 2, 0, len(ours)),),
        )
        for index, (t, ours) in enumerate(zip(found, logprobs, strict=True))
    ]


def labelled(batch: list[Trajectory]) -> list[Example]:
    """Five examples of two lengths and weights; one has a trajectory's prompt, and one that trajectory's response."""
    rng = np.random.default_rng(3)
    found = [(rng.integers(0, VOCAB, 4), rng.integers(0, VOCAB, size), weight) for size, weight in ((3, 1), (6, 2))]
    found += [(t.prompt_ids, rng.integers(0, VOCAB, 2), 1) for t in batch[:2]]
    found.append((batch[0].prompt_ids, batch[0].response_ids, 1))
    return [Example(p.astype(np.int64), r.astype(np.int64), float(weight)) for p, r, weight in found]


def weights(policy: PolicyModel) -> dict[str, Tensor]:
    return {name: tensor.to("cpu", copy=True) for name, tensor in policy.export()}


def train(
    folder: Path, batch: list[Trajectory], chosen: LearnerSettings, ranks: Ranks | None = None
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Numbers and weights of two batches; the same one twice."""
    one = trainer(folder, chosen, ranks)
    if chosen.loss.supervised:
        # Only rank 0 is asked.
        one.supervision = lambda step: labelled(batch) if one.ranks.is_main else 1 / 0  # type: ignore[return-value]
    one.train(batch)
    one.version = VERSION
    numbers = one.train(batch)
    assert one.version == VERSION + 1
    return numbers, weights(one.policy)


def assert_same(
    first: tuple[dict[str, float], dict[str, Tensor]], second: tuple[dict[str, float], dict[str, Tensor]]
) -> None:
    left, right = ({k: v for k, v in numbers.items() if k not in TIMES | CUT} for numbers, _ in (first, second))
    assert left == pytest.approx(right, rel=1e-4, abs=1e-5)
    for name, tensor in first[1].items():
        torch.testing.assert_close(
            tensor, second[1][name], atol=1e-2 * LR, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )
