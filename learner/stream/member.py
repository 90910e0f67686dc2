"""What the learner knows of one connected actor."""

from __future__ import annotations

import secrets
from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from learner.stream.wire import Seen, pack
from learner.trajectory import Refusal, WireError
from learner.turns import Seat

RESEND_AFTER_S = 5.0
"""A control message that an actor has not taken for so long is sent again, with all that follow it."""
MAX_PENDING = 1 << 14
"""Control messages that an actor may leave untaken, before it is lost: far more than its credits allow."""
MAX_AHEAD = 1 << 16
"""How far the numbers of an actor's messages may run ahead of the lowest that is missing."""


class Pending(NamedTuple):
    """A control message that the actor has not taken yet."""

    n: int
    kind: str
    frame: bytes
    sent_at: float


@dataclass(slots=True, eq=False, kw_only=True)
class Member(Seat):
    """One actor, from its greeting until it is lost. Memory: what it has not taken, and gaps in what it sent."""

    identity: bytes
    """ZeroMQ's name of its connection."""
    last_seen: float
    """When something last came from it, on the monotonic clock in seconds."""
    floor: int = 1
    """The lowest number of a message that it may still send."""
    epoch: int = field(default_factory=lambda: secrets.randbits(48))
    """Of its control messages: they are numbered from 1 in each epoch."""
    stats: dict[str, float] = field(default_factory=dict)
    """What its last heartbeat reported."""
    weights: dict[str, float] = field(default_factory=dict)
    """Seconds by phase of its last weight update."""
    pending: deque[Pending] = field(default_factory=deque)
    """Control messages that it has not taken yet, the oldest first."""
    resent_at: float = 0.0
    reachable: bool = True
    """Whether ZeroMQ had a connection to it when something was last sent."""
    dismissed: bool = False
    """Whether it was told to stop, after it retired and played what it held."""
    seen: Seen = field(init=False)
    _sent: int = 0

    def __post_init__(self) -> None:
        self.seen = Seen(self.floor)

    def number(self, message: dict[str, Any], now: float) -> None:
        """Number a control message and keep it until it is taken."""
        self._sent += 1
        frame = pack({**message, "epoch": self.epoch, "n": self._sent})
        self.pending.append(Pending(self._sent, message["type"], frame, now))

    def acknowledge(self, got: int) -> None:
        """The actor has taken all up to `got`."""
        while self.pending and self.pending[0].n <= got:
            self.pending.popleft()

    @property
    def took_all(self) -> bool:
        """Whether the actor has taken every control message."""
        return not self.pending

    @property
    def overfull(self) -> bool:
        """Whether it has left more untaken than anybody may."""
        return len(self.pending) > MAX_PENDING

    def resend_is_due(self, now: float) -> bool:
        """Whether the oldest that it has not taken should go out again."""
        return bool(self.pending) and now - max(self.pending[0].sent_at, self.resent_at) >= RESEND_AFTER_S

    def stuck(self, now: float, after_s: float) -> str:
        """Why an actor that is heard but takes nothing is lost; empty as long as it is not."""
        if self.pending and (late_s := now - self.pending[0].sent_at) > after_s:
            first = self.pending[0]
            return f"is heard, but has not taken {first.kind} (message {first.n} of {self._sent}) for {late_s:.0f} s"
        return ""

    def check_ahead(self, seq: int) -> None:
        """Raises `WireError` for a number that would make us remember too many."""
        if seq >= self.seen.floor + MAX_AHEAD:
            raise WireError(Refusal.FIELD, f"message {seq}, while {self.seen.floor} has not come")
