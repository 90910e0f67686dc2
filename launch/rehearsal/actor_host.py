"""A process with many rehearsed rollout actors, as a Ray actor."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import Any, Protocol

from executor.signals import ignore_signals
from launch.cluster.environment import prepare_part
from launch.cluster.workload import Workload
from launch.config import Config
from launch.rehearsal.receiver_process import ReceiverProcess
from launch.run.folder import RunFolder, log_to
from learner.stream.keys import ActorKeys

_LOG = logging.getLogger(__name__)


class ActorKilled(Exception):
    """An actor was killed that shares its process with others."""


class Sharing(Protocol):
    """The workload of actors that share a process."""

    def sharing(self, receivers: ReceiverProcess) -> Workload:
        """The workload with one process that receives weights for all of them."""


class ActorHost:
    """Plays rollout actors, each with its own connection, engine and place in the weight group."""

    def __init__(self, config: Config, folder: RunFolder, number: int, life: int) -> None:
        """`number`: of the process, for its log; `life`: how many processes of that number there were before."""
        ignore_signals()
        self._config = config
        self._folder = folder
        self._log = log_to(self._folder, f"actors{number}", life, config.run.log_level)
        self._playing: dict[str, Any] = {}
        """By key: the actor that plays (`launch.cluster.playing.Playing`)."""
        self._runs: dict[str, asyncio.Task[Any]] = {}
        self._killed: set[str] = set()
        self._context: Any = None
        self._receivers: ReceiverProcess | None = None
        self._starting = asyncio.Lock()

    async def pid(self, key: str) -> int:
        """The process id."""
        return os.getpid()

    async def sandbox_pids(self, key: str) -> list[int]:
        """The process ids of sandboxes: there are none."""
        return []

    async def cpu(self) -> dict[str, float]:
        """See `launch.cluster.cpu.cpu_seconds`."""
        from launch.cluster.cpu import cpu_seconds

        receivers = self._receivers.cpu_s() if self._receivers is not None else 0.0
        return cpu_seconds() | {"receivers": receivers}

    async def checksums(self, key: str) -> tuple[int, dict[str, str]]:
        """See `RolloutActor.checksums`."""
        answer: tuple[int, dict[str, str]] = await self._playing[key].checksums()
        return answer

    async def run(
        self,
        key: str,
        workload: Sharing,
        config: Config,
        index: int,
        incarnation: int,
        endpoint: str,
        buffer: Any,
        keys: ActorKeys | None,
    ) -> tuple[int, dict[str, str]]:
        """Play one actor to its end; see `RolloutActor.run`. Raises ActorKilled."""
        if self._context is None:
            import zmq

            prepare_part(config)
            self._context = zmq.Context()
            self._context.set(zmq.MAX_SOCKETS, 65_000)
        from launch.cluster.playing import Playing
        from launch.cluster.workload import ActorPlace

        actor_id = f"rollout{index}"
        link = self._folder.logs / f"{actor_id}.{incarnation}.log"  # where messages and a resume look for it
        if not link.is_symlink():
            link.symlink_to(self._log.name)
        receivers = await self._receiver_process()
        place = ActorPlace(self._folder, actor_id, index, incarnation, self._log)
        playing = self._playing[key] = Playing(
            workload.sharing(receivers), config, place, endpoint, buffer, keys, self._context
        )
        running = self._runs[key] = asyncio.ensure_future(playing.run())
        try:
            if key in self._killed:
                running.cancel()
            result: tuple[int, dict[str, str]] = await running
            return result
        except asyncio.CancelledError:
            raise ActorKilled(actor_id) from None
        finally:
            del self._playing[key], self._runs[key]

    async def kill(self, key: str) -> None:
        """End one actor at once. The learner hears nothing more of it, as of a process that is killed."""
        self._killed.add(key)
        if (running := self._runs.get(key)) is not None:
            running.cancel()

    async def _receiver_process(self) -> ReceiverProcess:
        """The process that receives weights for the actors of this one; started where none runs."""
        async with self._starting:
            if self._receivers is None or self._receivers.ended.is_set():
                self._receivers = await ReceiverProcess.start()
            return self._receivers
