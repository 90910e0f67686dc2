"""The page of a study: verdicts in words, figures and curves, from the result files alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.colors import to_hex

from launch import cli
from launch.study.accuracy_chart import CHART
from launch.study.curves import colours_of, files_of
from launch.study.definition import Budget, Study, StudyError
from launch.study.findings import judge
from launch.study.folder import StudyFolder
from launch.study.interval import Verdict
from launch.study.page import verdict_of, write_page
from launch.study.result import RunResult, write_result
from tests.unit.launch.study.studies import make_result, make_study, write

SEEDS = tuple(range(12))


def results_of(study: Study, **last: float) -> dict[str, RunResult]:
    """Results with this accuracy in the end, more or less by seed. `last`: by arm."""
    noise = (-0.01, 0.0, 0.01)
    return {
        run.name: make_result(run, {0: 0.1, 4: 0.2, 8: last[run.arm] + noise[run.seed % 3]})
        for run in study.runs()
        if run.arm in last
    }


@pytest.mark.parametrize(
    ("accuracy", "verdict", "words"),
    [
        (0.50, Verdict.NON_INFERIOR, "non-inferior to `K0`: loses less than 5 points"),
        (0.30, Verdict.INFERIOR, "inferior to `K0`: loses more than 5 points"),
        (0.45, Verdict.UNCLEAR, "cannot tell: interval"),
    ],
)
def test_an_arm_is_judged_by_the_margin(accuracy: float, verdict: Verdict, words: str) -> None:
    study = make_study(SEEDS)
    found = judge(study, results_of(study, K0=0.5, K2=accuracy))
    assert [one.verdict for one in found] == [None, verdict]
    assert words in verdict_of(study, found[1], found)


def test_too_few_seeds_are_said(tmp_path: Path) -> None:
    study = make_study((0,))
    found = judge(study, results := results_of(study, K0=0.5, K2=0.5))
    assert "too few seeds (1 and 1 runs); an interval needs 2 of each" in verdict_of(study, found[1], found)
    folder = write(study, tmp_path)
    write_page(folder, study, results)
    assert "**Few seeds.** Some arms have 1 judged run." in folder.page.read_text()


def test_arms_of_which_the_same_is_said_share_a_line(tmp_path: Path) -> None:
    study = make_study((0,), arms=("K0", "K1", "K2", "K4"))
    said = write_page(folder := write(study, tmp_path), study, results_of(study, K0=0.5, K1=0.5, K4=0.5))
    assert said == [
        "`K1`, `K4`: cannot tell: too few seeds (1 and 1 runs); an interval needs 2 of each.",
        "`K2`: cannot tell: not measured.",
    ]
    text = folder.page.read_text()
    assert all(f"- {line}\n" in text for line in said)
    assert "One arm has 0 judged runs." in text


def test_accuracies_of_one_version_are_compared_although_some_runs_measured_later_ones() -> None:
    study = make_study((0, 1))
    results = results_of(study, K0=0.5, K2=0.5)
    late = results["K2-s1"]
    results["K2-s1"] = late.model_copy(update={"heldout": late.heldout[:2]})
    found = judge(study, results)
    assert [one.version for one in found] == [4, 4]
    assert found[0].sample.values == (0.2, 0.2)
    timed = study.model_copy(update={"budget": Budget(minutes=3)})
    assert judge(timed, results)[1].sample.values == (0.49, 0.2), "equal time: each run's last"


def test_the_initial_model_is_never_judged(tmp_path: Path) -> None:
    """A run whose last measurement was given up has that of version 0 alone, which all arms have in common."""
    study = make_study((0, 1))
    results = {run.name: make_result(run, {0: 0.5}) for run in study.runs()}
    timed = study.model_copy(update={"budget": Budget(minutes=3)})
    for one in (*judge(study, results), *judge(timed, results)):
        assert one.sample.values == ()
        assert one.verdict in (None, Verdict.NOT_MEASURED)
    folder = write(study, tmp_path)
    write_page(folder, study, results)
    assert "Not measured at its last version" in folder.page.read_text()
    assert ": K0-s0, K0-s1, K2-s0, K2-s1. To make" in folder.page.read_text()


def test_failed_and_missing_runs_are_named_and_in_no_figure(tmp_path: Path) -> None:
    study = make_study()
    folder = write(study, tmp_path)
    results = results_of(study, K0=0.5)
    run = next(run for run in study.runs() if run.arm == "K2")
    results[run.name] = make_result(run, {8: 0.9}, status="failed", exit_code=1, error="boom")
    found = judge(study, results)
    assert (found[1].runs, found[1].failed, found[1].verdict) == ((), 1, Verdict.NOT_MEASURED)
    write_page(folder, study, results)
    text = folder.page.read_text()
    assert "3 of 6 runs are complete. FAILED, and in no figure below: K2-s0." in text
    assert "| `K2-s0` | failed, exit code 1 |" in text
    assert "| `K2-s1` | to be made |" in text
    assert "90.0%" not in text


def test_an_arm_has_one_colour_in_the_chart_and_in_the_curves(tmp_path: Path) -> None:
    """Also where another arm has no measurement, and so no bar."""
    study = make_study(arms=("K0", "K1", "K2"))
    results = results_of(study, K0=0.5, K1=0.4)
    write_page(write(study, tmp_path), study, results)
    colour = to_hex(colours_of(study.arms)["K1"])
    chart, curves = ((tmp_path / name).read_text() for name in (CHART, *list(files_of(study).values())[:1]))
    assert f"fill: {colour}" in chart and f"stroke: {colour}" in curves


@pytest.mark.parametrize("name", ["report.md", CHART, "curves-steps.svg"])
def test_a_page_that_cannot_be_written_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    folder = begun(tmp_path)
    (tmp_path / name).mkdir()
    assert cli.main(["study", "report", str(folder.path)]) == 2
    assert f"{tmp_path / name} cannot be read or written: Is a directory" in capsys.readouterr().err


def test_files_that_are_of_no_run_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = begun(tmp_path)
    for name in ("K0-s0.failed-1", ".K0-s0.json.12ab", "K0-s7.json", "K0-s0", "notes.txt"):
        (folder.results / name).write_text("")
    assert cli.main(["study", "report", str(tmp_path)]) == 0
    said = ", ".join(str(folder.results / name) for name in ("K0-s0", "K0-s7.json", "notes.txt"))
    assert capsys.readouterr().err == f"azr: in no figure, as no run of the study has such a file: {said}\n"


def test_results_that_are_gone_are_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(make_study(), tmp_path)
    folder.begin(folder.read())
    assert cli.main(["study", "report", str(tmp_path)]) == 0, "no run is over"
    folder.results.rmdir()
    assert cli.main(["study", "report", str(tmp_path)]) == 2
    assert "results is gone, with the results of the runs. Put it back" in capsys.readouterr().err
    folder.runs.mkdir()
    assert cli.main(["study", "report", str(tmp_path)]) == 2
    assert f"again: azr study resume {tmp_path}" in capsys.readouterr().err


def begun(path: Path) -> StudyFolder:
    """A study's folder with all results."""
    study = make_study()
    folder = write(study, path)
    folder.begin(folder.read())
    for result in results_of(study, K0=0.5, K2=0.52).values():
        write_result(result, folder.result(result.run))
    return folder


