from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from executor.tasks import Kind
from learner.settings import BatchSettings
from learner.staleness import Gate, Grant, Holder, conserved, totals, verdict
from learner.trajectory import CELLS, Cell, Role

HOLDERS = [Holder("a", 0), Holder("b", 0), Holder("b", 1)]
counts = st.dictionaries(st.sampled_from(list(Kind)), st.integers(0, 5), min_size=1)


class AnyOrder(RuleBasedStateMachine):
    """Every order of grants, arrivals, returns, failures, deaths, trainings and restarts."""

    @initialize(propose=counts, solve=counts, staleness=st.integers(0, 3), n=st.integers(1, 4), group=st.integers(1, 3))
    def start(self, propose: dict, solve: dict, staleness: int, n: int, group: int) -> None:
        self.batch = BatchSettings(propose=propose or {Kind.DEDUCTION: 1}, solve=solve)
        self.make = lambda: Gate(self.batch, staleness, n, group)
        self.gate = self.make()
        self.held: dict[int, tuple[Holder, Cell]] = {}
        self.granted_at: dict[int, int] = {}

    @rule(holder=st.sampled_from(HOLDERS), room=st.integers(1, 20))
    def grant(self, holder: Holder, room: int) -> None:
        before = self.gate.in_flight(holder)
        grant = self.gate.grant(holder, room)
        if grant is None:
            return
        assert not before or before + len(grant.slots) <= room
        assert grant.slots
        for slot in grant.slots:
            assert slot not in self.granted_at
            self.granted_at[slot] = self.gate.version
            self.held[slot] = (holder, Cell(grant.kind, Role.PROPOSE if slot in grant.propose else Role.SOLVE))

    @rule(data=st.data())
    def arrive(self, data: st.DataObject) -> None:
        if self.held:
            slot = data.draw(st.sampled_from(sorted(self.held)))
            holder, cell = self.held.pop(slot)
            other = next(h for h in HOLDERS if h != holder)
            assert not self.gate.arrive(slot, other, cell)
            assert self.gate.arrive(slot, holder, cell)
            assert not self.gate.arrive(slot, holder, cell), "a duplicate was taken"

    @rule(data=st.data(), how=st.sampled_from(["give_back", "fail"]))
    def end(self, data: st.DataObject, how: str) -> None:
        if self.held:
            slot = data.draw(st.sampled_from(sorted(self.held)))
            holder, _ = self.held.pop(slot)
            assert getattr(self.gate, how)(slot, holder)
            assert not getattr(self.gate, how)(slot, holder)

    @rule(holder=st.sampled_from(HOLDERS))
    def lose(self, holder: Holder) -> None:
        lost = [slot for slot, (owner, _) in self.held.items() if owner == holder]
        assert self.gate.lose(holder) == len(lost)
        for slot in lost:
            del self.held[slot]

    @rule(publish=st.booleans())
    def train(self, publish: bool) -> None:
        slots = self.gate.ready()
        if slots is not None:
            trained_at = self.gate.state_dict()["trained_batches"]
            assert all(trained_at - self.granted_at[slot] <= self.gate.max_staleness for slot in slots)
            self.gate.trained(slots)
            if publish:
                self.gate.published(trained_at + 1)

    @rule()
    def restart(self) -> None:
        state = json.loads(json.dumps(self.gate.state_dict()))
        before = totals(self.gate.ledger())
        self.gate = self.make()
        self.gate.load_state_dict(state)
        self.held.clear()
        after = totals(self.gate.ledger())
        assert after["in_flight"] == 0
        assert after["dropped"] == before["dropped"] + before["in_flight"]
        assert after["queued"] == before["queued"]

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "gate"):
            assert conserved(self.gate.ledger()), verdict(self.gate.ledger())
            assert self.gate.in_flight() == len(self.held)
            for cell in CELLS:
                assert self.gate.unsettled(cell) <= (self.gate.max_staleness + 1) * self.batch.quota(cell)


AnyOrder.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnyOrder = AnyOrder.TestCase


def play(gate: Gate, grant: Grant, holder: Holder, valid: bool, tasks_to_replay: bool) -> None:
    """What an actor does with an episode, in the order in which it can."""
    for slot in grant.solve:
        if valid or tasks_to_replay:
            assert gate.arrive(slot, holder, Cell(grant.kind, Role.SOLVE))
        else:
            assert gate.give_back(slot, holder)
    for slot in grant.propose:
        assert gate.arrive(slot, holder, Cell(grant.kind, Role.PROPOSE))


