"""The stream when something breaks: connections that are cut, messages that are lost, ends that restart or fall
silent."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from learner.events import OnEvent, ignore_event
from learner.ledger import conserved, totals
from learner.metrics.batch import describe_ages
from learner.places import Holder
from learner.staleness import Gate
from learner.stream.client import LearnerLost, StreamClient
from learner.stream.member import Member
from learner.stream.server import StreamServer
from learner.trajectory import Role, Trajectory, VersionSpan, dumps, loads
from tests.unit.learner.stream.streaming import BATCH, DEADLINE_S, answer, load, make, play, run, settled, take, until


@pytest.fixture
def server() -> Iterator[StreamServer]:
    server = StreamServer(Gate(BATCH, 1, solutions=1), "run")
    yield server
    server.close()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("learner.stream.wire.RESEND_AFTER_S", 0.3)
    monkeypatch.setattr("learner.stream.wire.HEARTBEAT_S", 0.1)


class Proxy:
    """A TCP port that leads to the server, until it is cut."""

    def __init__(self, endpoint: str) -> None:
        self._host, port = endpoint.removeprefix("tcp://").split(":")
        self._to = int(port)
        self._writers: list[asyncio.StreamWriter] = []
        self.port = 0
        self.carried = 0

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, self._host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        """Break every connection, with what is on the way, and refuse new ones."""
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            there_reader, there_writer = await asyncio.open_connection(self._host, self._to)
            self._writers += [writer, there_writer]
            await asyncio.gather(self._carry(reader, there_writer), self._carry(there_reader, writer))

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                self.carried += len(data)
                writer.write(data)
                await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def through_proxy(
    server: StreamServer, on_event: OnEvent = ignore_event
) -> AsyncIterator[tuple[Proxy, StreamClient]]:
    proxy = Proxy(server.endpoint)
    await proxy.open()
    client = StreamClient(
        f"tcp://127.0.0.1:{proxy.port}", "a", 0, capacity=100, learner_silent_s=0.5, on_event=on_event
    )
    try:
        await client.connect(DEADLINE_S)
        yield proxy, client
    finally:
        client.close()
        await proxy.cut()


async def bring_to(server: StreamServer, version: int) -> list[Member]:
    """As a publisher does."""
    members = server.members()
    server.expect_load(members)
    for member in members:
        server.send(member, {"type": "weights", "version": version})
    return await asyncio.to_thread(server.wait_until_loaded, members, version, DEADLINE_S)


def test_connections_that_are_cut_lose_and_repeat_nothing(server: StreamServer) -> None:
    """Ten batches, with the connection cut while each of them is under way."""
    events: list[str] = []

    async def main() -> None:
        async with through_proxy(server, lambda name, **details: events.append(name)) as (proxy, client):
            playing = asyncio.create_task(play(client))
            assert await bring_to(server, 0) == []
            server.mark_loaded()
            seen: set[int] = set()
            for version in range(1, 11):
                batch = await asyncio.to_thread(server.next_batch, DEADLINE_S)
                assert batch is not None
                slots = [t.slot for t in batch]
                assert len(slots) == 4 and not seen.intersection(slots)
                seen.update(slots)
                server.mark_trained(slots)
                await proxy.cut()
                await proxy.open()
                assert await bring_to(server, version) == []
                server.mark_published(version)
            playing.cancel()
            assert client.counts["reconnects"] >= 1 or server.counts["resent"] >= 1

    asyncio.run(main())
    assert server.counts["lost"] == 0
    assert server.gate.late == 0
    sums = totals(server.gate.ledger())
    assert (sums["trained"], sums["dropped"], sums["returned"]) == (40, 0, 0)
    assert conserved(server.gate.ledger())


def test_control_messages_that_are_lost_are_sent_again_in_order(server: StreamServer) -> None:
    async def story(client: StreamClient) -> None:
        await load(server, client)
        grants = await take(client, "grant", 4)
        (member,) = server.members()
        lost, server._socket.post = server._socket.post, lambda identity, frame: None  # type: ignore[method-assign]
        server.send(member, {"type": "weights", "version": 1})
        server._socket.post = lost  # type: ignore[method-assign]
        server.send(member, {"type": "weights", "version": 2})
        await answer(client, grants)
        assert [m["version"] for m in await take(client, "weights", 2)] == [1, 2]
        assert client.counts["gaps"] >= 1
        listening = asyncio.create_task(take(client, "shutdown", 1))
        await until(lambda: member.took_all)
        listening.cancel()

    run(server, story)
    assert server.counts["resent"] >= 1
    assert server.counts["lost"] == 0


def restarted(
    server: StreamServer,
    life: int = 1,
    state: dict[str, Any] | None = None,
    on_event: OnEvent = ignore_event,
    dead_after_s: float = 60.0,
) -> StreamServer:
    """Another life of the learner on the same port, from a checkpoint. `dead_after_s`: long, since on a busy machine an
    actor may be silent for seconds."""
    gate = Gate(BATCH, 1, solutions=1, life=life)
    again = StreamServer(gate, "run", bind=server.endpoint, open_now=False, dead_after_s=dead_after_s)
    if state is not None:
        gate.load_state_dict(state, keep_in_flight=True)
    again.open(on_event)
    return again


def test_a_learner_that_restarts_goes_on_with_what_its_actors_hold(server: StreamServer) -> None:
    """The checkpoint is from before two of the grants: those are cancelled, what it knew comes in, and it all adds
    up."""
    lives = [server]

    async def story(client: StreamClient) -> None:
        await load(server, client)
        grants = await take(client, "grant", 4)
        with server.frozen():
            state = server.gate.state_dict()
        await client.send_failed(grants[0]["propose"], "")
        (later,) = await take(client, "grant", 1)
        server._socket.stop(lambda: True, 0)  # as SIGKILL: nobody is told
        lives.append(restarted(server, state=state))
        (cancelled,) = await take(client, "cancel", 1)
        assert cancelled["slots"] == later["propose"]
        await load(lives[1], client)
        assert totals(lives[1].gate.ledger())["dropped"] == 1, (
            "the actor had failed it, which the checkpoint did not know"
        )
        (again,) = await take(client, "grant", 1)
        assert again["propose"][0] > max(slot for grant in grants for slot in grant["propose"])
        await answer(client, [{"propose": [], "solve": grants[0]["solve"]}, *grants[1:], again])
        await settled(client)
        assert client.held == []

    try:
        run(server, story)
        assert lives[1].next_batch(DEADLINE_S)
        sums = totals(lives[1].gate.ledger())
        assert (sums["queued"], sums["in_flight"], sums["dropped"]) == (8, 0, 1)
        assert conserved(lives[1].gate.ledger())
        assert lives[1].gate.late == 0
    finally:
        lives[-1].close()


def test_a_newer_life_that_stays_away_is_lost_also_where_an_older_one_greets(server: StreamServer) -> None:
    async def main() -> None:
        newer = StreamClient(server.endpoint, "a", 1, capacity=100)
        await newer.connect(DEADLINE_S)
        await load(server, newer)
        await take(newer, "grant", 4)
        with server.frozen():
            state = server.gate.state_dict()
        server._socket.stop(lambda: True, 0)
        newer.close()
        again = restarted(server, state=state)
        older = StreamClient(server.endpoint, "a", 0, capacity=100)
        try:
            await older.connect(DEADLINE_S)
            assert Holder("a", 1) in again.gate.holders()
            again._members._absent[Holder("a", 1)] = 0.0  # its time is over
            await until(lambda: Holder("a", 1) not in again.gate.holders())
        finally:
            older.close()
            again.close()

    asyncio.run(main())


def test_tokens_of_a_version_that_a_restart_undid_count_as_of_the_version_it_went_on_from(server: StreamServer) -> None:
    """A checkpoint of version 1; version 2 is published and samples; then the learner is killed, and makes another
    version 2. Tokens of the first one come in beside tokens of the second, from an engine that says which is which."""
    lives = [server]

    def spans(*found: tuple[int, int]) -> tuple[VersionSpan, ...]:
        """Of (version, life) for a token each."""
        return tuple(VersionSpan(version, at, at + 1, life) for at, (version, life) in enumerate(found))

    async def send(client: StreamClient, grant: dict[str, Any], versions: tuple[VersionSpan, ...]) -> None:
        for role, slots in ((Role.PROPOSE, grant["propose"]), (Role.SOLVE, grant["solve"])):
            for slot in slots:
                await client.send_trajectory(make(slot, role, versions=versions))

    async def train(server: StreamServer, client: StreamClient) -> list[Trajectory]:
        batch = await asyncio.to_thread(server.next_batch, DEADLINE_S)
        assert batch is not None
        server.mark_trained([t.slot for t in batch])
        version = server.gate.version + 1
        server.expect_load(server.members())
        await load(server, client, version)
        server.mark_published(version)
        return batch

    async def story(client: StreamClient) -> None:
        await load(server, client)
        grants = await take(client, "grant", 4)
        for grant in grants[:2]:
            await send(client, grant, spans((0, 0), (0, 0)))
        await train(server, client)
        held = [*grants[2:], *await take(client, "grant", 2)]  # of batches 1 and 2
        with server.frozen():
            state = server.gate.state_dict()
        await send(client, held[0], spans((1, 0), (1, 0)))
        await send(client, held[1], spans((1, 0), (1, 0)))
        await train(server, client)  # version 2, which the restart undoes
        await settled(client)
        server._socket.stop(lambda: True, 0)
        again = restarted(server, state=state)
        lives.append(again)
        listening = asyncio.create_task(take(client, "grant", 2))
        await until(lambda: bool(again.members()))
        await send(client, held[2], spans((2, 0), (2, 0)))
        await load(again, client, 1)
        await send(client, held[3], spans((2, 0), (1, 1)))
        for grant in await listening:
            await send(client, grant, spans((1, 1), (1, 1)))
        await settled(client)
        first = await train(again, client)
        second = await train(again, client)
        for version, batch in ((1, first), (2, second)):
            ages = describe_ages(batch, version, dict.fromkeys((t.slot for t in batch), version))
            assert all(0 <= ages[name] <= 1 for name in ages), ages
        found = {span for t in second for span in t.versions}
        assert {(span.version, span.life) for span in found} == {(1, 0), (1, 1)}, "the first version 2 counts as 1"
        assert loads(dumps(second))[0].versions == second[0].versions, "a checkpoint keeps the lives"

    try:
        run(server, story)
        assert conserved(lives[1].gate.ledger())
        assert lives[1].gate.late == 0
    finally:
        lives[-1].close()


def test_an_actor_that_does_not_come_back_after_a_restart_is_lost(server: StreamServer) -> None:
    states: list[dict[str, Any]] = []

    async def story(client: StreamClient) -> None:
        await load(server, client)
        await take(client, "grant", 4)
        states.append(server.gate.state_dict())

    run(server, story)
    server.close()
    events: list[dict[str, Any]] = []
    again = restarted(
        server,
        state=states[0],
        on_event=lambda name, **details: events.append({"name": name, **details}),
        dead_after_s=1.0,
    )
    try:
        assert again.gate.in_flight() == 8
        asyncio.run(until(lambda: again.gate.in_flight() == 0))
        assert events[0]["actor"] == "a" and "did not come back" in events[0]["why"]
        assert conserved(again.gate.ledger())
    finally:
        again.close()


def test_nobody_is_greeted_before_the_checkpoint_is_loaded() -> None:
    server = StreamServer(Gate(BATCH, 1, solutions=1), "run", open_now=False)

    async def main() -> None:
        client = StreamClient(server.endpoint, "a", 0, capacity=1)
        try:
            with pytest.raises(TimeoutError):
                await client.connect(0.3)
            assert not server.members()
            server.open()
            assert await client.connect(DEADLINE_S) == 0
        finally:
            client.close()

    try:
        asyncio.run(main())
    finally:
        server.close()


def test_a_learner_that_falls_silent_is_named_and_at_last_given_up(server: StreamServer) -> None:
    events: list[str] = []

    async def main() -> None:
        client = StreamClient(
            server.endpoint,
            "a",
            0,
            capacity=9,
            learner_silent_s=0.3,
            learner_timeout_s=1.5,
            on_event=lambda name, **details: events.append(name),
        )
        try:
            await client.connect(DEADLINE_S)
            await load(server, client)
            await take(client, "grant", 4)
            server._socket.stop(lambda: True, 0)
            with pytest.raises(
                LearnerLost, match=rf"a#0: .*learner of run run at {server.endpoint}.*8 slots were held"
            ):
                await take(client, "shutdown", 1)
        finally:
            client.close()

    asyncio.run(main())
    assert events == ["learner_silent"]


def test_an_actor_that_is_heard_but_takes_nothing_is_lost_by_name() -> None:
    events: list[dict[str, Any]] = []
    server = StreamServer(
        Gate(BATCH, 1, solutions=1),
        "run",
        dead_after_s=1.0,
        on_event=lambda name, **details: events.append({"name": name, **details}),
    )

    async def story(client: StreamClient) -> None:
        await load(server, client)  # and from here on it beats, and reads nothing
        await until(lambda: not server.members())

    try:
        run(server, story)
        (lost,) = [event for event in events if event["name"] == "actor_lost"]
        assert lost["why"].startswith("is heard, but has not taken grant (message 1 of 4) for")
        assert lost["dropped_slots"] == 8
        assert conserved(server.gate.ledger())
    finally:
        server.close()


def test_control_messages_that_pile_up_end_a_member(server: StreamServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("learner.stream.wire.MAX_PENDING", 5)

    async def story(client: StreamClient) -> None:
        (member,) = server.members()
        for version in range(6):
            server.send(member, {"type": "weights", "version": version})
        assert server.counts["lost"] == 1

    run(server, story)


def test_paused_nobody_is_granted_anything_and_draining_brings_in_what_is_in_flight(server: StreamServer) -> None:
    async def story(client: StreamClient) -> None:
        await load(server, client)
        grants = await take(client, "grant", 4)
        assert await asyncio.to_thread(server.drain, 0.2) == 8, "the deadline"
        await take(client, "pause", 1)
        draining = asyncio.create_task(asyncio.to_thread(server.drain, DEADLINE_S))
        await client.send_failed(grants[0]["propose"], "to be granted again, were it not paused")
        await answer(client, [{"propose": [], "solve": grants[0]["solve"]}, *grants[1:]])
        assert await draining == 0
        assert len(server.queued()) == 7
        assert totals(server.gate.ledger())["granted"] == 8
        server.resume()
        await take(client, "resume", 1)
        (again,) = await take(client, "grant", 1)
        await client.send_trajectory(make(again["propose"][0]))
        await settled(client)

    run(server, story)
    assert totals(server.gate.ledger())["queued"] == 8


def test_who_joins_a_paused_learner_is_told(server: StreamServer) -> None:
    async def story(client: StreamClient) -> None:
        await take(client, "pause", 1)
        await load(server, client)
        assert server.gate.in_flight() == 0

    server.pause()
    run(server, story)


def test_memory_for_duplicates_is_the_gaps_and_not_the_history(server: StreamServer) -> None:
    async def story(client: StreamClient) -> None:
        for version in range(300):
            await client.send_loaded(version, {})
        await settled(client)
        (member,) = server.members()
        assert len(member.seen) == 0 and member.seen.floor == 301

    run(server, story)
