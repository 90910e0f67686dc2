from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.ledger import conserved, describe_ledger, totals, verdict
from learner.places import Holder
from learner.settings import BatchSettings, OnStale
from learner.staleness import NUMBERS_PER_LIFE, Gate, Grant
from learner.trajectory import Cell, Role
from tests.examples import examples

KINDS = BatchSettings().kinds

CELLS = BatchSettings().cells

HOLDERS = [Holder("a", 0), Holder("b", 0), Holder("b", 1)]
MODES: tuple[OnStale, ...] = ("wait", "drop", "train")
CELL = Cell("deduction", Role.PROPOSE)


def play(gate: Gate, grant: Grant, holder: Holder, valid: bool, tasks_to_replay: bool) -> None:
    """What an actor does with an episode, in the order in which it can."""
    for slot in grant.solve:
        if valid or tasks_to_replay:
            assert gate.arrive(slot, holder, Cell(grant.kind, Role.SOLVE), gate.version)
        else:
            assert gate.give_back(slot, holder)
    for slot in grant.propose:
        assert gate.arrive(slot, holder, Cell(grant.kind, Role.PROPOSE), gate.version)


@pytest.mark.parametrize("staleness", [0, 1, 3])
@pytest.mark.parametrize(("valid", "replay"), [(True, True), (False, True), (False, False)])
@pytest.mark.parametrize(("propose", "solve"), [(3, 5), (4, 0), (2, 20)])
@pytest.mark.parametrize("room", [1, 7, 100])
@pytest.mark.parametrize("mode", MODES)
def test_no_deadlock(
    mode: OnStale, staleness: int, valid: bool, replay: bool, propose: int, solve: int, room: int
) -> None:
    """Whatever proposals come to, and however little room an actor has, batch after batch completes."""
    quota = BatchSettings(propose=dict.fromkeys(KINDS, propose), solve=dict.fromkeys(KINDS, solve))
    gate = Gate(quota, staleness, solutions=4, proposals_per_prompt=2, on_stale=mode)
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
    gate = Gate(BatchSettings(propose={}, solve={"deduction": 5}), 0, solutions=2)
    holder = HOLDERS[0]
    while gate.ready() is None:
        grant = gate.grant(holder, 10)
        assert grant is not None
        assert not grant.propose
        assert 1 <= len(grant.solve) <= 2
        play(gate, grant, holder, True, True)
    assert len(gate.ready() or []) == 5


def test_a_straggler_is_waited_for_and_named() -> None:
    gate = Gate(BatchSettings(propose={"deduction": 2}, solve={}), 1, solutions=1)
    grants = [gate.grant(HOLDERS[0], 100) for _ in range(4)]
    assert gate.grant(HOLDERS[0], 100) is None, "more than (max_staleness + 1) batches were granted"
    cell = Cell("deduction", Role.PROPOSE)
    for grant in grants[1:]:
        assert grant is not None
        gate.arrive(grant.propose[0], HOLDERS[0], cell, 0)
    assert gate.ready() is None, "a later batch overtook"
    assert "a plays {'deduction/propose': 1}" in gate.waiting_for()
    assert grants[0] is not None
    gate.arrive(grants[0].propose[0], HOLDERS[0], cell, 0)
    assert gate.ready() == [grants[0].propose[0], grants[1].propose[0]]


def test_a_proposal_travels_with_its_share_of_solve_slots() -> None:
    gate = Gate(BatchSettings(propose={"deduction": 3}, solve={"deduction": 7}), 0, solutions=8)
    sizes = []
    while (grant := gate.grant(HOLDERS[0], 100)) is not None:
        sizes.append((len(grant.propose), len(grant.solve)))
    assert sizes == [(1, 3), (1, 2), (1, 2)]


def test_publishing_out_of_order_is_refused() -> None:
    gate = Gate(BatchSettings(propose={"deduction": 1}, solve={}), 0, solutions=1)
    with pytest.raises(ValueError, match="published version 1"):
        gate.published(1)


per_kind = st.fixed_dictionaries(dict.fromkeys(KINDS, st.integers(0, 6)))


