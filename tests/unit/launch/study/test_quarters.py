"""What a run was like in each quarter of its steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launch.run.folder import RunFolder
from launch.study.definition import StudyRun
from launch.study.findings import judge
from launch.study.learning import by_quarter
from launch.study.quarters import diversity_of, quarters
from launch.study.result import MOST_POINTS, RunResult, collect
from tests.unit.launch.study.studies import make_result, make_study, row, write_run

RUN = StudyRun("K0", 0)
STUDY = make_study(study="arms", seeds=(0, 1), arms=("K0",))


def rows_of(steps: int, new: int) -> list[dict[str, Any]]:
    """Steps of ten seconds after a first one of 100; in each quarter the buffer takes fewer tasks a step by one, and
    100 before the first. Each step, one of them is of induction, and one task leaves."""
    tasks, rows = 100 - new, []
    for step in range(1, steps + 1):
        tasks += new - 4 * (step - 1) // steps
        of_buffer = {
            "buffer/deduction": tasks - 2.0 * step,
            "buffer/induction": 1.0 * step,
            "buffer/evicted": 1.0 * step,
        }
        rows.append(row(step, **of_buffer) | {"time_s": 90.0 + 10 * step})
    return rows


@pytest.mark.parametrize("steps", [16, 4 * MOST_POINTS])
def test_new_tasks_and_time_are_counted_from_the_end_of_the_first_step(steps: int) -> None:
    found = quarters(rows_of(steps, 9))
    assert [part["new_tasks"] for part in found] == [9.0, 8.0, 7.0, 6.0]
    assert [part["step_s"] for part in found] == [10.0] * 4


def test_levels_are_means_of_all_steps_and_the_kinds_that_have_them() -> None:
    rows = rows_of(16, 9)
    for place, one in enumerate(rows):
        one["memory/learner_mib"] = 100.0 * place
        one["entropy"] = 1.0
    rows[12] |= {"copies/deduction": 0.25, "copies/abduction": 0.75}
    rows[13] |= {"copies/deduction": 0.2}
    found = quarters(rows)
    assert [part["memory/learner_mib"] for part in found] == [150.0, 550.0, 950.0, 1350.0]
    assert [part.get("copies") for part in found] == [None, None, None, pytest.approx(0.4)]
    assert diversity_of(rows[12:]) == {"copies": pytest.approx(0.4), "entropy": 1.0}
    assert "memory/actor_mib/max" not in found[0]


def test_programs_alone_ignore_their_input() -> None:
    values = {"deduction": 0.25, "abduction": 0.5, "induction": 1.0}
    shares = {f"{name}/{kind}": x for name in ("ignores_input", "distinct_programs") for kind, x in values.items()}
    assert diversity_of([row(1, **shares)]) == {"ignores_input": 0.375, "distinct_programs": 0.375}


def test_short_runs_and_rows_without_a_buffer_have_less() -> None:
    assert quarters(rows_of(7, 9)) == []
    assert quarters([]) == []
    (first, *_) = quarters([row(step) for step in range(1, 9)])
    assert first == {"step_s": 10.0}


def test_the_table_has_the_means_of_the_runs(tmp_path: Path) -> None:
    def of_run(seed: int, new: int) -> RunResult:
        write_run(RunFolder(tmp_path / str(seed)), rows_of(16, new))
        return collect(RunFolder(tmp_path / str(seed)), StudyRun("K0", seed), 0)

    results = {"K0-s0": of_run(0, 9), "K0-s1": of_run(1, 5)}
    lines = by_quarter(judge(STUDY, results)).splitlines()[2:]
    assert [line.split(" | ")[:3] for line in lines] == [
        ["| `K0`", "1 of 4", "7.0"],
        ["| `K0`", "2 of 4", "6.0"],
        ["| `K0`", "3 of 4", "5.0"],
        ["| `K0`", "4 of 4", "4.0"],
    ]
    assert by_quarter(judge(STUDY, {"K0-s0": make_result(RUN, {0: 0.25, 8: 0.5})})) == "", "of an older azr"
