"""One connected actor, as the learner knows it."""

from __future__ import annotations

import secrets
from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from learner.fields import Refusal, WireError
from learner.stream import wire
from learner.stream.wire import Seen, pack
from learner.turns import Seat


class Pending(NamedTuple):
    """A control message that the actor has not taken yet."""

    number: int
    kind: str
    frame: bytes
    sent_at: float


@dataclass(slots=True, eq=False, kw_only=True)
class Member(Seat):
    """One actor, from its greeting until it is lost. Its memory is the control messages that it has not taken, and the
    gaps in the numbers that it sent."""

    identity: bytes
    """ZeroMQ's name of its connection."""
    last_seen: float
    """Time of the last message from it, in monotonic seconds."""
    floor: int = 1
    """The lowest number of a message that it may still send."""
    session: int = field(default_factory=lambda: secrets.randbits(48))
    """Random id of this connection's control messages, which are numbered from 1."""
    pending: deque[Pending] = field(default_factory=deque)
    """Control messages that it has not taken yet, the oldest first."""
    resent_at: float = 0.0
    reachable: bool = True
    """Whether ZeroMQ had a connection to it when something was last sent."""
    knows_manifest: bool = False
    """Whether it was told which tensors a weight update has."""
    dismissed: bool = False
    """Whether it was told to stop, after it retired and played what it held."""
    seen: Seen = field(init=False)
    _sent: int = 0

    def __post_init__(self) -> None:
        self.seen = Seen(self.floor)

    def number(self, message: dict[str, Any], now: float) -> None:
        """Number a control message and keep it until it is taken."""
        self._sent += 1
        frame = pack({**message, "session": self.session, "number": self._sent})
        self.pending.append(Pending(self._sent, message["type"], frame, now))

    def acknowledge(self, taken: int) -> None:
        """The actor has taken every message up to number `taken`."""
        while self.pending and self.pending[0].number <= taken:
            self.pending.popleft()

    @property
    def took_all(self) -> bool:
        """Whether the actor has taken every control message."""
        return not self.pending

    @property
    def overfull(self) -> bool:
        """Whether it has left more than `MAX_PENDING` control messages untaken."""
        return len(self.pending) > wire.MAX_PENDING

    def resend_is_due(self, now: float) -> bool:
        """Whether the oldest untaken message should be sent again. `now`: monotonic seconds."""
        return bool(self.pending) and now - max(self.pending[0].sent_at, self.resent_at) >= wire.RESEND_AFTER_S

    def stuck(self, now: float, after_s: float) -> str:
        """Return why the actor is to be lost: it is heard, but has taken no message for `after_s` seconds. Empty
        otherwise."""
        if self.pending and (late_s := now - self.pending[0].sent_at) > after_s:
            first = self.pending[0]
            return (
                f"is heard, but has not taken {first.kind} (message {first.number} of {self._sent}) for {late_s:.0f} s"
            )
        return ""

    def check_ahead(self, seq: int) -> None:
        """Raise `WireError` for a number so far ahead that too many would have to be kept."""
        if seq >= self.seen.floor + wire.MAX_AHEAD:
            raise WireError(Refusal.FIELD, f"message {seq}, while {self.seen.floor} has not come")