@given(
    propose=per_kind,
    solve=per_kind,
    staleness=st.integers(0, 3),
    n=st.integers(1, 5),
    group=st.integers(1, 3),
    rooms=st.lists(st.integers(1, 30), min_size=1, max_size=3),
    mode=st.sampled_from(MODES),
    behaviour=st.randoms(use_true_random=False),
)
@examples(80)
def test_five_batches_complete_whatever_the_quotas_and_whoever_dies(
    propose: dict,
    solve: dict,
    staleness: int,
    n: int,
    group: int,
    rooms: list[int],
    mode: OnStale,
    behaviour: random.Random,
) -> None:
    """Kinds with proposals only, solutions only or neither; more and fewer solutions than n a proposal; actors that
    give solve slots back, fail, and die with slots in hand. Nobody who still plays its episodes ever waits for ever."""
    quota = BatchSettings(propose=propose, solve=solve)
    gate = Gate(quota, staleness, n, group, on_stale=mode)
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
    gate = Gate(BatchSettings(propose={"deduction": 1}, solve={"deduction": 2}), 0, solutions=2)
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
    assert not gate.arrive(grant.propose[0], first, Cell("deduction", Role.PROPOSE), 0), "a late arrival was taken"


def test_a_slot_takes_only_its_own_cell() -> None:
    gate = Gate(BatchSettings(propose={"deduction": 1}, solve={}), 0, solutions=1)
    grant = gate.grant(HOLDERS[0], 1)
    assert grant is not None
    assert not gate.arrive(grant.propose[0], HOLDERS[0], Cell("deduction", Role.SOLVE), 0)
    assert not gate.arrive(grant.propose[0], HOLDERS[0], Cell("abduction", Role.PROPOSE), 0)
    assert gate.arrive(grant.propose[0], HOLDERS[0], Cell("deduction", Role.PROPOSE), 0)
    assert not gate.give_back(grant.propose[0], HOLDERS[0]), "a queued slot was returned"
    assert not gate.fail(grant.propose[0], HOLDERS[0])


def test_a_slot_takes_only_its_own_holder() -> None:
    gate = Gate(BatchSettings(propose={"deduction": 1}, solve={}), 0, solutions=1)
    grant = gate.grant(HOLDERS[1], 1)
    assert grant is not None
    for stranger in (HOLDERS[0], HOLDERS[2]):
        assert not gate.arrive(grant.propose[0], stranger, CELL, 0)
        assert not gate.give_back(grant.propose[0], stranger)
        assert not gate.fail(grant.propose[0], stranger)
    assert gate.late == 2
    assert gate.arrive(grant.propose[0], HOLDERS[1], CELL, 0)


def test_without_staleness_nothing_starts_between_training_and_publishing() -> None:
    gate = Gate(BatchSettings(propose={"deduction": 1}, solve={}), 0, solutions=1)
    grant = gate.grant(HOLDERS[0], 10)
    assert grant is not None
    assert gate.arrive(grant.propose[0], HOLDERS[0], Cell("deduction", Role.PROPOSE), 0)
    gate.trained(gate.ready() or [])
    assert gate.grant(HOLDERS[0], 10) is None
    assert "version 1 is not published yet" in gate.waiting_for()
    gate.published(1)
    assert gate.grant(HOLDERS[0], 10) is not None


def test_the_last_line_of_a_run_says_whether_the_ledger_holds() -> None:
    gate = Gate(BatchSettings(propose={"deduction": 2}, solve={}), 0, solutions=1)
    gate.grant(HOLDERS[0], 10)
    ledger = gate.ledger()
    assert verdict(ledger) == (
        "ledger: conserved (1 granted = 0 trained + 0 dropped + 0 returned + 0 queued + 1 in_flight)"
    )
    ledger[Cell("deduction", Role.PROPOSE)].granted += 1
    assert verdict(ledger).startswith("ledger: VIOLATED in deduction/propose (2 granted, but ")


def straggling(mode: OnStale, staleness: int = 1) -> tuple[Gate, list[int]]:
    """A gate of two proposals a batch, and the slots of all that it grants at version 0."""
    gate = Gate(BatchSettings(propose={"deduction": 2}, solve={}), staleness, solutions=1, on_stale=mode)
    grants = [gate.grant(HOLDERS[0], 100) for _ in range(2 * (staleness + 1))]
    assert gate.is_shut
    return gate, [slot for grant in grants if grant for slot in grant.slots]


