"""Builds the learner's parts from a configuration, for Ray's actors and for serial mode alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.distributed import Store  # type: ignore[attr-defined]

from actors.labelled_examples import Draw, LabelledExamples
from executor.cpus import allowed_cpus
from launch.config import Config, SftConfig
from learner.model.policy import PolicyModel
from learner.model.process_groups import data_rank, init_parallel
from learner.ranks import Ranks
from learner.trainer import Trainer
from learner.trajectory import Role


def make_policy(
    config: Config | SftConfig,
    model_dir: Path,
    rank: int,
    store: Store | None,
    timeout_s: float,
    temperature: float = 1.0,
) -> tuple[PolicyModel, Ranks]:
    """Make this rank's policy and the ranks.

    `store`: where several ranks meet; `timeout_s`: deadline of their collectives; `temperature`: at which the policy is
    sampled.
    """
    learner = config.learner
    if not torch.cuda.is_available():
        torch.set_num_threads(learner.threads or allowed_cpus())
    init_parallel(learner.parallel, rank, learner.parallel.world_size, store, timeout_s)
    policy = PolicyModel(
        model_dir,
        config.model,
        learner.optimizer,
        learner.parallel,
        seed=config.run.seed,
        temperature=temperature,
        kernels=learner.kernels,
    )
    return policy, Ranks(rank, learner.parallel.world_size, policy.device)


def make_trainer(config: Config, model_dir: Path, rank: int = 0, store: Store | None = None) -> Trainer:
    """Make this rank's trainer with its policy; see `make_policy`."""
    timeout_s, temperature = config.learner.batch_timeout_s, config.selfplay.temperature
    policy, ranks = make_policy(config, model_dir, rank, store, timeout_s, temperature)
    return Trainer(policy, config.learner, ranks, data_rank=data_rank())


def make_supervision(config: Config, tokenizer: Any, draw: Draw) -> LabelledExamples:
    """What gives the trainer its labelled examples (`Trainer.supervision`). `draw`: from the run's task buffer."""
    batch = config.learner.batch
    kinds = {role: [cell.kind for cell in config.trained_cells if cell.role is role] for role in Role}
    return LabelledExamples(draw, tokenizer, config.selfplay, kinds, batch.labelled, config.run.seed)
