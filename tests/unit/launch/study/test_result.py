"""The small result file of a run: what is taken from its folder, and that it comes back."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from actors.heldout.measurement import Measurement, TaskResult
from launch.run.folder import RunFolder
from launch.run.measurements import keep_in
from launch.study.curves import draw
from launch.study.definition import StudyError, StudyRun
from launch.study.folder import StudyFolder
from launch.study.result import MOST_POINTS, Measured, collect, is_finished, read_result, write_result
from tests.unit.launch.study.studies import make_result, make_study, row, write_run

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
    study = StudyFolder(tmp_path)
    write_result(result, study.result(RUN))
    assert read_result(study, RUN) == result


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


def test_records_that_make_no_result_are_named(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    write_run(folder, [row(1, tokens_generated=-1.0)])
    with pytest.raises(StudyError, match=r"the records in .* make no result: .*tokens_generated"):
        collect(folder, RUN, 0)


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


def test_a_damaged_result_is_named_with_what_there_is_to_mend_it(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path)
    study.results.mkdir()
    assert read_result(study, RUN) is None
    study.result(RUN).write_text('{"arm": "K0"')
    with pytest.raises(StudyError, match=r"K2-s1.json is no result of K2-s1: Invalid JSON.*Put it back"):
        read_result(study, RUN)
    study.result(RUN).write_text("[]")
    with pytest.raises(StudyError, match="K2-s1: Input should be an object"):
        read_result(study, RUN)
    write_run(study.run(RUN), [row(1)])
    study.run(RUN).config.write_text("")
    with pytest.raises(StudyError, match="Remove it; azr study resume makes it from the run's folder again"):
        read_result(study, RUN)
    study.result(RUN).unlink()
    study.result(RUN).symlink_to("elsewhere.json")
    with pytest.raises(StudyError, match="No such file"):
        read_result(study, RUN)


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (("arm",), "K0", "arm = K0 and seed = 1 are of another run"),
        (("seed",), 0, "arm = K2 and seed = 0 are of another run"),
        (("seed",), None, "seed = None cannot be used"),
        (("azr",), ..., "azr is missing"),
        (("stepz",), 3, "stepz is no key"),
        (("quarters",), [{}, {}], "quarters has 2 parts, not 4"),
        (("tokens_trained",), -1, "tokens_trained = -1 cannot be used"),
        (("series", "reward_mean"), [-0.9], "series.reward_mean has 1 points, where others have 3"),
        (("heldout", 0, "mean"), "much", "heldout[0].mean = 'much' cannot be used"),
        (("heldout", 0, "mean"), 0.9, "heldout[0]: mean = 0.9 is not between low = "),
        (("heldout", 0, "high"), 1.5, "heldout[0].high = 1.5 cannot be used"),
        (("heldout", 1, "solved", "deduction"), [9, 4], "heldout[1].solved.deduction: 9 correct of 4"),
        (("heldout", 1, "version"), 9, "heldout[1].version = 9 is beyond the last step, 8"),
        (("wait_for_batch_share",), 7.0, "wait_for_batch_share = 7.0 cannot be used"),
        (("heldout", 1, "solved", "deduction"), ..., "heldout[1].solved has other kinds than heldout[0].solved"),
        (("heldout", 1, "version"), 0, "heldout[1].version = 0 does not come after 0"),
        (("heldout", 1, "samples"), 0, "heldout[1].samples = 0 cannot be used"),
        (("heldout", 1, "programs"), {"deduction": {"a": [1, 4]}}, "programs.deduction has other counts"),
    ],
)
def test_a_result_that_does_not_fit_is_refused_with_the_place(
    tmp_path: Path, place: tuple[str | int, ...], value: object, words: str
) -> None:
    study = StudyFolder(tmp_path)
    write_result(make_result(RUN, {0: 0.25, 8: 0.5}), study.result(RUN))
    assert read_result(study, RUN) is not None
    data = json.loads(study.result(RUN).read_text())
    table = data
    for part in place[:-1]:
        table = table[part]
    if value is ...:
        del table[place[-1]]
    else:
        table[place[-1]] = value
    study.result(RUN).write_text(json.dumps(data))
    with pytest.raises(StudyError, match=re.escape(words)):
        read_result(study, RUN)


def test_an_interval_that_misses_its_mean_by_rounding_is_drawn(tmp_path: Path) -> None:
    study = make_study()
    result = make_result(RUN, {0: 0.25, 8: 0.5})
    all_solved = {"mean": 1 + 2e-16, "high": 1.0, "solved": {"deduction": (4, 4)}}
    Measured.model_validate(result.heldout[1].model_dump() | all_solved)
    off = result.heldout[1].model_copy(update={"low": 0.5 + 1e-9})
    draw(study, {RUN.name: result.model_copy(update={"heldout": (result.heldout[0], off)})}, tmp_path)


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