def step(gate: Gate) -> None:
    slots = gate.ready()
    assert slots is not None
    gate.trained(slots)
    gate.published(gate.version + 1)


@pytest.mark.parametrize("mode", ["drop", "train"])
def test_a_batch_is_what_came_first_and_a_straggler_holds_nothing_up(mode: OnStale) -> None:
    gate, (straggler, a, b, c) = straggling(mode)
    assert gate.arrive(b, HOLDERS[0], CELL, 0)
    assert gate.arrive(a, HOLDERS[0], CELL, 0)
    assert gate.ready() == [a, b], "b took the place of the straggler"
    assert gate.give_back(c, HOLDERS[0])
    step(gate)
    assert gate.ready() is None, "one place is spent, on the other sits the straggler"
    assert gate.arrive(straggler, HOLDERS[0], CELL, 0)
    assert gate.ready() == [straggler]
    assert gate.arrivals([straggler]) == {straggler: 1}
    step(gate)
    assert describe_ledger(gate.ledger())["ledger/stale_trained"] == 0, "of age 1, which is allowed"


@pytest.mark.parametrize("mode", MODES)
def test_a_returned_slot_spends_the_place_that_a_trajectory_would_have_taken(mode: OnStale) -> None:
    gate, (_, a, _, returned) = straggling(mode)
    assert gate.give_back(returned, HOLDERS[0])
    assert gate.arrive(a, HOLDERS[0], CELL, 0)
    assert gate.ready() == (None if mode == "wait" else [a])


def test_what_is_too_old_where_it_would_be_trained_is_dropped_or_trained_and_counted() -> None:
    for mode in ("drop", "train"):
        gate, (straggler, *others) = straggling(mode)  # type: ignore[arg-type]
        for slot in others:
            assert gate.arrive(slot, HOLDERS[0], CELL, 0)
        step(gate)
        (grant, more) = gate.grant(HOLDERS[0], 100), gate.grant(HOLDERS[0], 100)
        assert grant and more
        assert gate.arrive(grant.propose[0], HOLDERS[0], CELL, 1)  # fills batch 1; what comes now is of batch 2
        assert gate.arrive(straggler, HOLDERS[0], CELL, 0) is (mode == "train")
        numbers = describe_ledger(gate.ledger())
        assert numbers.get("ledger/dropped_stale", 0) == (mode == "drop")
        assert numbers["ledger/dropped/deduction/propose"] == (mode == "drop")
        assert gate.late == 0, "it is not unknown, it is old"
        step(gate)
        if mode == "drop":
            again = gate.grant(HOLDERS[0], 100)
            assert again and again.batch == 2, "its place is granted again"
            assert gate.arrive(again.propose[0], HOLDERS[0], CELL, 2)
        assert gate.arrive(more.propose[0], HOLDERS[0], CELL, 1)
        step(gate)
        numbers = describe_ledger(gate.ledger())
        assert numbers["ledger/stale_trained"] == numbers["ledger/stale_trained/deduction/propose"] == (mode == "train")
        assert conserved(gate.ledger())


@given(seed=st.integers(0, 2**32), propose=per_kind, solve=per_kind, n=st.integers(1, 4))
@examples(25)
def test_without_staleness_the_three_modes_are_one(seed: int, propose: dict, solve: dict, n: int) -> None:
    """The same events give the same grants, the same batches and the same ledger."""

    def run(mode: OnStale) -> list[object]:
        rng = random.Random(seed)
        gate = Gate(BatchSettings(propose=propose, solve=solve), 0, n, on_stale=mode)
        playing: list[tuple[int, Holder, Cell]] = []
        history: list[object] = []
        for _ in range(300):
            holder = rng.choice(HOLDERS)
            if (grant := gate.grant(holder, 20)) is not None:
                history.append(grant)
                playing += [(slot, holder, Cell(grant.kind, Role.PROPOSE)) for slot in grant.propose]
                playing += [(slot, holder, Cell(grant.kind, Role.SOLVE)) for slot in grant.solve]
            if playing and rng.random() < 0.7:
                slot, holder, cell = playing.pop(rng.randrange(len(playing)))
                match rng.randrange(6):
                    case 0:
                        gate.give_back(slot, holder)
                    case 1:
                        gate.fail(slot, holder)
                    case _:
                        assert gate.arrive(slot, holder, cell, gate.version)
            if (slots := gate.ready()) is not None:
                history.append(slots)
                step(gate)
        return [*history, gate.state_dict(), gate.ledger()]

    assert run("wait") == run("drop") == run("train")


