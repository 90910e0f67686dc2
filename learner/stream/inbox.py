"""Handles each message of an actor: it is checked, used once, and acknowledged.

consumes     frames from the socket's thread
gated by     the checks of `learner.stream.wire` and the gate: what fails is refused by name and changes nothing
unblocks     `StreamServer.next_batch`, once a batch is whole
"""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from dataclasses import replace
from typing import Any

from learner.fields import Refusal, WireError
from learner.ledger import DropReason
from learner.lineage import split_label
from learner.queue import BatchQueue
from learner.stream.member import Member
from learner.stream.membership import Membership, Outbox
from learner.stream.wire import from_actor, pack
from learner.token_ledger import LATE
from learner.trajectory import Trajectory, decode


class Inbox:
    """The socket's `Handler`. Takes the lock of `changed` for each call."""

    def __init__(
        self,
        run_id: str,
        queue: BatchQueue[Trajectory],
        members: Membership,
        outbox: Outbox,
        changed: threading.Condition,
        counts: Counter[str],
    ) -> None:
        self.refused: Counter[str] = Counter()
        """Messages that were refused, by reason."""
        self._run_id = run_id
        self._gate = queue.gate
        self._queue = queue
        self._members = members
        self._outbox = outbox
        self._changed = changed
        self._counts = counts
        self._acks: defaultdict[Member, list[int]] = defaultdict(list)
        """Numbers of this round's messages."""
        self._news = False
        """Whether one of them is of a kind that other threads than that of `next_batch` wait for."""

    def receive(self, identity: bytes, frames: list[bytes | memoryview]) -> None:
        """Use one message, whatever it is. Nothing that an actor sends raises."""
        with self._changed:
            self._counts["messages"] += 1
            self._counts["bytes"] += sum(map(len, frames))
            try:
                self._take(identity, frames)
            except WireError as error:
                count = self.refused[error.refusal] = self.refused[error.refusal] + 1
                if count & (count - 1) == 0:  # the 1st, 2nd, 4th, 8th...: a flood of them must not flood the log
                    self._members.on_event("refused", reason=error.refusal.value, detail=str(error)[:200], count=count)

    def received(self) -> None:
        """Acknowledge the messages of a round together, grant again, and wake waiting threads if it helps them: each
        acknowledgement and each waking costs more than the check of a trajectory."""
        with self._changed:
            heard = list(self._acks)
            for member, seqs in self._acks.items():
                self._members.post(member, pack({"type": "ack", "seqs": seqs}))
            self._acks.clear()
            self._members.grant(heard)
            if self._news or (heard and (self._gate.is_ready or not self._gate.in_flight())):
                self._news = False
                self._changed.notify_all()

    def tick(self, now: float) -> None:
        """A heartbeat is due."""
        with self._changed:
            self._members.tick(now)

    def reached(self, identity: bytes, reachable: bool) -> None:
        """Note whether the actor has a connection. Called under the lock."""
        if member := self._members.get(identity):
            member.reachable = reachable

    def _take(self, identity: bytes, frames: list[bytes | memoryview]) -> None:
        message = from_actor(frames)
        if message["type"] == "hello":
            self._news = True
            self._members.greet(identity, message)
            return
        member = self._members.get(identity)
        if member is None:
            self._outbox.post(identity, pack({"type": "who"}))
            raise WireError(Refusal.SENDER, f"a {message['type']} from {identity!r:.60}, who has not said hello")
        member.last_seen = time.monotonic()
        if message["type"] == "beat":
            self._on_beat(member, message)
            return
        seq = message["seq"]
        if seq in member.seen:
            self._counts["duplicates"] += 1
        else:
            try:
                member.check_ahead(seq)
                self._use(member, message, frames)
            except WireError as error:
                self._members.post(member, pack({"type": "refused", "seq": seq, "why": str(error)[:512]}))
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
                    self._gate.give_back(slot, member.holder)
            case "failed":
                for slot in message["slots"]:
                    self._gate.fail(slot, member.holder)
                self._members.on_event("rollout_failed", actor=member.holder.actor_id, why=message["why"])
            case "loaded":
                version, life = split_label(message["version"])
                if life == self._gate.life_id:  # else it was said to the learner's life before
                    member.loaded_version = version
                phases = {f"engine_weights/{phase}": seconds for phase, seconds in message["timings"].items()}
                self._members.reports.report(member.holder, phases)
            case "load_failed":
                self._members.load_failed(member, message["group"], message["interrupted"], message["why"])
            case other:
                raise AssertionError(other)

    def _on_trajectory(self, member: Member, frames: list[bytes | memoryview]) -> None:
        trajectory = decode(frames)
        if (trajectory.actor_id, trajectory.incarnation) != member.holder or trajectory.run_id != self._run_id:
            raise WireError(Refusal.SENDER, "a trajectory of another actor or run")
        if not self._gate.knows(trajectory.cell):
            raise WireError(Refusal.CELL, f"{trajectory.cell.name}: learner.batch.kinds leaves that kind out")
        self._counts["trajectories"] += 1
        tokens, late = len(trajectory.response_ids), self._gate.late
        self._members.tokens.received(member.holder, tokens)
        if not self._queue.arrive(self._settle_versions(trajectory), member.holder):
            self._members.tokens.dropped(LATE if self._gate.late > late else DropReason.STALE, tokens)

    def _settle_versions(self, trajectory: Trajectory) -> Trajectory:
        """The trajectory with undone versions counted as those that the present policy descends from (V2)."""
        if all(span.life == self._gate.life_id for span in trajectory.versions):
            return trajectory
        ancestor = self._gate.lineage.ancestor
        spans = tuple(span._replace(version=ancestor(span.version, span.life)) for span in trajectory.versions)
        return replace(trajectory, versions=spans)

    def _on_beat(self, member: Member, message: dict[str, Any]) -> None:
        numbers = message["stats"]
        if member.loaded_version < 0:
            # What it measured may be of a version that a restart of the learner undid.
            numbers = {name: value for name, value in numbers.items() if not name.startswith("heldout/")}
        self._members.reports.report(member.holder, numbers)
        self._members.tokens.report(member.holder, numbers)
        grown = message["capacity"] > member.capacity
        member.capacity = message["capacity"]
        if grown:
            self._members.grant((member,))
        member.seen.raise_floor(message["floor"])
        if message["session"] == member.session:
            member.acknowledge(message["taken"])
