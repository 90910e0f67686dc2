"""The small result file of a run: what is taken from its folder, and that it comes back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from actors.heldout.measurement import Measurement, TaskResult
from launch.run.folder import RunFolder
from launch.run.measurements import keep_in
from launch.study.definition import StudyError, StudyRun
from launch.study.result import MOST_POINTS, collect, is_finished, read_result, write_result
from tests.unit.launch.study.studies import row, write_run

RUN = StudyRun("K2", 1)


def measurement(version: int, share: float) -> Measurement:
    """Four tasks of two kinds, two samples each; of deduction `share` is correct."""
    tasks = {
        f"{kind}-{number}": TaskResult(kind, 1, f"program {number}", correct, ("1", "2"))
        for kind, corrects in (
            ("deduction", [(True, False), (share > 0.3, share > 0.3)]),
            ("abduction", [(False, False), (True, True)]),
        )
        for number, correct in enumerate(corrects)
    }
    return Measurement(set=2, digest="", version=version, newest=version, samples=2, temperature=1.0, seconds=1.0,
                       tokens=9, skipped=(), results=tasks)  # fmt: skip


def test_a_result_has_series_totals_and_measurements(tmp_path: Path) -> None:
    rows = [row(1), row(2), row(3), row(4)]
    rows[1]["age_mean"], rows[1]["batch_size"] = 3.0, 8
    rows[0] |= {"copies/deduction": 0.2, "entropy": 1.5}
    rows[3] |= {"copies/deduction": 0.3, "copies/abduction": 0.7, "entropy": 1.0}
    # The learner died after step 2, and its ledger of tokens began anew.
    for place, dropped in enumerate((5.0, 7.0, 2.0, 3.0)):
        rows[place]["token_ledger/dropped_stale"] = dropped
    folder = RunFolder(tmp_path / "run")
    write_run(folder, rows)
    for version, share in ((0, 0.25), (4, 0.75)):
        keep_in(folder)(measurement(version, share))
    result = collect(folder, RUN, 0)
    assert (result.status, result.steps, result.seconds) == ("complete", 4, 40.0)
    assert (result.tokens_trained, result.tokens_generated) == (400.0, 480.0)
    assert result.tokens_dropped == {"stale": 10.0}
    assert result.age_mean == pytest.approx((3 * 4 * 1 + 8 * 3) / 20)
    assert result.wait_for_batch_share == pytest.approx(0.2)
    first, last = result.heldout
    assert (first.version, first.time_s, first.tokens_trained) == (0, 0.0, 0.0)
    assert (last.version, last.time_s, last.tokens_trained) == (4, 40.0, 400.0)
    assert first.solved == {"deduction": (1, 4), "abduction": (2, 4)}
    assert last.solved == {"deduction": (3, 4), "abduction": (2, 4)}
    assert (first.mean, last.mean) == (pytest.approx(0.375), pytest.approx(0.625))
    assert first.low < first.mean < first.high
    # By hand: one task of four is half right, 0.25 / (2 - 1) / (2 kinds x 2 tasks)^2.
    assert (first.samples, first.noise) == (2, pytest.approx(0.25 / 16))
    assert last.tokens_generated == 480.0
    assert sorted(first.programs["deduction"].values()) == [(0, 2), (1, 2)]
    assert sorted(last.programs["deduction"].values()) == [(1, 2), (2, 2)]
    # The mean over the last five steps and the kinds that have it.
    assert result.diversity == {"copies": pytest.approx(0.4), "entropy": pytest.approx(1.25)}
    assert result.series["tokens_trained"] == [100.0, 200.0, 300.0, 400.0]
    write_result(result, tmp_path / "results" / "K2-s1.json")
    assert read_result(tmp_path / "results" / "K2-s1.json") == result


@pytest.mark.parametrize("serial", [False, True])
def test_what_measurements_generate_is_no_cost_of_learning(tmp_path: Path, serial: bool) -> None:
    rows = [row(step) for step in (1, 2, 3, 4)]
    if not serial:  # a serial run counts none of it
        for place, measured in enumerate((30, 33, 37, 37)):
            rows[place]["tokens_generated"] += measured
            rows[place]["tokens_heldout"] = float(measured)
    folder = RunFolder(tmp_path / "run")
    write_run(folder, rows)
    for version in (0, 2, 4):
        keep_in(folder)(measurement(version, 0.25))
    result = collect(folder, RUN, 0)
    assert result.series["tokens_generated"] == [120.0, 240.0, 360.0, 480.0]
    assert result.tokens_generated == 480.0
    assert [one.tokens_generated for one in result.heldout] == [None, 240.0, 480.0]


def test_measuring_the_initial_model_is_no_time_of_training(tmp_path: Path) -> None:
    rows = [row(step, time_s=100.0 + 10.0 * step) for step in (1, 2, 3, 4)]
    rows[0] |= {"heldout/version": 0.0, "heldout/time_s": 100.0}
    rows[3] |= {"heldout/version": 4.0, "heldout/time_s": 80.0}  # after the last step: its time is in no row
    folder = RunFolder(tmp_path / "run")
    write_run(folder, rows)
    keep_in(folder)(measurement(4, 0.25))
    result = collect(folder, RUN, 0)
    assert result.series["time_s"] == [10.0, 20.0, 30.0, 40.0]
    assert (result.seconds, result.heldout[-1].time_s, result.wait_for_batch_share) == (40.0, 40.0, 0.2)


def test_a_long_run_has_a_small_result_with_both_ends(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    write_run(folder, [row(step) for step in range(1, 1002)])
    steps = collect(folder, RUN, 0).series["step"]
    assert len(steps) <= MOST_POINTS + 1
    assert (steps[0], steps[-1]) == (1, 1001)


@pytest.mark.parametrize("exit_code", [1, -9, None])
def test_a_run_that_did_not_end_well_has_failed(tmp_path: Path, exit_code: int | None) -> None:
    folder = RunFolder(tmp_path)
    write_run(folder, [row(1)], why="failed: boom")
    result = collect(folder, RUN, exit_code, "boom")
    assert (result.status, result.error, result.steps) == ("failed", "boom", 1)


def test_a_run_without_a_step_has_failed(tmp_path: Path) -> None:
    result = collect(RunFolder(tmp_path), RUN, 0)
    assert (result.status, result.error) == ("failed", "it has recorded no step")


@pytest.mark.parametrize(
    ("ends", "finished"),
    [
        ([], False),
        ([None], False),
        (["complete"], True),
        (["run.max_minutes = 3 is over"], True),
        (["interrupted"], False),
        (["failed: boom"], False),
        (["interrupted", "complete"], True),
        (["complete", None], False),
    ],
)
def test_a_run_is_over_by_its_last_event(tmp_path: Path, ends: list[str | None], finished: bool) -> None:
    for why in ends:
        write_run(RunFolder(tmp_path), [], why)
    assert is_finished(RunFolder(tmp_path)) is finished


def test_a_damaged_result_is_named(tmp_path: Path) -> None:
    assert read_result(tmp_path / "none.json") is None
    (tmp_path / "some.json").write_text('{"arm": "K0"')
    with pytest.raises(StudyError, match=r"some.json is no result of a run.*Remove it"):
        read_result(tmp_path / "some.json")


def test_the_machine_is_the_one_that_made_the_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    write_run(folder, [row(1)])
    assert collect(folder, RUN, 0).machine == ""
    record = {"host": "node7", "machine": "64 cores, a processor", "azr": "9.8", "pid": 1}
    folder.new_attempt().record.write_text(json.dumps(record))
    result = collect(folder, RUN, 0)
    assert (result.machine, result.azr) == ("node7, 64 cores, a processor", "9.8")
    folder.new_attempt().record.write_text(json.dumps(record | {"host": "node8"}))
    assert collect(folder, RUN, 0).machine == "node7, 64 cores, a processor then node8, 64 cores, a processor"
    assert collect(folder, RUN, 0).azr == "9.8"
