"""One batch, one version: trajectories in, new weights and metrics out. The same for every mode of running.

trajectories -> advantages (per cell) -> parts (one, or PPO's mini-batches), and for each of them, one optimizer step:
micro-batches (prompts shared) -> loss, with the off-policy correction -> gradients -> step
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from learner.advantages import advantages
from learner.batching.balance import CostModel
from learner.batching.minibatches import split_batch
from learner.batching.packing import MicroBatch, pack_rank
from learner.losses import DIAGNOSTICS, diagnostics, entropy_bonus, policy_loss, token_weights
from learner.metrics.batch import describe_advantages
from learner.model.policy import PolicyModel
from learner.protocols import StepGivenUp
from learner.ranks import Ranks
from learner.settings import LearnerSettings
from learner.sft.data import Example, weights_of
from learner.skipped_updates import SkippedUpdates
from learner.time_ledger import LEARNER_PARTS, TimeLedger
from learner.trajectory import Trajectory

MISMATCH_TRAJECTORIES = 32
"""Maximum number of trajectories outside the batch that the two ends' log-probabilities are compared on, each step."""
MISMATCH_ROWS = 0.05
"""Maximum number of their tokens, as a share of the rows of the batch. A forward pass costs about a third of a training
step's rows, so the comparison takes less than 2% of it."""
Supervision = Callable[[int], Sequence[Example]]
"""(version that a step starts from) -> its labelled examples."""


@dataclass
class _Part:
    """The data of one optimizer step: B sequences, whose N response tokens lie end to end in the tensors."""

    micros: list[MicroBatch]
    """This data-parallel rank's."""
    num_rows: int
    """Rows that all data-parallel ranks compute."""
    offsets: np.ndarray
    """[B]: where each sequence's tokens begin."""
    behave: Tensor
    """Float32 [N]: log-probabilities of the policy that sampled."""
    advantages: Tensor
    """Float32 [N]"""
    weights: Tensor
    """Float32 [N]: the aggregation's."""
    compared: Tensor
    """Float32 [N]: 1 for the tokens that the engine's mismatch is measured on, those of trajectories that the version
    which is trained sampled from beginning to end; else 0."""
    labelled: Tensor
    """Float32 [L]: weight of each token of the L labelled examples, which follow the B sequences in the packing; over
    all their tokens the weights add up to 1. Empty: there are none."""
    prox: Tensor | None = None
    """Float32 [N]: log-probabilities before the batch's first update, where this rank has them."""

    def at(self, micro: MicroBatch) -> tuple[Tensor | slice, Tensor]:
        """The rows of a micro-batch's [R] that belong to the B sequences, and the places of these tokens in N."""
        own, rows = self._own(micro), slice(None)
        sequence, token = micro.sequence_index, micro.token_index
        if own is None:
            return rows, self._on_device(self.offsets[sequence] + token)
        return self._on_device(own), self._on_device(self.offsets[sequence[own]] + token[own])

    def supervised_loss(self, micro: MicroBatch, logprobs_R: Tensor) -> Tensor:
        """The negative log-likelihood of a micro-batch's labelled tokens, weighted: a scalar with gradient."""
        if self._own(micro) is None:
            return logprobs_R.new_zeros(())
        rows = np.flatnonzero(micro.sequence_index >= len(self.offsets))
        weights = self.labelled[self._on_device(micro.sequence_index[rows] - len(self.offsets))]
        return -(logprobs_R[self._on_device(rows)] * weights).sum()

    def _own(self, micro: MicroBatch) -> np.ndarray | None:
        """Rows of the B sequences; None: all are."""
        if not len(self.labelled):
            return None
        return np.flatnonzero(micro.sequence_index < len(self.offsets))

    def _on_device(self, index: np.ndarray) -> Tensor:
        return torch.from_numpy(index).to(self.behave.device)


