"""Who has none of the run's keys gets nothing, over a real socket; and where the keys lie."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import zmq

from learner.settings import needs_keys
from learner.staleness import Gate
from learner.stream.client import StreamClient
from learner.stream.keys import ACTOR, LEARNER, ActorKeys, KeyPair, KeysError, RunKeys
from learner.stream.server import StreamServer
from learner.stream.wire import pack
from tests.unit.learner.stream.streaming import BATCH, DEADLINE_S, answer, hello, load, settled, take, until

KEYS = RunKeys.make()


@pytest.fixture
def server() -> Iterator[StreamServer]:
    server = StreamServer(Gate(BATCH, 1, solutions=1), "run", keys=KEYS.learner)
    yield server
    server.close()


def knock(server: StreamServer, keys: ActorKeys | None) -> zmq.Socket[bytes]:
    socket = zmq.Context.instance().socket(zmq.DEALER)
    socket.setsockopt(zmq.IDENTITY, b"stranger#0")
    if keys is not None:
        socket.curve_secretkey, socket.curve_publickey = keys.own.secret, keys.own.public
        socket.curve_serverkey = keys.learner
    socket.connect(server.endpoint)
    socket.send(pack(hello("stranger")))
    return socket


def test_an_actor_with_the_runs_keys_is_served(server: StreamServer) -> None:
    async def main() -> None:
        client = StreamClient(server.endpoint, "a", 0, capacity=100, keys=KEYS.actor)
        try:
            assert await client.connect(DEADLINE_S) == 0
            await load(server, client)
            await answer(client, await take(client, "grant", 4))
            await settled(client)
        finally:
            client.close()

    asyncio.run(main())
    assert len(server.queued()) == 8


def test_strangers_get_nothing_are_counted_and_hold_nobody_up(server: StreamServer) -> None:
    strangers = [
        knock(server, None),
        knock(server, replace(KEYS.actor, own=KeyPair.make())),
        knock(server, replace(KEYS.actor, learner=KeyPair.make().public)),
    ]
    plain = zmq.Context.instance().socket(zmq.DEALER)
    plain.plain_username, plain.plain_password = b"azr", b"azr"
    plain.connect(server.endpoint)
    plain.send(pack(hello("plain")))
    strangers.append(plain)

    async def main() -> None:
        await until(lambda: server.stats()["stream/denied_key"] >= 1 and server.stats()["stream/denied_handshake"] >= 3)
        client = StreamClient(server.endpoint, "a", 0, capacity=100, keys=KEYS.actor)
        try:
            await client.connect(DEADLINE_S)
            await load(server, client)
            await take(client, "grant", 4)
        finally:
            client.close()

    try:
        asyncio.run(main())
        assert [member.holder.actor_id for member in server.members()] == ["a"]
        assert not any(socket.poll(0) for socket in strangers), "a stranger was answered"
        assert not server.refused, "a stranger's message came through"
    finally:
        for socket in strangers:
            socket.close(0)


def test_an_actor_with_keys_does_not_talk_to_a_learner_without() -> None:
    server = StreamServer(Gate(BATCH, 1, solutions=1), "run")

    async def main() -> None:
        client = StreamClient(server.endpoint, "a", 0, capacity=1, keys=KEYS.actor)
        try:
            with pytest.raises(TimeoutError):
                await client.connect(0.5)
        finally:
            client.close()

    try:
        asyncio.run(main())
        assert not server.members()
    finally:
        server.close()


def test_keys_are_made_once_and_only_for_their_owner(tmp_path: Path) -> None:
    keys = RunKeys.of_run(tmp_path / "keys")
    assert RunKeys.of_run(tmp_path / "keys") == keys
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
    for name in (LEARNER, ACTOR):
        assert stat.S_IMODE((tmp_path / "keys" / name).stat().st_mode) == 0o600
    assert keys != RunKeys.of_run(tmp_path / "other")
    assert keys.learner_pair.secret.decode() not in repr(keys)


def test_a_key_that_others_can_read_is_refused_with_the_mend(tmp_path: Path) -> None:
    RunKeys.of_run(tmp_path)
    (tmp_path / ACTOR).chmod(0o640)
    with pytest.raises(KeysError, match=r"actor.key can be read or written by others \(mode 0640\).*chmod 600"):
        RunKeys.of_run(tmp_path)


@pytest.mark.parametrize("content", [b"", b"x y", b"a" * 40 + b"\n" + b"b" * 40], ids=["empty", "short", "no pair"])
def test_a_damaged_key_is_refused(tmp_path: Path, content: bytes) -> None:
    RunKeys.of_run(tmp_path)
    (tmp_path / LEARNER).write_bytes(content)
    with pytest.raises(KeysError, match="delete it"):
        RunKeys.of_run(tmp_path)


@pytest.mark.parametrize(
    ("curve", "host", "used"),
    [
        ("auto", "127.0.0.1", False),
        ("auto", "localhost", False),
        ("auto", "[::1]", False),
        ("auto", "0.0.0.0", True),
        ("auto", "10.1.2.3", True),
        ("auto", "*", True),
        ("auto", "node7", True),
        ("on", "127.0.0.1", True),
        ("off", "10.1.2.3", False),
    ],
)
def test_keys_are_used_beyond_loopback_unless_it_is_said_otherwise(curve: str, host: str, used: bool) -> None:
    assert needs_keys(curve, host) is used
