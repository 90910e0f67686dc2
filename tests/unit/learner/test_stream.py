"""The stream over a real socket: a real server, real clients, loopback."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import msgpack
import numpy as np
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from executor.tasks import Kind
from learner.settings import BatchSettings
from learner.staleness import Gate, conserved, totals
from learner.stream import BatchTimeout, StreamClient, StreamServer, _Sent
from learner.trajectory import (
    Cell,
    Refusal,
    Role,
    Status,
    Trajectory,
    VersionSpan,
    WireError,
    decode,
    dumps,
    encode,
    loads,
)

DEADLINE_S = 10.0
BATCH = BatchSettings(propose={Kind.DEDUCTION: 2}, solve={Kind.DEDUCTION: 2})


@pytest.fixture
def server() -> Iterator[StreamServer]:
    server = StreamServer(Gate(BATCH, 1, solutions=1), "run", dead_after_s=60)
    yield server
    server.close()


def make(slot: int, seq: int, role: Role = Role.PROPOSE, **changes: Any) -> Trajectory:
    fields: dict[str, Any] = {
        "run_id": "run",
        "actor_id": "a",
        "incarnation": 0,
        "seq": seq,
        "slot": slot,
        "episode_id": "1",
        "cell": Cell(Kind.DEDUCTION, role),
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
    await client.send({"type": "loaded", "version": version, "timings": {}})
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


async def answer(client: StreamClient, grants: list[dict[str, Any]]) -> None:
    for grant in grants:
        for slot in grant["propose"]:
            await client.send_trajectory(make(slot, client.next_seq()))
        for slot in grant["solve"]:
            await client.send_trajectory(make(slot, client.next_seq(), Role.SOLVE))


def test_a_batch_comes_whole_and_acknowledged(server: StreamServer) -> None:
    async def story(client: StreamClient) -> None:
        assert server.newcomers()
        assert totals(server.gate.ledger())["granted"] == 0, "granted before the weights were loaded"
        await load(server, client)
        grants = await take(client, "grant", 4)
        await answer(client, grants)
        listening = asyncio.create_task(take(client, "shutdown", 1))
        await until(lambda: client.unacknowledged == 0)
        listening.cancel()

    run(server, story)
    batch = server.next_batch(DEADLINE_S)
    assert batch is not None
    assert len(batch) == 4
    assert [t.slot for t in batch] == sorted(t.slot for t in batch)
    assert conserved(server.gate.ledger())


def test_duplicates_are_removed_and_strangers_slots_refused(server: StreamServer) -> None:
    async def story(client: StreamClient) -> None:
        await load(server, client)
        grants = await take(client, "grant", 4)
        slot = grants[0]["propose"][0]
        trajectory = make(slot, client.next_seq())
        await client.send_trajectory(trajectory)
        await client.send_trajectory(trajectory)
        await client.send_trajectory(make(10_000, client.next_seq()))
        await until(lambda: server.duplicates == 1 and server.late == 1)

    run(server, story)
    assert totals(server.gate.ledger())["queued"] == 1


def test_malformed_messages_are_refused_and_counted(server: StreamServer) -> None:
    bad = [
        [b""],
        [b"\xc1\xff"],
        [msgpack.packb([1, 2])],
        [msgpack.packb({"type": "no such type"})],
        [msgpack.packb({"type": "trajectory", "seq": 1})],
        [msgpack.packb({"type": "trajectory", "seq": "x"})],
        [msgpack.packb({"type": "returned", "slots": [None], "seq": 2})],
        [msgpack.packb({"type": "beat", "stats": {"x": "y"}})],
        [msgpack.packb({"type": "trajectory", "seq": 3}), *encode(make(0, 3, actor_id="somebody else"))],
    ]

    async def story(client: StreamClient) -> None:
        await load(server, client)
        for frames in bad:
            await client._socket.send_multipart(frames)
        await until(lambda: sum(server.refused.values()) == len(bad))
        assert len(await take(client, "grant", 1)) == 1, "the server died"

    run(server, story)
    assert server.refused[Refusal.HEADER] >= 3
    assert conserved(server.gate.ledger())


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


def test_what_was_not_acknowledged_is_sent_again_to_a_learner_that_forgot(server: StreamServer) -> None:
    async def story(client: StreamClient) -> None:
        await load(server, client)
        grants = await take(client, "grant", 1)
        (member,) = server.members()
        server.lose(member, "a test")
        await client.send_trajectory(make(grants[0]["propose"][0], client.next_seq()))
        listening = asyncio.create_task(take(client, "shutdown", 1))
        await until(lambda: bool(server.members()) and server.late == 1)  # back, and its old slot is no longer its own
        await until(lambda: client.unacknowledged == 0)
        listening.cancel()

    run(server, story)


def test_silence_is_loss() -> None:
    server = StreamServer(Gate(BATCH, 1, solutions=1), "run", dead_after_s=0.5)
    lost = threading.Event()
    server.on_event = lambda name, **details: lost.set() if name == "actor_lost" else None
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    try:
        socket.connect(server.endpoint)
        socket.send(msgpack.packb({"type": "hello", "actor_id": "mute", "incarnation": 0, "capacity": 1}))
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


def test_round_trip_is_exact() -> None:
    trajectory = make(7, 9)
    got = decode([bytes(frame) for frame in encode(trajectory)])
    for name in Trajectory.__slots__:
        want, have = getattr(trajectory, name), getattr(got, name)
        assert np.array_equal(want, have) if isinstance(want, np.ndarray) else want == have, name
    assert [t.slot for t in loads(dumps([trajectory, make(8, 10)]))] == [7, 8]


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"logprobs": np.array([-1.0], np.float32)}, Refusal.LENGTH),
        ({"logprobs": np.array([-1.0, np.nan], np.float32)}, Refusal.NOT_FINITE),
        ({"logprobs": np.array([-1.0, 2.0], np.float32)}, Refusal.FIELD),
        ({"reward": float("inf")}, Refusal.NOT_FINITE),
        ({"response_ids": np.array([], np.int32), "logprobs": np.array([], np.float32)}, Refusal.LENGTH),
        ({"prompt_ids": np.array([-1], np.int32)}, Refusal.FIELD),
        ({"versions": (VersionSpan(0, 0, 1),)}, Refusal.VERSIONS),
        ({"versions": (VersionSpan(0, 0, 1), VersionSpan(0, 0, 2))}, Refusal.VERSIONS),
        ({"versions": ()}, Refusal.VERSIONS),
        ({"actor_id": "x" * 1000}, Refusal.FIELD),
    ],
)
def test_what_is_not_whole_is_refused_by_name(changes: dict[str, Any], refusal: Refusal) -> None:
    with pytest.raises(WireError) as caught:
        decode([bytes(frame) for frame in encode(make(1, 1, **changes))])
    assert caught.value.refusal is refusal


def test_an_unknown_schema_is_refused() -> None:
    header, *arrays = encode(make(1, 1))
    fields = msgpack.unpackb(header)
    with pytest.raises(WireError) as caught:
        decode([msgpack.packb(fields | {"schema": 99}), *arrays])
    assert caught.value.refusal is Refusal.SCHEMA


@given(st.lists(st.binary(max_size=64), max_size=6))
def test_noise_is_refused(frames: list[bytes]) -> None:
    with pytest.raises(WireError):
        decode(frames)


HEADER_FIELDS = sorted(msgpack.unpackb(encode(make(1, 1))[0]))
anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@given(st.sampled_from(HEADER_FIELDS), anything)
def test_a_header_with_one_strange_field_never_raises_anything_else(name: str, value: Any) -> None:
    header, *arrays = encode(make(1, 1))
    with contextlib.suppress(WireError):
        decode([msgpack.packb(msgpack.unpackb(header) | {name: value}), *(bytes(a) for a in arrays)])


@pytest.mark.parametrize(
    "message",
    [
        {"type": "loaded", "version": 0, "timings": []},
        {"type": "loaded", "version": float("inf"), "timings": {}},
        {"type": "beat", "stats": None},
        {"type": "trajectory", "seq": float("inf")},
        {"type": "returned", "slots": [], "seq": 1e300},
        {"type": "returned", "slots": [float("inf")], "seq": 1},
        {"type": "hello", "actor_id": "b", "incarnation": 0, "capacity": float("inf")},
    ],
    ids=lambda message: f"{message['type']}",
)
def test_fields_of_a_wrong_type_do_not_end_the_server(server: StreamServer, message: dict[str, Any]) -> None:
    async def story(client: StreamClient) -> None:
        await client.send(message)
        await until(lambda: bool(server.refused) or not server._thread.is_alive())
        assert server._thread.is_alive()
        assert server.refused == {Refusal.FIELD: 1}
        await load(server, client)
        await take(client, "grant", 1)

    run(server, story)


def test_a_lost_actors_slots_go_to_the_others() -> None:
    """Two actors share two batches; one falls silent, and the other is granted what that one held."""
    server = StreamServer(Gate(BATCH, 1, solutions=1), "run")

    async def main() -> None:
        silent = StreamClient(server.endpoint, "silent", 0, capacity=4)
        steady = StreamClient(server.endpoint, "steady", 0, capacity=8)
        try:
            await silent.connect(DEADLINE_S)
            await steady.connect(DEADLINE_S)
            for client in (silent, steady):
                await client.send({"type": "loaded", "version": 0, "timings": {}})
            await until(lambda: all(m.loaded_version == 0 for m in server.members()))
            server.mark_loaded()
            assert len(await take(silent, "grant", 2)) == 2
            grants = await take(steady, "grant", 2)
            (member,) = (m for m in server.members() if m.holder.actor_id == "silent")
            server.lose(member, "a test")
            grants += await take(steady, "grant", 2)
            for grant in grants:
                for role, slots in ((Role.PROPOSE, grant["propose"]), (Role.SOLVE, grant["solve"])):
                    for slot in slots:
                        await steady.send_trajectory(make(slot, steady.next_seq(), role, actor_id="steady"))
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
        await client.send({"type": "loaded", "version": 1, "timings": {"transfer_s": 0.5}})
        assert await waiting == []
        assert totals(server.gate.ledger())["granted"] == 8, "granted before the version was published"
        server.mark_published(1)
        assert {grant["batch"] for grant in await take(client, "grant", 2)} == {2}
        await until(lambda: server.stats().get("weights/transfer_s") == 0.5)

    run(server, story)


def test_who_could_not_load_is_named_and_gets_nothing(server: StreamServer) -> None:
    async def story(client: StreamClient) -> None:
        members = server.members()
        server.expect_load(members)
        await client.send({"type": "load_failed", "version": 0, "why": "no memory"})
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
        listening = asyncio.create_task(take(client, "shutdown", 1))
        await until(lambda: client.unacknowledged == 0)
        listening.cancel()

    run(server, story)
    sums = totals(server.gate.ledger())
    assert (sums["returned"], sums["dropped"], sums["granted"]) == (1, 1, 9)


def test_frames_sent_twice_byte_for_byte_are_trained_once(server: StreamServer) -> None:
    async def story(client: StreamClient) -> None:
        await load(server, client)
        (grant,) = await take(client, "grant", 1)
        seq = client.next_seq()
        envelope = msgpack.packb({"type": "trajectory", "seq": seq})
        frames = [envelope, *(bytes(frame) for frame in encode(make(grant["propose"][0], seq)))]
        for _ in range(5):
            await client._socket.send_multipart(frames)
        assert len(await take_acks(client, 5)) == 5
        assert server.duplicates == 4

    run(server, story)
    assert totals(server.gate.ledger())["queued"] == 1
    assert len(server.queued()) == 1


async def take_acks(client: StreamClient, count: int) -> list[int]:
    """Acknowledgements as they come over the wire, duplicates' too."""
    found: list[int] = []
    async with asyncio.timeout(DEADLINE_S):
        while len(found) < count:
            message = await client._read()
            if message["type"] == "ack":
                found.append(message["seq"])
    return found


