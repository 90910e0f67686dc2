"""The process of one learner rank, as a Ray actor."""

from __future__ import annotations

import logging
import os
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import zmq

from executor.cpus import pin
from executor.signals import ignore_signals
from launch.addresses import AUTO_HOST, host_of
from launch.cluster.buffer_actor import ask_buffer
from launch.cluster.cpu import cpu_seconds
from launch.cluster.environment import own_address, prepare_part
from launch.cluster.meeting import Meeting
from launch.config import Config
from launch.recipe import ConfigError
from launch.run.durations import read_durations
from launch.run.folder import RunFolder, checkpoint_event, log_to
from launch.run.recorder import Recorder
from launch.run.status import Progress, RunStatus
from learner.lineage import label_of
from learner.phase import Phase
from learner.stream.keys import LearnerKeys

if TYPE_CHECKING:
    from launch.cluster.workload import Workload

_LOG = logging.getLogger(__name__)

DIGESTS = 8
"""Number of consecutive versions to take digests of after a verify request: engines may already run a newer one."""


class LearnerActor:
    """One learner rank. Rank 0 also owns the stream, the gate with its ledger, and the run's files."""

    def __init__(
        self,
        workload: Workload,
        config: Config,
        folder: RunFolder,
        rank: int,
        life: int,
        buffer: Any,
        keys: LearnerKeys | None,
        first_log: int = 0,
    ) -> None:
        """`life`: how often the learner was restarted before. `keys`: of the stream; None: it is not encrypted.

        `first_log`: the number of the log of life 0.
        """
        self._workload = workload
        self._config = config
        self._folder = folder
        pin(config.learner.cpus)
        ignore_signals()
        log_to(self._folder, f"learner{rank}", first_log + life, config.run.log_level)
        self._rank = rank
        self._life = life
        self._keys = keys
        self._buffer = buffer
        self._meeting = Meeting()
        self._progress = Progress(read_durations(self._folder))
        self._stream: Any = None
        self._bound = threading.Event()
        self._digests: dict[int, dict[str, str]] = {}
        self._digests_wanted = 0
        self._generated: tuple[float, float, float] | None = None
        """(total, rate, time) of the last look at the tokens generated."""
        self._checksums: dict[str, str] = {}

    def rendezvous(self) -> str:
        """Serve the store where the ranks meet; returns its address, `tcp://host:port`. Rank 0 only."""
        return self._meeting.serve(_own_host(self._config))

    def listening(self) -> str:
        """Wait until the stream is bound, and return its endpoint. Rank 0 only."""
        self._bound.wait()
        return str(self._stream.endpoint)

    def run(
        self, store: str | None, former: str | None, resume: bool, expected: int, ends_at: float | None = None
    ) -> None:
        """Train from start, or from the last checkpoint, to the end.

        `store`: address where several ranks meet. `former`: the stream's endpoint before a restart, which is bound
        again if it is on this machine. `expected`: number of rollout actors to wait for, up to
        `actors.start_timeout_s`. `ends_at`: Unix time at which the run stops by itself, as it was before a restart.
        """
        self._progress.ends_at = ends_at
        try:
            prepare_part(self._config)
            self._run(store, former, resume, expected)
        except Exception:
            _LOG.exception("the learner failed")  # the driver shows one line of it
            raise

    def _run(self, store: str | None, former: str | None, resume: bool, expected: int) -> None:
        import torch

        from launch.run.attempt import adopt
        from launch.run.checkpoints import Saved
        from launch.run.gate import make_gate
        from launch.run.hooks import make_hooks
        from launch.run.measurements import await_last, last_is_due, reported
        from learner.checkpoint import Checkpoints
        from learner.loop import learn
        from learner.publisher import GroupPublisher
        from learner.stream.server import StreamServer
        from learner.weights.manifest import checksum
        from learner.weights.transfer import WeightSender

        config = self._config
        stream: StreamServer | None = None
        if self._rank == 0:
            # It binds its port now and accepts actors later, in `stream.open`, when the gate is that of the checkpoint.
            try:
                stream = self._stream = StreamServer(
                    make_gate(config, life=self._life),
                    run_id=config.run.name,
                    bind=stream_endpoint(config, former),
                    dead_after_s=config.stream.actor_silent_s,
                    keys=self._keys,
                    open_now=False,
                )
            except zmq.ZMQError as error:
                endpoint = stream_endpoint(config, former)
                raise ConfigError(
                    f"the learner cannot listen at {endpoint}: {error}. See stream.host and stream.port"
                ) from error
            self._bound.set()
            _LOG.info("the stream listens at %s", stream.endpoint)
        meeting = self._meeting.store(store, config.learner.batch_timeout_s)
        work = self._workload.learner(config, self._rank, meeting)
        trainer = work.trainer
        checkpoints = Checkpoints(
            self._folder.checkpoints,
            config.learner.keep_checkpoints,
            checkpoint_event(self._folder, self._progress.measured.checkpoint),
            self._folder.check_owner,
        )
        saved = Saved(
            checkpoints,
            trainer,
            lambda path: ask_buffer(self._buffer, "snapshot", path),
            hurried=lambda: self._progress.is_hurried() and trainer.version < config.learner.steps,
        )
        step = saved.resume(stream, stream.requeue if stream else lambda queued: None) if resume else 0
        _LOG.info("the learner is ready, with %d CPU threads, after step %d", torch.get_num_threads(), step)
        trainer.life = trainer.ranks.share(lambda: stream.gate.life_id if stream is not None else 0)
        trainer.ranks.barrier()  # every rank has loaded: the run goes on with these settings
        recorder = sender = None
        if stream is not None:
            if config.learner.loss.supervised:
                work.supervise(lambda count, seed: ask_buffer(self._buffer, "labelled", count, seed))
            recorder = Recorder(
                self._folder,
                work.tokenizer,
                config.run.record_trajectories,
                step,
                went_on=self._life > 0,
            )
            adopt(self._folder)
            stream.restore_reports(recorder.totals.reports, recorder.totals.actors_live)
            stream.open(recorder.event)
            host = host_of(stream.endpoint)  # reachable for every actor, as the stream is
            sender = WeightSender(
                trainer.policy.device,
                host=host,
                timeout_s=config.learner.sync_timeout_s,
                delta=config.learner.weights_delta,
            )
        publisher = GroupPublisher(trainer.policy, trainer.ranks, stream, sender, config.engine.tensor_parallel)
        hooks = make_hooks(
            config,
            recorder,
            lambda version: saved.save(version, stream),
            self._progress,
            lambda: dict(ask_buffer(self._buffer, "counts")),
            reports=lambda: stream.reports_state() if stream is not None else {},
            drain=self._drain,
            unsaved=lambda: saved.unsaved(stream),
        )
        hooks = replace(hooks, published=lambda version: self._published(version, trainer))
        try:
            if stream is not None:
                self._progress.enter(Phase.WAITING_FOR_ACTORS)
                stream.wait_for_members(expected, config.actors.start_timeout_s, hooks.interrupted)
            learn(trainer, stream, publisher, config.learner, hooks)
            saved.wait()
            if config.run.verify_weights:  # collective: before rank 0 waits alone
                self._checksums = checksum(trainer.policy.export())
            if stream is not None and recorder is not None:
                if last_is_due(config, self._folder, self._progress, trainer.version):
                    label, wait_s = label_of(trainer.version, trainer.life), config.selfplay.heldout_wait_s
                    recorder.measured(await_last(stream, trainer.version, label, wait_s, self._progress))
                else:  # it may have been measured since the last step was recorded
                    recorder.measured(reported(stream, trainer.version))
            self._progress.enter(Phase.DONE)
            _LOG.info(
                "the loop has ended after step %d%s",
                trainer.version,
                f": {why}" if (why := self._progress.stop) else "",
            )
            if stream is not None:
                # Only after success: `close` tells the actors to stop, but they outlive a learner that is restarted.
                stream.close()
        finally:
            publisher.close()
            if recorder is not None:
                recorder.close()

    def _drain(self) -> None:
        """Let what is in flight come in, for `stream.drain_s` or as long as a stop has time for it."""
        if self._stream is not None:
            self._stream.drain(self._config.stream.drain_s, self._progress.left_s)

    def _published(self, version: int, trainer: Any) -> None:
        """Take digests of the published weights, if they were asked for, before training changes them.

        On every rank.
        """
        label = label_of(version, trainer.life)
        if trainer.ranks.share(lambda: self._digests_wanted > 0 and label not in self._digests):
            from learner.weights.manifest import checksum

            digests = checksum(trainer.policy.export())  # collective
            self._digests_wanted -= 1
            # Replaced in one assignment, because `digests` runs on another thread.
            self._digests = dict([*self._digests.items(), (label, digests)][-DIGESTS:])

    def take_digests(self) -> None:
        """Take digests of the weights of the next `DIGESTS` publications. Rank 0 only."""
        self._digests_wanted = DIGESTS

    def digests(self) -> dict[int, dict[str, str]]:
        """The newest digests that were taken: version's label -> (tensor's name -> digest)."""
        return self._digests

    def status(self) -> RunStatus:
        """The state of the run. Ranks other than 0 leave the fields of the stream empty."""
        progress = self._progress
        status = RunStatus(**progress.fields())
        stream = self._stream
        if stream is None:
            return status
        from learner.ledger import totals

        with stream.frozen():
            live = stream.stats()
            members = stream.members()
            return replace(
                status,
                live=live,
                ledger=totals(stream.gate.ledger()),
                # Costs a look at every slot, so it is filled only when the wait is long enough to be reported.
                waiting_for=stream.gate.waiting_for() if status.phase_s > self._config.supervision.watchdog_s else "",
                members=tuple(member.holder.actor_id for member in members),
                loaded=tuple(member.holder.actor_id for member in members if member.loaded_version >= 0),
                generate_tokens_per_s=self._generating(live.get("tokens_generated", 0.0)),
            )

    def _generating(self, tokens: float) -> float:
        """Tokens generated per second over the last 2 s; `tokens`: generated so far."""
        now = time.monotonic()
        if self._generated is None:  # what an earlier life of the learner saw is in the total, and in no rate
            self._generated = (tokens, 0.0, now)
        total, rate, since = self._generated
        if now - since > 2.0:
            rate = (tokens - total) / (now - since)
            self._generated = (tokens, rate, now)
        return rate

    def lost(self, actor_id: str, incarnation: int) -> None:
        """Declare an actor lost whose process ended, without waiting for its heartbeats to stay away."""
        for member in self._stream.members() if self._stream is not None else ():
            if member.holder == (actor_id, incarnation):
                self._stream.lose(member, "its process ended")

    def retire(self, actor_id: str) -> None:
        """Grant nothing more to this actor, and tell it to stop when it holds no slots."""
        if self._stream is not None:
            self._stream.retire(actor_id)

    def limit_staleness(self, max_staleness: int) -> None:
        """Change the bound of the ages while the run goes on. Rank 0 only; for benchmarks."""
        self._stream.limit_staleness(max_staleness)

    def pid(self) -> int:
        """The process id, for drills."""
        return os.getpid()

    def cpu(self) -> dict[str, float]:
        """See `launch.cluster.cpu.cpu_seconds`; and by phase, those of the thread that trains."""
        return cpu_seconds() | {phase.value: seconds for phase, seconds in self._progress.cpu_s.items()}

    def stop(self, why: str, save_in_s: float | None) -> None:
        """Stop before the next batch, and save; see `Progress.ask_to_stop`."""
        self._progress.ask_to_stop(why, save_in_s)
        if self._stream is not None:
            self._stream.poke()

    def result(self) -> tuple[Any, str, int, dict[str, str]]:
        """(final ledger, reason for an early stop or "", final version, digests of its weights with
        `run.verify_weights`)."""
        gate = self._stream.gate
        return gate.ledger(), self._progress.stop, label_of(gate.version, gate.life_id), self._checksums


def stream_endpoint(config: Config, former: str | None) -> str:
    """The endpoint that the stream binds to on this machine, `tcp://host:port`; port 0 is any free one.

    `former`: the endpoint before a restart. It is taken again if it is on this machine and `stream.port` is 0.
    """
    host, port = _own_host(config), config.stream.port
    return former if former and not port and host_of(former) == host else f"tcp://{host}:{port}"


def _own_host(config: Config) -> str:
    """The address at which the run's other machines reach this one."""
    host = config.stream_host
    return host if host != AUTO_HOST else own_address()
