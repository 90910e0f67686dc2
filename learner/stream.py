"""The stream: trajectories from actors to the learner over ZeroMQ, and grants and weights' control the other way.

Both ends live here. The learner is the server (ROUTER, `StreamServer`, one thread that owns the socket and the gate);
an actor is a client (DEALER, `StreamClient`, asyncio). A message is a msgpack map with the key `type`, followed, for a
trajectory, by the four frames of `learner.trajectory.encode`.

    actor -> learner   hello(actor_id, incarnation, capacity)   trajectory(seq) + frames   returned(slots)   failed(slots, why)
                       loaded(version, timings)   load_failed(version, why)   beat(stats)
    learner -> actor   welcome(run_id, version)   grant(episode, kind, batch, propose, solve)   ack(seq)
                       join(spec, rank)   weights(version, manifest)   shutdown   beat

An actor starts a rollout only with a granted slot. A trajectory stays with the actor until it is acknowledged and is
sent again after a reconnect; the learner removes duplicates by (actor, incarnation, seq).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import msgpack
import zmq
import zmq.asyncio

from learner.staleness import Gate, Grant, Holder
from learner.trajectory import Refusal, Trajectory, WireError, check, decode, encode, unpack_header

HEARTBEAT_S = 1.0
RESEND_AFTER_S = 5.0
"""What is not acknowledged for so long is sent again: a connection that broke and came back has lost what it carried."""
DEAD_AFTER_S = 60.0
"""An actor that is silent for so long is lost. An engine's first compilation blocks nothing here: a thread of its own beats."""


@dataclass(slots=True)
class Member:
    """What the learner knows of one connected actor."""

    holder: Holder
    identity: bytes
    capacity: int
    last_seen: float
    loaded_version: int = -1
    stats: dict[str, float] = field(default_factory=dict)
    seen_seqs: set[int] = field(default_factory=set)


class BatchTimeout(RuntimeError):
    """No batch became ready in time; the message says what is missing and who holds it."""


