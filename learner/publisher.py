"""Publishing weights: every connected engine is brought to the learner's version, under its running requests.

Membership decides the group: when an actor joins, leaves or is lost, the next publication opens a new group. No actor
is told to leave while a publication runs. An actor that fails or misses a deadline is counted out (its supervisor
restarts it), and the version is sent again to the others: a broadcast that breaks says nothing against an actor that
survived it.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from typing import Protocol

import torch

from learner.lineage import label_of
from learner.protocols import Policy
from learner.ranks import Ranks
from learner.stream.member import Member
from learner.stream.server import StreamServer
from learner.weights.group import WeightSyncError
from learner.weights.manifest import Manifest, manifest_of, manifest_to_json
from learner.weights.transfer import WeightSender

_LOG = logging.getLogger(__name__)

MAX_REPEATS = 2
"""Times that a version is sent again after a broadcast that broke, or was refused, although every actor lives."""


class Publisher(Protocol):
    """The main loop's view of publishing."""

    def publish(self, version: int) -> dict[str, float]:
        """Bring every engine to `version`. Returns seconds by phase, and the bytes of a broadcast by the names of
        `SentBytes`. Collective over the learner's ranks."""

    def close(self) -> None:
        """Leave the group."""


class GroupPublisher:
    """Publishes over a process group (`learner.weights`), told over the stream. `stream` and `sender` on rank 0
    only."""

    def __init__(
        self, policy: Policy, ranks: Ranks, stream: StreamServer | None, sender: WeightSender | None, workers: int
    ) -> None:
        """`workers`: ranks that each engine takes in the group (its tensor-parallel size)."""
        self._policy = policy
        self._ranks = ranks
        self._stream = stream
        self._sender = sender
        self._workers = workers
        self._joined: list[Member] = []
        self._manifest: Manifest = manifest_of(policy.export())
        self._repeats = 0

    def publish(self, version: int) -> dict[str, float]:
        """See `Publisher`. Returns when each engine has loaded the version or is counted out."""
        timings: defaultdict[str, float] = defaultdict(float)  # with broadcasts that broke
        self._repeats = 0
        try:
            while self._ranks.share(lambda: self._prepare(timings)):
                if self._agreed(self._transfer(version, timings)):
                    break
        finally:
            if self._stream is not None:
                self._stream.release_departures()
        return timings

    def close(self) -> None:
        """Leave the group."""
        if self._sender is not None:
            self._sender.close()

    def _agreed(self, done: bool) -> bool:
        """Rank 0's answer whether the broadcast is done, on every rank."""
        return bool(self._ranks.share(lambda: done))

    def _prepare(self, timings: defaultdict[str, float]) -> bool:
        """On rank 0, build the group of the present members if it is not there. False if no actor is connected."""
        assert self._stream is not None and self._sender is not None
        started = time.monotonic()
        while members := self._stream.hold_departures():
            if self._joined == members:
                break
            self._joined = []
            spec = self._sender.open(1 + len(members) * self._workers)
            self._stream.begin_group(spec.group_id, members, manifest_to_json(self._manifest))
            for index, member in enumerate(members):
                message = {"type": "join", "spec": spec.to_json(), "rank": 1 + index * self._workers}
                self._stream.send(member, message)
            try:
                self._sender.connect()
                self._joined = members
            except WeightSyncError as error:
                self._count_out(members, error)
        timings["connect_s"] += time.monotonic() - started
        return bool(members)

    def _transfer(self, version: int, timings: defaultdict[str, float]) -> bool:
        """Broadcast once. False if it has to be repeated with the actors that are left."""
        tensors = self._policy.export()
        if not self._ranks.is_main:
            _drain(tensors)
            return True
        assert self._stream is not None and self._sender is not None
        members = self._joined
        self._stream.expect_load(members)
        label = label_of(version, self._stream.gate.life_id)
        for member in members:
            self._stream.send(member, {"type": "weights", "version": label})
        started = time.monotonic()
        try:
            self._sender.send(tensors, self._manifest)
        except WeightSyncError as error:
            _drain(tensors)
            timings["send_s"] += time.monotonic() - started
            self._joined = []
            self._count_out(members, error)
            return False
        sent = time.monotonic()
        late = self._stream.wait_until_loaded(members, version, self._sender.timeout_s)
        reasons = self._stream.interrupted() | self._stream.load_failures()
        for member in late:
            self._stream.lose(member, reasons.get(member.holder.actor_id, "did not load the weights in time"))
        self._stream.mark_loaded()
        done = {"send_s": sent - started, "wait_loaded_s": time.monotonic() - sent}
        # The sender's `connect_s` is that of the group's start, which `_prepare` has counted.
        for phase, seconds in (self._sender.timings | done).items():
            timings[phase] += seconds if phase != "connect_s" else 0.0
        for name, count in asdict(self._sender.sent).items():
            timings[name] += count
        return True

    def _count_out(self, members: list[Member], error: WeightSyncError) -> None:
        """Lose the actors whose ranks were missing and those whose own engine failed. If there are none, the version is
        sent again, `MAX_REPEATS` times; after that, those are lost that refuse it, or else all."""
        assert self._stream is not None
        missing = {(rank - 1) // self._workers for rank in error.missing if rank > 0}
        refused = {(rank - 1) // self._workers for rank in error.refused}
        failed = self._stream.load_failures()
        culprits = [m for i, m in enumerate(members) if i in missing or m.holder.actor_id in failed]
        if not culprits:
            self._repeats += 1
            if self._repeats <= MAX_REPEATS:
                _LOG.warning("%s; every actor lives, so the version is sent again (%d)", error, self._repeats)
                return
            culprits = [member for index, member in enumerate(members) if index in refused]
        reasons = self._stream.interrupted() | failed
        for member in culprits or members:
            self._stream.lose(member, reasons.get(member.holder.actor_id, str(error)))


def _drain(tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
    """Run an export to its end: gathering is collective, and other ranks wait in it."""
    with suppress(StopIteration):
        while True:
            next(tensors)
