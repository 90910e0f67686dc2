"""The learner's main loop.

    consumes     complete batches from the stream: every trajectory granted against a slot of that batch
    gated by     `stream.next_batch`, which blocks until the batch is whole (time reported as wait_for_batch_s)
    unblocks     the actors: publishing version v opens the gate for batch v + max_staleness

Every learner rank runs this same loop. Rank 0 has the stream and decides; `ranks.share` tells the others.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from learner.ledger import describe_ledger
from learner.metrics.batch import describe_ages
from learner.phase import Phase
from learner.protocols import Learns, StepGivenUp
from learner.publisher import Publisher
from learner.ranks import Ranks
from learner.resident_memory import MemoryReading
from learner.schedule import CheckpointSchedule
from learner.settings import LearnerSettings
from learner.staleness import Gate
from learner.trajectory import Trajectory


class Stream(Protocol):
    """The loop's view of the stream: `learner.stream.server.StreamServer` over sockets, or serial mode's own."""

    gate: Gate

    def next_batch(self, timeout_s: float, interrupt: Callable[[], bool]) -> list[Trajectory] | None:
        """The next complete batch; None when interrupted, or when an actor waits for weights."""

    def queued(self) -> list[Trajectory]:
        """Trajectories that have arrived and wait."""

    def mark_trained(self, slots: Sequence[int]) -> None:
        """The step over these is done."""

    def mark_published(self, version: int) -> None:
        """Every engine has loaded `version`."""

    def frozen(self) -> AbstractContextManager[object]:
        """Nothing arrives and nothing is granted while held."""

    def stats(self) -> dict[str, float]:
        """The metrics that actors reported, combined over them (`learner.stream.reports`)."""


@dataclass(frozen=True)
class Hooks:
    """Callbacks of the loop, on rank 0 unless said otherwise."""

    interrupted: Callable[[], bool]
    """Whether to stop before the next batch."""
    on_step: Callable[[dict[str, float], Sequence[Trajectory]], None]
    """The metrics of a step and its batch."""
    save: Callable[[int], None]
    """Write a checkpoint of this version. On every rank."""
    describe: Callable[[Sequence[Trajectory]], dict[str, float]] = lambda batch: {}
    """Returns further metrics of a batch: those of its tasks, of which the learner knows nothing."""
    on_phase: Callable[[Phase, int | None], None] = lambda phase, step: None
    """The phase that the loop enters, and the step it works on, where it works on one."""
    drain: Callable[[], object] = lambda: None
    """Before the last checkpoint of a run that stops early: let what is in flight come in. On every rank."""
    unsaved: Callable[[], bool] = lambda: False
    """Whether anything has come in, or ended, since the newest checkpoint of this version."""
    gives_up_step: Callable[[], bool] = lambda: False
    """Whether to give up the step under way, which would end too late for a run that stops. On every rank."""
    published: Callable[[int], None] = lambda version: None
    """Every engine has loaded this version, and training has not gone on from it. On every rank."""


class Action(StrEnum):
    """The next action of all learner ranks."""

    TRAIN = "train"
    """Train on a batch, and publish the version that it makes."""
    PUBLISH = "publish"
    """Publish the present version again: an actor joined, and gets its weights before it plays."""
    STOP = "stop"
    """End the run."""


def learn(
    trainer: Learns,
    stream: Stream | None,
    publisher: Publisher,
    settings: LearnerSettings,
    hooks: Hooks,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Train until `settings.steps` or interrupted. `stream` is None on every rank but 0.

    `clock`: seconds, for checkpoints by time.
    """
    ranks, ledger = trainer.ranks, trainer.time
    memory = MemoryReading("memory/learner_mib")
    ledger.take()
    # Since the last recorded step: of a step also what was spent on publishing to newcomers before it.
    spent: dict[str, float] = defaultdict(float)
    _publish(publisher, trainer, spent)
    schedule = CheckpointSchedule(settings.checkpoint_every, settings.checkpoint_minutes, ranks, trainer.version, clock)
    stopped = False
    while trainer.version < settings.steps:
        with ledger.during("other"):
            hooks.published(trainer.version)
        waiting_since = time.monotonic()
        hooks.on_phase(Phase.WAITING_FOR_BATCH, None)
        with ledger.during("wait_for_batch"):
            action, batch = _decide(ranks, stream, settings, hooks)
        spent["wait_for_batch_s"] += time.monotonic() - waiting_since
        if action is Action.STOP:
            stopped = True
            break
        if action is Action.PUBLISH:
            _publish(publisher, trainer, spent)
            continue
        trained_at = trainer.version
        hooks.on_phase(Phase.TRAINING, trained_at + 1)
        try:
            metrics = trainer.train(batch, lambda: stream.queued() if stream else [], hooks.gives_up_step)
        except StepGivenUp:  # the batch is in the queue still
            stopped = True
            break
        if stream:
            with ledger.during("other"):
                slots = [trajectory.slot for trajectory in batch]
                metrics |= hooks.describe(batch) | describe_ages(batch, trained_at, stream.gate.arrivals(slots))
                stream.mark_trained(slots)
        hooks.on_phase(Phase.PUBLISHING, None)
        _publish(publisher, trainer, spent)
        if stream:
            with ledger.during("other"):
                stream.mark_published(trainer.version)
                metrics |= {"step": trainer.version, "version": trainer.version} | _describe_spent(spent)
                metrics |= _stream_metrics(stream) | memory.numbers()
            # What follows, of this step, is in the next one's row.
            metrics |= {f"learner_time/{part}_s": seconds for part, seconds in ledger.take().items()}
            hooks.on_phase(Phase.RECORDING, None)
            with ledger.during("recording"):
                hooks.on_step(metrics, batch)
        spent.clear()
        if schedule.due(trainer.version):
            schedule.mark_saved(trainer.version)
            hooks.on_phase(Phase.SAVING, None)
            with ledger.during("checkpoint"):
                hooks.save(trainer.version)
    if stopped:
        hooks.on_phase(Phase.DRAINING, None)
        hooks.drain()
    if ranks.share(lambda: schedule.saved != trainer.version or (stopped and hooks.unsaved())):
        hooks.on_phase(Phase.SAVING, None)
        hooks.save(trainer.version)


