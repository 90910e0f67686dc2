"""The meeting of a job's agents: all connect to that of the first node, and stay connected until the job ends.

Messages are JSON objects, a line each. Both ends prove that they know the token of the attempt before anything else is
said, so jobs of other users, and other jobs of the same user, stay apart. The end of a connection is the end of a node:
keepalive finds a node that lost its power within `LOST_S`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import psutil

from executor.user_error import UserError
from launch.addresses import LOOPBACK
from launch.slurm.facts import Facts

IDLE_S, INTERVAL_S, PROBES = 5, 3, 5
LOST_S = IDLE_S + INTERVAL_S * PROBES
"""Seconds after which a peer that is silent on the network is lost."""
CONNECT_S = 5.0
"""Seconds that one address has to accept a connection, and to prove itself."""
LONGEST = 1 << 16
"""Bytes of the longest message."""


class MeetingError(Exception):
    """The peer is none, has gone, or said what it should not."""


class InterfaceError(UserError):
    """This node has no network interface that the job can use; the message names the setting."""


class Peer:
    """The other end of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        connection: socket.socket = writer.get_extra_info("socket")
        for option, value in (
            (socket.TCP_KEEPIDLE, IDLE_S),
            (socket.TCP_KEEPINTVL, INTERVAL_S),
            (socket.TCP_KEEPCNT, PROBES),
            (socket.TCP_USER_TIMEOUT, LOST_S * 1000),
        ):
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self.own_address = str(connection.getsockname()[0])
        """The address of this end, on the route between the two."""

    async def send(self, **message: Any) -> None:
        """Send a message. Raises MeetingError where the peer has gone."""
        try:
            self._writer.write(json.dumps(message, allow_nan=False).encode() + b"\n")
            await self._writer.drain()
        except OSError as error:
            raise MeetingError(f"the connection broke: {error}") from None

    async def receive(self) -> dict[str, Any]:
        """The next message. Raises MeetingError where the peer has gone."""
        try:
            line = await self._reader.readline()
        except (OSError, ValueError) as error:
            raise MeetingError(f"the connection broke: {error}") from None
        if not line.endswith(b"\n"):
            raise MeetingError("the connection was closed")
        try:
            message = json.loads(line)
        except ValueError:
            raise MeetingError("a message is no JSON") from None
        if not isinstance(message, dict):
            raise MeetingError("a message is no JSON object")
        return message

    def close(self) -> None:
        """Close the connection."""
        with contextlib.suppress(OSError, RuntimeError):
            self._writer.close()


@dataclass(frozen=True)
class Guest:
    """An agent that has joined, at the first node."""

    peer: Peer
    facts: Facts
    clock_ahead_s: float
    """How far its clock is ahead of this one."""
    uncertain_s: float
    """Error of `clock_ahead_s`: half of the time that the answer took."""


class Host:
    """The first node's end of the meeting."""

    def __init__(self, token: str, joined: Callable[[Guest], None]) -> None:
        """`joined` is called with each agent that has proved to know `token`."""
        self._token = token
        self._joined = joined
        self._server: asyncio.Server | None = None

    async def open(self, address: str) -> int:
        """Listen at `address` (0.0.0.0: all); returns the port."""
        self._server = await asyncio.start_server(self._greet, address, 0, limit=LONGEST)
        return int(self._server.sockets[0].getsockname()[1])

    def close(self) -> None:
        """Accept no more agents."""
        if self._server is not None:
            self._server.close()

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        try:
            async with asyncio.timeout(CONNECT_S):
                challenge = secrets.token_hex(16)
                asked = time.time()
                await peer.send(challenge=challenge)
                answer = await peer.receive()
                answered = time.time()
                theirs, facts = str(answer.get("challenge")), answer.get("facts")
                if not isinstance(facts, dict) or not _is_proof(
                    answer.get("proof"),
                    self._token,
                    "guest",
                    challenge,
                    theirs,
                    json.dumps(facts, sort_keys=True, allow_nan=False),
                ):
                    raise MeetingError("it does not know the token")
                await peer.send(proof=_proof(self._token, "host", theirs, challenge))
            read = Facts.from_message(facts)
        except (MeetingError, TimeoutError, ValueError):
            peer.close()  # a stranger: what listens on a network is found by scanners
            return
        self._joined(Guest(peer, read, read.clock - (asked + answered) / 2, (answered - asked) / 2))


async def join(addresses: Sequence[str], port: int, token: str, facts: Callable[[], Facts]) -> Peer:
    """Connect to the first node at whichever of its `addresses` answers, and prove to know `token`.

    `facts` gives this node's, at the moment when they are sent. Raises MeetingError.
    """
    failures = []
    for address in addresses:
        peer = None
        try:
            async with asyncio.timeout(CONNECT_S):
                peer = Peer(*await asyncio.open_connection(address, port, limit=LONGEST))
                theirs = str((await peer.receive()).get("challenge"))
                challenge, said = secrets.token_hex(16), facts().to_message()
                proof = _proof(token, "guest", theirs, challenge, json.dumps(said, sort_keys=True, allow_nan=False))
                await peer.send(challenge=challenge, proof=proof, facts=said)
                if not _is_proof((await peer.receive()).get("proof"), token, "host", challenge, theirs):
                    raise MeetingError("what listens there is no agent of this job")
                return peer
        except (OSError, MeetingError, TimeoutError) as error:
            failures.append(f"{address}: {error or 'it does not answer'}")
            if peer is not None:
                peer.close()
    raise MeetingError("; ".join(failures))


def own_addresses(index: int, interface: str | None) -> list[str]:
    """The addresses at which this node may be reached, the likeliest first.

    `interface`: the only one that counts. On `lo`, where all nodes of the job are one host, node `index` is given
    127.0.0.(2 + index). Raises InterfaceError where there is no such interface, or none at all.
    """
    if interface == "lo":
        return [f"127.0.0.{2 + index}"]
    found = {
        name: [entry.address for entry in entries if entry.family == socket.AF_INET]
        for name, entries in psutil.net_if_addrs().items()
    }
    if interface is not None and not found.get(interface):
        raise InterfaceError(f"slurm.interface = {interface}: no such network interface with an IPv4 address here")
    wanted = [interface] if interface else [name for name in found if name != "lo"]
    addresses = [address for name in wanted for address in found[name] if address != LOOPBACK]
    if not addresses:
        raise InterfaceError("this node has no network interface with an IPv4 address")
    return addresses


def _proof(token: str, *parts: str) -> str:
    return hmac.new(token.encode(), "\0".join(parts).encode(), hashlib.sha256).hexdigest()


def _is_proof(value: object, token: str, *parts: str) -> bool:
    return isinstance(value, str) and hmac.compare_digest(value.encode(), _proof(token, *parts).encode())