class StreamServer:
    """The learner's end: receives trajectories, grants slots, carries the control messages of the weight broadcast.

    All state behind `_lock`; the socket belongs to the thread. Other threads put messages into `_outbox` and wake it.
    """

    def __init__(
        self, gate: Gate, run_id: str, bind: str = "tcp://127.0.0.1:0", dead_after_s: float = DEAD_AFTER_S
    ) -> None:
        self.gate = gate
        self.run_id = run_id
        self.refused: Counter[str] = Counter()
        self.duplicates = 0
        self.late = 0
        self.on_event: Callable[..., None] = lambda name, **details: None
        """Called with the name and details of joins, losses and failures; must not block."""
        self._dead_after_s = dead_after_s
        self._members: dict[bytes, Member] = {}
        self._queue: dict[int, Trajectory] = {}
        self._outbox: deque[tuple[bytes, list[bytes | memoryview]]] = deque()
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._stopping = False
        self._load_failures: dict[Holder, str] = {}
        self._failure: BaseException | None = None
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self._socket.setsockopt(zmq.LINGER, 1000)
        self._socket.bind(bind)
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._wake_address = f"inproc://wake-{id(self)}"
        self._wake_in = self._context.socket(zmq.PULL)
        self._wake_in.bind(self._wake_address)
        self._wake_out = self._context.socket(zmq.PUSH)
        self._wake_out.connect(self._wake_address)
        self._thread = threading.Thread(target=self._serve, name="azr-stream", daemon=True)
        self._thread.start()

    # -- for the learner's thread --------------------------------------------------------------------------------

    def next_batch(self, timeout_s: float, interrupt: Callable[[], bool] = lambda: False) -> list[Trajectory] | None:
        """The trajectories of the next batch in the order of grants; waits until it is complete.

        None as soon as `interrupt()` holds or an actor waits for its weights. Raises `BatchTimeout` after `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while True:
                if self._failure is not None:
                    raise RuntimeError("the stream's thread failed") from self._failure
                if interrupt() or self.newcomers():
                    return None
                slots = self.gate.ready()
                if slots is not None:
                    return [self._queue[slot] for slot in slots]
                left = deadline - time.monotonic()
                if left <= 0:
                    raise BatchTimeout(f"no batch for {timeout_s:.0f} s: {self.gate.waiting_for()}; {self._describe()}")
                self._changed.wait(min(left, 0.5))

    def mark_trained(self, slots: Sequence[int]) -> None:
        """The optimizer step over these slots is done: they leave the queue."""
        with self._lock:
            self.gate.trained(slots)
            for slot in slots:
                del self._queue[slot]

    def mark_published(self, version: int) -> None:
        """Every member has loaded `version`: settle what trained it and grant what that opens."""
        with self._changed:
            self.gate.published(version)
            self._grant_all()
            self._changed.notify_all()

    def mark_loaded(self) -> None:
        """Grant to members that have just been brought to the current version."""
        with self._lock:
            self._grant_all()

    def queued(self) -> list[Trajectory]:
        """Trajectories that wait to be trained, in the order of grants."""
        with self._lock:
            return [self._queue[slot] for slot in sorted(self._queue)]

    def requeue(self, trajectories: Sequence[Trajectory]) -> None:
        """Put back the queue of a checkpoint."""
        with self._lock:
            self._queue.update({trajectory.slot: trajectory for trajectory in trajectories})

    def frozen(self) -> AbstractContextManager[object]:
        """While held, nothing arrives and nothing is granted: for a checkpoint of gate and queue together."""
        return self._lock

    def members(self) -> list[Member]:
        """Connected actors, in the order of their identities."""
        with self._lock:
            return [self._members[identity] for identity in sorted(self._members)]

    def newcomers(self) -> bool:
        """Whether an actor waits for the current weights before it may play."""
        with self._lock:
            return any(member.loaded_version < 0 for member in self._members.values())

    def wait_for_members(self, count: int, timeout_s: float, interrupt: Callable[[], bool] = lambda: False) -> None:
        """Block until `count` actors have connected; after `timeout_s` go on with at least one, else raise TimeoutError."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while len(self._members) < count and not interrupt():
                left = deadline - time.monotonic()
                if left <= 0:
                    if self._members:
                        return
                    raise TimeoutError(
                        f"no rollout actor connected to {self.endpoint} within {timeout_s:.0f} s; see the logs"
                    )
                self._changed.wait(min(left, 0.5))

    def send(self, member: Member, message: dict[str, Any]) -> None:
        """Queue a control message for one actor."""
        self._post(member.identity, message)

    def expect_load(self, members: Sequence[Member]) -> None:
        """Before a broadcast: nobody has loaded it or failed to, and nobody is granted anything until then."""
        with self._lock:
            self._load_failures.clear()
            for member in members:
                member.loaded_version = -1

    def wait_until_loaded(self, members: Sequence[Member], version: int, timeout_s: float) -> list[Member]:
        """Wait until each member has loaded `version`, failed, or was lost; returns those that did not load it."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while True:
                pending = [
                    m
                    for m in members
                    if m.loaded_version != version
                    and m.identity in self._members
                    and m.holder not in self._load_failures
                ]
                if not pending:
                    break
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(min(left, 0.5))
            return [m for m in members if m.loaded_version != version]

    def load_failures(self) -> dict[str, str]:
        """Actor -> why it could not load the last broadcast."""
        with self._lock:
            return {holder.actor_id: why for holder, why in self._load_failures.items()}

    def lose(self, member: Member, why: str) -> None:
        """Count an actor out: what it had in flight is dropped and granted again."""
        with self._changed:
            if self._members.get(member.identity) is not member:
                return
            del self._members[member.identity]
            slots = self.gate.lose(member.holder)
            self.on_event("actor_lost", actor=member.holder.actor_id, why=why, dropped_slots=slots)
            self._grant_all()
            self._changed.notify_all()

    def stats(self) -> dict[str, float]:
        """Sums over actors of what they reported last."""
        with self._lock:
            sums: dict[str, float] = defaultdict(float)
            for member in self._members.values():
                for name, value in member.stats.items():
                    sums[name] += value
            return {**sums, "actors": len(self._members)}

    def poke(self) -> None:
        """Make a waiting `next_batch` look at its `interrupt` again."""
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """Tell the actors to stop, then close the socket."""
        for member in self.members():
            self.send(member, {"type": "shutdown"})
        with self._lock:
            self._stopping = True
        self._wake()
        self._thread.join(timeout=10)
        self._wake_out.close(0)
        self._context.term()

    # -- the socket's thread -------------------------------------------------------------------------------------

    def _serve(self) -> None:
        try:
            self._run()
        except BaseException as error:  # whatever it is, the learner's thread must not wait for ever
            with self._changed:
                self._failure = error
                self._changed.notify_all()
        finally:
            self._socket.close()
            self._wake_in.close(0)

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._wake_in, zmq.POLLIN)
        next_beat = time.monotonic()
        while True:
            ready = dict(poller.poll(timeout=int(HEARTBEAT_S * 1000)))
            if self._wake_in in ready:
                self._wake_in.recv()
            if self._socket in ready:
                self._receive_all()
            now = time.monotonic()
            if now >= next_beat:
                next_beat = now + HEARTBEAT_S
                self._beat(now)
            self._flush()
            with self._lock:
                if self._stopping:
                    self._flush()  # `close` may have posted its shutdowns since the last flush
                    return

    def _receive_all(self) -> None:
        while True:
            try:
                identity, *frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                self._receive(identity, frames)
            except WireError as error:
                with self._lock:
                    self.refused[error.refusal] += 1
                self.on_event("refused", reason=error.refusal.value, detail=str(error)[:200])

    def _receive(self, identity: bytes, frames: list[bytes]) -> None:
        if not frames:
            raise WireError(Refusal.FRAMES, "an empty message")
        message = unpack_header(frames[0])
        try:
            with self._changed:
                member = self._members.get(identity)
                if message.get("type") == "hello":
                    self._hello(identity, message)
                elif member is None:
                    self._post(identity, {"type": "who"})
                else:
                    member.last_seen = time.monotonic()
                    self._dispatch(member, message, frames)
                self._changed.notify_all()
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            if isinstance(error, WireError):
                raise
            raise WireError(Refusal.FIELD, f"{type(error).__name__}: {error}") from error

    def _dispatch(self, member: Member, message: dict[str, Any], frames: list[bytes]) -> None:
        match message.get("type"):
            case "trajectory":
                self._trajectory(member, int(message["seq"]), frames[1:])
            case "returned":
                for slot in message["slots"]:
                    self.gate.give_back(int(slot), member.holder)
                self._post(member.identity, {"type": "ack", "seq": int(message["seq"])})
                self._grant_all()
            case "failed":
                for slot in message["slots"]:
                    self.gate.fail(int(slot), member.holder)
                self.on_event("rollout_failed", actor=member.holder.actor_id, why=str(message["why"])[:500])
                self._post(member.identity, {"type": "ack", "seq": int(message["seq"])})
                self._grant_all()
            case "loaded":
                member.loaded_version = int(message["version"])
                member.stats.update({f"weights/{k}": float(v) for k, v in message["timings"].items()})
            case "load_failed":
                self._load_failures[member.holder] = str(message["why"])[:500]
            case "beat":
                weights = {k: v for k, v in member.stats.items() if k.startswith("weights/")}
                member.stats = {str(k): float(v) for k, v in message["stats"].items()} | weights
            case other:
                raise WireError(Refusal.FIELD, f"unknown message type {other!r:.40}")

    def _hello(self, identity: bytes, message: dict[str, Any]) -> None:
        holder = Holder(str(message["actor_id"]), int(message["incarnation"]))
        if any(m.holder.actor_id == holder.actor_id and m.holder > holder for m in self._members.values()):
            self._post(identity, {"type": "shutdown"})  # a life that was replaced, and does not know it
            return
        known = self._members.get(identity)
        if known is not None and known.holder == holder:
            known.last_seen = time.monotonic()
        else:
            for other in [m for m in self._members.values() if m.holder.actor_id == holder.actor_id]:
                self.lose(other, "replaced by its next incarnation")
            self._members[identity] = Member(holder, identity, int(message["capacity"]), time.monotonic())
            self.on_event("actor_joined", actor=holder.actor_id, incarnation=holder.incarnation)
        self._post(identity, {"type": "welcome", "run_id": self.run_id, "version": self.gate.version})

    def _trajectory(self, member: Member, seq: int, frames: list[bytes]) -> None:
        if seq in member.seen_seqs:
            self.duplicates += 1
        else:
            trajectory = decode(frames)
            if (trajectory.actor_id, trajectory.incarnation) != tuple(
                member.holder
            ) or trajectory.run_id != self.run_id:
                raise WireError(Refusal.FIELD, "a trajectory of another actor or run")
            member.seen_seqs.add(seq)
            if self.gate.arrive(trajectory.slot, member.holder, trajectory.cell):
                self._queue[trajectory.slot] = trajectory
            else:
                self.late += 1
        self._post(member.identity, {"type": "ack", "seq": seq})
        self._grant_all()

    def _beat(self, now: float) -> None:
        for member in self.members():
            if now - member.last_seen > self._dead_after_s:
                self.lose(member, f"silent for {now - member.last_seen:.0f} s")
            else:
                self._post(member.identity, {"type": "beat"})

    def _grant_all(self) -> None:
        """Grant in turn, one episode each, until the gate is shut or every actor is full."""
        eligible = [m for m in self.members() if m.loaded_version == self.gate.version]
        while eligible:
            for member in list(eligible):
                grant = self.gate.grant(member.holder, member.capacity)
                if grant is None:
                    eligible.remove(member)
                else:
                    self._post(member.identity, {"type": "grant", **grant_to_message(grant)})

    def _post(self, identity: bytes, message: dict[str, Any]) -> None:
        with self._lock:
            self._outbox.append((identity, [msgpack.packb(message)]))
        if threading.current_thread() is not self._thread:
            self._wake()

    def _wake(self) -> None:
        with self._lock, contextlib.suppress(zmq.Again):
            self._wake_out.send(b"", zmq.NOBLOCK)

    def _flush(self) -> None:
        while True:
            with self._lock:
                if not self._outbox:
                    return
                identity, frames = self._outbox.popleft()
            with contextlib.suppress(zmq.Again):  # the peer's queue is full: it is not reading, and will be lost
                self._socket.send_multipart([identity, *frames], zmq.NOBLOCK)

    def _describe(self) -> str:
        now = time.monotonic()
        actors = [
            f"{m.holder.actor_id} (heard {now - m.last_seen:.0f} s ago, version {m.loaded_version})"
            for m in self.members()
        ]
        return "actors: " + (", ".join(actors) or "none connected")


def grant_to_message(grant: Grant) -> dict[str, Any]:
    """A grant as msgpack carries it."""
    return {
        "episode": grant.episode,
        "kind": grant.kind.value,
        "batch": grant.batch,
        "propose": list(grant.propose),
        "solve": list(grant.solve),
    }


@dataclass(slots=True)
class _Sent:
    """A message that is not acknowledged yet, and when it was last sent."""

    frames: list[bytes | memoryview]
    at: float


class StreamClient:
    """An actor's end. Not thread-safe: it belongs to one asyncio loop."""

    def __init__(self, endpoint: str, actor_id: str, incarnation: int, capacity: int) -> None:
        self.actor_id = actor_id
        self.incarnation = incarnation
        self.run_id = ""
        self.stats: Callable[[], dict[str, float]] = dict
        """Numbers that travel with each heartbeat."""
        self._capacity = capacity
        self._seq = 0
        self._unacknowledged: dict[int, _Sent] = {}
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, f"{actor_id}#{incarnation}".encode())
        self._socket.setsockopt(zmq.LINGER, 1000)
        self._socket.connect(endpoint)
        self._endpoint = endpoint
        self._beating: asyncio.Task[None] | None = None

    async def connect(self, timeout_s: float) -> int:
        """Say hello and wait for the welcome; returns the learner's version. Raises TimeoutError naming the endpoint."""
        await self._hello()
        try:
            message = await asyncio.wait_for(self._read(), timeout_s)
        except TimeoutError:
            raise TimeoutError(
                f"{self.actor_id}: the learner at {self._endpoint} sent no welcome in {timeout_s:.0f} s"
            ) from None
        if message["type"] != "welcome":
            raise ConnectionError(
                f"{self.actor_id}: the learner at {self._endpoint} answered hello with {message['type']}"
            )
        self.run_id = message["run_id"]
        self._beating = asyncio.create_task(self._beat())
        return int(message["version"])

    async def messages(self) -> AsyncIterator[dict[str, Any]]:
        """Grants, `join`, `weights` and `shutdown`, as they come; acknowledgements are settled here."""
        while True:
            message = await self._read()
            match message["type"]:
                case "ack":
                    self._unacknowledged.pop(message["seq"], None)
                case "beat":
                    pass
                case "who" | "welcome":
                    # The learner has forgotten us, or greets us again: say who we are and send what it may have missed.
                    if message["type"] == "who":
                        await self._hello()
                    await self._resend(older_than_s=0.0)
                case _:
                    yield message

    async def send_trajectory(self, trajectory: Trajectory) -> None:
        """Send, and keep until acknowledged. `trajectory.seq` must come from `next_seq`.

        Raises `WireError` for one that the learner would refuse: a refused trajectory would leave its slot in flight.
        """
        check(trajectory)
        frames = encode(trajectory)
        await self._send_kept(trajectory.seq, [msgpack.packb({"type": "trajectory", "seq": trajectory.seq}), *frames])

    async def send_returned(self, slots: Sequence[int]) -> None:
        """There is no task to fill these slots with."""
        seq = self.next_seq()
        await self._send_kept(seq, [msgpack.packb({"type": "returned", "slots": list(slots), "seq": seq})])

    async def send_failed(self, slots: Sequence[int], why: str) -> None:
        """These slots could not be played, for reasons that say nothing about the model."""
        seq = self.next_seq()
        await self._send_kept(seq, [msgpack.packb({"type": "failed", "slots": list(slots), "why": why, "seq": seq})])

    async def send(self, message: dict[str, Any]) -> None:
        """A control message: `loaded` or `load_failed`."""
        await self._socket.send_multipart([msgpack.packb(message)])

    def next_seq(self) -> int:
        """A fresh sequence number."""
        self._seq += 1
        return self._seq

    @property
    def unacknowledged(self) -> int:
        """Messages that the learner has not confirmed yet."""
        return len(self._unacknowledged)

    def close(self) -> None:
        """Stop beating and close the socket."""
        if self._beating is not None:
            self._beating.cancel()
        self._socket.close()
        self._context.term()

    async def _hello(self) -> None:
        await self.send(
            {"type": "hello", "actor_id": self.actor_id, "incarnation": self.incarnation, "capacity": self._capacity}
        )

    async def _send_kept(self, seq: int, frames: list[bytes | memoryview]) -> None:
        self._unacknowledged[seq] = _Sent(frames, time.monotonic())
        await self._socket.send_multipart(frames)

    async def _resend(self, older_than_s: float) -> None:
        """Send again what is unacknowledged since then; the learner removes duplicates."""
        now = time.monotonic()
        for sent in list(self._unacknowledged.values()):
            if now - sent.at >= older_than_s:
                sent.at = now
                await self._socket.send_multipart(sent.frames)

    async def _read(self) -> dict[str, Any]:
        frames = await self._socket.recv_multipart()
        return unpack_header(frames[0])

    async def _beat(self) -> None:
        while True:
            await self.send({"type": "beat", "stats": self.stats()})
            await self._resend(older_than_s=RESEND_AFTER_S)
            await asyncio.sleep(HEARTBEAT_S)
