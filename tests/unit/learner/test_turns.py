"""Whose turn it is: the rules T1 to T5 of `learner/turns.py`, without a stream."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from learner.places import Holder
from learner.settings import BatchSettings
from learner.staleness import Gate
from learner.turns import Seat, Turns


def make(episodes: int, staleness: int = 0) -> Turns[Seat]:
    """Turns over a gate whose batch has so many episodes of one proposal and one solution."""
    batch = BatchSettings(propose={"deduction": episodes}, solve={"deduction": episodes})
    return Turns(Gate(batch, staleness, solutions=1))


def seat(turns: Turns[Seat], name: str, capacity: int = 100, loaded: int = 0) -> Seat:
    new = Seat(Holder(name, 0), capacity, loaded)
    turns.enter(new)
    return new


@given(st.integers(1, 6), st.integers(1, 30))
def test_seats_with_room_are_granted_one_episode_each_in_turn(num_seats: int, episodes: int) -> None:
    turns = make(episodes)
    seats = [seat(turns, f"a{index}") for index in range(num_seats)]
    order = [granted.holder.actor_id for granted, _ in turns.grants(seats)]
    assert order == [f"a{index % num_seats}" for index in range(episodes)]


def test_the_round_goes_on_where_it_was() -> None:
    turns = make(3, staleness=1)
    a, b = seat(turns, "a"), seat(turns, "b")
    grants = turns.grants([a, b])
    assert [next(grants)[0] for _ in range(3)] == [a, b, a]
    grants.close()
    assert next(turns.grants())[0] is b, "nobody has to be named again while it is in the round"


def test_a_seat_without_room_leaves_the_round_until_it_is_named() -> None:
    turns = make(4)
    small, large = seat(turns, "small", capacity=2), seat(turns, "large", capacity=4)
    granted = list(turns.grants([small, large]))
    assert [s for s, _ in granted] == [small, large, large]
    for slot in granted[0][1].slots:
        turns.gate.give_back(slot, small.holder)
    assert list(turns.grants()) == []
    assert [s for s, _ in turns.grants([small])] == [small]


def test_a_seat_is_granted_nothing_before_it_runs_the_published_version() -> None:
    turns = make(2)
    late, ready = seat(turns, "late", loaded=-1), seat(turns, "ready")
    assert turns.newcomers
    grants = turns.grants([late, ready])
    assert next(grants)[0] is ready
    late.loaded_version = 0
    assert not turns.newcomers
    assert next(turns.grants([late]))[0] is ready, "it was next"
    assert turns.gate.is_shut


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 40))
def test_those_that_load_first_leave_the_others_their_share(num_early: int, more: int, episodes: int) -> None:
    """While most load, each that is named gets one episode; then all take turns."""
    turns = make(episodes)
    num_seats = 2 * num_early + more
    seats = [seat(turns, f"a{index}", loaded=0 if index < num_early else -1) for index in range(num_seats)]
    first = [granted for granted, _ in turns.grants(seats)]
    assert first == seats[: min(num_early, episodes)]
    for one in seats:
        one.loaded_version = 0
    counts = Counter(granted.holder for granted, _ in turns.grants(seats))
    counts.update(granted.holder for granted in first)
    assert counts.total() == episodes
    assert max(counts.values()) - min(counts[one.holder] for one in seats) <= 2


@given(st.integers(1, 4), st.integers(0, 9), st.integers(2, 12), st.integers(1, 20), st.data())
def test_a_batch_comes_to_its_end_although_most_seats_never_load_or_are_lost(
    num_loaded: int, num_late: int, capacity: int, episodes: int, data: st.DataObject
) -> None:
    """Seats are named as the stream names them: where a slot ended, or weights were loaded. One that loaded stays."""
    turns = make(episodes)
    seats = [seat(turns, f"a{index}", capacity) for index in range(num_loaded)]
    late = [seat(turns, f"late{index}", capacity, loaded=-1) for index in range(num_late)]
    held = {one: list[int]() for one in (*seats, *late)}
    named: list[Seat] = [*seats, *late]
    while True:
        for granted, grant in turns.grants(named):
            held[granted] += grant.slots
        busy = [one for one, slots in held.items() if slots]
        if not busy:
            break
        named = []
        match data.draw(st.sampled_from(["end", "end", "end", "load", "lose"])):
            case "load" if late:
                late[0].loaded_version = 0
                named = [late.pop(0)]
            case "lose" if len(busy) > 1 or busy[0] is not seats[0]:
                lost = data.draw(st.sampled_from([one for one in busy if one is not seats[0]]))
                turns.leave(lost)
                turns.gate.lose(lost.holder)
                held[lost] = []
            case _:
                one = data.draw(st.sampled_from(busy))
                assert turns.gate.give_back(held[one].pop(), one.holder)
                named = [one]
    assert turns.gate.is_shut and not turns.gate.in_flight()


def test_paused_nobody_is_granted_anything_and_places_in_the_round_are_kept() -> None:
    turns = make(2)
    a, b = seat(turns, "a"), seat(turns, "b")
    turns.paused = True
    assert list(turns.grants([a, b])) == []
    turns.paused = False
    assert [s for s, _ in turns.grants()] == [a, b]


def test_a_seat_that_is_gone_is_granted_nothing_even_amid_a_round() -> None:
    turns = make(4)
    a, b = seat(turns, "a"), seat(turns, "b")
    grants = turns.grants([a, b])
    assert next(grants)[0] is a
    turns.leave(a)
    assert [s for s, _ in grants] == [b, b, b]
    assert list(turns.grants([a])) == []


def test_a_retired_seat_plays_what_it_holds_and_may_then_leave() -> None:
    turns = make(2)
    a = seat(turns, "a", capacity=2)
    ((_, grant),) = turns.grants([a])
    turns.retire(a)
    assert not turns.may_leave(a)
    for slot in grant.slots:
        turns.gate.give_back(slot, a.holder)
    assert list(turns.grants([a])) == []
    assert turns.may_leave(a)


def test_grants_may_be_asked_for_while_they_are_handed_out() -> None:
    """As when a grant cannot be sent, and its actor is lost at once: what it held goes to the others."""
    turns = make(4)
    lost, other = seat(turns, "lost"), seat(turns, "other")
    granted: Counter[str] = Counter()
    for found, grant in turns.grants([lost, other]):
        granted[found.holder.actor_id] += len(grant.slots)
        if found is lost:
            turns.leave(lost)
            turns.gate.lose(lost.holder)
            for again, further in turns.grants():
                granted[again.holder.actor_id] += len(further.slots)
    assert granted == {"lost": 2, "other": 8}
    assert turns.gate.in_flight(other.holder) == 8
