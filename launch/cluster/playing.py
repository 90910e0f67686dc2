"""What one rollout actor does from its start to its end, in whatever process it is."""

from __future__ import annotations

import logging
from typing import Any

import zmq

from actors.buffer.remote import RemoteBuffer
from actors.concurrency import ConcurrencyController
from actors.rollout import Rollout
from launch.cluster.workload import ActorPlace, Workload
from launch.config import Config
from learner.stream.client import StreamClient
from learner.stream.keys import ActorKeys

_LOG = logging.getLogger(__name__)


class Playing:
    """One life of one rollout actor: an engine with its roles, and the loop of `actors.rollout`."""

    def __init__(
        self,
        workload: Workload,
        config: Config,
        place: ActorPlace,
        endpoint: str,
        buffer: Any,
        keys: ActorKeys | None,
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
    ) -> None:
        """`endpoint`: the learner's. `buffer`: Ray's handle of the task buffer. `context`: ZeroMQ's, where several
        actors of a process share one."""
        self._config = config
        self._place = place
        self._endpoint = endpoint
        self._buffer = buffer
        self._keys = keys
        self._context = context
        self._work = workload.actor(config, place)

    def sandbox_pids(self) -> list[int]:
        """See `ActorWork`."""
        return self._work.sandbox_pids()

    async def checksums(self) -> tuple[int, dict[str, str]]:
        """(version, digests by tensor name) of the engine's weights; waits for a weight update that is under way."""
        return await self._work.engine.versioned_checksums()

    async def run(self) -> tuple[int, dict[str, str]]:
        """See `launch.cluster.rollout_actor.RolloutActor.run`."""
        config, place, work = self._config, self._place, self._work
        try:
            await work.start()
            client = StreamClient(
                self._endpoint,
                place.actor_id,
                place.incarnation,
                config.actors.concurrency,
                self._keys,
                config.stream.learner_silent_s,
                config.stream.learner_timeout_s,
                on_event=_log,
                context=self._context,
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
                _LOG.info("%s: the learner has ended the run", place.actor_id)
                return await self.checksums() if config.run.verify_weights else (-1, {})
            finally:
                client.close()
        finally:
            await work.close()


def _log(name: str, **details: Any) -> None:
    _LOG.info("%s: %s", name, details)