class Trainer:
    """The policy, its version, and how one batch changes both."""

    def __init__(
        self, policy: PolicyModel, settings: LearnerSettings, ranks: Ranks, version: int = 0, data_rank: int = 0
    ) -> None:
        """`data_rank`: this process's data-parallel rank. `version` counts batches from the first weights on."""
        self.policy = policy
        self.settings = settings
        self.ranks = ranks
        self.version = version
        self.life = 0
        """The learner's life that makes the versions from now on (`Gate.life_id`)."""
        self.time = TimeLedger(LEARNER_PARTS)
        """What this rank's time is spent on; the loop enters what it does between two steps."""
        self.supervision: Supervision = lambda step: ()
        """Where a step's labelled examples come from (`learner.loss.supervised`); asked on rank 0 alone."""
        self._data_rank = data_rank
        self._skipped_updates = SkippedUpdates(settings.max_skipped_updates)

    def train(
        self,
        batch: Sequence[Trajectory],
        fresh: Callable[[], Sequence[Trajectory]] = list,
        gives_up: Callable[[], bool] = lambda: False,
    ) -> dict[str, float]:
        """Train on `batch` and count one version; collective over the learner's ranks.

        With `updates_per_batch` above 1 there is an optimizer step on each part of the batch, over which the
        aggregation normalises. Advantages are the whole batch's. `fresh`: trajectories that wait in the queue. Where
        the batch has none that the present version sampled, the engine's mismatch is measured on such of these, on
        rank 0's choice. They are asked for as late as the weights are still of this version, after the backward pass:
        a batch that was complete at once leaves no time for the version's own rollouts to come in before it.

        `gives_up`: asked before the first update, on every rank; if it holds on one, all raise `StepGivenUp`. Where no
        collective call is part of a micro-batch, a rank asks at each of them, and computes no more of them.

        Raises `UpdatesSkipped`.
        """
        started = time.monotonic()
        with self.time.during("packing"):
            advantage = advantages(batch, self.settings.advantage)
            bonus = entropy_bonus([t.logprobs for t in batch], self.settings.loss)
            members = split_batch(batch, self.settings.updates_per_batch)
            labelled = self._labelled()
            shares = [labelled[index :: len(members)] for index in range(len(members))]
            parts = [
                self._part([batch[i] for i in part], advantage[part], share)
                for part, share in zip(members, shares, strict=True)
            ]
        # Only before the first update are the weights those of this version.
        compared = float(parts[0].compared.sum())
        gap, mismatch_s = 0.0, 0.0
        if self.settings.loss.correction == "decoupled" and len(parts) > 1:
            with self.time.during("forward_backward"):
                self._fill_prox(parts)

        sums = torch.zeros(len(DIAGNOSTICS) + 3, dtype=torch.float64, device=self.policy.device)
        max_ratio = torch.zeros(1, dtype=torch.float64, device=self.policy.device)
        computed_s = 0.0
        grad_norms: list[float] = []
        skipped = 0
        for part in parts:
            began = time.monotonic()
            first = part is parts[0]
            given_up = False
            with self.time.during("forward_backward"):
                self.policy.zero_grad()
                try:
                    self._forward_backward(part, sums, max_ratio, bonus, first, gives_up if first else None)
                except StepGivenUp:
                    given_up = True
            # Agreed before the first update: a rank that has left out micro-batches must not take part in it.
            if first and self._any(given_up or gives_up()):
                self.policy.zero_grad()
                raise StepGivenUp
            computed_s += time.monotonic() - began
            if part is parts[0] and not compared:
                began = time.monotonic()
                with self.time.during("mismatch"):
                    gap, compared = self._compare(fresh, sum(part.num_rows for part in parts))
                mismatch_s = time.monotonic() - began
            with self.time.during("optimizer"):
                grad_norm, updated = self.policy.step(self._learning_rate())
            self._skipped_updates.count(grad_norm, updated, self.version + 1)
            grad_norms.append(grad_norm)
            skipped += not updated
        self.version += 1

        # Tensor-parallel ranks hold the same numbers: summed over all ranks, they count `tensor` times.
        sums = self.ranks.sum(sums).cpu() / self.settings.parallel.tensor
        loss, gap_in_batch, supervised = sums[len(DIAGNOSTICS) :].tolist()
        clipped = sum(int(sums[DIAGNOSTICS.index(f"clipped_{side}")]) for side in ("low", "high", "dual"))
        weight = self.settings.loss.policy
        num_rows = sum(part.num_rows for part in parts)
        seconds = time.monotonic() - started
        return {
            "loss": loss / len(parts),
            "grad_norm": float(np.mean(grad_norms)),
            "grad_norm_max": float(np.max(grad_norms)),
            "skipped_update": skipped / len(parts),
            "updates": len(parts),
            "tokens_trained": int(sums[DIAGNOSTICS.index("tokens")]),
            "tokens_useful": _moving(batch, advantage) - clipped if weight else 0,
            "tokens_in_batch": sum(t.num_tokens for t in batch),
            "tokens_computed": num_rows,
            "train_flops": sum(
                _flops([*(batch[i] for i in part), *share], self.policy.cost)
                for part, share in zip(members, shares, strict=True)
            ),
            "micro_batches": sum(len(part.micros) for part in parts),
            "train_s": seconds,
            "forward_backward_s": computed_s,
            "learner_tokens_per_s": num_rows / seconds,
            "mismatch_s": mismatch_s,
            "mismatch_tokens": compared,
            **({"logprob_mismatch": (gap + gap_in_batch) / compared} if compared else {}),
            **diagnostics(sums[: len(DIAGNOSTICS)], self.settings.loss),
            "max_ratio": float(self.ranks.max(max_ratio)),
            **({"entropy_bonus": weight * bonus} if self.settings.loss.entropy_floor else {}),
            **_describe_labelled(shares, supervised),
            **describe_advantages(batch, advantage),
        }

    def logprobs(self, batch: Sequence[Trajectory]) -> list[np.ndarray]:
        """Log-probabilities of every response token under the present weights, float32 [R] a trajectory, on every rank.
        Collective; data-parallel ranks compute a share each."""
        lengths = [len(t.response_ids) for t in batch]
        offsets = _offsets(lengths)
        found = torch.zeros(sum(lengths), device=self.policy.device)
        for micro, logprobs, _ in self.policy.logprobs(self._pack(batch)[0]):
            index = torch.from_numpy(offsets[micro.sequence_index] + micro.token_index)
            found[index.to(found.device)] = logprobs.float()
        # Each token is with one data and one context rank of the last stage, and with every tensor rank of these.
        whole = self.ranks.sum(found).cpu().numpy() / np.float32(self.settings.parallel.tensor)
        return np.split(whole, offsets[1:])

    def _labelled(self) -> list[Example]:
        """The labelled examples of this step, on every rank. Collective, where there may be any."""
        if not self.settings.loss.supervised:
            return []

        def chosen() -> list[tuple[list[int], list[int], float]]:
            found = self.supervision(self.version)
            return [(one.prompt_ids.tolist(), one.response_ids.tolist(), one.weight) for one in found]

        return [
            Example(np.array(prompt, dtype=np.int64), np.array(response, dtype=np.int64), weight)
            for prompt, response, weight in self.ranks.share(chosen)
        ]

    def _part(self, batch: Sequence[Trajectory], advantage: np.ndarray, labelled: Sequence[Example]) -> _Part:
        micros, num_rows = self._pack([*batch, *labelled])
        lengths = [len(t.response_ids) for t in batch]

        def on_device(values: np.ndarray) -> Tensor:
            return torch.from_numpy(values.astype(np.float32)).to(self.policy.device)

        return _Part(
            micros=micros,
            num_rows=num_rows,
            offsets=_offsets(lengths),
            behave=on_device(np.concatenate([t.logprobs for t in batch])),
            advantages=on_device(np.repeat(advantage, lengths)),
            weights=on_device(np.repeat(token_weights(lengths, self.settings.loss), lengths)),
            compared=on_device(np.repeat([self._is_present(t) for t in batch], lengths)),
            labelled=on_device(weights_of(labelled)),
        )

    def _pack(self, batch: Sequence[Trajectory | Example]) -> tuple[list[MicroBatch], int]:
        """This rank's micro-batches, and the rows of all ranks."""
        sequences = [(t.prompt_ids, t.response_ids) for t in batch]
        budget, num_ranks = self.settings.micro_batch_tokens, self.settings.parallel.data
        return pack_rank(sequences, budget, num_ranks, self._data_rank, self.policy.cost)

    def _any(self, here: bool) -> bool:
        """Whether it holds on any rank. Collective."""
        if self.ranks.world_size == 1:
            return here
        return bool(self.ranks.max(torch.tensor([float(here)], dtype=torch.float64, device=self.policy.device)))

    def _forward_backward(
        self,
        part: _Part,
        sums: Tensor,
        max_ratio: Tensor,
        bonus: float,
        compare: bool,
        gives_up: Callable[[], bool] | None,
    ) -> None:
        """Accumulate the part's gradient, and its numbers into `sums` (the diagnostics, the policy loss, with `compare`
        the engine's mismatch, and the supervised loss) and `max_ratio`. Nothing waits for the device in here.

        Raises StepGivenUp at a micro-batch where `gives_up` holds, unless other ranks take part in its computation.
        """
        parallel = self.settings.parallel
        alone = parallel.tensor == parallel.pipeline == parallel.context == 1

        def token_loss(_: int, micro: MicroBatch, logprobs: Tensor, entropy: Tensor) -> Tensor:
            if alone and gives_up is not None and gives_up():
                raise StepGivenUp
            supervised = part.supervised_loss(micro, logprobs)
            rows, at = part.at(micro)
            logprobs, entropy = logprobs[rows], entropy[rows]
            result = policy_loss(
                logprobs,
                part.behave[at],
                part.advantages[at],
                part.weights[at],
                entropy,
                self.settings.loss,
                None if part.prox is None else part.prox[at],
                bonus,
            )
            gap = ((logprobs.detach() - part.behave[at]).abs() * part.compared[at]).sum() * compare
            more = torch.stack([result.loss.detach(), gap, supervised.detach()]).double()
            sums.add_(torch.cat([result.sums, more]))
            torch.maximum(max_ratio, result.max_ratio, out=max_ratio)
            return self.settings.loss.policy * result.loss + self.settings.loss.supervised * supervised

        self.policy.forward_backward(part.micros, token_loss)

    def _fill_prox(self, parts: Sequence[_Part]) -> None:
        """One pass over all parts under the weights that the batch begins with. With a single part none is needed: the
        policy before its update is the one that its loss is computed with."""
        for part in parts:
            part.prox = torch.zeros_like(part.behave)
            for micro, logprobs, _ in self.policy.logprobs(part.micros):
                rows, at = part.at(micro)
                part.prox[at] = logprobs[rows].float()

    def _is_present(self, trajectory: Trajectory) -> bool:
        """Whether the present version sampled the whole response. Where weights changed in between, the engine's cache
        is partly of the older ones, and a difference says nothing about the two ends' arithmetic."""
        return all((span.version, span.life) == (self.version, self.life) for span in trajectory.versions)

    def _compare(self, fresh: Callable[[], Sequence[Trajectory]], num_rows: int) -> tuple[float, float]:
        """Sum and count of |learner - engine| over response tokens of queued trajectories of the present version.

        Those are taken that are mostly response, as many as `MISMATCH_TRAJECTORIES` and `MISMATCH_ROWS` allow, but one
        in any case.
        """

        def choose() -> Sequence[Trajectory]:
            present = [t for t in fresh() if self._is_present(t)]
            present.sort(key=lambda t: len(t.prompt_ids) / len(t.response_ids))
            rows = np.cumsum([t.num_tokens for t in present[:MISMATCH_TRAJECTORIES]])
            return present[: max(1, int((rows <= MISMATCH_ROWS * num_rows).sum()))]

        chosen = self.ranks.share_batch(choose)
        if not chosen:
            return 0.0, 0.0
        gaps = [np.abs(ours - t.logprobs) for ours, t in zip(self.logprobs(chosen), chosen, strict=True)]
        return float(sum(gap.sum() for gap in gaps)), float(sum(gap.size for gap in gaps))

    def _learning_rate(self) -> float:
        warmup = self.settings.optimizer.warmup_steps
        return self.settings.optimizer.lr * min(1.0, (self.version + 1) / (warmup + 1))


