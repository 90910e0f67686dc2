"""Gate, queue and turns together, driven through any order of events: what a stream, serial mode and a simulator rely
on."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from learner.ledger import conserved, totals
from learner.places import Holder
from learner.queue import BatchQueue
from learner.settings import BatchSettings, OnStale
from learner.staleness import Gate
from learner.trajectory import Cell, Role
from learner.turns import Seat, Turns
from tests.examples import examples

KINDS = BatchSettings().kinds


@dataclass(frozen=True)
class Finished:
    """What the queue needs of a trajectory."""

    slot: int
    cell: Cell
    oldest_version: int


HOLDER = Holder("a", 0)


def filled(staleness: int = 1) -> tuple[BatchQueue[Finished], list[Finished]]:
    """A queue in which every granted slot has arrived, the last first."""
    gate = Gate(BatchSettings(propose={"deduction": 2}, solve={"deduction": 2}), staleness, solutions=1)
    queue: BatchQueue[Finished] = BatchQueue(gate)
    out = []
    while grant := gate.grant(HOLDER, 100):
        out += [
            Finished(slot, Cell(grant.kind, Role.PROPOSE if slot in grant.propose else Role.SOLVE), 0)
            for slot in grant.slots
        ]
    assert all(queue.arrive(finished, HOLDER) for finished in reversed(out))
    return queue, out


def test_a_batch_comes_in_the_order_of_grants_and_leaves_when_it_is_trained() -> None:
    queue, out = filled()
    assert queue.waiting() == out
    assert queue.batch() == queue.batch() == out[:4]
    queue.trained([finished.slot for finished in out[:4]])
    assert queue.waiting() == queue.batch() == out[4:]
    assert len(queue) == 4


def test_what_the_gate_refuses_is_not_kept() -> None:
    queue, out = filled()
    assert not queue.arrive(out[0], HOLDER), "it is there"
    assert not queue.arrive(Finished(1000, out[0].cell, 0), HOLDER), "nobody was granted it"
    assert queue.waiting() == out
    assert queue.gate.late == 2


def test_a_batch_that_is_not_the_next_one_cannot_be_trained() -> None:
    queue, out = filled()
    with pytest.raises(ValueError, match="not batch 0"):
        queue.trained([finished.slot for finished in out[4:]])
    assert queue.waiting() == out, "nothing left"


def test_a_restored_queue_goes_on_where_the_checkpoint_was() -> None:
    queue, out = filled()
    gate = Gate(BatchSettings(propose={"deduction": 2}, solve={"deduction": 2}), 1, solutions=1)
    gate.load_state_dict(queue.gate.state_dict())
    again: BatchQueue[Finished] = BatchQueue(gate)
    again.restore(queue.waiting())
    assert again.batch() == out[:4]


class AnyOrder(RuleBasedStateMachine):
    """Actors come, load, play, fail, change their capacity, retire and are lost; batches are trained and published."""

    def __init__(self, mode: OnStale) -> None:
        super().__init__()
        self.mode = mode

    @initialize(
        propose=st.dictionaries(st.sampled_from(list(KINDS)), st.integers(1, 3), min_size=1),
        solve=st.dictionaries(st.sampled_from(list(KINDS)), st.integers(0, 4)),
        staleness=st.integers(0, 2),
    )
    def start(self, propose: dict[str, int], solve: dict[str, int], staleness: int) -> None:
        self.gate = Gate(BatchSettings(propose=propose, solve=solve), staleness, solutions=2, on_stale=self.mode)
        self.queue: BatchQueue[Finished] = BatchQueue(self.gate)
        self.turns: Turns[Seat] = Turns(self.gate)
        self.seats: list[Seat] = []
        self.playing: dict[int, tuple[Seat, Cell, int]] = {}
        self.trained_slots: set[int] = set()
        self.trained_version = 0
        self.joined = 0

    def grant(self, *with_room: Seat) -> None:
        """Hand out what may be handed out, and hold every grant to T2."""
        for seat, grant in self.turns.grants(with_room):
            assert seat in self.seats, "an actor that is gone"
            assert not self.turns.paused
            assert not seat.leaving
            assert seat.loaded_version == self.gate.version
            held = self.gate.in_flight(seat.holder)
            assert held == len(grant.slots) or held <= seat.capacity, "beyond its room"
            for slot in grant.slots:
                cell = Cell(grant.kind, Role.PROPOSE if slot in grant.propose else Role.SOLVE)
                self.playing[slot] = seat, cell, self.gate.version

    def seat(self, data: st.DataObject) -> Seat:
        return data.draw(st.sampled_from(self.seats))

    @rule(capacity=st.integers(1, 12))
    def enter(self, capacity: int) -> None:
        self.joined += 1
        seat = Seat(Holder(f"a{self.joined}", 0), capacity)
        self.seats.append(seat)
        self.turns.enter(seat)
        self.grant(seat)

    @precondition(lambda self: self.seats)
    @rule(data=st.data())
    def load(self, data: st.DataObject) -> None:
        seat = self.seat(data)
        seat.loaded_version = self.gate.version
        self.grant(seat)

    @precondition(lambda self: self.seats)
    @rule(data=st.data(), capacity=st.integers(1, 12))
    def resize(self, data: st.DataObject, capacity: int) -> None:
        seat = self.seat(data)
        seat.capacity = capacity
        self.grant(seat)

    @precondition(lambda self: self.seats)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        seat = self.seat(data)
        self.seats.remove(seat)
        self.turns.leave(seat)
        self.gate.lose(seat.holder)
        self.playing = {slot: played for slot, played in self.playing.items() if played[0] is not seat}
        self.grant()

    @precondition(lambda self: self.seats)
    @rule(data=st.data())
    def retire(self, data: st.DataObject) -> None:
        seat = self.seat(data)
        self.turns.retire(seat)
        assert self.turns.may_leave(seat) == (not any(played[0] is seat for played in self.playing.values()))

    @rule()
    def pause(self) -> None:
        self.turns.paused = True

    @precondition(lambda self: self.turns.paused)
    @rule()
    def resume(self) -> None:
        self.turns.paused = False
        self.grant(*self.seats)

    @precondition(lambda self: self.playing)
    @rule(data=st.data(), times=st.integers(1, 8))
    def arrive(self, data: st.DataObject, times: int) -> None:
        for _ in range(min(times, len(self.playing))):
            slot = data.draw(st.sampled_from(sorted(self.playing)))
            seat, cell, since = self.playing.pop(slot)
            finished = Finished(slot, cell, data.draw(st.integers(since, self.gate.version)))
            kept = self.queue.arrive(finished, seat.holder)
            assert kept or self.mode == "drop"
            assert not self.queue.arrive(finished, seat.holder), "twice"
            self.grant(seat)

    @precondition(lambda self: self.playing)
    @rule(data=st.data(), failed=st.booleans())
    def end_without_a_trajectory(self, data: st.DataObject, failed: bool) -> None:
        slot = data.draw(st.sampled_from(sorted(self.playing)))
        seat, _, _ = self.playing.pop(slot)
        assert (self.gate.fail if failed else self.gate.give_back)(slot, seat.holder)
        self.grant(seat)

    @precondition(lambda self: self.trained_version == self.gate.version and self.gate.is_ready)
    @rule()
    def train(self) -> None:
        batch = self.queue.batch()
        assert batch is not None
        slots = [finished.slot for finished in batch]
        assert slots == sorted(slots), "not in the order of grants"
        assert self.trained_slots.isdisjoint(slots), "trained twice"
        self.trained_slots.update(slots)
        self.queue.trained(slots)
        self.trained_version += 1

    @precondition(lambda self: self.trained_version > self.gate.version)
    @rule(data=st.data())
    def publish(self, data: st.DataObject) -> None:
        """Each engine may have loaded the version, or have failed to."""
        for seat in self.seats:
            seat.loaded_version = self.trained_version if data.draw(st.booleans()) else -1
        self.gate.published(self.trained_version)
        self.grant(*self.seats)

    @invariant()
    def the_queue_is_what_the_gate_counts_as_queued(self) -> None:
        queued = [entry[0] for entry in self.gate.state_dict()["slots"] if entry[5] is not None]
        assert [finished.slot for finished in self.queue.waiting()] == sorted(queued)
        assert len(self.queue) == len(queued) == totals(self.gate.ledger())["queued"]
        assert conserved(self.gate.ledger())

    @invariant()
    def nobody_idle_is_forgotten(self) -> None:
        """T4: with an open gate, an actor that holds nothing and may be granted something never waits."""
        if self.turns.paused or self.gate.is_shut:
            return
        for seat in self.seats:
            idle = (
                not seat.leaving and seat.loaded_version == self.gate.version and not self.gate.in_flight(seat.holder)
            )
            assert not idle, f"{seat} waits, and {copy.deepcopy(self.gate).grant(seat.holder, seat.capacity)} is open"

    @invariant()
    def newcomers_are_those_without_weights(self) -> None:
        assert self.turns.newcomers == any(
            seat.loaded_version < 0 and not (seat.leaving and not self.gate.in_flight(seat.holder))
            for seat in self.seats
        )


@pytest.mark.parametrize("mode", ["wait", "drop", "train"])
def test_the_queue_follows_the_gate_and_nobody_is_forgotten_in_any_order_of_events(mode: OnStale) -> None:
    run_state_machine_as_test(lambda: AnyOrder(mode), settings=examples(60, steps=40))
