"""The stream's messages, field by field; and the memory of what came in."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.fields import Refusal, WireError
from learner.staleness import Grant
from learner.stream.wire import (
    FROM_ACTOR,
    FROM_LEARNER,
    MAX_SLOTS,
    Seen,
    from_actor,
    from_learner,
    grant_from_message,
    grant_to_message,
    pack,
    pack_slots,
)
from tests.examples import examples
from tests.fuzz_stream import ARRAYS, SOUND, wrong_values

NUMBERED = {"session": 1, "number": 1}
FROM_THE_LEARNER: dict[str, dict[str, Any]] = {
    "welcome": {"run_id": "run", "version": 0, "session": 5},
    "who": {},
    "ack": {"seqs": [1, 2]},
    "refused": {"seq": 1, "why": "x"},
    "beat": {},
    "grant": {"episode": 1, "kind": "deduction", "batch": 0, "propose": [1], "solve": [2], **NUMBERED},
    "cancel": {"slots": [1], **NUMBERED},
    "join": {"spec": {"port": 1}, "rank": 1, **NUMBERED},
    "manifest": {"manifest": [{"name": "x"}], **NUMBERED},
    "weights": {"version": 1, **NUMBERED},
    "measure": {"version": 1, **NUMBERED},
    "pause": NUMBERED,
    "resume": NUMBERED,
    "shutdown": NUMBERED,
}


def frames_of(message: dict[str, Any]) -> list[bytes]:
    return [pack(message), *(ARRAYS if message["type"] == "trajectory" else [])]


def test_sound_messages_pass_as_they_are() -> None:
    assert set(SOUND) == set(FROM_ACTOR)
    for message in SOUND.values():
        understood = message | {"slots": []} if message["type"] == "hello" else message
        assert from_actor(frames_of(message)) == understood
    assert set(FROM_THE_LEARNER) == set(FROM_LEARNER)
    for name, fields in FROM_THE_LEARNER.items():
        assert from_learner([pack({"type": name} | fields)]) == {"type": name} | fields


@pytest.mark.parametrize("name", sorted(SOUND))
def test_every_field_is_needed_and_checked_and_no_other_is_taken(name: str) -> None:
    sound = SOUND[name]
    broken = [sound | {"more": 1}]
    for field in FROM_ACTOR[name]:
        broken.append({key: value for key, value in sound.items() if key != field})
        broken += [sound | {field: value} for value in wrong_values(sound[field])]
    for message in broken:
        with pytest.raises(WireError) as caught:
            from_actor(frames_of(message))
        assert caught.value.refusal is Refusal.FIELD, message


def test_bounds() -> None:
    most = SOUND["hello"] | {"capacity": MAX_SLOTS, "slots": pack_slots(range(2**62, 2**62 + MAX_SLOTS))}
    assert from_actor([pack(most)])["slots"][-1] == 2**62 + MAX_SLOTS - 1
    one_more = pack_slots(range(MAX_SLOTS + 1))
    for wrong in (
        {"slots": one_more},
        {"capacity": 0},
        {"capacity": MAX_SLOTS + 1},
        {"actor_id": ""},
        {"actor_id": "x" * 201},
    ):
        with pytest.raises(WireError) as caught:
            from_actor([pack(SOUND["hello"] | wrong)])
        assert caught.value.refusal is Refusal.FIELD


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@examples(200)
@given(st.sampled_from(sorted(FROM_LEARNER)), st.data(), anything)
def test_a_strange_field_from_the_learner_raises_nothing_but_wire_errors(
    name: str, data: st.DataObject, value: Any
) -> None:
    field = data.draw(st.sampled_from(["type", "more", *FROM_LEARNER[name]]))
    with contextlib.suppress(WireError):
        from_learner([pack({"type": name} | FROM_THE_LEARNER[name] | {field: value})])


def test_a_grant_comes_back_as_it_went() -> None:
    grant = Grant(3, "induction", 7, (1, 2), (3,))
    assert grant_from_message(grant_to_message(grant)) == grant


@given(st.lists(st.integers(1, 12), max_size=60), st.integers(1, 12))
def test_seen_is_a_set_that_forgets_what_is_below_its_floor(numbers: list[int], floor: int) -> None:
    seen, model = Seen(), set[int]()
    for number in numbers:
        assert (number in seen) == (number in model)
        seen.add(number)
        model.add(number)
    lowest = min(set(range(1, 14)) - model)
    assert (seen.floor, len(seen)) == (lowest, sum(number > lowest for number in model))
    seen.raise_floor(floor)
    model |= set(range(1, floor))
    assert [number in seen for number in range(1, 14)] == [number in model for number in range(1, 14)]
