from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from launch.models import ModelError, prepare
from launch.run.folder import RunFolder
from launch.run.summary import learning_table, sparkline, summarise, warnings
from learner.ledger import CellCounts
from learner.trajectory import Cell, Role

CELL = Cell("deduction", Role.PROPOSE)


def finished(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path)
    folder.create()
    rows = [
        {
            "step": step,
            "time_s": 10.0 * step,
            "tokens_in_batch": 100,
            "train_s": 5.0,
            "age_mean": 1.0,
            "age_max": 1.0,
            "wait_for_batch_s": 0.5,
            "valid_rate/deduction": step / 4,
        }
        for step in (1, 2, 3)
    ]
    folder.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_conserved_ledger_ends_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = {CELL: CellCounts(granted=6, trained=3, returned=1, dropped=Counter(actor_lost=1), queued=1)}
    assert summarise(finished(tmp_path), ledger) == 0
    printed = capsys.readouterr().out
    assert "ledger: conserved (6 granted = 3 trained + 1 dropped + 1 returned + 1 queued + 0 in_flight)" in printed
    assert "valid proposals, deduction" in printed


def test_a_rehearsal_says_nothing_about_learning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert summarise(finished(tmp_path), {CELL: CellCounts(granted=3, trained=3)}, rehearsed=True) == 0
    printed = capsys.readouterr().out
    assert "valid proposals" not in printed and "engine = learner?" not in printed
    assert "speed " in printed and "ages " in printed


def test_a_violated_ledger_fails_and_names_the_cell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert summarise(finished(tmp_path), {CELL: CellCounts(granted=6, trained=3)}) == 1
    assert "ledger: VIOLATED in deduction/propose" in capsys.readouterr().out


def test_a_run_without_steps_fails(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.create()
    assert summarise(folder, {CELL: CellCounts()}) == 1


def test_a_run_that_collapsed_does_not_look_like_one_that_learned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = finished(tmp_path)
    rows = folder.read_metrics()
    for row, solved, ignoring, known in zip(rows, (0.1, 0.6, 0.9), (0.2, 0.8, 1.0), (0.0, 0.1, 0.2), strict=True):
        row |= {"solve_rate/deduction": solved, "ignores_input/deduction": ignoring, "duplicates/deduction": known}
    rows[0] |= {"heldout/deduction": 0.25, "heldout/mean": 0.25}
    rows[2] |= {"heldout/deduction": 0.2, "heldout/mean": 0.2}
    folder.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    summarise(folder, {CELL: CellCounts()})
    printed = capsys.readouterr().out
    lines = {line.split("│")[1].strip(): line for line in printed.splitlines() if line.count("│") > 3}
    assert "25%" in lines["solved, held-out, deduction"] and "20%" in lines["solved, held-out, deduction"]
    assert "▃·▂" in lines["solved, held-out, mean"], "steps without a measurement are no zeros"
    assert "20%" in lines["ignore their input, deduction"] and "100%" in lines["ignore their input, deduction"]
    assert "0%" in lines["known already, deduction"] and "20%" in lines["known already, deduction"]
    assert "67% of the last deduction proposals that ran ignore their input" in printed
    assert "are in the buffer already" not in printed


@pytest.mark.parametrize("steps", range(1, 9))
def test_no_step_is_at_both_ends_of_a_curve(steps: int) -> None:
    half = steps // 2
    table = learning_table([{"time_s": 1.0, "solve_rate/mean": float(step >= half)} for step in range(steps)])
    first, last = (next(iter(table.columns[column].cells)) for column in (1, 2))
    assert (first, last) == ("0%" if steps > 1 else "100%", "100%")


def test_warnings_look_at_the_end_of_a_run() -> None:
    healthy = {"ignores_input/deduction": 0.1, "duplicates/abduction": 0.4}
    assert warnings([{"ignores_input/deduction": 1.0}, *[healthy] * 3]) == []
    assert len(warnings([*[healthy] * 3, *[{"duplicates/abduction": 0.9}] * 3])) == 1
    assert warnings([]) == []


def test_sparkline_marks_steps_without_a_value() -> None:
    assert sparkline([0.0, None, 1.0]) == "▁·█"


def test_models_are_refused_with_the_mend(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="lacks config.json"):
        prepare(str(tmp_path))
    with pytest.raises(ModelError, match="Did you mean smollm2-135m-instruct"):
        prepare("smollm2-135m-instrct")


def test_lines_are_whole_where_there_is_no_terminal_and_the_log_has_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / ("long" * 40)
    with caplog.at_level("INFO", logger="launch.run.summary"):
        summarise(finished(run), {CELL: CellCounts()})
    printed = capsys.readouterr().out
    assert f"run folder    {run}  (metrics.jsonl" in printed
    assert "ledger: conserved" in caplog.text and "3 steps in 30 s" in caplog.text