@pytest.mark.parametrize("staleness", [0, 1, 3])
@pytest.mark.parametrize(("valid", "replay"), [(True, True), (False, True), (False, False)])
@pytest.mark.parametrize(("propose", "solve"), [(3, 5), (4, 0), (2, 20)])
@pytest.mark.parametrize("room", [1, 7, 100])
def test_no_deadlock(staleness: int, valid: bool, replay: bool, propose: int, solve: int, room: int) -> None:
    """Whatever proposals come to, and however little room an actor has, batch after batch completes."""
    quota = BatchSettings(propose=dict.fromkeys(Kind, propose), solve=dict.fromkeys(Kind, solve))
    gate = Gate(quota, staleness, solutions=4, proposals_per_prompt=2)
    holder = HOLDERS[0]
    for version in range(5):
        for _ in range(1000):
            slots = gate.ready()
            if slots is not None:
                break
            grant = gate.grant(holder, room)
            assert grant is not None, gate.waiting_for()
            play(gate, grant, holder, valid, replay)
        assert slots is not None
        gate.trained(slots)
        gate.published(version + 1)
    assert totals(gate.ledger())["trained"] >= 5 * 3 * propose


def test_solver_only_batches_complete() -> None:
    gate = Gate(BatchSettings(propose={}, solve={Kind.DEDUCTION: 5}), 0, solutions=2)
    holder = HOLDERS[0]
    while gate.ready() is None:
        grant = gate.grant(holder, 10)
        assert grant is not None
        assert not grant.propose
        assert 1 <= len(grant.solve) <= 2
        play(gate, grant, holder, True, True)
    assert len(gate.ready() or []) == 5


def test_a_straggler_is_waited_for_and_named() -> None:
    gate = Gate(BatchSettings(propose={Kind.DEDUCTION: 2}, solve={}), 1, solutions=1)
    grants = [gate.grant(HOLDERS[0], 100) for _ in range(4)]
    assert gate.grant(HOLDERS[0], 100) is None, "more than (max_staleness + 1) batches were granted"
    cell = Cell(Kind.DEDUCTION, Role.PROPOSE)
    for grant in grants[1:]:
        assert grant is not None
        gate.arrive(grant.propose[0], HOLDERS[0], cell)
    assert gate.ready() is None, "a later batch overtook"
    assert "a plays {'deduction/propose': 1}" in gate.waiting_for()
    assert grants[0] is not None
    gate.arrive(grants[0].propose[0], HOLDERS[0], cell)
    assert gate.ready() == [grants[0].propose[0], grants[1].propose[0]]


def test_a_proposal_travels_with_its_share_of_solve_slots() -> None:
    gate = Gate(BatchSettings(propose={Kind.DEDUCTION: 3}, solve={Kind.DEDUCTION: 7}), 0, solutions=8)
    sizes = []
    while (grant := gate.grant(HOLDERS[0], 100)) is not None:
        sizes.append((len(grant.propose), len(grant.solve)))
    assert sizes == [(1, 3), (1, 2), (1, 2)]


def test_publishing_out_of_order_is_refused() -> None:
    gate = Gate(BatchSettings(propose={Kind.DEDUCTION: 1}, solve={}), 0, solutions=1)
    with pytest.raises(ValueError, match="published version 1"):
        gate.published(1)


per_kind = st.fixed_dictionaries(dict.fromkeys(Kind, st.integers(0, 6)))


