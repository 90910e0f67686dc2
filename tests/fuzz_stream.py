"""Malformed messages for the learner's socket, with the reason for which each has to be refused.

    python -m tests.fuzz_stream --frames 1000000 --seed 0

sends that many over a real socket while an honest actor plays on, and checks that all were refused for the reasons that
were due, that nothing of the honest actor's was lost, and that the ledger is conserved. The same in small:
`test_stream_fuzz.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import resource
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack
import zmq

from learner.fields import MAX_HEADER_BYTES, MAX_ITEMS, Refusal, WireError
from learner.ledger import conserved, totals
from learner.staleness import Gate
from learner.stream.client import StreamClient
from learner.stream.server import StreamServer
from learner.stream.wire import FROM_ACTOR, MAX_HELLO_BYTES, from_actor, pack
from tests.unit.learner.stream.streaming import BATCH, hello, on_wire, play

MEMBER, STRANGER = "member", "stranger"
STANDING = {"floor": 1, "session": 0, "taken": 0}
SOUND: dict[str, dict[str, Any]] = {
    "hello": hello("somebody"),
    "beat": {"type": "beat", "capacity": 100, "stats": {"rollouts": 1.0}, **STANDING},
    "trajectory": {"type": "trajectory", "seq": 1},
    "returned": {"type": "returned", "seq": 1, "slots": [1, 2]},
    "failed": {"type": "failed", "seq": 1, "slots": [3], "why": "x"},
    "loaded": {"type": "loaded", "seq": 1, "version": 0, "timings": {"load_s": 0.5}},
    "load_failed": {"type": "load_failed", "seq": 1, "group": 1, "interrupted": False, "why": "x"},
}
WRONG: list[Any] = [
    None,
    True,
    False,
    1.0,
    -1,
    1 << 63,
    b"x",
    [None],
    [-1],
    [True],
    [[1]],
    {"x": "1"},
    {"x": None},
    {"x": True},
]
"""Not one of them will do for any field."""
ARRAYS = on_wire(1, 1)[1:]

Sent = tuple[str, list[bytes], Refusal]
"""Who sends it, its frames, and why it is refused."""


def _header(**changes: Any) -> bytes:
    packed: bytes = msgpack.packb(msgpack.unpackb(ARRAYS[0]) | changes)
    return packed


def _noise(rng: random.Random) -> Sent:
    return _judged([rng.randbytes(rng.randrange(64)) for _ in range(rng.randint(1, 6))])


def _no_map(rng: random.Random) -> Sent:
    return STRANGER, [msgpack.packb(rng.choice([None, 1, 0.5, "hello", b"hello", [1, 2], {1: 2}]))], Refusal.HEADER


def _bomb(rng: random.Random) -> Sent:
    start = rng.choice(
        [
            b"\x91",
            b"\xdd\x00\x00\x01\xff",
            b"\xdc\xff\xff",
            b"\x81\xa1x",
            b"\xdf\xff\xff\xff\xff",
            b"\xdd\xff\xff\xff\xff",
        ]
    )
    return STRANGER, [start * rng.randint(1, 3000)], Refusal.HEADER


def _unknown(rng: random.Random) -> Sent:
    name = rng.choice(["welcome", "grant", "Hello", "", None, 7, [], {}, "x" * rng.randrange(1000)])
    return STRANGER, [pack({"type": name, "seq": 1})], Refusal.TYPE


def wrong_values(sound: object) -> list[Any]:
    """Values of `WRONG` that a field with the sound value `sound` does not take either."""
    return [value for value in WRONG if not (isinstance(sound, bool) and isinstance(value, bool))]


def _frames(rng: random.Random) -> Sent:
    name = rng.choice(list(SOUND))
    count = rng.choice([n for n in (2, 3, 4, 5, 6, 50, 500) if (n, name) != (5, "trajectory")])
    return STRANGER, [pack(SOUND[name]), *[b""] * (count - 1)], Refusal.FRAMES


def _fields(rng: random.Random) -> Sent:
    name = rng.choice(list(SOUND))
    message = dict(SOUND[name])
    field = rng.choice(list(FROM_ACTOR[name]))
    match rng.randrange(3):
        case 0:
            del message[field]
        case 1:
            message["more"] = 1
        case _:
            message[field] = rng.choice(wrong_values(message[field]))
    return STRANGER, _whole(name, message), Refusal.FIELD


def _not_finite(rng: random.Random) -> Sent:
    name, field = rng.choice([("beat", "stats"), ("loaded", "timings")])
    return STRANGER, [pack(SOUND[name] | {field: {"x": rng.choice([float("nan"), float("inf")])}})], Refusal.NOT_FINITE


def _large(rng: random.Random) -> Sent:
    if rng.random() < 0.9:  # these are costly to make
        return _fields(rng)
    match rng.randrange(3):
        case 0:
            return STRANGER, [pack(SOUND["returned"] | {"slots": [1] * (MAX_ITEMS + 1)})], Refusal.HEADER
        case 1:
            return STRANGER, [pack(SOUND["beat"] | {"stats": {"x" * MAX_HEADER_BYTES: 1.0}})], Refusal.TOO_LARGE
        case _:
            return STRANGER, [bytes(MAX_HELLO_BYTES + 1)], Refusal.TOO_LARGE


def _not_introduced(rng: random.Random) -> Sent:
    name = rng.choice(list(SOUND))
    return STRANGER, _whole(name, SOUND[name]), Refusal.SENDER


def _damaged(rng: random.Random) -> Sent:
    frame = bytearray(pack(SOUND[rng.choice(list(SOUND))]))
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(frame) + 1)
        match rng.randrange(3):
            case 0 if place < len(frame):
                frame[place] ^= rng.randint(1, 255)
            case 1:
                del frame[place:]
            case _:
                frame[place:place] = rng.randbytes(3)
    return _judged([bytes(frame)])


TRAJECTORIES: list[tuple[Callable[[], list[bytes]], Refusal]] = [
    (lambda: [b"", *ARRAYS[1:]], Refusal.HEADER),
    (lambda: [_header(schema=1), *ARRAYS[1:]], Refusal.SCHEMA),
    (lambda: [_header(lengths=[3, 1 << 40]), *ARRAYS[1:]], Refusal.LENGTH),
    (lambda: [ARRAYS[0], ARRAYS[1][:-1], *ARRAYS[2:]], Refusal.LENGTH),
    (lambda: [*ARRAYS[:3], b"\x00\x00\xc0\x7f" * 2], Refusal.NOT_FINITE),
    (lambda: [_header(reward=float("inf")), *ARRAYS[1:]], Refusal.NOT_FINITE),
    (lambda: [_header(reward="1.0"), *ARRAYS[1:]], Refusal.FIELD),
    (lambda: [_header(slot=-1), *ARRAYS[1:]], Refusal.FIELD),
    (lambda: [_header(incarnation=-1, actor_id=MEMBER), *ARRAYS[1:]], Refusal.FIELD),
    (lambda: [_header(versions=[[0, 0, 1 << 50]]), *ARRAYS[1:]], Refusal.VERSIONS),
    (lambda: [_header(cell="deduction/judge"), *ARRAYS[1:]], Refusal.FIELD),
    (lambda: [_header(outcome="x" * MAX_HEADER_BYTES), *ARRAYS[1:]], Refusal.TOO_LARGE),
    (lambda: list(ARRAYS), Refusal.SENDER),
    (lambda: [_header(actor_id=MEMBER, cell="no-such-kind/solve"), *ARRAYS[1:]], Refusal.CELL),
]


def _trajectory(rng: random.Random) -> Sent:
    build, reason = rng.choice(TRAJECTORIES)
    return MEMBER, [pack(SOUND["trajectory"]), *build()], reason


FAMILIES = [
    _noise,
    _no_map,
    _bomb,
    _unknown,
    _frames,
    _fields,
    _not_finite,
    _large,
    _not_introduced,
    _damaged,
    _trajectory,
]


def malformed(rng: random.Random) -> Sent:
    """One message that must be refused."""
    return rng.choice(FAMILIES)(rng)


def _whole(name: str, message: dict[str, Any]) -> list[bytes]:
    return [pack(message), *(ARRAYS if name == "trajectory" else [])]


def _judged(frames: list[bytes]) -> Sent:
    """Of what is only damaged: the reason by the pure function; what is well-formed after all is from nobody."""
    try:
        from_actor(frames)
    except WireError as error:
        return STRANGER, frames, error.refusal
    return STRANGER, frames, Refusal.SENDER


class Fuzz:
    """A server, two sources of malformed messages, and an honest actor that plays on a learner that trains on."""

    def __init__(self) -> None:
        self.server = StreamServer(Gate(BATCH, 1, solutions=1), "run")
        self.expected: Counter[Refusal] = Counter()
        self.trained = 0
        self._stop = threading.Event()
        self._context = zmq.Context()
        self._sockets = {name: self._connect(name) for name in (MEMBER, STRANGER)}
        # A member that is at another version than the learner: it is granted nothing.
        for message in (hello(MEMBER), {"type": "loaded", "seq": 2, "version": 1 << 31, "timings": {}}):
            self._sockets[MEMBER].send(pack(message))
        self._wait(lambda: [m.loaded_version for m in self.server.members()] == [1 << 31])
        self._threads = [threading.Thread(target=target) for target in (self._act, self._learn)]
        for thread in self._threads:
            thread.start()

    def send(self, sent: Sent) -> None:
        """Send one malformed message; waits while the server's buffers are full."""
        name, frames, reason = sent
        self.expected[reason] += 1
        self._sockets[name].send_multipart(frames)
        if self.expected[reason] % 64 == 0:
            self._listen()

    def _listen(self) -> None:
        for socket in self._sockets.values():
            while socket.poll(0):
                socket.recv_multipart()

    def check(self) -> None:
        """Wait until all that was sent is refused, each for its reason."""
        self._wait(lambda: self.server.refused.total() >= self.expected.total())
        assert self.server.refused == self.expected

    def check_play(self) -> None:
        """Wait until two more batches of the honest actor are trained."""
        before = self.trained
        self._wait(lambda: self.trained >= before + 2)

    def close(self) -> None:
        """End; nothing of the honest actor's was lost."""
        self._stop.set()
        self._threads[1].join()
        self.server.close()
        self._threads[0].join()
        for socket in self._sockets.values():
            socket.close(0)
        self._context.term()
        ledger = self.server.gate.ledger()
        sums = totals(ledger)
        assert conserved(ledger)
        assert (sums["dropped"], sums["returned"], self.server.gate.late) == (0, 0, 0)
        assert sums["trained"] == 4 * self.trained

    def _connect(self, name: str) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.IDENTITY, f"{name}#0".encode())
        socket.connect(self.server.endpoint)
        return socket

    def _wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, (
                self.server.refused - self.expected,
                self.expected - self.server.refused,
            )
            time.sleep(0.01)

    def _act(self) -> None:
        async def act() -> None:
            client = StreamClient(self.server.endpoint, "honest", 0, capacity=100)
            try:
                await client.connect(60)
                await play(client)
            finally:
                client.close()

        asyncio.run(act())

    def _learn(self) -> None:
        server = self.server
        server.wait_for_members(2, 60)
        honest = [m for m in server.members() if m.holder.actor_id == "honest"]
        version = 0
        while True:
            server.expect_load(honest)
            server.send(honest[0], {"type": "weights", "version": version})
            assert server.wait_until_loaded(honest, version, 60) == []
            if version:
                server.mark_published(version)
            else:
                server.mark_loaded()
            if self._stop.is_set():
                return
            batch = server.next_batch(60)
            assert batch is not None and len(batch) == 4
            server.mark_trained([t.slot for t in batch])
            self.trained += 1
            version += 1


@contextmanager
def fuzzing() -> Iterator[Fuzz]:
    """A `Fuzz` that is closed, and checked, at the end."""
    fuzz = Fuzz()
    try:
        yield fuzz
    finally:
        fuzz.close()


def _rss_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def main() -> None:
    """By hand."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=1_000_000, help="messages to send")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with fuzzing() as fuzz:
        started, frames = time.monotonic(), 0
        for count in range(arguments.frames):
            sent = malformed(rng)
            frames += len(sent[1])
            fuzz.send(sent)
            if count in (1000, arguments.frames - 1):
                fuzz.check()
                fuzz.check_play()
                print(f"{count + 1} messages: {_rss_mib():.0f} MiB")
        seconds = time.monotonic() - started
    for reason, refused in sorted(fuzz.server.refused.items()):
        print(f"{refused:>9} {reason}")
    print(f"{fuzz.server.refused.total()} refused of {arguments.frames} sent ({frames} frames) in {seconds:.0f} s")
    print(f"{4 * fuzz.trained} trajectories of the honest actor trained meanwhile, none lost")


if __name__ == "__main__":
    main()
