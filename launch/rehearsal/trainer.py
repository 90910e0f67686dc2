"""A learner that takes the time of training: its weights are the number of their version, and are really broadcast and
saved."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.distributed import Store  # type: ignore[attr-defined]

from actors.labelled_examples import Draw
from launch.config import Config
from launch.settings import RehearsalSettings
from learner.advantages import advantages
from learner.metrics.batch import describe_advantages
from learner.protocols import StepGivenUp
from learner.ranks import Ranks
from learner.settings import LearnerSettings
from learner.time_ledger import LEARNER_PARTS, TimeLedger
from learner.trajectory import Trajectory

TENSOR_BYTES = 8 << 20
"""Maximum size of one tensor of the weights."""
LOOK_S = 0.1
"""Seconds between two looks whether to give up a step."""
_WEIGHTS = "weights.safetensors"
_REST = "rest.bin"
_MB = 1_000_000


@dataclass(frozen=True)
class RehearsedCopy:
    """See `learner.protocols.PolicyCopy`."""

    weights: dict[str, torch.Tensor]
    """Empty on ranks other than 0."""
    settings: RehearsalSettings

    def write(self, folder: Path, group: dist.ProcessGroup | None, hurried: Callable[[], bool]) -> None:
        """See `PolicyCopy`."""
        if not self.weights:
            return
        model = folder / "model"
        model.mkdir(exist_ok=True)
        save_file(self.weights, model / _WEIGHTS)
        with (model / _REST).open("wb") as file:
            left = int(self.settings.checkpoint_mb * _MB)
            while left > 0:
                left -= file.write(bytes(min(left, TENSOR_BYTES)))
        time.sleep(self.settings.checkpoint_s / self.settings.time_scale)


class RehearsedPolicy:
    """See `learner.protocols.Policy`. Every element is the number of training steps, so weights of different versions
    differ."""

    def __init__(self, settings: RehearsalSettings, is_main: bool) -> None:
        self.device = torch.device("cpu")
        self._settings = settings
        self._is_main = is_main
        self._weights: dict[str, torch.Tensor] = {}
        left = max(4, int(settings.weights_mb * _MB))
        while left > 0:
            size = min(left, TENSOR_BYTES)
            self._weights[f"rehearsal.{len(self._weights)}"] = torch.zeros(max(1, size // 4))
            left -= size

    def step(self) -> None:
        """Change the weights, as an optimizer step does."""
        for tensor in self._weights.values():
            tensor += 1

    def export(self) -> Iterator[tuple[str, torch.Tensor]]:
        """See `Policy`."""
        yield from self._weights.items()

    def copy(self, exports: bool) -> RehearsedCopy:
        """See `Policy`."""
        weights = {name: tensor.clone() for name, tensor in self._weights.items()} if self._is_main else {}
        return RehearsedCopy(weights, self._settings)

    def load_checkpoint(self, directory: Path) -> None:
        """See `Policy`."""
        saved = load_file(directory / _WEIGHTS)
        done = next(iter(saved.values())).flatten()[0]
        for tensor in self._weights.values():  # `rehearsal.weights_mb` may have changed since
            tensor.fill_(float(done))


class RehearsedTrainer:
    """See `learner.protocols.Learns`."""

    def __init__(self, settings: RehearsalSettings, learner: LearnerSettings, ranks: Ranks) -> None:
        self.policy = RehearsedPolicy(settings, ranks.is_main)
        self.ranks = ranks
        self.version = 0
        self.life = 0
        self.time = TimeLedger(LEARNER_PARTS)
        self._settings = settings
        self._learner = learner

    def train(
        self,
        batch: Sequence[Trajectory],
        fresh: Callable[[], Sequence[Trajectory]] = list,
        gives_up: Callable[[], bool] = lambda: False,
    ) -> dict[str, float]:
        """Wait as long as a step takes; see `Learns`."""
        began = time.monotonic()
        settings = self._settings
        advantage = advantages(batch, self._learner.advantage)
        tokens = sum(t.num_tokens for t in batch)
        seconds = settings.learner_step_s
        if settings.learner_tokens_per_s is not None:
            seconds += tokens / settings.learner_tokens_per_s
        ends = began + seconds / settings.time_scale
        with self.time.during("forward_backward"):
            while (left := ends - time.monotonic()) > 0 and not gives_up():
                time.sleep(min(left, LOOK_S))
        if float(self.ranks.max(torch.tensor([float(gives_up())]))):
            raise StepGivenUp
        self.policy.step()
        self.ranks.barrier()  # a step ends when the slowest rank has
        self.version += 1
        spent = time.monotonic() - began
        return {
            "updates": 1,
            "tokens_trained": sum(len(t.response_ids) for t in batch),
            "tokens_in_batch": tokens,
            "tokens_computed": tokens,
            "train_s": spent,
            "forward_backward_s": spent,
            "learner_tokens_per_s": tokens / spent,
            **describe_advantages(batch, advantage),
        }


class NoText:
    """The tokenizer of a rehearsal, in which there is no text."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return nothing."""
        return ""


class RehearsedLearnerWork:
    """See `launch.cluster.workload.LearnerWork`."""

    def __init__(self, config: Config, rank: int, store: Store | None) -> None:
        world_size = config.learner.parallel.world_size
        if world_size > 1:
            timeout = timedelta(seconds=config.learner.batch_timeout_s)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=timeout)
        self.trainer = RehearsedTrainer(config.rehearsal, config.learner, Ranks(rank, world_size))
        self.tokenizer: Any = NoText()

    def supervise(self, draw: Draw) -> None:
        """See `LearnerWork`: a rehearsal has no programs to label."""
