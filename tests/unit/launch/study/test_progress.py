"""The progress line of a study: its estimate of the time that is left."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.run.folder import RunFolder
from launch.study import progress
from launch.study.definition import Budget
from launch.study.progress import START_S, Progress
from tests.unit.launch.study.studies import make_result, make_study, row, write_run


@pytest.mark.parametrize("budget", [Budget(steps=32), Budget(tokens=3200)])
def test_the_first_step_does_not_stand_for_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], budget: Budget
) -> None:
    monkeypatch.setattr(progress, "SAY_EVERY_S", 0.0)
    study = make_study(seeds=(0, 1), arms=("K0", "K2"), budget=budget)
    # 140 s for the first step, which compiles and waits for a measurement, then 10 s each.
    seconds = [140.0, 10.0, 10.0]
    folder = RunFolder(tmp_path / "run")
    write_run(folder, [row(n, step_s=s, time_s=sum(seconds[:n])) for n, s in enumerate(seconds, 1)])
    shown = Progress(study)
    shown.begin(study.runs_in_order()[0], {})
    shown.look(folder)
    left_s = 29 * 10 + 3 * (32 * 10 + START_S)
    assert f"all runs are done in about {left_s / 60:.0f} min" in capsys.readouterr().out


def test_after_one_step_nothing_is_estimated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SAY_EVERY_S", 0.0)
    study = make_study()
    folder = RunFolder(tmp_path / "run")
    write_run(folder, [row(1, step_s=140.0)])
    shown = Progress(study)
    shown.begin(study.runs_in_order()[0], {})
    shown.look(folder)
    assert capsys.readouterr().out.endswith("(1 of 6): step 1\n")


def test_equal_minutes_are_minutes_until_a_run_shows_what_they_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such runs measure the initial model themselves, in their minutes and out of their seconds of training."""
    monkeypatch.setattr(progress, "SAY_EVERY_S", 0.0)
    study = make_study(seeds=(0, 1), budget=Budget(minutes=10))
    first, second = study.runs_in_order()[:2]
    folder = RunFolder(tmp_path / "run")
    write_run(folder, [row(n, step_s=10.0) for n in (1, 2, 3)])
    shown = Progress(study)
    shown.begin(first, {})
    shown.look(folder)
    left_s = 600 - 30 + 3 * (600 + START_S)
    assert f"all runs are done in about {left_s / 60:.0f} min" in capsys.readouterr().out
    result = make_result(first, {}, seconds=500.0)
    shown.begin(second, {first.name: result})
    shown.look(folder)
    left_s = 600 - 30 + 2 * (500 + START_S)
    assert f"all runs are done in about {left_s / 60:.0f} min" in capsys.readouterr().out