def test_shutdown_reaches_an_actor_even_when_the_server_closes_between_two_flushes() -> None:
    server = StreamServer(Gate(BATCH, 1, solutions=1), "run")
    flush, closing = server._flush, threading.Event()

    def flush_then_close() -> None:
        """As if another thread had called `close` right after the server's thread flushed."""
        flush()
        if closing.is_set():
            closing.clear()
            for member in server.members():
                server._post(member.identity, {"type": "shutdown"})
            server._stopping = True

    server._flush = flush_then_close  # type: ignore[method-assign]

    async def story(client: StreamClient) -> None:
        closing.set()
        server._wake()
        assert await take(client, "shutdown", 1) == [{"type": "shutdown"}]

    try:
        run(server, story)
    finally:
        server.close()


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
            client._socket.setsockopt(zmq.LINGER, 0)
            client.close()

    asyncio.run(main())


def test_what_stays_unacknowledged_is_sent_again(server: StreamServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a connection that broke and came back: the learner still knows the actor, and asks for nothing."""
    monkeypatch.setattr("learner.stream.RESEND_AFTER_S", 0.2)
    monkeypatch.setattr("learner.stream.HEARTBEAT_S", 0.1)

    async def story(client: StreamClient) -> None:
        await load(server, client)
        (grant,) = await take(client, "grant", 1)
        seq = client.next_seq()
        trajectory = make(grant["propose"][0], seq)
        frames = [msgpack.packb({"type": "trajectory", "seq": seq}), *encode(trajectory)]
        client._unacknowledged[seq] = _Sent(frames, at=0.0)  # sent once, and lost on the way
        await until(lambda: totals(server.gate.ledger())["queued"] == 1)

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
        with pytest.raises(WireError):
            await client.send_trajectory(make(0, client.next_seq(), reward=float("nan")))
        assert client.unacknowledged == 0

    run(server, story)
