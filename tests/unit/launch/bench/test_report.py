from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from launch.bench.report import Goal, Ratio, Report, Samples, Slice, by_run, percentile, progress, take_turns


def test_a_percentile_is_one_of_the_values() -> None:
    values = [float(n) for n in range(1, 101)]
    assert percentile(values[::-1], 50) == 50
    assert percentile(values, 99) == 99
    assert percentile(values, 100) == 100
    assert percentile([7.0], 99) == 7.0
    assert percentile([1.0, 2.0], 50) == 1.0
    with pytest.raises(ValueError, match="nothing"):
        percentile([], 50)


def test_a_ratio_is_the_median_of_its_runs_with_their_spread() -> None:
    assert Ratio((0.7, 0.4, 0.5)).to_json() == {"median": 0.5, "min": 0.4, "max": 0.7, "runs": 3}
    with pytest.raises(ValueError, match="notes"):
        Ratio(())


def test_a_run_joins_its_slices_and_counts_by_time_not_by_slice() -> None:
    samples = Samples("path")
    samples.add(Slice(100, 1.0, [0.01] * 100))
    samples.add(Slice(50, 2.0, [0.04] * 50))
    samples.end_run()
    samples.add(Slice(10, 1.0, [0.1] * 10))
    samples.end_run()
    samples.end_run()  # nothing was measured: no run
    assert samples.rates == [50.0, 10.0]
    assert samples.latency_ms(50) == [10.0, 100.0]
    row = samples.row("detail")
    assert (row["rate"], row["rate_min"], row["rate_max"], row["executions"]) == (30.0, 10.0, 50.0, 160)
    assert (row["p50_ms"], row["p99_ms"]) == (55.0, 70.0)


def test_a_run_that_was_not_ended_does_not_count() -> None:
    samples = Samples("path")
    samples.add(Slice(10, 1.0))
    samples.end_run()
    samples.add(Slice(1000, 1.0))
    assert samples.rates == [10.0]
    assert samples.row()["executions"] == 10
    assert samples.row()["p50_ms"] is None, "no latencies were taken"


def test_ratios_pair_the_figures_of_one_run() -> None:
    assert by_run([10.0, 40.0], [5.0, 10.0]) == [2.0, 4.0]
    with pytest.raises(ValueError):
        by_run([1.0], [1.0, 2.0])


def test_turns_last_as_long_as_asked_and_are_at_least_one() -> None:
    part = take_turns(lambda: 3, 0.0)
    assert part.units == 3
    assert len(part.latencies_s) == 1
    part = take_turns(lambda: 2, 0.01)
    assert part.seconds >= 0.01
    assert part.units == 2 * len(part.latencies_s)
    assert sum(part.latencies_s) == pytest.approx(part.seconds)


def _report() -> Report:
    report = Report("example", settings={"runs": 2})
    samples = Samples("a path", "inputs")
    samples.add(Slice(2500, 2.0, [0.001] * 2500))
    samples.end_run()
    report.rows.append(samples.row("said of it"))
    report.ratio("fast_over_slow", [3.0, 5.0], Goal(5))
    report.ratio("late_over_early", [1.0, 1.5], Goal(2, at_most=True))
    report.notes["absent"] = "the peer is not installed"
    report.ratio("absent", [], Goal(1))
    return report


def test_the_json_has_the_agreed_form(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    _report().write(path)
    found = json.loads(path.read_text())
    assert set(found) == {
        "bench", "machine", "versions", "settings", "rows", "ratios", "goals", "tables", "failures", "notes",
    }  # fmt: skip
    assert found["ratios"]["fast_over_slow"] == {"median": 4.0, "min": 3.0, "max": 5.0, "runs": 2, "better": "more"}
    assert found["ratios"]["late_over_early"]["better"] == "less"
    assert found["goals"]["fast_over_slow"] == {"at_least": 5, "value": 4.0, "met": False}
    assert found["goals"]["late_over_early"] == {"at_most": 2, "value": 1.25, "met": True}
    assert found["rows"][0]["rate"] == 1250
    assert found["machine"]["cores"] >= 1
    assert found["versions"]["python"]


def test_what_could_not_be_measured_is_absent_with_its_reason() -> None:
    found = _report().to_json()
    assert "absent" not in found["ratios"]
    assert "absent" not in found["goals"]
    assert found["notes"]["absent"] == "the peer is not installed"
    with pytest.raises(ValueError, match="no note says why"):
        Report("example", settings={}).ratio("unexplained", [])


def test_the_table_shows_rates_goals_and_notes() -> None:
    terminal = Console(width=120, file=io.StringIO(), record=True)
    _report().show(terminal)
    shown = terminal.export_text()
    for words in (
        "a path",
        "1,250",
        "1.00",
        "inputs, said of it",
        ">= 5  missed",
        "<= 2  met",
        "note: absent: the peer",
    ):
        assert words in shown, words


def test_progress_is_a_line_a_tenth_where_there_is_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    with progress(40) as step:
        for number in range(40):
            step(f"step {number}")
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 10
    assert lines[0].endswith("0/40 step 0")
    assert lines[-1].endswith("36/40 step 36")