def test_a_life_never_uses_a_number_of_another_whether_or_not_there_was_a_checkpoint() -> None:
    def life(number: int) -> Gate:
        return Gate(BatchSettings(propose={"deduction": 2}, solve={}), 0, solutions=1, life=number)

    def numbers(gate: Gate) -> set[tuple[int, int]]:
        return {(grant.episode, *grant.propose) for grant in iter(lambda: gate.grant(HOLDERS[0], 100), None)}

    first = life(0)
    saved = first.state_dict()
    seen = numbers(first)
    lives = [life(number) for number in (1, 2, 3)]  # the first of them saved nothing
    lives[1].load_state_dict(saved, keep_in_flight=True)
    between = numbers(lives[1])
    lives[2].load_state_dict(lives[1].state_dict(), keep_in_flight=True)
    lives[2].lose(HOLDERS[0])
    for new in (numbers(lives[0]), between, numbers(lives[2])):
        assert len(new) == 2
        assert not {part for pair in seen for part in pair[1:]} & {part for pair in new for part in pair[1:]}
        assert not {pair[0] for pair in seen} & {pair[0] for pair in new}
        seen |= new
    assert max(slot for _, slot in seen) < 2**40, "msgpack and JSON readers"


def test_after_a_restart_only_what_the_checkpoint_knows_may_come_in() -> None:
    gate, (known, lost, *_) = straggling("wait")
    saved = gate.state_dict()
    gate.lose(HOLDERS[0])
    later = gate.grant(HOLDERS[1], 100)
    assert later is not None
    restored = Gate(BatchSettings(propose={"deduction": 2}, solve={}), 1, solutions=1, life=1)
    restored.load_state_dict(saved, keep_in_flight=True)
    assert restored.holders() == [HOLDERS[0]]
    assert restored.reclaim(HOLDERS[1], later.slots) == []
    assert restored.reclaim(HOLDERS[0], [known, *later.slots]) == [known]
    assert describe_ledger(restored.ledger())["ledger/dropped_learner_restart"] == 3
    assert not restored.arrive(later.propose[0], HOLDERS[1], CELL, 0)
    assert not restored.arrive(lost, HOLDERS[0], CELL, 0)
    assert restored.late == 2
    assert restored.arrive(known, HOLDERS[0], CELL, 0)
    again = restored.grant(HOLDERS[1], 100)
    assert again is not None
    assert min(again.slots) >= NUMBERS_PER_LIFE
    assert restored.reclaim(HOLDERS[1], []) == []
    assert describe_ledger(restored.ledger())["ledger/dropped_grant_lost"] == 1
    assert conserved(restored.ledger())


def test_an_actor_that_leaves_finishes_what_it_has() -> None:
    gate = Gate(BatchSettings(propose={"deduction": 3}, solve={}), 0, solutions=1)
    first, second = gate.grant(HOLDERS[0], 100), gate.grant(HOLDERS[0], 100)
    assert first and second
    assert gate.retire(HOLDERS[0]) == 2
    assert gate.grant(HOLDERS[0], 100) is None
    assert not gate.is_shut
    assert gate.arrive(first.propose[0], HOLDERS[0], CELL, 0)
    assert gate.lose(HOLDERS[0]) == 1
    assert describe_ledger(gate.ledger())["ledger/dropped_retired"] == 1
    assert gate.grant(HOLDERS[2], 100) is not None


def test_a_checkpoint_of_a_larger_bound_grants_nothing_beyond_the_new_one() -> None:
    """It may come from another mode, too."""
    gate, _ = straggling("train", staleness=3)
    resumed = Gate(BatchSettings(propose={"deduction": 2}, solve={}), 1, solutions=1, on_stale="drop")
    resumed.load_state_dict(gate.state_dict())
    batches = []
    while (grant := resumed.grant(HOLDERS[1], 100)) is not None:
        batches.append(grant.batch)
        assert resumed.arrive(grant.propose[0], HOLDERS[1], CELL, 0)
    assert batches == [0, 0, 1, 1]
    step(resumed)
    assert (grant := resumed.grant(HOLDERS[1], 100)) is not None
    assert grant.batch == 2


