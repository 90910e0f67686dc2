"""The stream over a real socket: a real server, real clients, loopback."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest
import zmq

from learner.fields import Refusal, WireError
from learner.ledger import conserved, totals
from learner.lineage import label_of
from learner.staleness import Gate
from learner.stream.client import StreamClient
from learner.stream.server import BatchTimeout, StreamServer
from learner.stream.wire import MAX_FRAME_BYTES, pack
from learner.trajectory import Cell, Role
from tests.unit.learner.stream.streaming import (
    BATCH,
    DEADLINE_S,
    answer,
    hello,
    load,
    make,
    on_wire,
    run,
    settled,
    take,
    until,
)


@pytest.fixture
def server() -> Iterator[StreamServer]:
    server = StreamServer(Gate(BATCH, 1, solutions=1), "run", dead_after_s=60)
    yield server
    server.close()


def test_a_batch_comes_whole_and_acknowledged(server: StreamServer) -> None:
    async def story(client: StreamClient) -> None:
        assert server.newcomers()
        assert totals(server.gate.ledger())["granted"] == 0, "granted before the weights were loaded"
        await load(server, client)
        grants = await take(client, "grant", 4)
        assert len(client.held) == 8
        await answer(client, grants)
        await settled(client)
        assert client.held == []

    run(server, story)
    batch = server.next_batch(DEADLINE_S)
    assert batch is not None
    assert len(batch) == 4
    assert [t.slot for t in batch] == sorted(t.slot for t in batch)
    assert conserved(server.gate.ledger())
    numbers = server.stats()
    assert (numbers["stream/trajectories"], numbers["stream/queued"], numbers["stream/refused"]) == (8, 8, 0)
    assert numbers["stream/bytes"] > 8 * 200


def test_tokens_are_counted_from_what_actors_report_to_what_is_trained(server: StreamServer) -> None:
    tokens = {"generated": 0.0, "sent": 0.0, "held": 0.0}

    def ledger() -> dict[str, float]:
        found = server.stats()
        return {name.removeprefix("token_ledger/"): n for name, n in found.items() if name.startswith("token_ledger/")}

    async def story(client: StreamClient) -> None:
        client._report = lambda: {f"tokens_{name}": number for name, number in tokens.items()}
        tokens.update(generated=20, held=20)
        await load(server, client)
        await until(lambda: ledger()["in_flight"] == 20)
        grants = await take(client, "grant", 4)
        await answer(client, grants)  # 8 trajectories of 2 tokens
        await settled(client)
        assert (ledger()["queued"], ledger()["in_flight"]) == (16, 4), "before a report says that they were sent"
        tokens.update(generated=23, sent=16, held=6)  # one token is nowhere
        await client.send_loaded(label_of(0, server.gate.life_id), {})
        await until(lambda: ledger()["generated"] == 23)

    run(server, story)
    batch = server.next_batch(DEADLINE_S)
    assert batch is not None
    server.mark_trained([trajectory.slot for trajectory in batch])
    assert ledger() == {
        "generated": 23, "trained": 8, "queued": 8, "in_flight": 6, "without_slot": 0, "unaccounted": 1
    }  # fmt: skip


def test_a_bound_that_is_raised_opens_a_batch_at_once(server: StreamServer) -> None:
    async def story(client: StreamClient) -> None:
        await load(server, client)
        await take(client, "grant", 4)
        server.limit_staleness(server.gate.max_staleness + 1)
        assert len(await take(client, "grant", 2)) == 2

    run(server, story)


def test_duplicates_are_removed_and_what_nobody_was_granted_is_late(server: StreamServer) -> None:
    async def story(client: StreamClient) -> None:
        await load(server, client)
        (grant,) = await take(client, "grant", 1)
        for frames in (*[on_wire(grant["propose"][0], 50)] * 5, on_wire(10_000, 51)):
            client._socket.send_multipart(frames)
        assert await take_acks(client, 6) == [50] * 5 + [51]
        assert (server.counts["duplicates"], server.gate.late) == (4, 1)

    run(server, story)
    assert totals(server.gate.ledger())["queued"] == 1
    assert len(server.queued()) == 1


def test_malformed_messages_are_refused_and_counted(server: StreamServer) -> None:
    sound = on_wire(0, 3)
    bad = [
        ([b""], Refusal.HEADER),
        ([b"\xc1\xff"], Refusal.HEADER),
        ([msgpack.packb([1, 2])], Refusal.HEADER),
        ([b"\xdd\x00\x00\xff\xff" * 2000], Refusal.HEADER),
        ([pack({"type": "no such type"})], Refusal.TYPE),
        ([pack({"type": 7})], Refusal.TYPE),
        ([pack({"type": "trajectory", "seq": 1})], Refusal.FRAMES),
        ([pack({"type": "trajectory", "seq": 1}), *[b""] * 5000], Refusal.FRAMES),
        ([pack({"type": "trajectory", "seq": "x"}), *sound[1:]], Refusal.FIELD),
        ([pack({"type": "trajectory", "seq": -1}), *sound[1:]], Refusal.FIELD),
        ([pack({"type": "trajectory", "seq": 1 << 40}), *sound[1:]], Refusal.FIELD),
        (on_wire(0, 3, actor_id="somebody else"), Refusal.SENDER),
        (on_wire(0, 3, run_id="another run"), Refusal.SENDER),
        (on_wire(0, 3, reward=float("nan")), Refusal.NOT_FINITE),
        (on_wire(0, 3, cell=Cell("no-such-kind", Role.SOLVE)), Refusal.CELL),
        ([pack(hello("somebody else"))], Refusal.SENDER),
        ([pack({"type": "beat", "why": "x" * (1 << 19)})], Refusal.TOO_LARGE),
    ]

    async def story(client: StreamClient) -> None:
        await load(server, client)
        for frames, _ in bad:
            client._socket.send_multipart(frames)
        await until(lambda: sum(server.refused.values()) == len(bad))
        assert server.refused == Counter(reason for _, reason in bad)
        assert len(await take(client, "grant", 1)) == 1, "the server died"

    run(server, story)
    assert conserved(server.gate.ledger())
    assert server.stats()["stream/refused_bad_header"] == 4


def test_a_frame_beyond_the_limit_ends_its_connection_and_nothing_else(server: StreamServer) -> None:
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    try:
        socket.connect(server.endpoint)
        socket.send_multipart([b"x", bytes(MAX_FRAME_BYTES + 1)])

        async def story(client: StreamClient) -> None:
            await until(lambda: server.stats()["stream/disconnects"] >= 1)
            await load(server, client)
            assert len(await take(client, "grant", 4)) == 4

        run(server, story)
        assert not server.refused
    finally:
        socket.close(0)
        context.term()


def test_the_next_incarnation_takes_over(server: StreamServer) -> None:
    async def main() -> None:
        first = StreamClient(server.endpoint, "a", 0, capacity=100)
        second = StreamClient(server.endpoint, "a", 1, capacity=100)
        try:
            await first.connect(DEADLINE_S)
            await load(server, first)
            old = await take(first, "grant", 4)
            await second.connect(DEADLINE_S)
            assert [m.holder.incarnation for m in server.members()] == [1]
            await load(server, second)
            new = await take(second, "grant", 4)
            assert {s for g in old for s in g["propose"]}.isdisjoint(s for g in new for s in g["propose"])
        finally:
            first.close()
            second.close()

    asyncio.run(main())
    sums = totals(server.gate.ledger())
    assert sums["dropped"] == 8
    assert conserved(server.gate.ledger())


def test_an_actor_that_was_forgotten_comes_back_and_is_told_what_to_stop(server: StreamServer) -> None:
    async def story(client: StreamClient) -> None:
        await load(server, client)
        grants = await take(client, "grant", 4)
        server.lose(server.members()[0], "a test")
        await client.send_trajectory(make(grants[0]["propose"][0]))  # its slot was dropped: too late, and acknowledged
        (cancelled,) = await take(client, "cancel", 1)
        assert set(cancelled["slots"]) == {slot for grant in grants for slot in grant["propose"] + grant["solve"]}
        await settled(client)
        assert server.gate.late == 1
        assert client.held == []
        await client.send_returned(grants[1]["solve"])
        assert client.counts["abandoned"] == 1
        await load(server, client)
        assert len(await take(client, "grant", 4)) == 4

    run(server, story)
    assert totals(server.gate.ledger())["dropped"] == 8


def test_silence_is_loss() -> None:
    lost = threading.Event()
    server = StreamServer(
        Gate(BATCH, 1, solutions=1),
        "run",
        dead_after_s=0.5,
        on_event=lambda name, **details: lost.set() if name == "actor_lost" else None,
    )
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    try:
        socket.setsockopt(zmq.IDENTITY, b"mute#0")
        socket.connect(server.endpoint)
        socket.send(pack(hello("mute")))
        assert lost.wait(DEADLINE_S)
        assert not server.members()
    finally:
        socket.close(0)
        context.term()
        server.close()


def test_a_batch_that_does_not_come_is_an_error_with_names(server: StreamServer) -> None:
    async def story(client: StreamClient) -> None:
        await load(server, client)
        await take(client, "grant", 4)
        with pytest.raises(BatchTimeout, match=r"a plays .*deduction/propose.*heard"):
            await asyncio.to_thread(server.next_batch, 0.1)

    run(server, story)


def test_a_lost_actors_slots_go_to_the_others() -> None:
    """Two actors share two batches; one falls silent, and the other is granted what that one held."""
    server = StreamServer(Gate(BATCH, 1, solutions=1), "run")

    async def main() -> None:
        silent = StreamClient(server.endpoint, "silent", 0, capacity=4)
        steady = StreamClient(server.endpoint, "steady", 0, capacity=8)
        try:
            # One after the other: who says first that it has loaded is granted first, and `steady` has room for
            # everything.
            for client in (silent, steady):
                await client.connect(DEADLINE_S)
                await load(server, client)
            assert len(await take(silent, "grant", 2)) == 2
            grants = await take(steady, "grant", 2)
            (member,) = (m for m in server.members() if m.holder.actor_id == "silent")
            server.lose(member, "a test")
            grants += await take(steady, "grant", 2)
            await answer(steady, grants)
            batch = await asyncio.to_thread(server.next_batch, DEADLINE_S)
            assert batch is not None
            assert {t.actor_id for t in batch} == {"steady"}
            assert len(batch) == 4
        finally:
            silent.close()
            steady.close()

    try:
        asyncio.run(main())
        sums = totals(server.gate.ledger())
        assert (sums["dropped"], sums["queued"]) == (4, 8)
        assert conserved(server.gate.ledger())
    finally:
        server.close()


def test_publishing_opens_the_next_batch_to_those_who_have_loaded_it(server: StreamServer) -> None:
    async def story(client: StreamClient) -> None:
        await load(server, client)
        await answer(client, await take(client, "grant", 4))
        batch = await asyncio.to_thread(server.next_batch, DEADLINE_S)
        assert batch is not None
        server.mark_trained([t.slot for t in batch])
        members = server.members()
        server.expect_load(members)
        waiting = asyncio.create_task(asyncio.to_thread(server.wait_until_loaded, members, 1, DEADLINE_S))
        await client.send_loaded(1, {"transfer_s": 0.5})
        assert await waiting == []
        assert totals(server.gate.ledger())["granted"] == 8, "granted before the version was published"
        server.mark_published(1)
        assert {grant["batch"] for grant in await take(client, "grant", 2)} == {2}
        await until(lambda: server.stats().get("engine_weights/transfer_s/max") == 0.5)

    run(server, story)


def test_who_could_not_load_is_named_and_gets_nothing(server: StreamServer) -> None:
    async def story(client: StreamClient) -> None:
        members = server.members()
        server.expect_load(members)
        await client.send_load_failed(0, "no memory", interrupted=False)
        assert await asyncio.to_thread(server.wait_until_loaded, members, 0, DEADLINE_S) == members
        assert server.load_failures() == {"a": "no memory"}
        server.mark_loaded()
        assert totals(server.gate.ledger())["granted"] == 0

    run(server, story)


def test_returned_and_failed_slots_are_acknowledged_and_only_failed_ones_granted_again(server: StreamServer) -> None:
    async def story(client: StreamClient) -> None:
        await load(server, client)
        grants = await take(client, "grant", 4)
        await client.send_returned(grants[0]["solve"])
        await client.send_failed(grants[1]["propose"], "the engine is gone")
        (again,) = await take(client, "grant", 1)
        assert (again["batch"], len(again["propose"]), again["solve"]) == (grants[1]["batch"], 1, [])
        await settled(client)

    run(server, story)
    sums = totals(server.gate.ledger())
    assert (sums["returned"], sums["dropped"], sums["granted"]) == (1, 1, 9)


async def take_acks(client: StreamClient, count: int) -> list[int]:
    """Acknowledgements as they come over the wire, duplicates' too."""
    found: list[int] = []
    async with asyncio.timeout(DEADLINE_S):
        while len(found) < count:
            message = await client._receive(1.0)
            if message and message["type"] == "ack":
                found.extend(message["seqs"])
    return found


