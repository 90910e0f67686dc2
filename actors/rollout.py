"""The rollout actor's main loop.

    consumes     grants from the learner's stream, tasks from the buffer
    gated by     grants: nothing is sampled without a slot (time without one is reported as wait_for_policy_s)
    unblocks     the learner: every finished rollout goes out at once; new weights come in under running requests

Episodes run concurrently, as many as were granted; the engine batches their requests.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

from actors.buffer import Buffer
from actors.episodes import Identity, Player
from actors.generation import Engine
from actors.settings import SelfPlaySettings
from executor.judge import Judge
from executor.tasks import Kind
from learner.staleness import Grant
from learner.stream import StreamClient
from learner.weights import GroupSpec, manifest_from_json


@dataclass
class RolloutStats:
    """What travels with each heartbeat; counters since the actor started."""

    rollouts: int = 0
    episodes: int = 0
    failures: int = 0
    wait_for_policy_s: float = 0.0
    idle_since: float | None = field(default_factory=time.monotonic)

    def numbers(self) -> dict[str, float]:
        """As a flat map, the present idle spell included."""
        idle = time.monotonic() - self.idle_since if self.idle_since is not None else 0.0
        return {
            "rollouts": self.rollouts,
            "episodes": self.episodes,
            "failures": self.failures,
            "wait_for_policy_s": self.wait_for_policy_s + idle,
        }


class Rollout:
    """One actor: an engine, a judge and a stream client, playing what is granted."""

    def __init__(
        self, engine: Engine, judge: Judge, buffer: Buffer, client: StreamClient, settings: SelfPlaySettings
    ) -> None:
        self._engine = engine
        self._judge = judge
        self._buffer = buffer
        self._client = client
        self._settings = settings
        self._playing: set[asyncio.Task[None]] = set()
        self._updates: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.stats = RolloutStats()
        client.stats = lambda: self.stats.numbers() | engine.stats()

    async def run(self, connect_timeout_s: float = 300.0) -> None:
        """Play until the learner says shutdown."""
        version = await self._client.connect(connect_timeout_s)
        await self._engine.set_version(version)
        identity = Identity(self._client.run_id, self._client.actor_id, self._client.incarnation)
        player = Player(
            self._engine, self._judge, self._buffer, self._settings, identity, self._client.next_seq, seed=None
        )
        updating = asyncio.create_task(self._update_weights())
        try:
            async for message in self._client.messages():
                match message["type"]:
                    case "grant":
                        self._start(player, grant_from_message(message))
                    case "join" | "weights":
                        self._updates.put_nowait(message)
                    case "shutdown":
                        return
        finally:
            updating.cancel()
            for task in self._playing:
                task.cancel()
            await asyncio.gather(updating, *self._playing, return_exceptions=True)

    def _start(self, player: Player, grant: Grant) -> None:
        stats = self.stats
        if stats.idle_since is not None:
            stats.wait_for_policy_s += time.monotonic() - stats.idle_since
            stats.idle_since = None
        task = asyncio.create_task(self._play(player, grant))
        self._playing.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._playing.discard(task)
        if not self._playing:
            self.stats.idle_since = time.monotonic()

    async def _play(self, player: Player, grant: Grant) -> None:
        """One episode. A failure that says nothing about the model fails what is left of the grant, and is counted."""
        open_slots = set(grant.slots)

        async def emit(trajectory: Any) -> None:
            await self._client.send_trajectory(trajectory)
            open_slots.discard(trajectory.slot)
            self.stats.rollouts += 1

        async def give_back(slots: Any) -> None:
            open_slots.difference_update(slots)
            await self._client.send_returned(slots)

        try:
            await player.play(grant, emit, give_back)
            self.stats.episodes += 1
        except Exception as error:  # whatever it is, the learner has to know that these slots will not be filled
            self.stats.failures += 1
            await self._client.send_failed(sorted(open_slots), f"{type(error).__name__}: {error}")

    async def _update_weights(self) -> None:
        """Joins and broadcasts, one after the other, while episodes go on."""
        while True:
            message = await self._updates.get()
            version = int(message.get("version", -1))
            try:
                if message["type"] == "join":
                    await self._engine.join(GroupSpec.from_json(message["spec"]), int(message["rank"]))
                    continue
                timings = await self._engine.update_weights(manifest_from_json(message["manifest"]), version)
                await self._client.send({"type": "loaded", "version": version, "timings": timings})
            except Exception as error:  # the learner decides what a failed update means
                await self._client.send(
                    {"type": "load_failed", "version": version, "why": f"{type(error).__name__}: {error}"}
                )


def grant_from_message(message: dict[str, Any]) -> Grant:
    """The inverse of `learner.stream.grant_to_message`."""
    return Grant(
        episode=int(message["episode"]),
        kind=Kind(message["kind"]),
        batch=int(message["batch"]),
        propose=tuple(message["propose"]),
        solve=tuple(message["solve"]),
    )
