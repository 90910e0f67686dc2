"""The table of a run's quarters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from launch.run.folder import RunFolder
from launch.study.course import course
from launch.study.definition import StudyRun
from launch.study.findings import judge
from launch.study.result import RunResult, collect
from tests.unit.launch.study.studies import make_result, make_study, row, write_run

STUDY = make_study(study="arms", seeds=(0, 1), arms=("K0",))
RUN = StudyRun("K0", 0)


def rows_of(*results: RunResult) -> list[list[str]]:
    found = judge(STUDY, {result.run.name: result for result in results})
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in course(found).splitlines()[2:]]


def of_run(path: Path, new: int, **more: Any) -> RunResult:
    """Sixteen steps of ten seconds; in each quarter of four the buffer takes fewer tasks a step by one: `new`, ..."""
    tasks, rows = 0, []
    for step in range(1, 17):
        tasks += new - (step - 1) // 4
        of_buffer = {"buffer/deduction": tasks - 5.0, "buffer/induction": 2.0, "buffer/evicted": 3.0}
        shares = {"copies/deduction": 0.25, "copies/abduction": 0.75} if step > 12 else {}
        rows.append(row(step, **of_buffer, **shares, **{name: value * step for name, value in more.items()}))
    write_run(RunFolder(path), rows)
    return collect(RunFolder(path), RUN, 0)


def test_new_tasks_are_counted_with_those_that_left_and_by_the_step(tmp_path: Path) -> None:
    found = rows_of(of_run(tmp_path, new=9, **{"memory/learner_mib": 100.0}))
    assert [line[:3] for line in found] == [
        ["`K0`", "0 to 25%", "9.0"],
        ["`K0`", "25 to 50%", "8.0"],
        ["`K0`", "50 to 75%", "7.0"],
        ["`K0`", "75 to 100%", "6.0"],
    ]
    assert [line[6] for line in found] == ["-", "-", "-", "50.0%"], "the mean over the kinds that have it"
    assert [line[8] for line in found] == ["10.0"] * 4, "seconds a step"
    assert [line[9] for line in found] == ["250", "650", "1,050", "1,450"]
    assert [line[10] for line in found] == ["-"] * 4


def test_a_quarter_is_the_mean_of_the_runs(tmp_path: Path) -> None:
    first, second = of_run(tmp_path / "a", new=9), of_run(tmp_path / "b", new=5)
    found = rows_of(first, second.model_copy(update={"seed": 1}))
    assert [line[2] for line in found] == ["7.0", "6.0", "5.0", "4.0"]


def test_results_that_do_not_count_tasks_have_no_table() -> None:
    assert rows_of(make_result(RUN, {0: 0.25, 8: 0.5})) == []