@given(
    propose=per_kind,
    solve=per_kind,
    staleness=st.integers(0, 3),
    n=st.integers(1, 5),
    group=st.integers(1, 3),
    rooms=st.lists(st.integers(1, 30), min_size=1, max_size=3),
    behaviour=st.randoms(use_true_random=False),
)
@settings(max_examples=80, deadline=None)
def test_five_batches_complete_whatever_the_quotas_and_whoever_dies(
    propose: dict, solve: dict, staleness: int, n: int, group: int, rooms: list[int], behaviour: random.Random
) -> None:
    """Kinds with proposals only, solutions only or neither; more and fewer solutions than n a proposal; actors that give
    solve slots back, fail, and die with slots in hand. Nobody who still plays its episodes ever waits for ever."""
    quota = BatchSettings(propose=propose, solve=solve)
    gate = Gate(quota, staleness, n, group)
    held: dict[Holder, list[Grant]] = {Holder(f"actor{i}", 0): [] for i in range(len(rooms))}
    trouble = 20
    version = 0
    for _ in range(5000):
        if (slots := gate.ready()) is not None:
            assert len(slots) <= sum(quota.quota(cell) for cell in CELLS)
            gate.trained(slots)
            version += 1
            gate.published(version)
            if version == 5:
                break
        for holder, room in zip(list(held), rooms, strict=True):
            while (grant := gate.grant(holder, room)) is not None:
                assert grant.batch <= gate.version + staleness
                assert len(grant.propose) <= group
                assert len(grant.solve) <= n * max(1, len(grant.propose))
                held[holder].append(grant)
        busy = [holder for holder, grants in held.items() if grants]
        if not busy:
            assert gate.ready() is not None, gate.waiting_for()
            continue
        holder = behaviour.choice(busy)
        fate = behaviour.random()
        if fate < 0.2 and trouble:
            trouble -= 1
            lost = sum(len(grant.slots) for grant in held[holder])
            assert gate.lose(holder) == lost
            del held[holder]
            held[Holder(holder.actor_id, holder.incarnation + 1)] = []
            continue
        grant = held[holder].pop(behaviour.randrange(len(held[holder])))
        if fate < 0.4 and trouble:
            trouble -= 1
            assert all(gate.fail(slot, holder) for slot in grant.slots)
        else:
            play(gate, grant, holder, valid=fate < 0.7, tasks_to_replay=False)
        assert conserved(gate.ledger())
    assert version == 5, gate.waiting_for()
    assert gate.in_flight() == sum(len(grant.slots) for grants in held.values() for grant in grants)


def test_a_slot_that_was_dropped_is_granted_again_in_its_batch_and_one_that_was_returned_is_not() -> None:
    gate = Gate(BatchSettings(propose={Kind.DEDUCTION: 1}, solve={Kind.DEDUCTION: 2}), 0, solutions=2)
    first, second = HOLDERS[:2]
    grant = gate.grant(first, 10)
    assert grant is not None
    assert gate.give_back(grant.solve[0], first)
    assert gate.lose(first) == 2
    again = gate.grant(second, 10)
    assert again is not None
    assert (again.batch, len(again.propose), len(again.solve)) == (0, 1, 1)
    assert set(again.slots).isdisjoint(grant.slots)
    assert gate.grant(second, 10) is None
    assert not gate.arrive(grant.propose[0], first, Cell(Kind.DEDUCTION, Role.PROPOSE)), "a late arrival was taken"


def test_a_slot_takes_only_its_own_cell() -> None:
    gate = Gate(BatchSettings(propose={Kind.DEDUCTION: 1}, solve={}), 0, solutions=1)
    grant = gate.grant(HOLDERS[0], 1)
    assert grant is not None
    assert not gate.arrive(grant.propose[0], HOLDERS[0], Cell(Kind.DEDUCTION, Role.SOLVE))
    assert not gate.arrive(grant.propose[0], HOLDERS[0], Cell(Kind.ABDUCTION, Role.PROPOSE))
    assert gate.arrive(grant.propose[0], HOLDERS[0], Cell(Kind.DEDUCTION, Role.PROPOSE))
    assert not gate.give_back(grant.propose[0], HOLDERS[0]), "a queued slot was returned"
    assert not gate.fail(grant.propose[0], HOLDERS[0])


def test_without_staleness_nothing_starts_between_training_and_publishing() -> None:
    gate = Gate(BatchSettings(propose={Kind.DEDUCTION: 1}, solve={}), 0, solutions=1)
    grant = gate.grant(HOLDERS[0], 10)
    assert grant is not None
    assert gate.arrive(grant.propose[0], HOLDERS[0], Cell(Kind.DEDUCTION, Role.PROPOSE))
    gate.trained(gate.ready() or [])
    assert gate.grant(HOLDERS[0], 10) is None
    assert "version 1 is not published yet" in gate.waiting_for()
    gate.published(1)
    assert gate.grant(HOLDERS[0], 10) is not None


def test_the_last_line_of_a_run_says_whether_the_ledger_holds() -> None:
    gate = Gate(BatchSettings(propose={Kind.DEDUCTION: 2}, solve={}), 0, solutions=1)
    gate.grant(HOLDERS[0], 10)
    ledger = gate.ledger()
    assert verdict(ledger) == (
        "ledger: conserved (1 granted = 0 trained + 0 dropped + 0 returned + 0 queued + 1 in_flight)"
    )
    ledger[Cell(Kind.DEDUCTION, Role.PROPOSE)].granted += 1
    assert verdict(ledger).startswith("ledger: VIOLATED in deduction/propose (2 granted, but ")
