"""A thousand actors on one socket: everything arrives, nobody starves, and what one arrival costs does not grow with
them."""

from __future__ import annotations

import resource
import threading
import time
from collections import Counter
from typing import Any

import msgpack
import pytest
import zmq

from learner.ledger import conserved, totals
from learner.settings import BatchSettings
from learner.staleness import Gate
from learner.stream.server import StreamServer
from learner.stream.wire import pack
from learner.trajectory import Role
from tests.unit.learner.stream.streaming import hello, on_wire

THREADS = 2
DEADLINE_S = 120.0


@pytest.mark.slow
def test_a_thousand_actors_on_one_socket_all_get_their_share() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 20_000:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(20_000, hard), hard))
    num_actors = 1000 if min(20_000, hard) >= 12_000 else 200
    batches = 3
    # Every batch has two episodes (a proposal and its solution) for each actor.
    quota = {"deduction": 2 * num_actors}
    gate = Gate(BatchSettings(propose=quota, solve=quota), 0, solutions=1)
    server = StreamServer(gate, "run")
    crowds = [Crowd(server.endpoint, range(k, num_actors, THREADS)) for k in range(THREADS)]
    started = time.monotonic()
    try:
        server.wait_for_members(num_actors, DEADLINE_S)
        joined = time.monotonic()
        played: Counter[str] = Counter()
        for version in range(batches):
            members = server.members()
            assert len(members) == num_actors
            server.expect_load(members)
            for member in members:
                server.send(member, {"type": "weights", "version": version})
            assert server.wait_until_loaded(members, version, DEADLINE_S) == []
            if version:
                server.mark_published(version)
            else:
                server.mark_loaded()
            batch = server.next_batch(DEADLINE_S)
            assert batch is not None
            assert len(batch) == 4 * num_actors
            if version:  # who loads the first version early begins early
                played.update(trajectory.actor_id for trajectory in batch)
            server.mark_trained([trajectory.slot for trajectory in batch])
        seconds = time.monotonic() - joined
        assert len(played) == num_actors
        assert set(played.values()) == {4 * (batches - 1)}, "round robin: each actor has the same share"
        assert totals(gate.ledger())["trained"] == 4 * num_actors * batches
        assert conserved(gate.ledger())
        assert (gate.late, server.refused.total(), server.counts["lost"]) == (0, 0, 0)
        print(
            f"{num_actors} actors joined in {joined - started:.1f} s; {gate.ledger() and 4 * num_actors * batches} "
            f"trajectories in {seconds:.1f} s, {4 * num_actors * batches / seconds:.0f}/s"
        )
    finally:
        server.close()
        for crowd in crowds:
            crowd.end()


class Crowd:
    """Many actors on one thread, each with a socket of its own. They play at once: a trajectory for each slot."""

    def __init__(self, endpoint: str, numbers: range) -> None:
        self._context = zmq.Context(io_threads=1)
        self._context.set(zmq.MAX_SOCKETS, 4096)
        self._endpoint = endpoint
        self._numbers = numbers
        self._stop = threading.Event()
        self._failures: list[BaseException] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def end(self) -> None:
        self._stop.set()
        self._thread.join()
        self._context.term()
        assert not self._failures, self._failures

    def _run(self) -> None:
        actors: dict[zmq.Socket[bytes], Actor] = {}
        poller = zmq.Poller()
        try:
            for number in self._numbers:
                actor = Actor(self._context, self._endpoint, f"a{number}")
                actors[actor.socket] = actor
                poller.register(actor.socket, zmq.POLLIN)
            next_beat = time.monotonic() + 1.0
            while not self._stop.is_set():
                for socket, _ in poller.poll(100):
                    actors[socket].read()
                if time.monotonic() > next_beat:
                    next_beat = time.monotonic() + 1.0
                    for actor in actors.values():
                        actor.beat()
        except BaseException as error:
            self._failures.append(error)
        finally:
            for socket in actors:
                socket.close(0)


class Actor:
    """The least that an actor is."""

    def __init__(self, context: zmq.Context[Any], endpoint: str, name: str) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.IDENTITY, f"{name}#0".encode())
        self.socket.connect(endpoint)
        self.socket.send(pack(hello(name, capacity=4)))
        self._name = name
        self._seq = self._session = self._taken = 0

    def read(self) -> None:
        while True:
            try:
                message = msgpack.unpackb(self.socket.recv(zmq.NOBLOCK))
            except zmq.Again:
                return
            if message["type"] == "welcome":
                self._session = message["session"]
            if message.get("number", 0) != self._taken + 1:
                continue
            self._taken += 1
            if message["type"] == "weights":
                self._seq += 1
                self.socket.send(
                    pack({"type": "loaded", "seq": self._seq, "version": message["version"], "timings": {}})
                )
            for role in Role:
                for slot in message.get(role.value, []):
                    self._seq += 1
                    self.socket.send_multipart(on_wire(slot, self._seq, role, actor_id=self._name))

    def beat(self) -> None:
        standing = {"floor": self._seq + 1, "session": self._session, "taken": self._taken}
        self.socket.send(pack({"type": "beat", "capacity": 4, "stats": {}, **standing}))
