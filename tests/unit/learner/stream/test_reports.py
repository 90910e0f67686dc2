"""Combined reports of actors: counters never fall and shares stay shares while actors come and go."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.metrics.catalogue import UnlistedMetric
from learner.places import Holder
from learner.stream.reports import Reports

ONE, TWO = Holder("one", 0), Holder("two", 0)
ACTS = ("work", "work", "work", "report", "report", "leave", "die", "learner restarts", "run resumes")


@given(st.lists(st.tuples(st.sampled_from(ACTS), st.integers(0, 2), st.integers(1, 9)), max_size=60))
def test_a_total_is_what_all_lives_of_all_actors_reported(acts: list[tuple[str, int, int]]) -> None:
    """Actors work, report, fall silent and come back, die and are replaced; the learner starts again under living
    actors, or the whole run does and their names begin anew."""
    reports = Reports()
    lives = [0, 0, 0]
    done: Counter[Holder] = Counter()
    reported: Counter[Holder] = Counter()
    ended, before = 0, 0.0
    for act, index, amount in acts:
        holder = Holder(f"actor{index}", lives[index])
        match act:
            case "work":
                done[holder] += amount
            case "report":
                reports.report(holder, {"tokens_generated": float(done[holder]), "kv_usage": amount / 9})
                reported[holder] = done[holder]
            case "leave":
                reports.leave(holder)
            case "die":
                reports.leave(holder)
                lives[index] += 1
            case "learner restarts" | "run resumes":
                state = json.loads(json.dumps(reports.state_dict()))
                reports = Reports()
                reports.load_state_dict(state, actors_live=act == "learner restarts")
                if act == "run resumes":
                    ended += reported.total()
                    done.clear()
                    reported.clear()
                    lives = [0, 0, 0]
        row = reports.combined()
        total = row.get("tokens_generated", 0.0)
        assert total == ended + reported.total()
        assert total >= before
        before = total
        assert 0 <= row.get("kv_usage/mean", 0) <= row.get("kv_usage/max", 0) <= 1


def test_each_metric_is_combined_in_its_own_way() -> None:
    reports = Reports()
    reports.report(ONE, {"kv_usage": 0.2, "running": 3.0, "capacity": 8.0, "engine_weights/load_s": 1.0})
    reports.report(TWO, {"kv_usage": 0.6, "running": 4.0, "capacity": 8.0})
    reports.report(TWO, {"engine_weights/load_s": 3.0})
    assert reports.combined() == {
        "kv_usage/mean": pytest.approx(0.4),
        "kv_usage/max": 0.6,
        "running": 7.0,
        "capacity": 16.0,
        "engine_weights/load_s/mean": 2.0,
        "engine_weights/load_s/max": 3.0,
    }
    reports.leave(TWO)
    assert reports.combined()["running"] == 3.0


def test_the_newest_measurement_counts_and_stays_when_its_actor_leaves() -> None:
    reports = Reports()
    reports.report(ONE, {"heldout/mean": 0.1, "heldout/version": 5.0})
    reports.report(TWO, {"heldout/mean": 0.3, "heldout/version": 10.0, "heldout/deduction": 0.25})
    reports.report(ONE, {"heldout/mean": 0.1, "heldout/version": 5.0})
    reports.leave(TWO)
    assert reports.combined() == {"heldout/mean": 0.3, "heldout/version": 10.0, "heldout/deduction": 0.25}


def test_a_life_that_was_replaced_is_heard_no_more() -> None:
    reports = Reports()
    reports.report(ONE, {"rollouts": 5.0})
    reports.report(Holder("one", 1), {"rollouts": 2.0})
    reports.report(ONE, {"rollouts": 9.0})
    assert reports.combined() == {"rollouts": 7.0}


def test_a_name_that_nothing_says_how_to_combine_is_left_out_with_a_warning() -> None:
    reports = Reports()
    with pytest.warns(UnlistedMetric, match="'brand_new'"):
        reports.report(ONE, {"brand_new": 1.0, "rollouts": 2.0})
    assert reports.combined() == {"rollouts": 2.0}
