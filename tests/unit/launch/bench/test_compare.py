"""What two measurements differ in: by more than chance, for the worse, and only where they can be compared."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.bench.compare import Change, CompareError, Figure, compare, read
from launch.bench.report import Goal, Report, Samples, Slice
from launch.cli import main


def measured(
    speed: float = 1.0, spread: float = 0.02, waste: float = 0.5, runs: int = 3, **changes: Any
) -> dict[str, Any]:
    """A benchmark with a rate, a ratio of which more is better, and one of which less is."""
    values = [1.0] if runs == 1 else [1.0, 1.0 - spread / 2, 1.0 + spread / 2]
    report = Report("example", {"runs": runs}, machine={"processor": "P", "architecture": "A", "cores": 2})
    samples = Samples("path", "things")
    for value in values:
        samples.add(Slice(round(1000 * speed * value), 1.0))
        samples.end_run()
    report.rows.append(samples.row())
    report.ratio("fast_over_slow", [speed * value for value in values])
    report.ratio("waste", [waste * value for value in values], Goal(1.0, at_most=True))
    return {"example": report.to_json() | changes}


@given(st.floats(0.3, 3.0), st.floats(0.0, 0.3), st.floats(0.0, 0.3))
def test_a_change_counts_only_beyond_three_standard_errors_of_both_sides(
    speed: float, before: float, after: float
) -> None:
    found = compare(measured(spread=before), measured(speed=speed, spread=after))
    verdicts = {change.name: change.verdict for change in found.changes}
    noise = max(0.1, 3 * 1.253 / 1.693 / math.sqrt(3) * math.hypot(before, speed * after))
    if abs(speed - 1) < noise - 0.01:
        assert set(verdicts.values()) == {""}
    if abs(speed - 1) > noise + 0.01:
        expected = "better" if speed > 1 else "worse"
        assert (verdicts["fast_over_slow"], verdicts["path, things/s"]) == (expected, expected)
    assert verdicts["waste"] == ""


@pytest.mark.parametrize("runs", [2, 3, 5, 12])
@pytest.mark.parametrize("deviation", [0.03, 0.1, 0.2])
def test_chance_alone_is_seldom_taken_for_a_regression(runs: int, deviation: float) -> None:
    random = Random(7)

    def figure() -> Figure:
        values = [random.gauss(1.0, deviation) for _ in range(runs)]
        return Figure(statistics.median(values), min(values), max(values), runs, is_ratio=False)

    worse = sum(Change("bench", "rate", figure(), figure(), floor=0.1).verdict == "worse" for _ in range(2000))
    assert worse / 2000 < 0.04


def test_of_some_figures_less_is_better() -> None:
    (worse,) = compare(measured(), measured(waste=0.7)).worse
    assert worse.name == "waste"
    assert compare(measured(), measured(waste=0.3)).worse == []


def test_shares_near_zero_may_double_by_chance() -> None:
    assert compare(measured(waste=0.002), measured(waste=0.006)).worse == []


def test_one_run_shows_no_spread_so_less_of_a_change_counts() -> None:
    assert compare(measured(runs=1), measured(speed=0.85, runs=1)).worse == []
    assert compare(measured(runs=1), measured(speed=0.75, runs=1)).worse


def test_rates_are_compared_on_one_kind_of_machine_only() -> None:
    other = {"processor": "Q", "architecture": "A", "cores": 2}
    found = compare(measured(), measured(speed=0.5, machine=other))
    assert [change.name for change in found.worse] == ["fast_over_slow"]
    assert "only ratios" in found.notes[0]


def test_other_settings_are_not_compared_and_what_is_missing_or_failed_is_named() -> None:
    with pytest.raises(CompareError, match="other settings"):
        compare(measured(), measured(settings={"runs": 3, "tokens": 7}))
    lost = measured(failures=["a ledger does not close"])
    del lost["example"]["ratios"]["waste"]
    assert compare(measured(), lost).faults == [
        "example: a ledger does not close", "example: waste was not measured any more"
    ]  # fmt: skip


def test_the_command_names_what_is_worse_and_exits_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, speed in (("before", 1.0), ("after", 0.5)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "example.json").write_text(json.dumps(measured(speed)["example"]))
    assert main(["bench", "compare", str(tmp_path / "before"), str(tmp_path / "after")]) == 1
    printed = capsys.readouterr().out
    assert "example: fast_over_slow" in printed
    assert "2 worse" in printed
    assert [line.split()[-1] for line in printed.splitlines() if line.startswith("example: ")] == ["worse", "worse"]
    assert main(["bench", "compare", str(tmp_path / "after"), str(tmp_path / "before")]) == 0


def test_a_benchmark_that_broke_fails_the_comparison_and_one_that_was_not_asked_for_does_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("before", "after"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "example.json").write_text(json.dumps(measured()["example"]))
    other = measured()["example"] | {"bench": "other"}
    (tmp_path / "before" / "other.json").write_text(json.dumps(other))
    command = ["bench", "compare", str(tmp_path / "before"), str(tmp_path / "after")]
    assert main(command) == 0
    (tmp_path / "after" / "other.txt").write_text("Killed")
    assert main(command) == 1
    assert "FAILED: other gave no figures" in capsys.readouterr().out


def test_a_folder_without_measurements_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(CompareError, match="no measurement"):
        read(tmp_path)
