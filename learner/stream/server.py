"""The learner's end of the stream, as the learner's thread sees it. The protocol: `learner/stream/__init__.py`.

    consumes     what actors send: trajectories into the queue, heartbeats, what became of their slots
    gated by     the gate: it says who is granted what, and which trajectory still counts
    unblocks     `next_batch`, once the gate says that a batch is whole; actors, by grants

A thread owns the socket (`learner.stream.server_socket`); everything here and the gate is behind one lock.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from learner.staleness import Gate, Holder
from learner.stream.keys import LearnerKeys
from learner.stream.member import Member
from learner.stream.server_socket import ServerSocket
from learner.stream.wire import from_actor, grant_to_message, pack
from learner.trajectory import Refusal, Trajectory, WireError, decode

DEAD_AFTER_S = 60.0
"""An actor that is silent for so long is lost, and so is one that takes no message for so long."""
CLOSE_S = 2.0
"""How long `close` waits for the actors to take their shutdown."""


class BatchTimeout(RuntimeError):
    """No batch became ready in time; the message says what is missing and who holds it."""


class StreamServer:
    """The learner's end: receives trajectories, grants slots, carries the control messages of the weight broadcast."""

    def __init__(
        self,
        gate: Gate,
        run_id: str,
        bind: str = "tcp://127.0.0.1:0",
        dead_after_s: float = DEAD_AFTER_S,
        keys: LearnerKeys | None = None,
        open_now: bool = True,
    ) -> None:
        """`bind`: a fixed port is waited for, should another life of the learner still have it. `keys`: only who has the run's
        keys gets in. Without `open_now` nobody is greeted before `open`: the gate's checkpoint is still to be loaded."""
        self.gate = gate
        self.run_id = run_id
        self.counts: Counter[str] = Counter()
        """`messages`, `bytes`, `trajectories`, `duplicates`, `reconnects`, `resent`, `lost`; over the server's life."""
        self.refused: Counter[str] = Counter()
        """Messages that were refused, by reason."""
        self.on_event: Callable[..., None] = lambda name, **details: None
        """Called with the name and details of joins, losses and failures; must not block."""
        self._dead_after_s = dead_after_s
        self._members: dict[bytes, Member] = {}
        self._turn: deque[Member] = deque()
        self._absent: dict[Holder, float] = {}
        self._queue: dict[int, Trajectory] = {}
        self._acks: defaultdict[Member, list[int]] = defaultdict(list)
        """Of the messages of this round."""
        self._news = False
        """Whether one of them is something that others than `next_batch` wait for."""
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._paused = self._opened = False
        self._load_failures: dict[Holder, str] = {}
        self._socket = ServerSocket(
            bind, keys, self._lock, self._receive, self._received, self._tick, self._unreachable
        )
        self.endpoint = self._socket.endpoint
        if open_now:
            self.open()
        self._socket.start()

    def open(self) -> None:
        """The gate is what it has to be: greet actors. Whoever it knows and does not come back in time is lost."""
        with self._lock:
            self._opened = True
            until = time.monotonic() + self._dead_after_s
            self._absent = {holder: until for holder in self.gate.holders() if holder not in self._holders()}

    # -- batches -------------------------------------------------------------------------------------------------

    def next_batch(self, timeout_s: float, interrupt: Callable[[], bool] = lambda: False) -> list[Trajectory] | None:
        """The trajectories of the next batch in the order of grants; waits until it is complete.

        None as soon as `interrupt()` holds or an actor waits for its weights. Raises `BatchTimeout` after `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while True:
                self._check_thread()
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
            self._grant_to(self.members())
            self._changed.notify_all()

    def mark_loaded(self) -> None:
        """Grant to members that have just been brought to the current version."""
        with self._lock:
            self._grant_to(self.members())

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

    # -- pausing and the end -------------------------------------------------------------------------------------

    def pause(self) -> None:
        """Nobody is granted anything, and no new rollout starts, until `resume`."""
        with self._lock:
            if not self._paused:
                self._paused = True
                for member in self.members():
                    self.send(member, {"type": "pause"})

    def resume(self) -> None:
        """Go on granting."""
        with self._lock:
            if self._paused:
                self._paused = False
                for member in self.members():
                    self.send(member, {"type": "resume"})
                self._grant_to(self.members())

    def drain(self, deadline_s: float) -> int:
        """Pause, and wait for what is in flight: it comes into the queue, where a checkpoint has it.

        Returns how many slots are still in flight: 0, or what `deadline_s` was too short for.
        """
        self.pause()
        deadline = time.monotonic() + deadline_s
        with self._changed:
            while self.gate.in_flight() and self._members and (left := deadline - time.monotonic()) > 0:
                self._check_thread()
                self._changed.wait(min(left, 0.5))
            return self.gate.in_flight()

    def close(self) -> None:
        """Tell the actors to stop, then close the socket. What is in flight is not waited for: see `drain`."""
        with self._lock:
            self._paused = True
            for member in self.members():
                self.send(member, {"type": "shutdown"})
        self._socket.stop(lambda: all(m.took_all or not m.reachable for m in self._members.values()), CLOSE_S)

    # -- members -------------------------------------------------------------------------------------------------

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
                self._check_thread()
                left = deadline - time.monotonic()
                if left <= 0:
                    if self._members:
                        return
                    raise TimeoutError(
                        f"no rollout actor connected to {self.endpoint} within {timeout_s:.0f} s; see the logs"
                    )
                self._changed.wait(min(left, 0.5))

    def send(self, member: Member, message: dict[str, Any]) -> None:
        """A control message for one actor, kept and sent again until it says that it has it."""
        with self._lock:
            member.number(message, time.monotonic())
            self._post(member, member.pending[-1].frame)
            if member.overfull:
                self.lose(member, f"has not taken {len(member.pending)} control messages")

    def expect_load(self, members: Sequence[Member]) -> None:
        """Before a broadcast: nobody has loaded it or failed to, and nobody is granted anything until then."""
        with self._lock:
            self._load_failures.clear()
            for member in members:
                member.loaded_version = -1

    def wait_until_loaded(self, members: Sequence[Member], version: int, timeout_s: float) -> list[Member]:
        """Wait until each member has loaded `version`, failed, or was lost; returns those that did not load it."""
        deadline = time.monotonic() + timeout_s

        def pending(member: Member) -> bool:
            failed = member.holder in self._load_failures
            return member.loaded_version != version and member.identity in self._members and not failed

        with self._changed:
            while any(map(pending, members)) and (left := deadline - time.monotonic()) > 0:
                self._check_thread()
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
            self.counts["lost"] += 1
            self.on_event("actor_lost", actor=member.holder.actor_id, why=why, dropped_slots=slots)
            self._grant_to(())
            self._changed.notify_all()

    def retire(self, actor_id: str) -> None:
        """This actor is to leave: it is granted nothing more, and told to stop when it holds nothing."""
        with self._lock:
            for member in self._members.values():
                if member.holder.actor_id == actor_id:
                    self.gate.retire(member.holder)
                    member.leaving = True

    def stats(self) -> dict[str, float]:
        """Sums over actors of what they reported last, and the stream's own numbers as `stream/...`."""
        with self._lock:
            sums: dict[str, float] = defaultdict(float)
            for member in self._members.values():
                for name, value in (member.stats | member.weights).items():
                    sums[name] += value
            own = {name: self.counts[name] for name in ("messages", "bytes", "trajectories", "duplicates", "resent")}
            own |= {name: self.counts[name] for name in ("reconnects", "lost")} | self._socket.denied
            own |= {f"refused_{reason}": count for reason, count in self.refused.items()}
            own |= {"refused": self.refused.total(), "late": self.gate.late, "queued": len(self._queue)}
            return {**sums, **{f"stream/{name}": float(n) for name, n in own.items()}, "actors": len(self._members)}

    def poke(self) -> None:
        """Make a waiting `next_batch` look at its `interrupt` again."""
        with self._changed:
            self._changed.notify_all()

    # -- on the socket's thread ----------------------------------------------------------------------------------

    def _receive(self, identity: bytes, frames: list[bytes | memoryview]) -> None:
        """One message, whatever it is. Nothing that an actor sends raises."""
        with self._lock:
            self.counts["messages"] += 1
            self.counts["bytes"] += sum(map(len, frames))
            try:
                self._take(identity, frames)
            except WireError as error:
                count = self.refused[error.refusal] = self.refused[error.refusal] + 1
                if count & (count - 1) == 0:  # the 1st, 2nd, 4th, 8th...: a flood of them must not flood the log
                    self.on_event("refused", reason=error.refusal.value, detail=str(error)[:200], count=count)

    def _received(self) -> None:
        """The end of a round. Its messages are acknowledged together, and grants follow; who waits is woken if it helps:
        each acknowledgement and each waking costs more than the check of a trajectory."""
        with self._changed:
            heard = list(self._acks)
            for member, seqs in self._acks.items():
                self._post(member, pack({"type": "ack", "seqs": seqs}))
            self._acks.clear()
            self._grant_to(heard)
            if self._news or (heard and (self.gate.is_ready or not self.gate.in_flight())):
                self._news = False
                self._changed.notify_all()

    def _take(self, identity: bytes, frames: list[bytes | memoryview]) -> None:
        message = from_actor(frames)
        if message["type"] == "hello":
            self._news = True
            self._on_hello(identity, message)
            return
        member = self._members.get(identity)
        if member is None:
            self._socket.post(identity, pack({"type": "who"}))
            raise WireError(Refusal.SENDER, f"a {message['type']} from {identity!r:.60}, who has not said hello")
        member.last_seen = time.monotonic()
        if message["type"] == "beat":
            self._on_beat(member, message)
            return
        seq = message["seq"]
        if seq in member.seen:
            self.counts["duplicates"] += 1
        else:
            try:
                member.check_ahead(seq)
                self._use(member, message, frames)
            except WireError as error:
                self._post(member, pack({"type": "refused", "seq": seq, "why": str(error)[:512]}))
                raise
            member.seen.add(seq)
            self._news |= message["type"] != "trajectory"
        self._acks[member].append(seq)

    def _use(self, member: Member, message: dict[str, Any], frames: list[bytes | memoryview]) -> None:
        match message["type"]:
            case "trajectory":
                self._on_trajectory(member, frames[1:])
            case "returned":
                for slot in message["slots"]:
                    self.gate.give_back(slot, member.holder)
            case "failed":
                for slot in message["slots"]:
                    self.gate.fail(slot, member.holder)
                self.on_event("rollout_failed", actor=member.holder.actor_id, why=message["why"])
            case "loaded":
                member.loaded_version = message["version"]
                member.weights = {f"weights/{phase}": seconds for phase, seconds in message["timings"].items()}
            case "load_failed":
                self._load_failures[member.holder] = message["why"]
            case other:
                raise AssertionError(other)

    def _on_hello(self, identity: bytes, message: dict[str, Any]) -> None:
        holder = Holder(message["actor_id"], message["incarnation"])
        if identity != f"{holder.actor_id}#{holder.incarnation}".encode():
            raise WireError(Refusal.SENDER, f"{identity!r:.60} says that it is {holder}")
        if not self._opened:
            return  # it asks again
        relatives = [m for m in self._members.values() if m.holder.actor_id == holder.actor_id]
        if any(m.holder > holder for m in relatives):  # a life that was replaced, and does not know it
            self._socket.post(identity, pack({"type": "shutdown", "epoch": 0, "n": 0}))
            return
        member = self._members.get(identity)
        if member is None:
            for relative in relatives:
                self.lose(relative, "replaced by its next incarnation")
            self._take_in(identity, holder, message)
            return
        self.counts["reconnects"] += 1
        member.last_seen = time.monotonic()
        self._post(member, self._welcome(member))
        if message["epoch"] == member.epoch:
            member.acknowledge(message["got"])
        self._resend(member)

    def _take_in(self, identity: bytes, holder: Holder, message: dict[str, Any]) -> None:
        now = time.monotonic()
        for former in [h for h in self._absent if h.actor_id == holder.actor_id]:
            del self._absent[former]
            if former < holder:
                self.gate.lose(former)
        member = self._members[identity] = Member(holder, identity, message["capacity"], now, floor=message["floor"])
        self._post(member, self._welcome(member))
        kept = set(self.gate.reclaim(holder, message["slots"]))
        gone = [slot for slot in message["slots"] if slot not in kept]
        if gone:
            self.send(member, {"type": "cancel", "slots": gone})
        if self._paused:
            self.send(member, {"type": "pause"})
        self.on_event(
            "actor_joined", actor=holder.actor_id, incarnation=holder.incarnation, kept=len(kept), gone=len(gone)
        )
        self._grant_to(())  # what it no longer had is granted anew

    def _welcome(self, member: Member) -> bytes:
        return pack({"type": "welcome", "run_id": self.run_id, "version": self.gate.version, "epoch": member.epoch})

    def _on_trajectory(self, member: Member, frames: list[bytes | memoryview]) -> None:
        trajectory = decode(frames)
        if (trajectory.actor_id, trajectory.incarnation) != member.holder or trajectory.run_id != self.run_id:
            raise WireError(Refusal.SENDER, "a trajectory of another actor or run")
        self.counts["trajectories"] += 1
        if self.gate.arrive(trajectory.slot, member.holder, trajectory.cell, trajectory.oldest_version):
            self._queue[trajectory.slot] = trajectory

    def _on_beat(self, member: Member, message: dict[str, Any]) -> None:
        member.stats = message["stats"]
        grown = message["capacity"] > member.capacity
        member.capacity = message["capacity"]
        if grown:
            self._grant_to((member,))
        member.seen.raise_floor(message["floor"])
        if message["epoch"] == member.epoch:
            member.acknowledge(message["got"])

    def _tick(self, now: float) -> None:
        """Every heartbeat: who is lost, and what has to be sent again."""
        with self._changed:
            for member in self.members():
                if now - member.last_seen > self._dead_after_s:
                    self.lose(member, f"silent for {now - member.last_seen:.0f} s")
                elif why := member.stuck(now, self._dead_after_s):
                    self.lose(member, why)
                elif member.dismissed and member.took_all:
                    del self._members[member.identity]
                    self.gate.lose(member.holder)
                    self.on_event("actor_left", actor=member.holder.actor_id)
                else:
                    if member.leaving and not member.dismissed and not self.gate.in_flight(member.holder):
                        member.dismissed = True
                        self.send(member, {"type": "shutdown"})
                    self._post(member, pack({"type": "beat"}))
                    if member.resend_is_due(now):
                        self._resend(member)
            for holder in [holder for holder, until in self._absent.items() if now > until]:
                del self._absent[holder]
                why = f"did not come back within {self._dead_after_s:.0f} s of the learner's restart"
                self.on_event("actor_lost", actor=holder.actor_id, why=why, dropped_slots=self.gate.lose(holder))
                self._grant_to(())
            self._changed.notify_all()

    def _unreachable(self, identity: bytes, reachable: bool) -> None:
        if member := self._members.get(identity):
            member.reachable = reachable

    # -- granting and sending ------------------------------------------------------------------------------------

    def _grant_to(self, members: Sequence[Member]) -> None:
        """Grant in turn, one episode each, until the gate is shut or nobody has room; `members` may have room again.

        Who has no room leaves the round until a slot of it ends, so an arrival costs no look at the others.
        """
        for member in members:
            if not member.in_turn:
                member.in_turn = True
                self._turn.append(member)
        while self._turn and not self._paused and not self.gate.is_shut:
            member = self._turn.popleft()
            member.in_turn = False
            if self._members.get(member.identity) is member and member.loaded_version == self.gate.version:
                grant = self.gate.grant(member.holder, member.capacity)
                if grant is not None:
                    self.send(member, {"type": "grant", **grant_to_message(grant)})
                    member.in_turn = True
                    self._turn.append(member)

    def _resend(self, member: Member) -> None:
        for pending in member.pending:
            self._post(member, pending.frame)
        self.counts["resent"] += len(member.pending)
        member.resent_at = time.monotonic()

    def _post(self, member: Member, frame: bytes) -> None:
        self._socket.post(member.identity, frame)

    def _holders(self) -> set[Holder]:
        return {member.holder for member in self._members.values()}

    def _check_thread(self) -> None:
        if self._socket.failure is not None:
            raise RuntimeError("the stream's thread failed") from self._socket.failure

    def _describe(self) -> str:
        now = time.monotonic()
        actors = [
            f"{m.holder.actor_id} (heard {now - m.last_seen:.0f} s ago, version {m.loaded_version})"
            for m in self.members()
        ]
        return "actors: " + (", ".join(actors) or "none connected")
