"""Turns: which actor is granted the next episode. No I/O, no clocks, no threads.

The gate says what may be granted; turns say to whom. A *seat* is one connected actor as grants see it.

  T1  Round robin: each seat in the round is granted one episode, then goes to the end of the round.
  T2  A seat is granted nothing while turns are paused, while its engine does not run the published version, once it is
      retired, and while it has no room.
  T3  A seat that cannot be granted anything leaves the round. It comes back when the caller names it in `grants`: after
      one of its slots ended, its capacity grew, or it loaded the published version. So an arrival costs no look at
      other seats.
  T4  While most seats have yet to load the published version, a seat leaves the round after each episode. Otherwise the
      few that load first would take all that is open: a thousand actors would wait for the fifty that have it.
  T5  When `grants` is exhausted, turns are paused, the gate is shut, or the round is empty.

The stream server, serial mode and a simulator share this class.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from learner.places import Holder
from learner.staleness import Gate, Grant


@dataclass(slots=True, eq=False)
class Seat:
    """One connected actor."""

    holder: Holder
    capacity: int
    """Slots that may be in flight there."""
    loaded_version: int = -1
    """The policy version that its engine runs; -1 while it has loaded none."""
    leaving: bool = False
    """Whether it is retired: it plays what it holds, and is granted nothing more."""


S = TypeVar("S", bound=Seat)


class Turns(Generic[S]):
    """Hands the gate's episodes out to seats in turn."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.paused = False
        """While true, nobody is granted anything; seats keep their places in the round."""
        self._seats: set[S] = set()
        self._round: dict[S, None] = {}
        """Seats that may be granted something, the next one first."""

    def enter(self, seat: S) -> None:
        """An actor connected. It joins the round when `grants` names it."""
        self._seats.add(seat)

    def leave(self, seat: S) -> None:
        """An actor is gone. What it held is for the gate (`Gate.lose`)."""
        self._seats.discard(seat)
        self._round.pop(seat, None)

    def retire(self, seat: S) -> None:
        """Grant this actor nothing more."""
        self.gate.retire(seat.holder)
        seat.leaving = True

    def may_leave(self, seat: S) -> bool:
        """Whether a retired actor has played everything that it held."""
        return seat.leaving and not self.gate.in_flight(seat.holder)

    @property
    def newcomers(self) -> bool:
        """Whether an actor waits for its first weights. One that is about to leave does not."""
        return any(seat.loaded_version < 0 and not self.may_leave(seat) for seat in self._seats)

    def grants(self, with_room: Iterable[S] = ()) -> Iterator[tuple[S, Grant]]:
        """Grant episodes in turn, each when it is asked for, as long as anybody may be granted one.

        `with_room`: seats that may be granted something again (T3); they join the end of the round.
        """
        for seat in with_room:
            if seat in self._seats:
                self._round.setdefault(seat)
        loading: bool | None = None  # a look at every seat, and mostly there is nothing to grant
        while self._round and not self.paused and not self.gate.is_shut:
            if loading is None:
                loading = 2 * sum(seat.loaded_version < 0 for seat in self._seats) > len(self._seats)
            seat = next(iter(self._round))
            del self._round[seat]
            if seat.loaded_version != self.gate.version:
                continue
            grant = self.gate.grant(seat.holder, seat.capacity)
            if grant is not None:
                if not loading:
                    self._round[seat] = None
                yield seat, grant
