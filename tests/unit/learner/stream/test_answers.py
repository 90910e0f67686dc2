"""What an actor owes the learner: slots from grant to acknowledgement, messages until they are acknowledged."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from learner.stream.answers import NEVER, Answers, Kept
from tests.examples import examples


def test_a_slot_is_held_until_its_answer_is_acknowledged() -> None:
    answers = Answers()
    answers.granted([1, 2])
    assert answers.answer([1]) == [1]
    answers.keep(7, Kept([b""], (1,), 0.0))
    assert (answers.held, len(answers)) == ([1, 2], 1)
    settled = answers.settle(7)
    assert settled is not None and settled.slots == (1,)
    assert (answers.held, len(answers)) == ([2], 0)
    assert answers.settle(7) is None, "an acknowledgement may come twice"


def test_a_slot_is_answered_once_and_an_error_changes_nothing() -> None:
    answers = Answers()
    answers.granted([1, 2])
    answers.answer([1])
    with pytest.raises(ValueError, match=r"slots \[1\] were answered before"):
        answers.answer([2, 1])
    assert answers.answer([2]) == [2]


def test_a_cancelled_slot_is_not_counted_on_and_an_answered_one_stays() -> None:
    answers = Answers()
    answers.granted([1, 2])
    answers.answer([1])
    answers.cancelled([1, 2, 3])
    assert answers.held == [1]
    assert answers.answer([2, 3]) == []


def test_what_was_never_sent_is_due_at_once_and_the_rest_by_its_age() -> None:
    answers = Answers()
    old, new, never = Kept([b""], (), 1.0), Kept([b""], (), 5.0), Kept([b""], (), NEVER)
    for seq, message in enumerate((old, new, never), start=4):
        answers.keep(seq, message)
    assert answers.sent_before(0.0) == [never]
    assert answers.sent_before(1.0) == [old, never]
    assert answers.sent_before(5.0) == [old, new, never]
    assert answers.lowest(9) == 4
    answers.settle(4)
    assert answers.lowest(9) == 5
    answers.settle(5)
    answers.settle(6)
    assert answers.lowest(9) == 9


class AnyOrder(RuleBasedStateMachine):
    """Grants, answers, cancellations and acknowledgements in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = Answers()
        self.in_play: set[int] = set()
        self.sent: dict[int, tuple[int, ...]] = {}
        self.slot = self.seq = 0

    @rule(count=st.integers(1, 4))
    def grant(self, count: int) -> None:
        slots = range(self.slot, self.slot + count)
        self.slot += count
        self.in_play.update(slots)
        self.answers.granted(slots)

    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        answered = {slot for slots in self.sent.values() for slot in slots}
        slots = data.draw(st.lists(st.integers(0, self.slot), max_size=4, unique=True))
        if answered.intersection(slots):
            with pytest.raises(ValueError, match="answered before"):
                self.answers.answer(slots)
            return
        mine = self.answers.answer(slots)
        assert mine == [slot for slot in slots if slot in self.in_play]
        if mine:
            self.seq += 1
            self.sent[self.seq] = tuple(mine)
            self.in_play.difference_update(mine)
            self.answers.keep(self.seq, Kept([b""], tuple(mine), 0.0))

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        slots = data.draw(st.lists(st.integers(0, self.slot), max_size=4))
        self.in_play.difference_update(slots)
        self.answers.cancelled(slots)

    @precondition(lambda self: self.seq)
    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        seq = data.draw(st.integers(1, self.seq))
        settled = self.answers.settle(seq)
        assert (settled.slots if settled else None) == self.sent.pop(seq, None)

    @invariant()
    def what_is_held_is_in_play_or_answered_and_not_acknowledged(self) -> None:
        answered = {slot for slots in self.sent.values() for slot in slots}
        assert set(self.answers.held) == self.in_play | answered
        assert len(self.answers) == len(self.sent)
        assert self.answers.lowest(self.seq + 1) == min(self.sent, default=self.seq + 1)


def test_nothing_is_forgotten_and_nothing_kept_for_longer_in_any_order() -> None:
    run_state_machine_as_test(AnyOrder, settings=examples(60, steps=40))
