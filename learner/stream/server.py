"""The learner's end of the stream, as the learner's thread sees it. The protocol: `learner/stream/__init__.py`.

    consumes     what actors send: trajectories into the queue, heartbeats, what became of their slots
    gated by     the gate: it says who is granted what, and which trajectory still counts
    unblocks     `next_batch`, once the gate says that a batch is whole; actors, by grants

A thread owns the socket (`server_socket.py`) and hands messages to the `Inbox`. Gate, queue and membership are behind
one lock.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from learner.events import OnEvent, ignore_event
from learner.places import Holder
from learner.queue import BatchQueue
from learner.staleness import Gate
from learner.stream.inbox import Inbox
from learner.stream.keys import LearnerKeys
from learner.stream.member import Member
from learner.stream.membership import Membership
from learner.stream.server_socket import ServerSocket
from learner.trajectory import Trajectory

DEAD_AFTER_S = 60.0
"""Seconds of silence, or of taking no message, after which an actor is lost."""
_SELF = ""
"""The name under which the learner's own counters are reported; no actor's, which has at least one character."""
CLOSE_S = 2.0
"""Seconds that `close` waits for the actors to take their shutdown."""


class BatchTimeout(RuntimeError):
    """No batch became ready in time. The message names the places that are missing and the actors that hold them."""


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
        on_event: OnEvent = ignore_event,
    ) -> None:
        """`bind`: a fixed port is waited for, should another life of the learner still have it. `keys`: only actors
        with the run's keys get in. Without `open_now` nobody is greeted before `open`: the gate's checkpoint is still
        to be loaded. `on_event`: called with joins, losses and failures, on any thread."""
        self.gate = gate
        self.run_id = run_id
        self.counts: Counter[str] = Counter()
        """`messages`, `bytes`, `trajectories`, `duplicates`, `reconnects`, `resent`, `lost`; over the server's life."""
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._socket = ServerSocket(bind, keys, self._lock)
        self._queue: BatchQueue[Trajectory] = BatchQueue(gate)
        self._members = Membership(gate, run_id, self._socket, self._changed, self.counts, dead_after_s, on_event)
        self._inbox = Inbox(run_id, self._queue, self._members, self._socket, self._changed, self.counts)
        self.refused = self._inbox.refused
        """Messages that were refused, by reason."""
        self.endpoint = self._socket.endpoint
        if open_now:
            self.open()
        self._socket.start(self._inbox)

    def open(self, on_event: OnEvent | None = None) -> None:
        """Start accepting actors, once the gate is that of the checkpoint. Actors that the gate knows and that do not
        come back within `dead_after_s` are lost. `on_event`: replaces the constructor's."""
        with self._lock:
            if on_event is not None:
                self._members.on_event = on_event
            self._members.open()

    # -- batches -------------------------------------------------------------------------------------------------

    def next_batch(self, timeout_s: float, interrupt: Callable[[], bool] = lambda: False) -> list[Trajectory] | None:
        """Wait for the next batch and return its trajectories in the order of grants.

        Returns None as soon as `interrupt()` holds or an actor waits for its weights. Raises `BatchTimeout` after
        `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while True:
                self._check_thread()
                if interrupt() or self.newcomers():
                    return None
                batch = self._queue.batch()
                if batch is not None:
                    return batch
                left = deadline - time.monotonic()
                if left <= 0:
                    raise BatchTimeout(
                        f"no batch for {timeout_s:.0f} s: {self.gate.waiting_for()}; {self._members.describe()}"
                    )
                self._changed.wait(min(left, 0.5))

    def mark_trained(self, slots: Sequence[int]) -> None:
        """Remove a trained batch from the queue. ValueError unless `slots` are those of `next_batch`."""
        with self._lock:
            batch = self._queue.batch() or []
            self._queue.trained(slots)
            self._members.tokens.trained(_tokens(batch))

    def mark_published(self, version: int) -> None:
        """Record that every member has loaded `version`, and grant what that opens."""
        with self._changed:
            self.gate.published(version)
            self._members.grant(self._members.all())
            self._changed.notify_all()

    def limit_staleness(self, max_staleness: int) -> None:
        """Change the bound while the run goes on, and grant what that opens (`Gate.limit_staleness`)."""
        with self._changed:
            self.gate.limit_staleness(max_staleness)
            self._members.grant(self._members.all())
            self._changed.notify_all()

    def mark_loaded(self) -> None:
        """Grant to members that have just loaded the current version."""
        with self._lock:
            self._members.grant(self._members.all())

    def queued(self) -> list[Trajectory]:
        """Return the trajectories that wait to be trained, in the order of grants."""
        with self._lock:
            return self._queue.waiting()

    def requeue(self, trajectories: Sequence[Trajectory]) -> None:
        """Put back the queue of a checkpoint."""
        with self._lock:
            self._queue.restore(trajectories)
            self._members.tokens.restart(_tokens(self._queue.waiting()))

    def frozen(self) -> AbstractContextManager[object]:
        """A lock under which nothing arrives and nothing is granted, for a checkpoint of gate and queue together."""
        return self._lock

    # -- pausing and the end -------------------------------------------------------------------------------------

    def pause(self) -> None:
        """Grant nothing and let actors start no rollout until `resume`."""
        with self._lock:
            self._members.pause()

    def resume(self) -> None:
        """Go on granting."""
        with self._lock:
            self._members.resume()

    def measure(self, version: int) -> None:
        """Ask the actors to measure `version`, a label that they run, on the held-out tasks. Those that make no such
        measurement do nothing; the result comes with the heartbeats, as `heldout/...`."""
        with self._lock:
            for member in self._members.all():
                self._members.send(member, {"type": "measure", "version": version})

    def drain(self, deadline_s: float, left_s: Callable[[], float] = lambda: math.inf) -> int:
        """Pause, and wait up to `deadline_s` seconds until what is in flight is in the queue, where a checkpoint has
        it. Ends earlier once `left_s()`, in seconds, is 0.

        Returns the number of slots that are still in flight.
        """
        self.pause()
        deadline = time.monotonic() + deadline_s
        with self._changed:
            while (
                self.gate.in_flight()
                and len(self._members)
                and (left := min(deadline - time.monotonic(), left_s())) > 0
            ):
                self._check_thread()
                self._changed.wait(min(left, 0.5))
            return self.gate.in_flight()

    def close(self) -> None:
        """Tell the actors to stop, then close the socket. Does not wait for what is in flight: see `drain`."""
        with self._lock:
            self._members.turns.paused = True
            self._members.tell_all("shutdown")
        self._socket.stop(lambda: all(m.took_all or not m.reachable for m in self._members.all()), CLOSE_S)

    # -- members -------------------------------------------------------------------------------------------------

    def members(self) -> list[Member]:
        """Return the connected actors, in the order of their identities."""
        with self._lock:
            return self._members.all()

    def newcomers(self) -> bool:
        """Whether an actor waits for the current weights before it may play."""
        with self._lock:
            return self._members.turns.newcomers

    def wait_for_members(self, count: int, timeout_s: float, interrupt: Callable[[], bool] = lambda: False) -> None:
        """Wait until `count` actors have connected, or `interrupt()` holds. After `timeout_s` seconds one is enough;
        with none, raises TimeoutError."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while len(self._members) < count and not interrupt():
                self._check_thread()
                left = deadline - time.monotonic()
                if left <= 0:
                    if len(self._members):
                        return
                    raise TimeoutError(
                        f"no rollout actor connected to {self.endpoint} within {timeout_s:.0f} s; see the logs"
                    )
                self._changed.wait(min(left, 0.5))

    def send(self, member: Member, message: dict[str, Any]) -> None:
        """Send a control message; it is kept, and sent again, until the actor says that it has it."""
        with self._lock:
            self._members.send(member, message)

    def hold_departures(self) -> list[Member]:
        """Tell no retired actor to stop until `release_departures`. Returns the connected actors that were not told
        before."""
        with self._lock:
            self._members.departures_held = True
            return self._members.staying()

    def release_departures(self) -> None:
        """Allow again that retired actors which hold nothing are told to stop."""
        with self._lock:
            self._members.departures_held = False

    def begin_group(self, group_id: int, members: Sequence[Member], manifest: Sequence[Mapping[str, Any]]) -> None:
        """Count only failures in this weight group from now on, and tell `members` the manifest if they lack it."""
        with self._lock:
            self._members.begin_group(group_id)
            for member in members:
                if not member.knows_manifest:
                    member.knows_manifest = True
                    self._members.send(member, {"type": "manifest", "manifest": list(manifest)})

    def expect_load(self, members: Sequence[Member]) -> None:
        """Mark `members` as having loaded nothing, before a broadcast: until they load, they are granted nothing."""
        with self._lock:
            self._members.expect_load(members)

    def wait_until_loaded(self, members: Sequence[Member], version: int, timeout_s: float) -> list[Member]:
        """Wait until each member has loaded `version`, failed, or was lost, at most `timeout_s` seconds. Returns those
        that did not load it."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while any(self._members.is_loading(member, version) for member in members):
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                self._check_thread()
                self._changed.wait(min(left, 0.5))
            return [m for m in members if m.loaded_version != version]

    def load_failures(self) -> dict[str, str]:
        """Return, by actor, why its engine could not load the last broadcast. A broadcast that broke is not among
        them."""
        with self._lock:
            return {holder.actor_id: why for holder, why in self._members.load_failures.items()}

    def interrupted(self) -> dict[str, str]:
        """Return, by actor, how the last broadcast broke there."""
        with self._lock:
            return {holder.actor_id: why for holder, why in self._members.interrupted.items()}

    def lose(self, member: Member, why: str) -> None:
        """Remove an actor: what it had in flight is dropped and granted again."""
        with self._lock:
            self._members.lose(member, why)

    def retire(self, actor_id: str) -> None:
        """Grant this actor nothing more; once it holds nothing, it is told to stop."""
        with self._lock:
            self._members.retire(actor_id)

    def stats(self) -> dict[str, float]:
        """Return what actors reported, combined (`learner.stream.reports`), and the stream's own numbers."""
        with self._lock:
            reports = self._members.reports
            reports.report(Holder(_SELF, self.gate.life), {f"stream/{name}": n for name, n in self._counted().items()})
            now = {"stream/late": self.gate.late, "stream/queued": len(self._queue), "actors": len(self._members)}
            return reports.combined() | self._members.tokens.describe(_tokens(self._queue.waiting())) | now

    def reports_state(self) -> dict[str, Any]:
        """Return the counters of everyone, for `restore_reports` in the learner's next life; plain data."""
        with self._lock:
            return self._members.reports.state_dict()

    def restore_reports(self, state: Mapping[str, Any], actors_live: bool) -> None:
        """Go on counting where an earlier life of the learner stopped; see `Reports.load_state_dict`."""
        with self._lock:
            self._members.reports.load_state_dict(state, actors_live)

    def _counted(self) -> dict[str, float]:
        """The counters of this life of the learner."""
        own = {name: self.counts[name] for name in ("messages", "bytes", "trajectories", "duplicates", "resent")}
        own |= {name: self.counts[name] for name in ("reconnects", "lost")} | self._socket.denied
        own |= {f"refused_{reason}": count for reason, count in self.refused.items()}
        own["refused"] = self.refused.total()
        return {name: float(count) for name, count in own.items()}

    def poke(self) -> None:
        """Make a waiting `next_batch` look at its `interrupt` again."""
        with self._changed:
            self._changed.notify_all()

    def _check_thread(self) -> None:
        if self._socket.failure is not None:
            raise RuntimeError("the stream's thread failed") from self._socket.failure


def _tokens(trajectories: Sequence[Trajectory]) -> int:
    """Response tokens, those that an engine generated."""
    return sum(len(trajectory.response_ids) for trajectory in trajectories)
