"""The slots that an actor holds, and its messages until the learner acknowledges them (S2). No socket, no clock.

    granted -> in play -> answered -> settled    a slot is answered once, and settled when its answer is acknowledged
    granted -> in play -> cancelled              the learner does not count on it any more

So memory is bounded by the slots that the learner granted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

NEVER = -math.inf
"""Time of sending of a message that could not be sent yet."""


@dataclass(slots=True)
class Kept:
    """A message that is not acknowledged yet."""

    frames: list[bytes | memoryview]
    slots: tuple[int, ...]
    """The slots that it answers."""
    sent_at: float
    """Time at which it was last sent, in monotonic seconds, or `NEVER`."""


class Answers:
    """The slots that one actor holds, and its messages that the learner has not acknowledged."""

    def __init__(self) -> None:
        self._kept: dict[int, Kept] = {}
        self._held: dict[int, bool] = {}
        """Granted slot -> whether it was answered."""

    def __len__(self) -> int:
        """Number of messages that are not acknowledged."""
        return len(self._kept)

    @property
    def held(self) -> list[int]:
        """Slots that were granted and are not settled: in play, or answered and not acknowledged."""
        return list(self._held)

    def granted(self, slots: Iterable[int]) -> None:
        """The learner granted these slots."""
        self._held.update(dict.fromkeys(slots, False))

    def cancelled(self, slots: Iterable[int]) -> None:
        """The learner cancelled these slots. Answered ones stay until they are acknowledged."""
        for slot in slots:
            if self._held.get(slot) is False:
                del self._held[slot]

    def answer(self, slots: Iterable[int]) -> list[int]:
        """Mark slots as answered; returns those that the learner still counts on. ValueError for an answered slot."""
        mine = [slot for slot in slots if slot in self._held]
        again = [slot for slot in mine if self._held[slot]]
        if again:
            raise ValueError(f"slots {again} were answered before")
        self._held.update(dict.fromkeys(mine, True))
        return mine

    def keep(self, seq: int, message: Kept) -> None:
        """Keep message number `seq` until it is settled."""
        self._kept[seq] = message

    def settle(self, seq: int) -> Kept | None:
        """Forget message `seq` and the slots that it answers; returns it, or None if it is settled already."""
        kept = self._kept.pop(seq, None)
        for slot in kept.slots if kept else ():
            self._held.pop(slot, None)
        return kept

    def sent_before(self, time_s: float) -> list[Kept]:
        """Messages that were last sent at `time_s` or earlier, or never, in order."""
        return [kept for kept in self._kept.values() if kept.sent_at <= time_s]

    def lowest(self, following: int) -> int:
        """The lowest number of a message that may still be sent. `following`: the next number to give out."""
        return min(self._kept, default=following)
