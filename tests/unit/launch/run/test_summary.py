from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors.heldout.measurement import Measurement, TaskResult
from launch.config import load
from launch.models import ModelError, prepare
from launch.run.folder import RunFolder
from launch.run.interrupts import SAVED
from launch.run.measurements import keep_in
from launch.run.summary import diversity_line, exit_code, headline, learning_table, sparkline, summarise, warnings
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


def test_a_signal_before_the_last_measurement_ends_a_run_early(tmp_path: Path) -> None:
    """Only then: a measurement that fails by itself would have a scheduler start the run again and again."""
    folder = finished(tmp_path)
    (folder.checkpoints / "step_00000003").mkdir(parents=True)
    keep_in(folder)(measurement(0, (1, 2, 3)))
    measures, rehearsal, longer = (
        load("smollm2-cpu", [f"learner.steps={steps}", "selfplay.heldout_every=5", f"run.mode={mode}"])
        for steps, mode in ((3, "async"), (3, "rehearse"), (4, "async"))
    )
    assert [exit_code(measures, folder, 0, stopping, 3) for stopping in (True, False)] == [SAVED, 0]
    assert exit_code(measures, folder, 1, True, 3) == 1, "a failure stays one"
    assert exit_code(rehearsal, folder, 0, True, 3) == 0, "a rehearsal measures nothing"
    keep_in(folder)(measurement(3, (1, 2, 3)))
    assert [exit_code(config, folder, 0, True, 3) for config in (measures, longer)] == [0, SAVED]


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
        row |= {"trajectories/deduction/propose": 20, "valid_rate/deduction": 1.0}
    rows[0] |= {"heldout/deduction": 0.25, "heldout/mean": 0.25}
    rows[2] |= {"heldout/deduction": 0.2, "heldout/mean": 0.2}
    folder.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    summarise(folder, {CELL: CellCounts()})
    printed = capsys.readouterr().out
    lines = {line.split("│")[1].strip(): line for line in printed.splitlines() if line.count("│") > 3}
    assert "25%" in lines["solved, held-out, deduction"] and "20%" in lines["solved, held-out, deduction"]
    assert "▃·▂" in lines["solved, held-out, mean"], "steps without a measurement are no zeros"
    assert "20%" in lines["ignore their input, deduction"] and "100%" in lines["ignore their input, deduction"]
    assert "0%" in lines["known tasks, deduction"] and "20%" in lines["known tasks, deduction"]
    assert "67% of the last 60 deduction proposals ignore their input" in printed
    assert "proposals are known tasks" not in printed


def test_held_out_ends_are_those_of_the_files_where_no_row_has_the_first() -> None:
    def measured(correct: bool) -> Measurement:
        result = TaskResult("deduction", 1, "p", (correct,), ("1",))
        return Measurement(set=2, digest="", version=0, newest=0, samples=1, temperature=1.0, seconds=1.0, tokens=1,
                           skipped=(), results={"deduction-0": result})  # fmt: skip

    rows = [{"time_s": 1.0, "heldout/deduction": 1.0, "heldout/mean": 1.0}]
    table = learning_table(rows, (measured(False), measured(True)))
    assert [list(table.columns[column].cells) for column in (1, 2)] == [["0%", "0%"], ["100%", "100%"]]


@pytest.mark.parametrize("steps", range(1, 9))
def test_no_step_is_at_both_ends_of_a_curve(steps: int) -> None:
    half = steps // 2
    table = learning_table([{"time_s": 1.0, "solve_rate/mean": float(step >= half)} for step in range(steps)])
    first, last = (next(iter(table.columns[column].cells)) for column in (1, 2))
    assert (first, last) == ("0%" if steps > 1 else "100%", "100%")


def proposed(count: int = 24, **shares: float) -> dict[str, float]:
    """A row with `count` valid proposals and answers of each kind."""
    cells = {
        f"trajectories/{kind}/{role}": count for kind in ("deduction", "abduction") for role in ("propose", "solve")
    }
    valid = {f"valid_rate/{kind}": 1.0 for kind in ("deduction", "abduction")}
    return cells | valid | {name.replace("__", "/"): share for name, share in shares.items()}


def test_warnings_look_at_the_end_of_a_run() -> None:
    healthy = proposed(ignores_input__deduction=0.1, duplicates__abduction=0.4, distinct_programs__deduction=0.9)
    assert warnings([proposed(ignores_input__deduction=1.0), *[healthy] * 3]) == []
    assert len(warnings([*[healthy] * 3, *[proposed(duplicates__abduction=0.9)] * 3])) == 1
    assert warnings([]) == []


@pytest.mark.parametrize(
    ("metric", "share", "words"),
    [
        ("ignores_input", 0.6, "60% of the last 72 deduction proposals ignore their input"),
        ("distinct_programs", 0.2, "20% of the last 72 deduction proposals are different programs"),
        ("distinct_answers", 0.05, "5% of the last 72 deduction answers are different ones"),
        ("copies", 0.4, "40% of the last 72 deduction answers repeat their input"),
    ],
)
def test_each_kind_of_collapse_has_its_warning(metric: str, share: float, words: str) -> None:
    (found,) = warnings([proposed(**{f"{metric}__deduction": share})] * 4)
    assert words in found


