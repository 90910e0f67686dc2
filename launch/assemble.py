"""Puts the learner's parts together from a configuration; the same for Ray's actors and for serial mode."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from launch.config import Config
from launch.recorder import Recorder
from launch.tasks import SNAPSHOT
from learner.checkpoint import Checkpoints, read_stream_state, write_stream_state
from learner.loop import Hooks, Stream
from learner.model import PolicyModel
from learner.parallel import init_parallel
from learner.ranks import Ranks
from learner.staleness import Gate
from learner.trainer import Trainer
from learner.trajectory import Trajectory


def make_gate(config: Config) -> Gate:
    """The gate of a run that starts."""
    return Gate(
        config.learner.batch,
        config.learner.max_staleness,
        config.selfplay.solutions,
        config.selfplay.proposals_per_prompt,
    )


def make_trainer(config: Config, model_dir: Path, rank: int = 0, store: str | None = None) -> Trainer:
    """This rank's policy and trainer. `store`: where several ranks meet, `tcp://host:port`."""
    if not torch.cuda.is_available():
        torch.set_num_threads(config.learner.threads or os.cpu_count() or 1)
    parallel = config.learner.parallel
    init_parallel(parallel, rank, parallel.world_size, store, config.learner.batch_timeout_s)
    policy = PolicyModel(model_dir, config.model, config.learner.optimizer, parallel, seed=config.run.seed)
    from megatron.core import parallel_state

    ranks = Ranks(rank, parallel.world_size, policy.device)
    return Trainer(policy, config.learner, ranks, data_rank=parallel_state.get_data_parallel_rank())


@dataclass
class Saved:
    """A run's checkpoints, and what a resumed run starts from."""

    checkpoints: Checkpoints
    trainer: Trainer
    snapshot: Callable[[Path], None] = lambda path: None
    """Writes the task buffer, as of now, to a file."""

    def resume(self, stream: Stream | None, requeue: Callable[[list[Trajectory]], None]) -> int:
        """Load the newest checkpoint, if there is one; returns its version."""
        latest = self.checkpoints.latest()
        if latest is None:
            return 0
        self.trainer.policy.load_checkpoint(latest / "model")
        gate_state, queued = read_stream_state(latest)
        self.trainer.version = gate_state["trained_batches"]
        if stream is not None:
            stream.gate.load_state_dict(gate_state)
            requeue(queued)
        return self.trainer.version

    def save(self, version: int, stream: Stream | None) -> None:
        """Write a checkpoint; on every rank."""

        def write(folder: Path) -> None:
            self.trainer.policy.save_checkpoint(folder / "model")
            self.trainer.policy.save_hf(folder / "hf")
            if stream is not None:
                with stream.frozen():
                    write_stream_state(folder, stream.gate.state_dict(), stream.queued())
                # After the queue, so that the snapshot has every task whose proposal waits there. What it may have beyond
                # these are tasks of rollouts that were in flight, and that a resumed run drops.
                self.snapshot(folder / SNAPSHOT)

        self.checkpoints.save(version, self.trainer.ranks, write)


def make_hooks(
    config: Config,
    recorder: Recorder | None,
    save: Callable[[int], None],
    status: dict[str, Any],
    more: Callable[[], dict[str, float]] = dict,
) -> Hooks:
    """Hooks that record steps, obey `status["stop"]`, and end the run when its time is up.

    `more`: further numbers of a step, such as the task buffer's.
    """
    deadline = time.monotonic() + 60 * config.run.max_minutes if config.run.max_minutes else None
    totals: dict[str, float] = {}
    mark = time.monotonic()

    def interrupted() -> bool:
        if deadline is not None and time.monotonic() > deadline and not status.get("stop"):
            status["stop"] = f"run.max_minutes = {config.run.max_minutes:g} is over"
        return bool(status.get("stop"))

    def on_step(numbers: dict[str, float], batch: Any) -> None:
        nonlocal mark
        assert recorder is not None
        # Actors count from their start; a step's share is the difference (a restarted actor counts from 0 again).
        for name in ("tokens_generated", "wait_for_policy_s"):
            total = numbers.get(name, 0.0)
            numbers[f"{name}_step" if name == "tokens_generated" else name] = max(0.0, total - totals.get(name, 0.0))
            totals[name] = total
        now = time.monotonic()
        numbers["generate_tokens_per_s"] = numbers["tokens_generated_step"] / (now - mark)
        mark = now
        numbers.update(more())
        recorder.step(numbers, batch)
        status["last"] = recorder.last

    def on_wait(what: str) -> None:
        status["phase"], status["phase_since"] = what, time.monotonic()

    return Hooks(interrupted, on_step, save, on_wait)