def _offsets(lengths: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)


def _moving(batch: Sequence[Trajectory], advantage: np.ndarray) -> int:
    """Response tokens whose advantage is not 0: the others have no gradient."""
    return sum(len(t.response_ids) for t, value in zip(batch, advantage.tolist(), strict=True) if value)


def _describe_labelled(shares: Sequence[Sequence[Example]], loss: float) -> dict[str, float]:
    """Metrics of the labelled examples; `shares`: of each update, `loss`: the sum of the updates' losses."""
    learned = [share for share in shares if share]
    if not learned:
        return {}
    examples = [one for share in learned for one in share]
    return {
        "supervised_loss": loss / len(learned),
        "labelled_examples": len(examples),
        "labelled_tokens": sum(len(one.response_ids) for one in examples),
    }


def _flops(batch: Sequence[Trajectory | Example], cost: CostModel) -> int:
    """Floating-point operations of one pass over `batch`, forward and backward, on all ranks; each distinct prompt is
    computed once (`Architecture.cost`)."""
    prompts = {t.prompt_ids.tobytes(): len(t.prompt_ids) for t in batch}
    responses = sum(cost.response(len(t.prompt_ids), len(t.response_ids)) for t in batch)
    return responses + sum(cost.prompt(length) for length in prompts.values())
