"""Supervised fine-tuning: examples in, new weights and metrics out, through the packing and the model of self-play.

The loss of a step is the mean negative log-likelihood of the response tokens of its whole batch, over all ranks, each
token weighted with its example's weight.

    consumes     batches of examples, whose order the seed fixes (`sft_data.Order`)
    gated by     nothing: all examples are there
    unblocks     nobody

Every rank has all examples and runs this same loop; rank 0 decides when to stop.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from learner.batching.packing import MicroBatch, pack_rank
from learner.model.policy import PolicyModel
from learner.phase import Phase
from learner.ranks import Ranks
from learner.schedule import CheckpointSchedule
from learner.settings import OptimizerSettings
from learner.sft.data import Data, Example, Order, weights_of
from learner.sft.settings import SftLearnerSettings, SftSettings
from learner.skipped_updates import SkippedUpdates

Metrics = dict[str, float]


def learning_rate(step: int, num_steps: int, sft: SftSettings, optimizer: OptimizerSettings) -> float:
    """The learning rate of step `step` of `num_steps`, from 0: a linear rise over `warmup_steps`, then the schedule.

    Of `cosine`: SGDR's half period (Loshchilov and Hutter, arXiv:1608.03983, equation 5).
    """
    warmup = optimizer.warmup_steps
    if step < warmup or sft.schedule == "constant":
        return optimizer.lr * min(1.0, (step + 1) / (warmup + 1))
    progress = min(1.0, (step - warmup) / max(1, num_steps - warmup))
    falling = 1 - progress if sft.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return optimizer.lr * (sft.final_lr_share + (1 - sft.final_lr_share) * falling)


class SftTrainer:
    """The policy, how many steps it has taken, and how one batch of examples changes both."""

    def __init__(
        self,
        policy: PolicyModel,
        data: Data,
        sft: SftSettings,
        learner: SftLearnerSettings,
        ranks: Ranks,
        seed: int,
        data_rank: int = 0,
    ) -> None:
        """`data_rank`: this process's data-parallel rank. `seed` fixes the order of the examples."""
        self.policy = policy
        self.ranks = ranks
        self.step = 0
        self.order = Order(len(data.train), sft.batch_size, sft.epochs, seed)
        self._data = data
        self._sft = sft
        self._learner = learner
        self._data_rank = data_rank
        self._skipped_updates = SkippedUpdates(learner.max_skipped_updates)

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        return self.order.num_steps

    def train(self) -> Metrics:
        """Take the next step; collective over the learner's ranks. Raises `UpdatesSkipped`."""
        started = time.monotonic()
        batch = [self._data.train[index] for index in self.order.batch(self.step)]
        micros, num_rows = self._pack(batch)
        weights = weights_of(batch)
        loss = torch.zeros(1, dtype=torch.float64)

        def token_loss(_: int, micro: MicroBatch, logprobs: torch.Tensor, entropy: torch.Tensor) -> torch.Tensor:
            part = -(logprobs * torch.from_numpy(weights[micro.sequence_index]).to(logprobs.device)).sum()
            loss.add_(part.detach().double().cpu())
            return part

        self.policy.zero_grad()
        self.policy.forward_backward(micros, token_loss)
        mean = self._total(loss)
        lr = learning_rate(self.step, self.num_steps, self._sft, self._learner.optimizer)
        grad_norm, updated = self.policy.step(lr)
        self.step += 1
        self._skipped_updates.count(grad_norm, updated, self.step)
        seconds = time.monotonic() - started
        return {
            "loss": mean,
            "perplexity": _perplexity(mean),
            "grad_norm": grad_norm,
            "skipped_update": float(not updated),
            "lr": lr,
            "epoch": self.order.epochs_done(self.step),
            "examples": len(batch),
            "tokens_trained": sum(len(example.response_ids) for example in batch),
            "tokens_computed": num_rows,
            "train_s": seconds,
            "tokens_per_s": num_rows / seconds,
        }

    def validate(self) -> Metrics:
        """The loss on the held-out examples, nothing where there are none; collective."""
        if not self._data.validation:
            return {}
        started = time.monotonic()
        weights = weights_of(self._data.validation)
        loss = torch.zeros(1, dtype=torch.float64)
        for micro, logprobs, _ in self.policy.logprobs(self._pack(self._data.validation)[0]):
            at = torch.from_numpy(weights[micro.sequence_index])
            loss -= (logprobs.double().cpu() * at.double()).sum()
        mean = self._total(loss)
        return {
            "validation_loss": mean,
            "validation_perplexity": _perplexity(mean),
            "validation_s": time.monotonic() - started,
        }

    def _pack(self, examples: Sequence[Example]) -> tuple[list[MicroBatch], int]:
        """This rank's micro-batches, and the rows of all ranks."""
        sequences = [(example.prompt_ids, example.response_ids) for example in examples]
        budget, num_ranks = self._learner.micro_batch_tokens, self._learner.parallel.data
        return pack_rank(sequences, budget, num_ranks, self._data_rank, self.policy.cost)

    def _total(self, value: torch.Tensor) -> float:
        """Over all ranks; tensor-parallel ranks hold the same numbers, so they count `tensor` times."""
        return float(self.ranks.sum(value.to(self.policy.device))) / self._learner.parallel.tensor


@dataclass(frozen=True)
class SftHooks:
    """Callbacks of the training loop."""

    interrupted: Callable[[], bool]
    """Whether to stop before the next step; asked on rank 0."""
    on_step: Callable[[int, Metrics], None]
    """The number of steps taken, and the metrics of the last one; on every rank."""
    save: Callable[[], None]
    """Write a checkpoint; on every rank."""
    on_phase: Callable[[Phase, int | None], None] = lambda phase, step: None
    """The phase that the loop enters, and the step it works on, where it works on one."""


def fine_tune(trainer: SftTrainer, validate_every: int, schedule: CheckpointSchedule, hooks: SftHooks) -> None:
    """Train to the last step, or until interrupted; then save. Collective."""
    if trainer.step == 0:
        hooks.on_phase(Phase.VALIDATING, None)
        if before := trainer.validate():
            hooks.on_step(0, before)
    while trainer.step < trainer.num_steps and not trainer.ranks.share(hooks.interrupted):
        hooks.on_phase(Phase.TRAINING, trainer.step + 1)
        metrics = trainer.train()
        last = trainer.step == trainer.num_steps
        if last or (validate_every and trainer.step % validate_every == 0):
            hooks.on_phase(Phase.VALIDATING, None)
            metrics |= trainer.validate()
        hooks.on_step(trainer.step, metrics)
        if not last and schedule.due(trainer.step):
            schedule.mark_saved(trainer.step)
            hooks.on_phase(Phase.SAVING, None)
            hooks.save()
    if schedule.saved != trainer.step:
        hooks.on_phase(Phase.SAVING, None)
        hooks.save()


def _perplexity(loss: float) -> float:
    return math.exp(min(loss, 700.0))  # beyond that, a float ends