@pytest.mark.parametrize(
    ("metric", "outcome", "words"),
    [
        ("ignores_input", "ignores_input", "100% of the last 72 deduction proposals ignore their input"),
        ("duplicates", "duplicate", "100% of the last 72 deduction proposals are known tasks"),
    ],
)
def test_proposals_that_are_all_refused_for_a_collapse_have_its_warning(metric: str, outcome: str, words: str) -> None:
    row = proposed(**{f"{metric}__deduction": 1.0, f"outcome__deduction__propose__{outcome}": 1.0})
    (found,) = warnings([row | {"valid_rate/deduction": 0.0}] * 4)
    assert words in found


def test_the_line_on_diversity_names_the_worst_kind() -> None:
    row = proposed(ignores_input__deduction=0.1, duplicates__deduction=0.0, copies__deduction=0.2) | {"entropy": 0.9}
    row |= {f"{metric}/abduction": row[f"{metric}/deduction"] for metric in ("ignores_input", "duplicates")}
    row |= {"copies/abduction": 0.25}
    assert diversity_line([row] * 4, warned=False) == (
        "diversity     no warning; worst kinds: deduction, 10% of proposals ignore their input; deduction, 0% of "
        "proposals are known tasks; abduction, 25% of answers repeat their input; entropy 0.90 nats at the start, "
        "0.90 at the end"
    )
    worse = [row | {"ignores_input/abduction": 0.6}] * 4
    assert "warnings below; worst kinds: abduction, 60% of" in diversity_line(worse, warned=True)
    assert diversity_line([{"entropy": 0.9}], warned=False) == ""


def test_a_warning_rests_on_enough_proposals() -> None:
    """Two proposals that are alike are no collapse; many steps with few of them can be."""
    few = proposed(2, ignores_input__deduction=1.0)
    assert warnings([few] * 7) == []
    assert len(warnings([few] * 8)) == 1


def test_a_fall_of_the_entropy_is_a_warning() -> None:
    (found,) = warnings([{"entropy": value} for value in (1.9, 1.8, 1.8, 0.9, 0.5, 0.5, 0.4)])
    assert "entropy fell from 1.83 to 0.47 nats" in found
    assert warnings([{"entropy": value} for value in (0.3, 0.3, 0.3, 0.25, 0.2, 0.2)]) == []


def measurement(version: int, solved: Sequence[int]) -> Measurement:
    """One sample of each of 300 tasks; `solved`: how many of each kind are correct."""
    kinds = ("deduction", "abduction", "induction")
    results = {
        f"{kind}-{number}": TaskResult(kind, 1, str(number), (number < count,), ("1",))
        for kind, count in zip(kinds, solved, strict=True)
        for number in range(100)
    }
    return Measurement(
        set=2, digest="d", version=version, newest=version, samples=1, temperature=1.0, seconds=1.0, tokens=300,
        skipped=(), results=results,
    )  # fmt: skip


def test_the_headline_claims_only_what_is_beyond_its_interval() -> None:
    first = measurement(0, (6, 8, 10))
    risen = headline((first, measurement(16, (20, 9, 25))))
    assert risen.startswith("held-out      8.0% (")
    assert "18.0% (" in risen and "at version 16: +10.0 points (+" in risen and "risen beyond its interval" in risen
    assert "deduction +14.0 points" in risen and "300 tasks x 1 sample" in risen
    assert "no change beyond its interval" in headline((first, measurement(16, (7, 8, 10))))
    assert "FALLEN beyond its interval" in headline((measurement(0, (20, 20, 20)), measurement(9, (5, 5, 5))))
    assert "nothing is said about learning" in headline(None)


def test_the_headline_says_where_prompts_could_not_be_compared() -> None:
    old, new = measurement(0, (6, 8, 10)), replace(measurement(9, (7, 8, 10)), prompt_settings={"examples": 0})
    for first, last, words in ((old, new, "the first measurement was"), (new, old, "the second"), (old, old, "both")):
        assert "prompt settings were recorded" in headline((first, last)) and words in headline((first, last))
    assert "recorded" not in headline((new, new))


@pytest.mark.parametrize(("changed", "why"), [({"set": 3}, "set 2 and set 3"), ({"temperature": 0.0}, "1 and 0")])
def test_the_headline_says_why_two_measurements_are_not_compared(changed: dict[str, Any], why: str) -> None:
    """A run may be resumed with another temperature, or by an azr with another set: its summary goes on."""
    said = headline((measurement(0, (6, 8, 10)), replace(measurement(16, (20, 9, 25)), **changed)))
    assert why in said and "cannot be compared" in said and said.endswith("nothing is said about learning")


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
