"""The process of one rollout actor, as a Ray actor."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from executor.cpus import pin
from executor.signals import ignore_signals
from launch.cluster.cpu import cpu_seconds
from launch.cluster.environment import prepare_part
from launch.config import Config
from launch.run.folder import RunFolder, log_to
from learner.stream.keys import ActorKeys

if TYPE_CHECKING:
    from launch.cluster.playing import Playing
    from launch.cluster.workload import Workload

_LOG = logging.getLogger(__name__)


class RolloutActor:
    """One rollout actor in a process of its own (`launch/cluster/playing.py`)."""

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
        self._playing: Playing | None = None

    async def pid(self) -> int:
        """The process id, for drills."""
        return os.getpid()

    async def cpu(self) -> dict[str, float]:
        """See `launch.cluster.cpu.cpu_seconds`."""
        return cpu_seconds()

    async def sandbox_pids(self) -> list[int]:
        """The process ids of the fork servers of its sandboxes, for drills."""
        return self._playing.sandbox_pids() if self._playing is not None else []

    async def checksums(self) -> tuple[int, dict[str, str]]:
        """(version, digests by tensor name) of the engine's weights; waits for a weight update that is under way."""
        assert self._playing is not None
        return await self._playing.checksums()

    async def run(self) -> tuple[int, dict[str, str]]:
        """Play until the learner sends `shutdown`.

        Raises EngineStartFailed for an engine that cannot start with these settings.

        Returns the version that the engine runs and, if `run.verify_weights` is set, digests of its weights.
        """
        prepare_part(self._config)
        from launch.cluster.playing import Playing
        from launch.cluster.workload import ActorPlace

        place = ActorPlace(self._folder, self._id, self._index, self._incarnation, self._log)
        self._playing = Playing(self._workload, self._config, place, self._endpoint, self._buffer, self._keys)
        return await self._playing.run()
