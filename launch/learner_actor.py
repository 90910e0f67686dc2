"""One rank of the learner, as a Ray actor."""

from __future__ import annotations

import os
import time
import traceback
from pathlib import Path
from typing import Any

from launch.buffer_actor import ask_buffer
from launch.config import Config
from launch.models import prepare
from launch.recorder import Recorder, RunFolder, log_to
from learner.keys import LearnerKeys

LOOPBACK = "127.0.0.1"
WAITING_FOR_ACTORS = "waiting for rollout actors"


class LearnerActor:
    """One learner rank. Rank 0 also has the stream, the ledger and the run's files."""

    def __init__(
        self,
        config: Config,
        folder: Path,
        rank: int,
        attempt: int,
        store: str | None,
        buffer: Any,
        keys: LearnerKeys | None,
    ) -> None:
        """`attempt`: how often the learner was started again. `store`: where several ranks meet, `tcp://host:port`. `keys`: of
        the stream, where it is encrypted."""
        self._config = config
        self._folder = RunFolder(folder.absolute())
        log_to(self._folder, f"learner{rank}", attempt)
        self._rank = rank
        self._attempt = attempt
        self._keys = keys
        self._store = store
        self._buffer = buffer
        self._status: dict[str, Any] = {"phase": "starting", "phase_since": time.monotonic()}
        self._stream: Any = None
        self._generated = (0.0, 0.0, time.monotonic())
        self._checksums: dict[str, str] = {}

    def run(self, endpoint: str, resume: bool, expected: int) -> None:
        """The learner's whole life.

        `endpoint`: of the stream. `expected`: rollout actors to wait for, until `actors.start_timeout_s`, before it begins.
        """
        try:
            self._run(endpoint, resume, expected)
        except Exception:
            traceback.print_exc()  # into this process's log; the driver shows one line of it
            raise

    def _run(self, endpoint: str, resume: bool, expected: int) -> None:
        from transformers import AutoTokenizer

        from launch.assemble import Saved, make_gate, make_hooks, make_trainer
        from learner.checkpoint import Checkpoints
        from learner.loop import learn
        from learner.publisher import GroupPublisher
        from learner.stream import StreamServer
        from learner.weights import WeightSender, checksum

        config = self._config
        stream: StreamServer | None = None
        if self._rank == 0:
            # Its port is taken at once. Actors are greeted when the gate is that of the checkpoint: `stream.open`.
            stream = self._stream = StreamServer(
                make_gate(config, life=self._attempt),
                run_id=config.run.name,
                bind=endpoint,
                dead_after_s=config.stream.actor_silent_s,
                keys=self._keys,
                open_now=False,
            )
        model_dir = prepare(config.model.path)
        trainer = make_trainer(config, model_dir, self._rank, self._store)
        checkpoints = Checkpoints(self._folder.checkpoints, config.learner.keep_checkpoints)
        saved = Saved(checkpoints, trainer, lambda path: ask_buffer(self._buffer, "snapshot", path))
        step = saved.resume(stream, stream.requeue if stream else lambda queued: None) if resume else 0
        recorder = sender = None
        if stream is not None:
            recorder = Recorder(
                self._folder, AutoTokenizer.from_pretrained(str(model_dir)), config.run.record_trajectories, step
            )
            stream.on_event = recorder.event
            stream.open()
            sender = WeightSender(trainer.policy.device, host=LOOPBACK, timeout_s=config.learner.sync_timeout_s)
        publisher = GroupPublisher(trainer.policy, trainer.ranks, stream, sender, config.engine.tensor_parallel)
        hooks = make_hooks(
            config,
            recorder,
            lambda version: saved.save(version, stream),
            self._status,
            lambda: dict(ask_buffer(self._buffer, "metrics")),
            drain=lambda: stream.drain(config.stream.drain_s) if stream is not None else None,
        )
        try:
            if stream is not None:
                hooks.on_wait(WAITING_FOR_ACTORS)
                stream.wait_for_members(expected, config.actors.start_timeout_s, hooks.interrupted)
            learn(trainer, stream, publisher, config.learner, hooks)
            saved.wait()
            hooks.on_wait("done")
            if config.run.verify_weights:
                self._checksums = checksum(trainer.policy.export())
        finally:
            if stream is not None:
                stream.close()
            publisher.close()
            if recorder is not None:
                recorder.close()

    def status(self) -> dict[str, Any]:
        """For the console: phase, last numbers, what actors report, the ledger."""
        status = {key: value for key, value in self._status.items() if key != "phase_since"}
        status["phase_s"] = time.monotonic() - self._status["phase_since"]
        if self._stream is not None:
            from learner.staleness import totals

            with self._stream.frozen():
                status["live"] = self._stream.stats()
                status["ledger"] = totals(self._stream.gate.ledger())
                if status["phase_s"] > self._config.run.watchdog_s:  # it looks at every slot
                    status["waiting_for"] = self._stream.gate.waiting_for()
                status["members"] = [member.holder.actor_id for member in self._stream.members()]
            total, rate, since = self._generated
            now, tokens = time.monotonic(), status["live"].get("tokens_generated", 0.0)
            if now - since > 2.0:
                rate = max(0.0, tokens - total) / (now - since)
                self._generated = (tokens, rate, now)
            status["generate_tokens_per_s"] = rate
        return status

    def lost(self, actor_id: str, incarnation: int) -> None:
        """The supervisor saw this actor die: nothing has to wait for its heartbeat to fail."""
        for member in self._stream.members():
            if member.holder == (actor_id, incarnation):
                self._stream.lose(member, "its process ended")

    def retire(self, actor_id: str) -> None:
        """This actor is to leave in good order: nothing more is granted to it."""
        self._stream.retire(actor_id)

    def pid(self) -> int:
        """This process, for drills."""
        return os.getpid()

    def stop(self, why: str) -> None:
        """Stop before the next batch, and save."""
        self._status["stop"] = why
        if self._stream is not None:
            self._stream.poke()

    def result(self) -> tuple[Any, str, dict[str, str]]:
        """The final ledger, why the run stopped early, and digests of the final weights (`run.verify_weights`)."""
        return self._stream.gate.ledger(), str(self._status.get("stop") or ""), self._checksums
