"""Puts the learner's parts together from a configuration; the same for Ray's actors and for serial mode."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist

from launch.config import Config, RunBasics, SftConfig
from launch.run.recorder import Recorder
from launch.run.task_buffer import SNAPSHOT
from learner.checkpoint import CheckpointError, Checkpoints, Finish, read_stream_state, write_stream_state
from learner.loop import Hooks, Stream
from learner.model.convert import HfWriter
from learner.model.policy import PolicyModel
from learner.model.process_groups import data_rank, init_parallel
from learner.ranks import Ranks
from learner.staleness import Gate
from learner.trainer import Trainer
from learner.trajectory import Trajectory

_EXACT = "serial.json"


def make_gate(config: Config, life: int = 0) -> Gate:
    """The gate of a run that starts. `life`: how often the learner was restarted while the run's actors lived on."""
    return Gate(
        config.learner.batch,
        config.learner.max_staleness,
        config.selfplay.solutions,
        config.selfplay.proposals_per_prompt,
        on_stale=config.learner.on_stale,
        life=life,
    )


def make_policy(
    config: Config | SftConfig, model_dir: Path, rank: int, store: str | None, timeout_s: float
) -> tuple[PolicyModel, Ranks]:
    """This rank's policy, and the ranks. `store`: where several ranks meet, `tcp://host:port`; `timeout_s`: of what they do together."""
    learner = config.learner
    if not torch.cuda.is_available():
        torch.set_num_threads(learner.threads or os.cpu_count() or 1)
    init_parallel(learner.parallel, rank, learner.parallel.world_size, store, timeout_s)
    policy = PolicyModel(model_dir, config.model, learner.optimizer, learner.parallel, seed=config.run.seed)
    return policy, Ranks(rank, learner.parallel.world_size, policy.device)


def make_trainer(config: Config, model_dir: Path, rank: int = 0, store: str | None = None) -> Trainer:
    """This rank's policy and trainer; see `make_policy`."""
    policy, ranks = make_policy(config, model_dir, rank, store, config.learner.batch_timeout_s)
    return Trainer(policy, config.learner, ranks, data_rank=data_rank())


class Exact(Protocol):
    """What a run that goes on bit by bit has beyond what every run saves; plain data, kept as JSON."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next steps depend on."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""


@dataclass
class Saved:
    """A run's checkpoints, and what a resumed run starts from."""

    checkpoints: Checkpoints
    trainer: Trainer
    snapshot: Callable[[Path], None] = lambda path: None
    """Writes the task buffer, as of now, to a file."""
    exact: Exact | None = None
    """Of serial mode."""

    def resume(self, stream: Stream | None, requeue: Callable[[list[Trajectory]], None]) -> int:
        """Load the newest complete checkpoint, if there is one; returns its version. Collective. Raises CheckpointError."""
        latest = self.checkpoints.latest()
        if latest is None:
            return 0
        try:
            self.trainer.policy.load_checkpoint(latest / "model")
            gate_state, queued = read_stream_state(latest)
            if self.exact is not None:
                self.exact.load_state_dict(json.loads((latest / _EXACT).read_text()))
        except Exception as error:
            raise CheckpointError(
                f"the checkpoint {latest} cannot be loaded ({type(error).__name__}: {error}). If its files are damaged, move it "
                "away: the run then goes on from the one before"
            ) from error
        self.trainer.version = gate_state["trained_batches"]
        if stream is not None:
            stream.gate.load_state_dict(gate_state, keep_in_flight=stream.gate.life > 0)
            requeue(queued)
        return self.trainer.version

    def save(self, version: int, stream: Stream | None) -> None:
        """Copy what a checkpoint holds, and start to write it; on every rank. Raises CheckpointError for the one before.

        The run waits for copies in memory and for the small files: ledger, queue, task buffer. A thread writes the rest.
        """

        def write(folder: Path) -> Finish:
            policy, is_main = self.trainer.policy, self.trainer.ranks.is_main
            model = policy.state.copy()
            # Rank 0 alone keeps and writes the exported weights; they are gathered over all ranks.
            exported = [(name, tensor.to("cpu", copy=True)) for name, tensor in policy.export() if is_main]
            if stream is not None:
                with stream.frozen():
                    write_stream_state(folder, stream.gate.state_dict(), stream.queued())
                # After the queue, so that the snapshot has every task whose proposal waits there. What it may have beyond
                # these are tasks of rollouts that were in flight, and that a resumed run drops.
                self.snapshot(folder / SNAPSHOT)
            if self.exact is not None:
                (folder / _EXACT).write_text(json.dumps(self.exact.state_dict()))

            def finish(group: dist.ProcessGroup | None) -> None:
                (folder / "model").mkdir(exist_ok=True)
                model.write(folder / "model", group)
                if is_main:
                    writer = HfWriter(folder / "hf")
                    for name, tensor in exported:
                        writer.add(name, tensor)
                    writer.finish(policy.model_dir, policy.dtype)

            return finish

        self.checkpoints.save(version, self.trainer.ranks, write)

    def wait(self) -> None:
        """Wait until the newest checkpoint is complete; raises CheckpointError if it could not be written."""
        self.checkpoints.wait()


def make_interrupted(run: RunBasics, status: dict[str, Any]) -> Callable[[], bool]:
    """Whether to stop: `status["stop"]` says why, and is set when `run.max_minutes` from now are over."""
    deadline = time.monotonic() + 60 * run.max_minutes if run.max_minutes else None

    def interrupted() -> bool:
        if deadline is not None and time.monotonic() > deadline and not status.get("stop"):
            status["stop"] = f"run.max_minutes = {run.max_minutes:g} is over"
        return bool(status.get("stop"))

    return interrupted


def make_hooks(
    config: Config,
    recorder: Recorder | None,
    save: Callable[[int], None],
    status: dict[str, Any],
    more: Callable[[], dict[str, float]] = dict,
    counted: float = 0.0,
    drain: Callable[[], object] = lambda: None,
) -> Hooks:
    """Hooks that record steps, obey `status["stop"]`, and end the run when its time is up.

    `more`: further numbers of a step, such as the task buffer's. `counted`: tokens generated up to the newest
    recorded step, where actors go on counting from there.
    """
    totals = {"tokens_generated": counted}
    mark = time.monotonic()

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

    return Hooks(make_interrupted(config.run, status), on_step, save, on_wait, drain)
