"""The process of one rollout actor, as a Ray actor."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from actors.buffer.remote import RemoteBuffer
from executor.signals import ignore_signals
from launch.cluster.engine_failure import explain
from launch.cluster.environment import prepare_part
from launch.config import Config
from launch.models import prepare
from launch.run.folder import RunFolder, log_to, work_log
from learner.stream.keys import ActorKeys

_LOG = logging.getLogger(__name__)


class RolloutActor:
    """One rollout actor: sandboxes, an engine, and the loop of `actors.rollout`."""

    def __init__(
        self,
        config: Config,
        folder: Path,
        index: int,
        incarnation: int,
        endpoint: str,
        buffer: Any,
        keys: ActorKeys | None,
    ) -> None:
        self._config = config
        self._id = f"rollout{index}"
        self._incarnation = incarnation
        self._endpoint = endpoint
        self._keys = keys
        self._buffer = buffer
        self._folder = RunFolder(folder.absolute())
        ignore_signals()
        self._log = log_to(self._folder, self._id, incarnation, config.run.log_level)
        self._engine: Any = None
        self._pool: Any = None

    async def pid(self) -> int:
        """The process id, for drills."""
        return os.getpid()

    async def sandbox_pids(self) -> list[int]:
        """The process ids of the fork servers of its sandboxes, for drills."""
        return [pid for pid in self._pool.pids if pid is not None] if self._pool is not None else []

    async def checksums(self) -> tuple[int, dict[str, str]]:
        """(version, digests by tensor name) of the engine's weights; waits for a weight update that is under way."""
        answer: tuple[int, dict[str, str]] = await self._engine.versioned_checksums()
        return answer

    async def run(self) -> tuple[int, dict[str, str]]:
        """Play until the learner sends `shutdown`.

        Raises EngineStartFailed for an engine that cannot start with these settings.

        Returns the version that the engine runs and, if `run.verify_weights` is set, digests of its weights.
        """
        # vLLM's sockets. On this machine the folder is within the run's scratch folder, by TMPDIR.
        with tempfile.TemporaryDirectory(prefix="azr-") as sockets:
            os.environ["VLLM_RPC_BASE_PATH"] = sockets
            prepare_part(self._config)
            return await self._run()

    async def _run(self) -> tuple[int, dict[str, str]]:
        from actors.concurrency import ConcurrencyController
        from actors.engine.async_engine import AsyncEngine
        from actors.environment import Environment
        from actors.heldout import Heldout
        from actors.rollout import Rollout
        from executor.judge import Judge
        from executor.pool import SandboxPool
        from learner.stream.client import StreamClient

        config = self._config
        pool = self._pool = SandboxPool(config.executor)
        _LOG.info("starting %d sandboxes", config.executor.workers)
        await pool.start()
        # Incarnation 0 of rollout0 has the run's own seed, as serial mode has.
        seed = config.run.seed + 7919 * self._incarnation + int(self._id.removeprefix("rollout"))
        self._engine = AsyncEngine(prepare(config.model.path), config.engine, seed=seed)
        try:
            await self._start_engine()
            client = StreamClient(
                self._endpoint,
                self._id,
                self._incarnation,
                config.actors.concurrency,
                self._keys,
                config.stream.learner_silent_s,
                config.stream.learner_timeout_s,
                on_event=_log,
            )
            try:
                record = work_log(self._folder, self._id, config.executor.record_work)
                environment = Environment(Judge(pool, config.executor, rules=config.selfplay.rules), record)
                heldout = Heldout(self._engine, environment, config.selfplay) if self._id == "rollout0" else None
                buffer = RemoteBuffer(self._buffer)
                adapt = config.actors.adapt
                concurrency = ConcurrencyController(config.actors.concurrency, adapt) if adapt.enabled else None
                sampled_by = seed if config.engine.seeded else None
                rollout = Rollout(
                    self._engine, environment, buffer, client, config.selfplay, heldout, concurrency, sampled_by
                )
                await rollout.run()
                _LOG.info("the learner has ended the run")
                return await self.checksums() if config.run.verify_weights else (-1, {})
            finally:
                client.close()
        finally:
            await self._engine.close()
            await pool.close()

    async def _start_engine(self) -> None:
        _LOG.info("starting the engine with %s", self._config.model.path)
        began, written = time.monotonic(), self._log.stat().st_size
        try:
            await self._engine.start()
        except Exception as error:
            raise explain(error, self._log, written) from error
        _LOG.info("the engine is ready after %.1f s", time.monotonic() - began)


def _log(name: str, **details: Any) -> None:
    _LOG.info("%s: %s", name, details)
