"""The process of one rollout actor, as a Ray actor."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from executor.cpus import pin
from executor.signals import ignore_signals
from launch.cluster.environment import prepare_part
from launch.config import Config
from launch.run.folder import RunFolder, log_to
from learner.stream.keys import ActorKeys

if TYPE_CHECKING:
    from launch.cluster.workload import ActorWork, Workload

_LOG = logging.getLogger(__name__)


class RolloutActor:
    """One rollout actor: an engine with its roles, and the loop of `actors.rollout`."""

    def __init__(
        self,
        workload: Workload,
        config: Config,
        folder: RunFolder,
        index: int,
        incarnation: int,
        endpoint: str,
        buffer: Any,
        keys: ActorKeys | None,
    ) -> None:
        self._workload = workload
        self._config = config
        self._index = index
        self._id = f"rollout{index}"
        self._incarnation = incarnation
        self._endpoint = endpoint
        self._keys = keys
        self._buffer = buffer
        self._folder = folder
        pin(config.actors.cpus)  # the engine's processes and the sandboxes inherit it
        ignore_signals()
        self._log = log_to(self._folder, self._id, incarnation, config.run.log_level)
        self._work: ActorWork | None = None

    async def pid(self) -> int:
        """The process id, for drills."""
        return os.getpid()

    async def sandbox_pids(self) -> list[int]:
        """The process ids of the fork servers of its sandboxes, for drills."""
        return self._work.sandbox_pids() if self._work is not None else []

    async def checksums(self) -> tuple[int, dict[str, str]]:
        """(version, digests by tensor name) of the engine's weights; waits for a weight update that is under way."""
        assert self._work is not None
        return await self._work.engine.versioned_checksums()

    async def run(self) -> tuple[int, dict[str, str]]:
        """Play until the learner sends `shutdown`.

        Raises EngineStartFailed for an engine that cannot start with these settings.

        Returns the version that the engine runs and, if `run.verify_weights` is set, digests of its weights.
        """
        prepare_part(self._config)
        from actors.buffer.remote import RemoteBuffer
        from actors.concurrency import ConcurrencyController
        from actors.rollout import Rollout
        from launch.cluster.workload import ActorPlace
        from learner.stream.client import StreamClient

        config = self._config
        place = ActorPlace(self._folder, self._id, self._index, self._incarnation, self._log)
        work = self._work = self._workload.actor(config, place)
        try:
            await work.start()
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
                buffer = RemoteBuffer(self._buffer)
                adapt = config.actors.adapt
                concurrency = ConcurrencyController(config.actors.concurrency, adapt) if adapt.enabled else None
                sampled_by = place.seed(config.run.seed) if config.engine.seeded else None
                rollout = Rollout(
                    work.engine,
                    work.roles(buffer),
                    buffer,
                    client,
                    config.selfplay,
                    work.heldout,
                    concurrency,
                    sampled_by,
                    tokens=work.tokens,
                    time_ledger=work.time_ledger,
                )
                await rollout.run()
                _LOG.info("the learner has ended the run")
                return await self.checksums() if config.run.verify_weights else (-1, {})
            finally:
                client.close()
        finally:
            await work.close()


def _log(name: str, **details: Any) -> None:
    _LOG.info("%s: %s", name, details)
