"""What is simulated: the settings of a recipe that shape throughput and age, and the devices it runs on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from actors.settings import ConcurrencySettings, SelfPlaySettings
from launch.config import Config
from launch.tune.calibration import Calibration
from learner.settings import BatchSettings, OnStale
from learner.trajectory import Role


@dataclass(frozen=True)
class Scenario:
    """A run to simulate."""

    selfplay: SelfPlaySettings
    batch: BatchSettings
    adapt: ConcurrencySettings
    num_actors: int
    concurrency: int
    max_num_seqs: int
    max_num_batched_tokens: int
    kv_share: float
    """Size of an engine's key/value cache over that of the calibration."""
    engine_threads: int
    """CPU threads, or devices, of one engine."""
    learner_threads: int
    """CPU threads of one learner rank; 1 on GPUs."""
    data_ranks: int
    model_ranks: int
    """Ranks that one replica of the model is split over: tensor x pipeline x context."""
    max_staleness: int
    on_stale: OnStale
    cores: int
    """Cores of the machine that all processes share; unused on GPUs."""
    on_gpu: bool
    engine_cores: int | None = None
    """Cores that the engines are pinned to; None: all processes share all cores."""
    learner_cores: int | None = None
    buffered: Mapping[str, int] = field(default_factory=dict)
    """Tasks by kind that the buffer starts with, beside its own first one (`selfplay.seed_tasks`)."""
    distinct_prompts: bool = False
    """Whether every proposer's prompt is another one, as in a rehearsal."""

    @classmethod
    def of(cls, config: Config, calibration: Calibration) -> Scenario:
        """The scenario of a recipe on the calibration's hardware."""
        hardware, learner = calibration.hardware, config.learner
        on_gpu = hardware.kind == "gpu"
        parallel = learner.parallel
        own = config.engine.tensor_parallel * (1 if on_gpu else config.engine.threads)
        pinned = _pinned(config)
        return cls(
            selfplay=config.selfplay,
            batch=learner.batch,
            adapt=config.actors.adapt,
            num_actors=config.actors.num_actors,
            concurrency=config.actors.concurrency,
            max_num_seqs=config.engine.max_num_seqs,
            max_num_batched_tokens=max(config.engine.max_num_batched_tokens, config.engine.max_model_len),
            kv_share=1.0,
            engine_threads=own or len(config.actors.cpus) or hardware.cores,
            learner_threads=1 if on_gpu else learner.threads or len(learner.cpus) or hardware.cores,
            data_ranks=parallel.data,
            model_ranks=parallel.tensor * parallel.pipeline * parallel.context,
            max_staleness=learner.max_staleness,
            on_stale=learner.on_stale,
            cores=hardware.cores if pinned is None else len(set(pinned.engines) | set(pinned.learner)),
            on_gpu=on_gpu,
            engine_cores=len(pinned.engines) if pinned and pinned.apart else None,
            learner_cores=len(pinned.learner) if pinned and pinned.apart else None,
            buffered=buffered_by(config),
        )

    def with_changes(self, **changes: Any) -> Scenario:
        """A copy with other values."""
        return replace(self, **changes)

    @property
    def quota(self) -> int:
        """Trajectories of a whole batch."""
        return sum(self.batch.quota(cell) for cell in self.batch.cells)

    @property
    def devices(self) -> int:
        """GPUs that the run takes; on a CPU, cores."""
        if not self.on_gpu:
            return self.cores
        return self.rollout_devices + self.training_devices

    @property
    def rollout_devices(self) -> int:
        """GPUs, or threads, of all engines."""
        return self.num_actors * self.engine_threads

    @property
    def training_devices(self) -> int:
        """GPUs, or threads, of all learner ranks."""
        return self.data_ranks * self.model_ranks * self.learner_threads

    @property
    def proposes(self) -> bool:
        """Whether a batch asks for any proposal."""
        return any(self.batch.quota(cell) for cell in self.batch.cells if cell.role is Role.PROPOSE)


class _Pinned(NamedTuple):
    """The cores of either side."""

    engines: tuple[int, ...]
    learner: tuple[int, ...]

    @property
    def apart(self) -> bool:
        """Whether they share none. Sides that share some are simulated as sharing all of theirs."""
        return not set(self.engines) & set(self.learner)


def _pinned(config: Config) -> _Pinned | None:
    """The cores that a recipe pins its processes to; None unless it does for both sides."""
    engines, learner = config.actors.cpus, config.learner.cpus
    return _Pinned(engines, learner) if engines and learner else None


def buffered_by(config: Config) -> dict[str, int]:
    """Tasks that the run's buffer starts with, by kind. A file that is not there is that of another machine: none."""
    if not config.selfplay.seed_tasks:
        return {}
    try:
        lines = Path(config.selfplay.seed_tasks).expanduser().read_text().splitlines()
        return dict(Counter(json.loads(line)["kind"] for line in lines if line.strip()))
    except (OSError, ValueError, KeyError):
        return {}
