"""The connected actors: greets, loses and retires them, tells them what to do, and frees the slots of those that go.

    consumes     greetings, and the passing of time (`tick`)
    gated by     turns and the gate: they say who is granted what
    unblocks     actors, by grants; threads that wait for a change of membership

Not thread-safe: everything here is called while the lock of `changed` is held.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any, Protocol

from learner.events import OnEvent
from learner.fields import Refusal, WireError
from learner.lineage import label_of
from learner.places import Holder
from learner.staleness import Gate
from learner.stream.member import Member
from learner.stream.reports import Reports
from learner.stream.wire import grant_to_message, pack
from learner.token_ledger import TokenLedger
from learner.turns import Turns


class Outbox(Protocol):
    """Sends messages to actors."""

    def post(self, identity: bytes, frame: bytes) -> None:
        """Send `frame` soon. It may be lost."""


class Membership:
    """The connected actors, and those that are expected back after a restart of the learner."""

    def __init__(
        self,
        gate: Gate,
        run_id: str,
        outbox: Outbox,
        changed: threading.Condition,
        counts: Counter[str],
        dead_after_s: float,
        on_event: OnEvent,
    ) -> None:
        """`dead_after_s`: silence, or consuming no message, after which an actor is lost."""
        self.gate = gate
        self.turns: Turns[Member] = Turns(gate)
        self.reports = Reports()
        self.tokens = TokenLedger()
        self.on_event = on_event
        self.dead_after_s = dead_after_s
        self.load_failures: dict[Holder, str] = {}
        """Actor -> why its engine could not load the last broadcast."""
        self.interrupted: dict[Holder, str] = {}
        """Actor -> how the last group or broadcast broke, as seen from there."""
        self.departures_held = False
        """While true, no retired actor is told to stop: a weight update counts on each actor that it began with."""
        self._group_id = 0
        self._run_id = run_id
        self._outbox = outbox
        self._changed = changed
        self._counts = counts
        self._members: dict[bytes, Member] = {}
        self._absent: dict[Holder, float] = {}
        """Actors that hold slots and have not come back yet -> when they are lost."""
        self._opened = False

    def __len__(self) -> int:
        """Connected actors."""
        return len(self._members)

    def get(self, identity: bytes) -> Member | None:
        """The connected actor of that connection."""
        return self._members.get(identity)

    def all(self) -> list[Member]:
        """Connected actors, in the order of their identities."""
        return [self._members[identity] for identity in sorted(self._members)]

    def open(self) -> None:
        """Start accepting actors. Those that the gate knows and that do not come back within `dead_after_s` are
        lost."""
        self._opened = True
        until = time.monotonic() + self.dead_after_s
        connected = {member.holder for member in self._members.values()}
        self._absent = {holder: until for holder in self.gate.holders() if holder not in connected}

    # -- coming and going ----------------------------------------------------------------------------------------

    def greet(self, identity: bytes, hello: dict[str, Any]) -> None:
        """Answer a greeting: take a new actor in, or agree with a known one on the messages that it has taken.

        Raises `WireError` where the greeting names another actor than the connection does.
        """
        holder = Holder(hello["actor_id"], hello["incarnation"])
        if identity != f"{holder.actor_id}#{holder.incarnation}".encode():
            raise WireError(Refusal.SENDER, f"{identity!r:.60} says that it is {holder}")
        if not self._opened:
            return  # it asks again
        relatives = [m for m in self._members.values() if m.holder.actor_id == holder.actor_id]
        if any(m.holder > holder for m in relatives):  # a life that was replaced, and does not know it
            self._outbox.post(identity, pack({"type": "shutdown", "session": 0, "number": 0}))
            return
        member = self._members.get(identity)
        if member is None:
            for relative in relatives:
                self.lose(relative, "replaced by its next incarnation")
            self._take_in(identity, holder, hello)
            return
        self._counts["reconnects"] += 1
        member.last_seen = time.monotonic()
        self.post(member, self._welcome(member))
        if hello["session"] == member.session:
            member.acknowledge(hello["taken"])
        self._resend(member)

    def lose(self, member: Member, why: str) -> None:
        """Remove an actor: what it had in flight is dropped and granted again."""
        if self._members.get(member.identity) is not member:
            return
        self._remove(member)
        slots = self.gate.lose(member.holder)
        self._counts["lost"] += 1
        self.on_event("actor_lost", actor=member.holder.actor_id, why=why, dropped_slots=slots)
        self.grant()
        self._changed.notify_all()

    def retire(self, actor_id: str) -> None:
        """Grant this actor nothing more; once it holds nothing, it is told to stop."""
        for member in self._members.values():
            if member.holder.actor_id == actor_id:
                self.turns.retire(member)

    def tick(self, now: float) -> None:
        """Every heartbeat: lose actors that are silent or stuck, dismiss retired ones, send again what was not
        taken."""
        for member in self.all():
            if now - member.last_seen > self.dead_after_s:
                self.lose(member, f"silent for {now - member.last_seen:.0f} s")
            elif why := member.stuck(now, self.dead_after_s):
                self.lose(member, why)
            elif member.dismissed and member.took_all:
                self._remove(member)
                self.gate.lose(member.holder)
                self.on_event("actor_left", actor=member.holder.actor_id)
            else:
                if not member.dismissed and not self.departures_held and self.turns.may_leave(member):
                    member.dismissed = True
                    self.send(member, {"type": "shutdown"})
                self.post(member, pack({"type": "beat"}))
                if member.resend_is_due(now):
                    self._resend(member)
        for holder in [holder for holder, until in self._absent.items() if now > until]:
            del self._absent[holder]
            why = f"did not come back within {self.dead_after_s:.0f} s of the learner's restart"
            self.on_event("actor_lost", actor=holder.actor_id, why=why, dropped_slots=self.gate.lose(holder))
            self.grant()
        self._changed.notify_all()

    # -- granting and sending ------------------------------------------------------------------------------------

    def grant(self, with_room: Collection[Member] = ()) -> None:
        """Grant what may be granted. `with_room`: members that may have room again."""
        for member, grant in self.turns.grants(with_room):
            self.send(member, {"type": "grant", **grant_to_message(grant)})

    def pause(self) -> None:
        """Grant nothing more, and have actors start no rollout, until `resume`."""
        if not self.turns.paused:
            self.turns.paused = True
            self.tell_all("pause")

    def resume(self) -> None:
        """Go on granting."""
        if self.turns.paused:
            self.turns.paused = False
            self.tell_all("resume")
            self.grant(self.all())

    def tell_all(self, kind: str) -> None:
        """Send every member the control message `kind`, which has no fields."""
        for member in self.all():
            self.send(member, {"type": kind})

    def send(self, member: Member, message: dict[str, Any]) -> None:
        """Send a control message; it is kept, and sent again, until the actor says that it has it."""
        member.number(message, time.monotonic())
        self.post(member, member.pending[-1].frame)
        if member.overfull:
            self.lose(member, f"has not taken {len(member.pending)} control messages")

    def post(self, member: Member, frame: bytes) -> None:
        """Send a frame that nobody misses if it is lost."""
        self._outbox.post(member.identity, frame)

    def staying(self) -> list[Member]:
        """Connected actors that were not told to stop, in the order of their identities."""
        return [member for member in self.all() if not member.dismissed]

    def begin_group(self, group_id: int) -> None:
        """Count only failures in this weight group from now on."""
        self._group_id = group_id
        self.load_failures.clear()
        self.interrupted.clear()

    def expect_load(self, members: Sequence[Member]) -> None:
        """Mark `members` as having loaded nothing, before a broadcast: until they load, they are granted nothing."""
        self.load_failures.clear()
        self.interrupted.clear()
        for member in members:
            member.loaded_version = -1

    def load_failed(self, member: Member, group_id: int, interrupted: bool, why: str) -> None:
        """Note that an actor did not load a broadcast. What it says of an earlier group is out of date."""
        if group_id == self._group_id:
            (self.interrupted if interrupted else self.load_failures)[member.holder] = why

    def is_loading(self, member: Member, version: int) -> bool:
        """Whether the member may still load `version`: it has neither loaded it nor failed to, and is connected."""
        failed = member.holder in self.load_failures or member.holder in self.interrupted
        return member.loaded_version != version and member.identity in self._members and not failed

    def describe(self) -> str:
        """Words for an error: every actor, when it was last heard and which version it runs."""
        now = time.monotonic()
        actors = [
            f"{m.holder.actor_id} (heard {now - m.last_seen:.0f} s ago, version {m.loaded_version})" for m in self.all()
        ]
        return "actors: " + (", ".join(actors) or "none connected")

    def _take_in(self, identity: bytes, holder: Holder, hello: dict[str, Any]) -> None:
        # A newer life keeps its deadline: an older one that greets first says nothing of it.
        for former in [h for h in self._absent if h.actor_id == holder.actor_id and h <= holder]:
            del self._absent[former]
            if former < holder:
                self.gate.lose(former)
        member = Member(holder, hello["capacity"], identity=identity, last_seen=time.monotonic(), floor=hello["floor"])
        self._members[identity] = member
        self.turns.enter(member)
        self.post(member, self._welcome(member))
        kept = set(self.gate.reclaim(holder, hello["slots"]))
        gone = [slot for slot in hello["slots"] if slot not in kept]
        if gone:
            self.send(member, {"type": "cancel", "slots": gone})
        if self.turns.paused:
            self.send(member, {"type": "pause"})
        self.on_event(
            "actor_joined", actor=holder.actor_id, incarnation=holder.incarnation, kept=len(kept), gone=len(gone)
        )
        self.grant()  # what it no longer had is granted anew

    def _remove(self, member: Member) -> None:
        del self._members[member.identity]
        self.turns.leave(member)
        self.reports.leave(member.holder)
        self.tokens.leave(member.holder)

    def _welcome(self, member: Member) -> bytes:
        label = label_of(self.gate.version, self.gate.life_id)
        return pack({"type": "welcome", "run_id": self._run_id, "version": label, "session": member.session})

    def _resend(self, member: Member) -> None:
        for pending in member.pending:
            self.post(member, pending.frame)
        self._counts["resent"] += len(member.pending)
        member.resent_at = time.monotonic()
