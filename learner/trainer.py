"""One optimizer step: trajectories in, new weights and numbers out. The same for every mode of running.

trajectories -> advantages (per cell) -> micro-batches (prompts shared) -> loss (clipped ratio) -> gradients -> step
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from learner.advantages import advantages
from learner.losses import DIAGNOSTICS, diagnostics, policy_loss
from learner.metrics import describe_advantages
from learner.model import PolicyModel
from learner.packing import MicroBatch, pack_ranks
from learner.ranks import Ranks
from learner.settings import LearnerSettings
from learner.trajectory import Trajectory, dumps, loads

MISMATCH_PROBES = 4
"""Trajectories that the engine's and the learner's log-probabilities are compared on, each step."""


class _Flat(NamedTuple):
    """Per-token arrays of a list of trajectories, end to end: [sum of R]."""

    offsets: np.ndarray
    behave: np.ndarray
    versions: np.ndarray

    def at(self, micro: MicroBatch) -> np.ndarray:
        """Indices of a micro-batch's response tokens."""
        flat: np.ndarray = self.offsets[micro.sequence_index] + micro.token_index
        return flat


class Trainer:
    """The policy, its version, and how one batch changes both."""

    def __init__(
        self, policy: PolicyModel, settings: LearnerSettings, ranks: Ranks, version: int = 0, data_rank: int = 0
    ) -> None:
        """`data_rank`: this process's data-parallel rank. `version` counts optimizer steps from the first weights on."""
        self.policy = policy
        self.settings = settings
        self.ranks = ranks
        self.version = version
        self._data_rank = data_rank

    def train(self, batch: Sequence[Trajectory], fresh: Callable[[], Sequence[Trajectory]] = list) -> dict[str, float]:
        """Take one step on `batch`; collective over the learner's ranks. `fresh`: trajectories that wait in the queue,
        from which, on rank 0, those of the present version are drawn to measure the engine's mismatch."""
        started = time.monotonic()
        flat = _flatten(batch)
        advantage = advantages(batch, self.settings.advantage)
        weights = _token_weights(batch, self.settings.loss.aggregation)
        sequences = [(t.prompt_ids, t.response_ids) for t in batch]
        by_rank = pack_ranks(sequences, self.settings.micro_batch_tokens, self.settings.parallel.data)
        micros = by_rank[self._data_rank]

        self.policy.zero_grad()
        sums = torch.zeros(len(DIAGNOSTICS) + 3, dtype=torch.float64)
        device = self.policy.device

        def token_loss(_: int, micro: MicroBatch, logprobs: torch.Tensor, entropy: torch.Tensor) -> torch.Tensor:
            index = flat.at(micro)
            result = policy_loss(
                logprobs,
                torch.from_numpy(flat.behave[index]).to(device),
                torch.from_numpy(advantage[micro.sequence_index]).to(device),
                torch.from_numpy(weights[micro.sequence_index]).to(device),
                entropy,
                self.settings.loss,
            )
            current = torch.from_numpy(flat.versions[index] == self.version)
            gap = (logprobs.detach().cpu() - torch.from_numpy(flat.behave[index])).abs()[current]
            extra = torch.stack([result.loss.detach().double().cpu(), gap.sum().double(), current.sum().double()])
            sums.add_(torch.cat([result.sums.cpu(), extra]))
            return result.loss

        self.policy.forward_backward(micros, token_loss)
        computed = time.monotonic()
        # Tensor-parallel ranks hold the same numbers: summed over all ranks, they count `tensor` times.
        sums = self.ranks.sum(sums.to(device)).cpu() / self.settings.parallel.tensor
        loss, gap_sum, gap_count = sums[len(DIAGNOSTICS) :].tolist()
        if not gap_count:
            gap_sum, gap_count = self._probe(fresh)
        grad_norm, updated = self.policy.step(self._learning_rate())
        self.version += 1
        tokens_trained = int(sums[0])
        computed_tokens = sum(micro.num_tokens for micros_of in by_rank for micro in micros_of)
        seconds = time.monotonic() - started
        return {
            "loss": loss,
            "grad_norm": grad_norm,
            "skipped_update": float(not updated),
            "tokens_trained": tokens_trained,
            "tokens_in_batch": sum(t.num_tokens for t in batch),
            "tokens_computed": computed_tokens,
            "micro_batches": len(micros),
            "train_s": seconds,
            "forward_backward_s": computed - started,
            "learner_tokens_per_s": computed_tokens / seconds,
            **({"logprob_mismatch": gap_sum / gap_count} if gap_count else {}),
            **diagnostics(sums[: len(DIAGNOSTICS)]),
            **describe_advantages(batch, advantage),
        }

    def logprobs(self, batch: Sequence[Trajectory]) -> list[np.ndarray]:
        """Log-probabilities of every response token under the present weights, float32 [R] a trajectory."""
        flat = _flatten(batch)
        result = np.zeros(len(flat.behave), dtype=np.float32)
        sequences = [(t.prompt_ids, t.response_ids) for t in batch]
        packed = pack_ranks(sequences, self.settings.micro_batch_tokens, 1)[0]
        for micro, found, _ in self.policy.logprobs(packed):
            result[flat.at(micro)] = found.float().cpu().numpy()
        return np.split(result, flat.offsets[1:])

    def _probe(self, fresh: Callable[[], Sequence[Trajectory]]) -> tuple[float, float]:
        """Sum and count of |learner - engine| over response tokens of queued trajectories of exactly this version."""

        def choose() -> bytes:
            same = [t for t in fresh() if t.oldest_version == t.newest_version == self.version]
            return dumps(same[:MISMATCH_PROBES])

        chosen = loads(self.ranks.share(choose))
        if not chosen:
            return 0.0, 0.0
        gaps = [np.abs(ours - t.logprobs) for ours, t in zip(self.logprobs(chosen), chosen, strict=True)]
        return float(sum(gap.sum() for gap in gaps)), float(sum(gap.size for gap in gaps))

    def _learning_rate(self) -> float:
        warmup = self.settings.optimizer.warmup_steps
        return self.settings.optimizer.lr * min(1.0, (self.version + 1) / (warmup + 1))


def _flatten(batch: Sequence[Trajectory]) -> _Flat:
    lengths = [len(t.response_ids) for t in batch]
    offsets = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
    versions = [np.repeat([s.version for s in t.versions], [s.end - s.start for s in t.versions]) for t in batch]
    return _Flat(offsets, np.concatenate([t.logprobs for t in batch]), np.concatenate(versions))


def _token_weights(batch: Sequence[Trajectory], aggregation: str) -> np.ndarray:
    """The weight of each token of each trajectory, float32 [B]: what makes a sum over tokens the wanted mean."""
    lengths = np.array([len(t.response_ids) for t in batch], dtype=np.float64)
    if aggregation == "token":
        return np.full(len(batch), 1.0 / lengths.sum(), dtype=np.float32)
    return (1.0 / (len(batch) * lengths)).astype(np.float32)