def test_the_cells_are_those_of_the_configuration() -> None:
    gate = Gate(BatchSettings(kinds=("b", "a"), propose={"a": 1, "b": 1, "left-out": 5}, solve={}), 0, solutions=1)
    kinds = [grant.kind for grant in iter(lambda: gate.grant(HOLDERS[0], 99), None)]
    assert kinds == ["a", "b"], "among equals the last kind comes first"
    assert list(gate.ledger()) == [Cell("b", Role.PROPOSE), Cell("a", Role.PROPOSE)]
    assert gate.knows(Cell("a", Role.SOLVE))
    assert not gate.knows(Cell("left-out", Role.PROPOSE))


def test_a_run_may_go_on_with_other_kinds() -> None:
    """What a checkpoint has of a kind that is left out now is still played, trained and counted."""
    gate = Gate(BatchSettings(kinds=("a", "b"), propose={"a": 2, "b": 1}, solve={}), 0, solutions=1)
    first = gate.grant(HOLDERS[0], 99)
    assert first is not None and first.kind == "b"
    assert gate.arrive(first.propose[0], HOLDERS[0], Cell("b", Role.PROPOSE), 0)
    resumed = Gate(BatchSettings(kinds=("a", "c"), propose={"a": 2, "c": 1}, solve={}), 0, solutions=1)
    resumed.load_state_dict(gate.state_dict())
    assert conserved(resumed.ledger())
    for _ in range(2):
        grant = resumed.grant(HOLDERS[0], 99)
        assert grant is not None and grant.kind == "a", "the open batch has the places that it was opened with"
        assert resumed.arrive(grant.propose[0], HOLDERS[0], Cell("a", Role.PROPOSE), 0)
    slots = resumed.ready()
    assert slots is not None and first.propose[0] in slots
    resumed.trained(slots)
    resumed.published(1)
    grants = list(iter(lambda: resumed.grant(HOLDERS[0], 99), None))
    assert sorted(grant.kind for grant in grants) == ["a", "a", "c"]
    assert conserved(resumed.ledger())
    assert resumed.knows(Cell("b", Role.PROPOSE))


@pytest.mark.parametrize(
    ("before", "after", "on_stale"), [(4, 1, "wait"), (3, 0, "wait"), (4, 2, "drop"), (1, 1, "wait")]
)
def test_a_resume_with_a_lower_bound_drops_what_is_queued_and_too_old(
    before: int, after: int, on_stale: OnStale
) -> None:
    settings = BatchSettings(propose={"deduction": 3}, solve={})
    gate = Gate(settings, before, solutions=1)
    while (grant := gate.grant(HOLDERS[0], 1000)) is not None:
        assert gate.arrive(grant.propose[0], HOLDERS[0], CELL, 0)
    assert gate.queued() == 3 * (before + 1)
    resumed = Gate(settings, after, solutions=1, on_stale=on_stale)
    dropped = resumed.load_state_dict(gate.state_dict())
    assert dropped == 3 * (before - after)
    assert describe_ledger(resumed.ledger()).get("ledger/dropped_stale", 0) == dropped
    assert conserved(resumed.ledger())
    for version in range(before + 3):
        while (grant := resumed.grant(HOLDERS[1], 1000)) is not None:
            assert resumed.arrive(grant.propose[0], HOLDERS[1], CELL, version)
        step(resumed)
    assert conserved(resumed.ledger())
    assert describe_ledger(resumed.ledger())["ledger/stale_trained"] == 0
    assert totals(resumed.ledger())["trained"] == 3 * (before + 3)


def test_a_run_that_trains_on_stale_trajectories_keeps_its_queue() -> None:
    settings = BatchSettings(propose={"deduction": 2}, solve={})
    gate = Gate(settings, 3, solutions=1, on_stale="train")
    while (grant := gate.grant(HOLDERS[0], 1000)) is not None:
        assert gate.arrive(grant.propose[0], HOLDERS[0], CELL, 0)
    resumed = Gate(settings, 0, solutions=1, on_stale="train")
    assert resumed.load_state_dict(gate.state_dict()) == 0
    assert resumed.queued() == 8