def test_closing_waits_until_the_actors_have_their_shutdown(server: StreamServer) -> None:
    async def story(client: StreamClient) -> None:
        closing = asyncio.create_task(asyncio.to_thread(server.close))
        (message,) = await take(client, "shutdown", 1)
        assert message["number"] == 1
        await closing

    run(server, story)
    assert not server._socket._thread.is_alive()


def test_an_interrupted_wait_returns_nothing(server: StreamServer) -> None:
    assert server.next_batch(DEADLINE_S, lambda: True) is None


def test_a_learner_nobody_connects_to_says_where_it_waits(server: StreamServer) -> None:
    with pytest.raises(TimeoutError, match=server.endpoint):
        server.wait_for_members(1, 0.05)


def test_a_learner_that_is_not_there_is_named() -> None:
    async def main() -> None:
        client = StreamClient("tcp://127.0.0.1:1", "a", 0, capacity=1)
        try:
            with pytest.raises(TimeoutError, match=r"a: the learner at tcp://127.0.0.1:1 sent no welcome"):
                await client.connect(0.05)
        finally:
            client.close()

    asyncio.run(main())


def test_what_stays_unacknowledged_is_sent_again(server: StreamServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a connection that broke and came back: the learner still knows the actor, and asks for nothing."""
    monkeypatch.setattr("learner.stream.wire.RESEND_AFTER_S", 0.2)
    monkeypatch.setattr("learner.stream.wire.HEARTBEAT_S", 0.1)

    async def story(client: StreamClient) -> None:
        await load(server, client)
        (grant,) = await take(client, "grant", 1)

        def lost(frames: Any) -> bool:
            return True

        send, client._try = client._try, lost  # type: ignore[method-assign]
        await client.send_trajectory(make(grant["propose"][0]))
        client._try = send  # type: ignore[method-assign]
        await until(lambda: totals(server.gate.ledger())["queued"] == 1)
        assert client.counts["resent"] >= 1

    run(server, story)


def test_what_could_not_leave_leaves_with_the_next_heartbeat(
    server: StreamServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While there is no connection nothing was sent, so nothing has to age before it is sent, and it is not a second
    time."""
    monkeypatch.setattr("learner.stream.wire.HEARTBEAT_S", 0.1)
    monkeypatch.setattr("learner.stream.wire.RESEND_AFTER_S", 3600.0)

    async def story(client: StreamClient) -> None:
        await load(server, client)
        (grant,) = await take(client, "grant", 1)
        send, client._try = client._try, lambda frames: False  # type: ignore[method-assign]
        await client.send_trajectory(make(grant["propose"][0]))
        client._try = send  # type: ignore[method-assign]
        await until(lambda: totals(server.gate.ledger())["queued"] == 1)
        assert client.counts["resent"] == 0

    run(server, story)


def test_what_came_together_is_acknowledged_together(server: StreamServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(client: StreamClient) -> None:
        await load(server, client)
        grants = await take(client, "grant", 4)
        received, post = server._inbox.receive, server._socket.post
        busy, go = threading.Event(), threading.Event()
        posted: list[dict[str, Any]] = []

        def receive(identity: bytes, frames: list[bytes | memoryview]) -> None:
            busy.set()
            assert go.wait(DEADLINE_S)
            received(identity, frames)

        def record(identity: bytes, frame: bytes) -> None:
            posted.append(msgpack.unpackb(frame))
            post(identity, frame)

        monkeypatch.setattr(server._inbox, "receive", receive)
        monkeypatch.setattr(server._socket, "post", record)
        client._say_beat()
        await until(busy.is_set)
        await answer(client, grants)
        go.set()
        await settled(client)
        acks = [message["seqs"] for message in posted if message["type"] == "ack"]
        assert sum(map(len, acks)) == 8
        assert len(acks) < 8, acks

    run(server, story)


def test_a_replaced_life_is_told_to_stop(server: StreamServer) -> None:
    async def main() -> None:
        new = StreamClient(server.endpoint, "a", 1, capacity=1)
        old = StreamClient(server.endpoint, "a", 0, capacity=1)
        try:
            await new.connect(DEADLINE_S)
            with pytest.raises(ConnectionError, match="answered hello with shutdown"):
                await old.connect(DEADLINE_S)
            assert [m.holder.incarnation for m in server.members()] == [1]
        finally:
            new.close()
            old.close()

    asyncio.run(main())


def test_a_trajectory_that_would_be_refused_never_leaves(server: StreamServer) -> None:
    async def story(client: StreamClient) -> None:
        await load(server, client)
        (grant,) = await take(client, "grant", 1)
        (slot,) = grant["propose"]
        before = client.unacknowledged
        with pytest.raises(WireError):
            await client.send_trajectory(make(slot, reward=float("nan")))
        assert client.unacknowledged == before
        await client.send_failed([slot], "its reward is not finite")

    run(server, story)


def test_a_slot_is_answered_once(server: StreamServer) -> None:
    """So what waits for its acknowledgement is bounded by the slots that were granted."""

    async def story(client: StreamClient) -> None:
        await load(server, client)
        grants = await take(client, "grant", 4)
        (slot,) = grants[0]["propose"]
        await client.send_trajectory(make(slot))
        with pytest.raises(ValueError, match="answered before"):
            await client.send_trajectory(make(slot))
        with pytest.raises(ValueError, match="answered before"):
            await client.send_failed([slot], "")
        await client.send_trajectory(make(10_000))
        assert client.counts["abandoned"] == 1
        assert client.unacknowledged == 1

    run(server, story)


def test_what_the_learner_refuses_is_granted_to_somebody_again(server: StreamServer) -> None:
    """A client that is older or newer than its learner: the slot must not stay in flight for ever."""

    async def story(client: StreamClient) -> None:
        await load(server, client)
        grants = await take(client, "grant", 4)
        await client.send_trajectory(make(grants[0]["propose"][0], run_id="another"))
        (again,) = await take(client, "grant", 1)
        assert (len(again["propose"]), again["solve"]) == (1, [])
        await settled(client)

    run(server, story)
    assert server.refused == {Refusal.SENDER: 1}
    assert totals(server.gate.ledger())["dropped"] == 1


def test_an_actor_that_retires_plays_to_its_end_and_is_dismissed(server: StreamServer) -> None:
    async def story(client: StreamClient) -> None:
        await load(server, client)
        grants = await take(client, "grant", 4)
        server.retire("a")
        await answer(client, grants[:-1])
        shutdown = asyncio.create_task(take(client, "shutdown", 1))
        await until(lambda: client.unacknowledged == 0)
        assert not shutdown.done(), "it still holds slots"
        await answer(client, grants[-1:])
        await shutdown
        # All of this batch came; those of later ones are nobody's now.
        await until(lambda: not server.members())
        assert server.gate.in_flight() == 0

    events: list[str] = []
    server.open(lambda name, **details: events.append(name))
    run(server, story)
    assert "actor_left" in events
    assert "actor_lost" not in events
    assert totals(server.gate.ledger())["dropped"] == 0


def test_a_changed_capacity_travels_with_the_heartbeat() -> None:
    server = StreamServer(Gate(BATCH, 3, solutions=1), "run", dead_after_s=60)

    async def story(client: StreamClient) -> None:
        client.capacity = 2
        await until(lambda: [member.capacity for member in server.members()] == [2])
        await load(server, client)
        await take(client, "grant", 1)
        assert server.gate.in_flight() == 2, "no more than it has room for"
        client.capacity = 100
        await take(client, "grant", 1)  # without anything having been answered

    run(server, story)
    server.close()
