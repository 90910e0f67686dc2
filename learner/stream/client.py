"""An actor's end of the stream. The protocol: `learner/stream/__init__.py`.

Nothing here waits for a connection: what cannot leave now is kept, and leaves when the learner has greeted us again.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import zmq

from learner.events import OnEvent, ignore_event
from learner.fields import WireError
from learner.stream import wire
from learner.stream.answers import NEVER, Answers, Kept
from learner.stream.keys import ActorKeys
from learner.stream.wire import MAX_CONTROL_BYTES, from_learner, pack, pack_slots
from learner.trajectory import Trajectory, check, encode

NOW, MORE, READABLE = int(zmq.NOBLOCK), int(zmq.NOBLOCK | zmq.SNDMORE), int(zmq.POLLIN)
"""Flags of ZeroMQ as plain numbers: with an enum's members, each `|` and `&` takes longer than to send a frame."""
RECONNECT_MS = 100
MAX_RECONNECT_MS = 2000


class LearnerLost(ConnectionError):
    """The learner was silent for longer than `learner_timeout_s`. The message names its run, its endpoint and the slots
    held."""


class StreamClient:
    """An actor's end. Not thread-safe: it belongs to one asyncio loop.

    Memory is bounded by the slots that the learner granted (`answers.py`).
    """

    def __init__(
        self,
        endpoint: str,
        actor_id: str,
        incarnation: int,
        capacity: int,
        keys: ActorKeys | None = None,
        learner_silent_s: float = 10.0,
        learner_timeout_s: float = 600.0,
        on_event: OnEvent = ignore_event,
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
    ) -> None:
        """Connect to `endpoint`, without waiting for it.

        `capacity`: maximum number of slots in flight here. `keys`: of the run; None leaves the connection unencrypted.
        `learner_silent_s`: seconds without a message from the learner after which `on_event` is called and the learner
        is greeted again. `learner_timeout_s`: seconds after which `messages` raises `LearnerLost`. `on_event`: called
        with `learner_silent`, `learner_back` and `refused`. `context`: ZeroMQ's, with its thread, where several clients
        of a process share one; else the client has its own.
        """
        self.actor_id = actor_id
        self.incarnation = incarnation
        self.run_id = ""
        self.counts: Counter[str] = Counter()
        """`resent`, `abandoned` (answers for slots that the learner no longer counts on), `refused`, `gaps`,
        `reconnects`."""
        self.capacity = capacity
        """Maximum number of slots in flight here. A change travels with the next heartbeat."""
        self._report: Callable[[], Mapping[str, float]] = dict
        self._on_event = on_event
        self._silent_s = learner_silent_s
        self._timeout_s = learner_timeout_s
        self._seq = 0
        self._answers = Answers()
        self._session = 0
        self._taken = 0
        self._heard_at = time.monotonic()
        self._greeted_at = 0.0
        self._silent = False
        self._endpoint = endpoint
        self._own_context = context is None
        self._context = context or zmq.Context()
        # Not `zmq.asyncio`: a future for each message costs more than the message.
        self._socket = self._context.socket(zmq.DEALER)
        self._readable = asyncio.Event()
        self._waiting = False
        """Whether `_receive` waits for it."""
        self._loop: asyncio.AbstractEventLoop | None = None
        for option, value in (
            (zmq.LINGER, 1000),
            (zmq.IMMEDIATE, 1),  # nothing piles up for a connection that is not there: it is kept here anyway
            (zmq.MAXMSGSIZE, MAX_CONTROL_BYTES),
            (zmq.RECONNECT_IVL, RECONNECT_MS),
            (zmq.RECONNECT_IVL_MAX, MAX_RECONNECT_MS),
            (zmq.HEARTBEAT_IVL, wire.TCP_SILENT_MS // 3),
            (zmq.HEARTBEAT_TIMEOUT, wire.TCP_SILENT_MS),
        ):
            self._socket.setsockopt(option, value)
        self._socket.setsockopt(zmq.IDENTITY, f"{actor_id}#{incarnation}".encode())
        if keys is not None:
            self._socket.curve_secretkey = keys.own.secret
            self._socket.curve_publickey = keys.own.public
            self._socket.curve_serverkey = keys.learner
        self._socket.connect(endpoint)
        self._beating: asyncio.Task[None] | None = None

    async def connect(self, timeout_s: float, report: Callable[[], Mapping[str, float]] = dict) -> int:
        """Greet the learner until it answers; returns its version, as a label (`learner/lineage.py`).

        Raises TimeoutError after `timeout_s` seconds, ConnectionError where the learner has no use for this life of the
        actor.

        `report`: the numbers that travel with each heartbeat from now on.
        """
        self._report = report
        deadline = time.monotonic() + timeout_s
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket.FD, self._note_readable)
        while (left := deadline - time.monotonic()) > 0:
            self._greet()
            message = await self._receive(min(left, 0.05 if not self._greeted_at else wire.HEARTBEAT_S))
            match message and message["type"]:
                case "welcome":
                    assert message is not None
                    self._welcomed(message)
                    self._beating = asyncio.create_task(self._beat())
                    return int(message["version"])
                case "shutdown":
                    raise ConnectionError(
                        f"{self.actor_id}: the learner at {self._endpoint} answered hello with shutdown"
                    )
        raise TimeoutError(f"{self.actor_id}: the learner at {self._endpoint} sent no welcome in {timeout_s:.0f} s")

    async def messages(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the learner's control messages, each once and in order. Acknowledgements and greetings are handled
        here.

        `grant`: play these slots. `cancel`: stop playing these `slots`, the learner does not count on them.
        `manifest`, `join` and `weights`: see `learner/weights/__init__.py`. `measure`: see `StreamServer.measure`.
        `pause` and `resume`: start no rollout in between. `shutdown`: end. Raises `LearnerLost`; ConnectionError where
        the endpoint belongs to another run by now.
        """
        while True:
            message = await self._receive(wire.HEARTBEAT_S)
            if message is None:
                self._watch()
                continue
            match message["type"]:
                case "ack":
                    for seq in message["seqs"]:
                        self._answers.settle(seq)
                case "refused":
                    self._refused(message["seq"], message["why"])
                case "beat":
                    pass
                case "who":  # the learner has forgotten us, or is another life
                    if time.monotonic() - self._greeted_at > wire.HEARTBEAT_S / 4:
                        self._greet()
                case "welcome":
                    self.counts["reconnects"] += 1
                    self._welcomed(message)
                case _:
                    if self._is_next(message):
                        if message["type"] == "grant":
                            self._answers.granted([*message["propose"], *message["solve"]])
                        elif message["type"] == "cancel":
                            self._answers.cancelled(message["slots"])
                        elif message["type"] == "shutdown":
                            self._say_beat()  # acknowledges it: the learner need not wait for the next one
                        yield message

    async def send_trajectory(self, trajectory: Trajectory) -> bool:
        """Send a trajectory under the next `seq`, and keep it until it is acknowledged.

        False: the learner has cancelled the slot; the trajectory is not sent, only counted as abandoned. Raises
        `WireError` for a trajectory that the learner would refuse, ValueError for a slot that was answered before.
        """
        check(trajectory)
        if slots := self._answer([trajectory.slot]):
            seq = self._next_seq()
            self._keep(seq, slots, [pack({"type": "trajectory", "seq": seq}), *encode(trajectory)])
        return bool(slots)

    async def send_returned(self, slots: Sequence[int]) -> None:
        """Give slots back for which there is no task; the batch goes on without them. ValueError as for
        `send_trajectory`."""
        if answered := self._answer(slots):
            self._send({"type": "returned", "slots": answered}, answered)

    async def send_failed(self, slots: Sequence[int], why: str) -> None:
        """Report slots that could not be played, for a reason `why` that says nothing about the model. ValueError as
        above."""
        if answered := self._answer(slots):
            self._send({"type": "failed", "slots": answered, "why": why[:512]}, answered)

    async def send_loaded(self, version: int, timings: Mapping[str, float]) -> None:
        """Report that the engine runs the weights of `version`, a label. `timings`: seconds by phase.

        The numbers of a heartbeat go first, so that those of a step are of the moment at which its version was loaded.
        """
        self._say_beat()
        self._send({"type": "loaded", "version": version, "timings": dict(timings)})

    async def send_load_failed(self, group: int, why: str, interrupted: bool) -> None:
        """Report that the engine could not join the weight group of this id, or not load what was sent there.

        `interrupted`: the group or its broadcast broke, and the engine can take part in the next one. Otherwise the
        failure is the engine's own, and the learner counts the actor out.
        """
        self._send({"type": "load_failed", "group": group, "interrupted": interrupted, "why": why[:512]})

    @property
    def unacknowledged(self) -> int:
        """Number of messages that the learner has not acknowledged yet."""
        return len(self._answers)

    @property
    def held(self) -> list[int]:
        """Slots that were granted and are not settled: in play, or answered and not acknowledged."""
        return self._answers.held

    def close(self) -> None:
        """Stop beating and close the socket."""
        if self._beating is not None:
            self._beating.cancel()
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._socket.FD)
        self._socket.close()
        if self._own_context:
            self._context.term()

    # -- keeping -------------------------------------------------------------------------------------------------

    def _answer(self, slots: Sequence[int]) -> list[int]:
        """Mark slots as answered; returns those that the learner still counts on."""
        try:
            mine = self._answers.answer(slots)
        except ValueError as error:
            raise ValueError(f"{self.actor_id}: {error}") from None
        self.counts["abandoned"] += len(slots) - len(mine)
        return mine

    def _refused(self, seq: int, why: str) -> None:
        """Report the slots of a refused message as failed: otherwise they would stay in flight until the actor ends."""
        kept = self._answers.settle(seq)
        self.counts["refused"] += 1
        self._on_event("refused", actor=self.actor_id, why=why)
        if kept and kept.slots:
            self._send({"type": "failed", "slots": list(kept.slots), "why": f"refused: {why}"[:512]}, kept.slots)

    def _next_seq(self) -> int:
        self._seq += 1
        return self._seq

    def _send(self, message: dict[str, Any], slots: Sequence[int] = ()) -> None:
        seq = self._next_seq()
        self._keep(seq, slots, [pack({**message, "seq": seq})])

    def _keep(self, seq: int, slots: Sequence[int], frames: list[bytes | memoryview]) -> None:
        self._answers.keep(seq, Kept(frames, tuple(slots), time.monotonic() if self._try(frames) else NEVER))

    def _resend(self, older_than_s: float) -> None:
        """Send again each message that was last sent `older_than_s` seconds ago or earlier, and each that could not be
        sent before. The learner removes duplicates."""
        now = time.monotonic()
        for kept in self._answers.sent_before(now - older_than_s):
            if not self._try(kept.frames):
                return
            self.counts["resent"] += kept.sent_at != NEVER
            kept.sent_at = now

    def _try(self, frames: Sequence[bytes | memoryview]) -> bool:
        """Send if there is a connection with room."""
        try:
            for frame in frames[:-1]:
                self._socket.send(frame, MORE)
            self._socket.send(frames[-1], NOW)
        except zmq.Again:
            return False
        finally:
            if self._waiting:
                self._note_readable()
        return True

    # -- the learner's life --------------------------------------------------------------------------------------

    def _standing(self) -> dict[str, int]:
        return {"floor": self._answers.lowest(self._seq + 1), "session": self._session, "taken": self._taken}

    def _greet(self) -> None:
        hello = {
            "type": "hello",
            "actor_id": self.actor_id,
            "incarnation": self.incarnation,
            "capacity": self.capacity,
            "slots": pack_slots(self.held),
        }
        if self._try([pack(hello | self._standing())]):
            self._greeted_at = time.monotonic()

    def _welcomed(self, message: Mapping[str, Any]) -> None:
        if self.run_id and message["run_id"] != self.run_id:
            raise ConnectionError(
                f"{self.actor_id}: the learner at {self._endpoint} is now that of run {message['run_id']}, not "
                f"{self.run_id}"
            )
        self.run_id = message["run_id"]
        taken_in = message["session"] != self._session
        if taken_in:
            self._session, self._taken = message["session"], 0
        self._resend(0.0 if taken_in else wire.HEARTBEAT_S)

    def _is_next(self, message: Mapping[str, Any]) -> bool:
        """Whether this numbered message is the next in order. Number 0 has no order: it is for an actor that is not let
        in."""
        if message["number"] == 0:
            return True
        if message["session"] != self._session or message["number"] <= self._taken:
            return False
        if message["number"] > self._taken + 1:  # one before it was lost: the learner sends them all again
            self.counts["gaps"] += 1
            return False
        self._taken = message["number"]
        return True

    def _watch(self) -> None:
        """After a silence: call `on_event` once it is long, and raise `LearnerLost` at the deadline."""
        silent_s = time.monotonic() - self._heard_at
        if silent_s > self._timeout_s:
            raise LearnerLost(
                f"{self.actor_id}#{self.incarnation}: not a word from the learner of run {self.run_id} at "
                f"{self._endpoint} for {silent_s:.0f} s (stream.learner_timeout_s = {self._timeout_s:g}); "
                f"{len(self.held)} slots were held and {self.unacknowledged} messages not acknowledged"
            )
        if silent_s > self._silent_s and not self._silent:
            self._silent = True
            self._on_event("learner_silent", actor=self.actor_id, endpoint=self._endpoint, silent_s=silent_s)

    async def _receive(self, timeout_s: float) -> dict[str, Any] | None:
        """Return the next message; None after `timeout_s` seconds. A malformed one is counted and read as a beat."""
        deadline = time.monotonic() + timeout_s
        while True:
            self._readable.clear()
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
                break
            except zmq.Again:
                pass
            self._waiting = True
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    await self._readable.wait()
            except TimeoutError:
                return None
            finally:
                self._waiting = False
        now = time.monotonic()
        if self._silent:
            self._silent = False
            self._on_event("learner_back", actor=self.actor_id, silent_s=now - self._heard_at)
        self._heard_at = now
        try:
            return from_learner(frames)
        except WireError as error:
            self.counts["refused"] += 1
            self._on_event("refused", actor=self.actor_id, why=str(error))
            return {"type": "beat"}

    def _note_readable(self) -> None:
        """Wake `_receive` if a message is there. ZeroMQ's descriptor signals an arrival once, to the next use of the
        socket; so each use calls this."""
        events = self._socket.getsockopt(zmq.EVENTS)
        assert isinstance(events, int)
        if events & READABLE:
            self._readable.set()

    def _say_beat(self) -> None:
        own = {f"stream/actors_{name}": float(count) for name, count in self.counts.items()}
        stats = {**self._report(), **own, "stream/actors_unacknowledged": float(self.unacknowledged)}
        self._try([pack({"type": "beat", "capacity": self.capacity, "stats": stats} | self._standing())])

    async def _beat(self) -> None:
        while True:
            if self._silent:
                self._greet()
            else:
                self._say_beat()
                self._resend(older_than_s=wire.RESEND_AFTER_S)
            await asyncio.sleep(wire.HEARTBEAT_S)
