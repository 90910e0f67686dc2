"""The rollout actor on a real stream: what the learner cancels is not played on, and the rest is."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

import actors.rollout
from actors.rollout import Rollout
from learner.staleness import Gate, Grant, conserved, totals
from learner.stream import StreamClient, StreamServer
from learner.trajectory import Role
from tests.unit.learner.streaming import BATCH, DEADLINE_S, make, until


class Engine:
    """As far as the loop needs one."""

    async def set_version(self, version: int) -> None:
        pass

    async def update_weights(self, manifest: Any, version: int) -> dict[str, float]:
        return {"load_s": 0.0}

    def stats(self) -> dict[str, float]:
        return {}


class Player:
    """Plays each episode once it is let go; notes which were cancelled."""

    go: asyncio.Event
    cancelled: list[int]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def counts(self) -> dict[str, float]:
        return {}

    async def play(self, grant: Grant, emit: Any, give_back: Any) -> None:
        try:
            await Player.go.wait()
        except asyncio.CancelledError:
            Player.cancelled.append(grant.episode)
            raise
        for slot in grant.propose:
            await emit(make(slot))
        for slot in grant.solve:
            await emit(make(slot, Role.SOLVE))


async def no_seeding(*args: Any) -> int:
    return 0


def test_what_the_learner_cancels_is_not_played_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actors.rollout, "Player", Player)
    monkeypatch.setattr(actors.rollout, "seed", no_seeding)
    server = StreamServer(Gate(BATCH, 1, solutions=1), "run")

    async def main() -> None:
        Player.go, Player.cancelled = asyncio.Event(), []
        client = StreamClient(server.endpoint, "a", 0, capacity=100)
        rollout = Rollout(Engine(), None, None, client, SimpleNamespace())  # type: ignore[arg-type]
        running = asyncio.create_task(rollout.run(DEADLINE_S))

        async def publish() -> None:
            await until(lambda: bool(server.members()))
            members = server.members()
            server.send(members[0], {"type": "weights", "version": 0, "manifest": []})
            assert await asyncio.to_thread(server.wait_until_loaded, members, 0, DEADLINE_S) == []
            server.mark_loaded()

        try:
            await publish()
            await until(lambda: len(client.held) == 8)
            server.lose(server.members()[0], "a test")  # it comes back, and none of its slots counts any more
            await until(lambda: len(Player.cancelled) == 4)
            await publish()
            await until(lambda: len(client.held) == 8)
            Player.go.set()
            await until(lambda: len(server.queued()) == 8)
            await asyncio.to_thread(server.close)
            await asyncio.wait_for(running, DEADLINE_S)
        finally:
            running.cancel()
            client.close()

    try:
        asyncio.run(main())
    finally:
        server.close()
    sums = totals(server.gate.ledger())
    assert (sums["dropped"], sums["queued"], server.gate.late) == (8, 8, 0)
    assert conserved(server.gate.ledger())