def test_the_page_is_made_from_the_small_files_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, study = begun(tmp_path), make_study()
    assert cli.main(["study", "report", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "non-inferior to `K0`" in said
    assert f"page: {folder.page}" in said
    text = folder.page.read_text()
    assert "margin" in text.lower()
    assert "| `K2` | 1.00 | 2 | 8 | 81 |" in text, "age, steps and seconds"
    # By hand: 10% before, 51%, 52% and 53% after; SE^2 = 1e-5 (of measuring, once) + 1e-4 / 3, df = 3.38, t = 2.247.
    assert "| mean | `K2` | 10.0% | 52.0% | +42.0 | +40.5 to +43.5 | - |" in text
    heading, chart = text.index("## By kind"), text.index(f"![held-out accuracy by kind]({CHART})")
    assert heading < chart and "##" not in text[heading + 2 : chart]
    names = [*files_of(study).values(), CHART]
    first = {name: (tmp_path / name).read_bytes() for name in names}
    assert all(b"held-out accuracy" in drawn and b"K2" in drawn for drawn in first.values())
    assert all(word in first[CHART] for word in (b"initial", b"deduction", b"mean"))
    assert cli.main(["study", "report", str(tmp_path)]) == 0
    assert {name: (tmp_path / name).read_bytes() for name in names} == first, "equal results, equal files"


def test_notes_stand_on_the_page(tmp_path: Path) -> None:
    study = make_study()
    folder, results = write(study, tmp_path), results_of(study, K0=0.5, K2=0.5)
    folder.notes.write_text("Stopped, since the power went.\n")
    write_page(folder, study, results)
    text = folder.page.read_text()
    assert text.index(study.question) < text.index("\n\nStopped, since the power went.\n\n") < text.index("6 of 6 runs")
    folder.notes.write_bytes(b"\xff")
    with pytest.raises(StudyError, match=r"notes\.md cannot be read"):
        write_page(folder, study, results)
