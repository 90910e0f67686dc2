"""Two actors of a run without engines: they answer what the real gate, queue and turns grant them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import numpy as np

from learner.places import Holder
from learner.queue import BatchQueue
from learner.settings import BatchSettings
from learner.staleness import Gate, Grant
from learner.stream.reports import Reports
from learner.trajectory import Cell, Role, Trajectory, VersionSpan
from learner.turns import Seat, Turns

BATCH = BatchSettings(kinds=("deduction",), propose={"deduction": 3}, solve={"deduction": 5})


class Actors:
    """Two actors that answer everything that they are granted, the last grant first: the `Stream` of the loop."""

    def __init__(self, gate: Gate, capacity: int = 100) -> None:
        self.gate = gate
        self.queue: BatchQueue[Trajectory] = BatchQueue(gate)
        self.turns: Turns[Seat] = Turns(gate)
        self.seats = [Seat(Holder(name, 0), capacity) for name in ("one", "two")]
        for seat in self.seats:
            self.turns.enter(seat)
        self.generated: Counter[Holder] = Counter()
        self.reports = Reports()
        self.returns = False
        """Whether they give everything back."""

    def next_batch(self, timeout_s: float, interrupt: Callable[[], bool]) -> list[Trajectory] | None:
        while True:
            if interrupt() or self.turns.newcomers:
                return None
            if (batch := self.queue.batch()) is not None:
                return batch
            assert self.play(), f"nobody can play: {self.gate.waiting_for()}"

    def play(self) -> int:
        """Answer everything that may be granted; returns the number of episodes."""
        played = list(self.turns.grants(self.seats))
        for seat, grant in reversed(played):
            self.answer(seat, grant)
        return len(played)

    def answer(self, seat: Seat, grant: Grant) -> None:
        for slot in grant.slots:
            cell = Cell(grant.kind, Role.PROPOSE if slot in grant.propose else Role.SOLVE)
            if self.returns:
                assert self.gate.give_back(slot, seat.holder)
            else:
                assert self.queue.arrive(sampled(slot, cell, seat), seat.holder)
                self.generated[seat.holder] += 2

    def queued(self) -> list[Trajectory]:
        return self.queue.waiting()

    def mark_trained(self, slots: Sequence[int]) -> None:
        self.queue.trained(slots)

    def mark_published(self, version: int) -> None:
        self.gate.published(version)
        self.play()

    @contextmanager
    def _frozen(self) -> Iterator[None]:
        yield

    def frozen(self) -> AbstractContextManager[object]:
        return self._frozen()

    def stats(self) -> dict[str, float]:
        for seat in self.seats:
            self.reports.report(seat.holder, {"tokens_generated": float(self.generated[seat.holder])})
        return self.reports.combined() | {"actors": float(len(self.seats))}

    def join(self, actor_id: str, incarnation: int, loaded_version: int = -1) -> None:
        """A new life of an actor, which gets its weights before it plays."""
        self.seats.append(Seat(Holder(actor_id, incarnation), 100, loaded_version=loaded_version))
        self.turns.enter(self.seats[-1])

    def leave(self, actor_id: str) -> None:
        """The actor dies, or leaves; the learner has heard its last report."""
        self.stats()
        (seat,) = (seat for seat in self.seats if seat.holder.actor_id == actor_id)
        self.seats.remove(seat)
        self.turns.leave(seat)
        self.gate.lose(seat.holder)
        self.reports.leave(seat.holder)


def sampled(slot: int, cell: Cell, seat: Seat) -> Trajectory:
    """A trajectory by the version that the actor's engine runs."""
    return Trajectory(
        "run", *seat.holder, slot, "e", cell, np.array([1], np.int32), np.array([2, 3], np.int32),
        np.array([-0.5, -0.5], np.float32), (VersionSpan(seat.loaded_version, 0, 2),), 1.0,
    )  # fmt: skip
