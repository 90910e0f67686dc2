"""The chart of accuracy over time."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.study.definition import StudyRun
from launch.study.findings import judge
from launch.study.kinds_chart import draw_kinds, line_of, mean_line
from tests.unit.launch.study.studies import TASKS, make_result, make_study

FIRST = make_result(StudyRun("K0", 0), {0: 0.25, 6: 0.5, 12: 0.75})
SECOND = make_result(StudyRun("K0", 1), {0: 0.25, 6: 0.25, 9: 0.75, 15: 0.25})


def test_a_line_has_minutes_and_percent_of_a_kind_or_the_mean() -> None:
    assert line_of(FIRST, None) == [(0.0, 25.0), (1.0, 50.0), (2.0, 75.0)]
    one = FIRST.heldout[1].model_copy(update={"solved": {"deduction": (TASKS, 8 * TASKS)}})
    result = FIRST.model_copy(update={"heldout": (one,)})
    assert line_of(result, "deduction") == [(1.0, 12.5)]
    assert line_of(result, "induction") == [], "a kind that was not measured"


def test_the_mean_is_of_equal_versions_and_ends_at_the_last_measurements_whenever_they_were() -> None:
    found = mean_line([FIRST, SECOND], None)
    assert [y for _, y in found] == [25.0, 37.5, 50.0], "versions 0 and 6, and the last"
    assert found[-1][0] == pytest.approx((120 + 151) / 2 / 60)
    for little in ({}, {0: 0.25}):
        other = make_result(StudyRun("K0", 2), little)
        assert mean_line([FIRST, other], None) == line_of(FIRST, None), "it hides nothing of the others"
        assert mean_line([other], None) == []


def test_there_is_a_chart_from_three_measurements_of_a_run(tmp_path: Path) -> None:
    study = make_study(study="arms", seeds=(0, 1))
    few = {"K0-s0": make_result(StudyRun("K0", 0), {0: 0.25, 8: 0.5})}
    assert draw_kinds(judge(study, few), tmp_path) is None
    path = draw_kinds(judge(study, {"K0-s0": FIRST, "K0-s1": SECOND}), tmp_path)
    assert path is not None
    drawn = path.read_bytes()
    assert draw_kinds(judge(study, {"K0-s0": FIRST, "K0-s1": SECOND}), tmp_path) == path
    assert path.read_bytes() == drawn, "equal results give equal files"