def _publish(publisher: Publisher, trainer: Learns, spent: dict[str, float]) -> None:
    """Publish, and add its seconds by phase, and its bytes, to `spent`; the seconds to the trainer's ledger, too."""
    phases = publisher.publish(trainer.version)
    for name, value in phases.items():
        spent[f"weights/{name}"] += value
    gather_s = phases.get("prepare_s", 0.0)
    trainer.time.add("connect", phases.get("connect_s", 0.0))
    trainer.time.add("gather", gather_s)
    trainer.time.add("send", phases.get("send_s", 0.0) - gather_s)
    trainer.time.add("wait_loaded", phases.get("wait_loaded_s", 0.0))


def _describe_spent(spent: Mapping[str, float]) -> dict[str, float]:
    """Return what was spent since the last step as metrics: of the bytes that went sparse, their share."""
    metrics = dict(spent)
    weights = metrics.pop("weights/weights_bytes", 0.0)
    sparse = metrics.pop("weights/sparse_bytes", 0.0)
    return metrics | ({"weights/sparse_share": sparse / weights} if weights else {})


def _decide(
    ranks: Ranks, stream: Stream | None, settings: LearnerSettings, hooks: Hooks
) -> tuple[Action, Sequence[Trajectory]]:
    """Wait for the next batch, on rank 0, and tell every rank what to do. Collective.

    Returns the action and the trajectories to train on, in the order of grants; none unless it is `TRAIN`.
    """
    batch: Sequence[Trajectory] = ()

    def decide() -> str:
        nonlocal batch
        assert stream is not None
        ready = None if hooks.interrupted() else stream.next_batch(settings.batch_timeout_s, hooks.interrupted)
        if ready is None:
            return Action.STOP if hooks.interrupted() else Action.PUBLISH
        if not ready:
            raise RuntimeError(
                "a batch came to nothing: every slot was returned, because the buffer has no task of the kinds that "
                "are solved, and no proposal was valid or trained on. Give the buffer tasks to start with "
                "(selfplay.seed_tasks, selfplay.seed_tasks_target), ask for more proposals of these kinds "
                "(learner.batch.propose), or train on them (selfplay.propose)"
            )
        batch = ready
        return Action.TRAIN

    action = Action(ranks.share(decide))
    return action, ranks.share_batch(lambda: batch) if action is Action.TRAIN else ()


def _stream_metrics(stream: Stream) -> dict[str, float]:
    with stream.frozen():
        ledger = stream.gate.ledger()
        bound = {"max_staleness": float(stream.gate.max_staleness)}
    return stream.stats() | describe_ledger(ledger) | bound
