"""The actor's seconds: each moment counts once, to what matters most; and the engine's steps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.engine.step_times import StepTimes
from actors.time_ledger import WAITING, Activity, TimeLedger

Change = tuple[Activity, bool, int]


@given(st.lists(st.tuples(st.sampled_from(Activity), st.booleans(), st.integers(0, 5))))
def test_each_moment_counts_to_the_first_activity_that_goes_on(changes: list[Change]) -> None:
    now = 100.0
    ledger = TimeLedger(lambda: now)
    open_blocks: dict[Activity, list] = {activity: [] for activity in Activity}  # type: ignore[type-arg]
    expected = dict.fromkeys((*Activity, WAITING), 0.0)
    before: dict[str, float] = {}
    for activity, begins, seconds in changes:
        if begins:
            block = ledger.during(activity)
            block.__enter__()
            open_blocks[activity].append(block)
        elif open_blocks[activity]:
            open_blocks[activity].pop().__exit__(None, None, None)
        state = next((one for one in Activity if open_blocks[one]), WAITING)
        now += seconds
        expected[state] += seconds
        found = ledger.seconds()
        assert all(found[name] >= earlier for name, earlier in before.items()), "they are counters"
        before = found
        if state != Activity.LOADING:
            assert found == expected
            assert sum(found.values()) == now - 100.0


def test_waiting_for_bytes_counts_as_paused_not_as_loading() -> None:
    now = 0.0
    ledger = TimeLedger(lambda: now)
    with ledger.during(Activity.ENGINE), ledger.during(Activity.LOADING):
        now += 5
        assert ledger.seconds()["loading"] == 0, "what of it was waiting is not known yet"
        ledger.waited(2)
    now += 1
    assert ledger.seconds() == {
        "loading": 3, "paused": 2, "engine": 0, "executor": 0, "other": 0, "wait_for_grants": 1
    }  # fmt: skip


def test_a_steps_time_is_shared_by_its_rows_and_time_between_steps_is_kept_apart() -> None:
    times = StepTimes()
    times.begin(10.0)
    times.end(14.0, prefill_rows=3, decode_rows=1, more=True)
    times.begin(15.0)
    times.end(17.0, prefill_rows=0, decode_rows=5, more=True)
    assert times.to_json() == {"prefill": 3.0, "decode": 3.0, "between": 1.0}
    times.pause()
    times.begin(30.0)
    times.end(31.0, 0, 1, more=False)
    times.begin(50.0)  # with nothing in between
    times.end(51.0, 0, 0, more=False)  # to tell the workers what has ended
    assert times.to_json() == {"prefill": 3.0, "decode": 4.0, "between": 1.0}


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.integers(0, 9), st.integers(0, 9))))
def test_steps_that_overlap_count_each_moment_once(script: list[tuple[bool, int, int, int]]) -> None:
    times, now, in_flight, busy = StepTimes(), 0.0, 0, 0.0
    for begins, seconds, prefill_rows, decode_rows in script:
        now += seconds
        busy += seconds if in_flight else 0
        if begins and in_flight < 2:
            times.begin(now)
            in_flight += 1
        elif in_flight:
            times.end(now, prefill_rows, decode_rows + 1, more=False)
            in_flight -= 1
    while in_flight:
        times.end(now, 1, 0, more=False)
        in_flight -= 1
    assert times.prefill + times.decode == pytest.approx(busy)
    assert times.between == 0
