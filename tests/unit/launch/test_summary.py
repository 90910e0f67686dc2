from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from executor.tasks import Kind
from launch.models import ModelError, prepare
from launch.recorder import RunFolder
from launch.summary import sparkline, summarise
from learner.staleness import CellCounts
from learner.trajectory import Cell, Role

CELL = Cell(Kind.DEDUCTION, Role.PROPOSE)


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


def test_a_violated_ledger_fails_and_names_the_cell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert summarise(finished(tmp_path), {CELL: CellCounts(granted=6, trained=3)}) == 1
    assert "ledger: VIOLATED in deduction/propose" in capsys.readouterr().out


def test_a_run_without_steps_fails(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.create()
    assert summarise(folder, {CELL: CellCounts()}) == 1


def test_sparkline_marks_steps_without_a_value() -> None:
    assert sparkline([0.0, None, 1.0]) == "▁·█"


def test_models_are_refused_with_the_mend(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="lacks config.json"):
        prepare(str(tmp_path))
    with pytest.raises(ModelError, match="Did you mean smollm2-135m-instruct"):
        prepare("smollm2-135m-instrct")
