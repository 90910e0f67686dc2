"""Both ends of the stream for tests: a small batch, trajectories that fit it, and an honest actor."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np

from learner.lineage import label_of
from learner.settings import BatchSettings
from learner.stream.client import StreamClient
from learner.stream.server import StreamServer
from learner.stream.wire import pack
from learner.trajectory import Cell, Role, Status, Trajectory, VersionSpan, encode

DEADLINE_S = 60.0
BATCH = BatchSettings(propose={"deduction": 2}, solve={"deduction": 2})


def make(slot: int, role: Role = Role.PROPOSE, **changes: Any) -> Trajectory:
    """A sound trajectory of actor `a` for a slot of `BATCH`; the client numbers it."""
    fields: dict[str, Any] = {
        "run_id": "run",
        "actor_id": "a",
        "incarnation": 0,
        "slot": slot,
        "episode_id": "1",
        "cell": Cell("deduction", role),
        "prompt_ids": np.array([1, 2, 3], np.int32),
        "response_ids": np.array([4, 5], np.int32),
        "logprobs": np.array([-0.5, -1.5], np.float32),
        "versions": (VersionSpan(0, 0, 1), VersionSpan(1, 1, 2)),
        "reward": 0.5,
        "reward_parts": {"valid": 1.0},
        "status": Status.STOPPED,
        "outcome": "valid",
        "timings": {"generate_s": 0.1},
    }
    return Trajectory(**(fields | changes))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.01)


async def load(server: StreamServer, client: StreamClient, version: int = 0) -> None:
    """Say that the weights are loaded, as an engine does after a broadcast."""
    await client.send_loaded(label_of(version, server.gate.life_id), {})
    await until(lambda: all(m.loaded_version == version for m in server.members()))
    server.mark_loaded()


async def take(client: StreamClient, kind: str, count: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    async with asyncio.timeout(DEADLINE_S):
        async for message in client.messages():
            if message["type"] == kind:
                found.append(message)
            if len(found) == count:
                break
    return found


def run(server: StreamServer, story: Callable[[StreamClient], Awaitable[None]]) -> None:
    async def main() -> None:
        client = StreamClient(server.endpoint, "a", 0, capacity=100)
        try:
            assert await client.connect(DEADLINE_S) == 0
            await story(client)
        finally:
            client.close()

    asyncio.run(main())


async def answer(client: StreamClient, grants: Sequence[dict[str, Any]]) -> None:
    """A trajectory for each slot."""
    for grant in grants:
        for role, slots in ((Role.PROPOSE, grant["propose"]), (Role.SOLVE, grant["solve"])):
            for slot in slots:
                await client.send_trajectory(make(slot, role, actor_id=client.actor_id, incarnation=client.incarnation))


async def play(client: StreamClient) -> None:
    """An honest actor: answers what it is granted until it is told to stop."""
    async for message in client.messages():
        if message["type"] == "grant":
            await answer(client, [message])
        elif message["type"] == "weights":
            await client.send_loaded(message["version"], {})
        elif message["type"] == "shutdown":
            return


async def settled(client: StreamClient) -> None:
    """Listen until nothing is unacknowledged."""
    listening = asyncio.create_task(take(client, "shutdown", 1))
    try:
        await until(lambda: client.unacknowledged == 0 or listening.done())
    finally:
        listening.cancel()


def on_wire(slot: int, seq: int, role: Role = Role.PROPOSE, **changes: Any) -> list[bytes]:
    """The five frames of a trajectory, as a client would send them."""
    trajectory = make(slot, role, **changes)
    return [pack({"type": "trajectory", "seq": seq}), *(bytes(frame) for frame in encode(trajectory))]


def hello(actor_id: str, incarnation: int = 0, **changes: Any) -> dict[str, Any]:
    """A greeting, as a client would say it."""
    fields = {"actor_id": actor_id, "incarnation": incarnation, "capacity": 100, "slots": b"", "floor": 1}
    return {"type": "hello", **fields, "session": 0, "taken": 0} | changes
