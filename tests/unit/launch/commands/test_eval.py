"""`azr eval`: what a target names, and what is said of two measurements. Engines are in the integration tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from actors.heldout.measurement import Measurement, MeasurementError, TaskResult, read_measurement
from launch.cli import main
from launch.config import load
from launch.evaluation import check_comparable, target_of
from launch.json_lines import to_json
from launch.run.configuration import to_run_toml
from launch.run.folder import RunFolder


def measurement(path: Path, every: int, set_number: int = 2) -> str:
    """A file with a measurement of which one task in `every` is solved."""
    results = {
        f"{kind}-{number}": TaskResult(
            kind, 1 + number % 2, str(number), (number % every == 0,), (str(number),), (number < 30,) * (kind[0] == "d")
        )
        for kind in ("deduction", "abduction")
        for number in range(120)
    }
    found = Measurement(
        set=set_number, digest="d", version=0, newest=0, samples=1, temperature=1.0, seconds=2.0, tokens=99, skipped=(),
        results=results,
    )  # fmt: skip
    path.write_text(to_json(found.to_json()))
    return str(path)


def test_two_measurements_are_compared_task_by_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = measurement(tmp_path / "a.json", 8), measurement(tmp_path / "b.json", 4)
    assert main(["eval", first, second, "--json", str(tmp_path / "both.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    (mean,) = [line for line in lines if line.replace("│", " ").split()[:1] == ["mean"]]
    assert "12.5%" in mean and "25.0%" in mean and "+12.5 points" in mean
    assert any("copy the input" in line and "25.0%" in line for line in lines)
    assert any("240 tasks x 1 sample" in line for line in lines)
    assert any("made before prompt settings were recorded" in line for line in lines)
    written = json.loads((tmp_path / "both.json").read_text())["targets"]
    assert [one["metrics"]["heldout/mean"] for one in written] == [0.125, 0.25]


def test_what_is_written_of_one_target_is_a_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, copy = measurement(tmp_path / "a.json", 8), tmp_path / "copy.json"
    assert main(["eval", first, "--json", str(copy)]) == 0
    assert read_measurement(copy) == read_measurement(Path(first))


def test_what_cannot_be_compared_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, other = measurement(tmp_path / "a.json", 8), measurement(tmp_path / "b.json", 8, set_number=3)
    for targets, why in (
        ([first, other], "cannot be compared"),
        ([first] * 3, "measures one target, or compares two"),
        (["smollm2-135m-instrct"], "Did you mean smollm2-135m-instruct"),
        (["smollm2-135m-instruct", "smollm2-135m-instrct"], "Did you mean smollm2-135m-instruct"),
        (["learner.steps=3"], "measures one target, or compares two"),
        (["smollm2-135m-instruct", "learner.stepz=3"], "learner.stepz"),
        (["runs/none"], "there is no runs/none: name a run's folder"),
        (["none.json"], "none.json cannot be read"),
        (["runs/none/checkpoints/step_00000003"], "there is no checkpoint runs/none/checkpoints/step_00000003"),
    ):
        assert main(["eval", *targets]) == 2
        assert why in capsys.readouterr().err


def test_different_temperatures_are_refused_before_anything_is_measured(tmp_path: Path) -> None:
    text = measurement(tmp_path / "a.json", 8)
    targets = [target_of(one, "smollm2-cpu", ["selfplay.heldout_temperature=0.5"]) for one in (text, str(tmp_path))]
    with pytest.raises(MeasurementError, match=r"different temperatures, 1 and 0\.5: give --temperature"):
        check_comparable(targets)
    check_comparable([targets[0], target_of(str(tmp_path), "smollm2-cpu", [])])
    check_comparable(targets[1:] * 2)


@pytest.mark.parametrize("setting", ["examples=4", "prompt_format=r1", "max_solve_tokens=18"])
def test_different_prompts_or_limits_are_refused_before_anything_is_measured(tmp_path: Path, setting: str) -> None:
    run = run_with(tmp_path, "step_00000004")
    targets = [target_of(str(run), "smollm2-cpu", changes) for changes in ([], [f"selfplay.{setting}"])]
    with pytest.raises(MeasurementError, match=rf"selfplay\.{setting.partition('=')[0]} = .*--recipe RUN/config.toml"):
        check_comparable(targets)
    check_comparable([targets[1], target_of(str(tmp_path), str(run / "config.toml"), [f"selfplay.{setting}"])])


def test_a_number_of_tasks_matters_to_the_prompts_only_where_they_show_other_tasks(tmp_path: Path) -> None:
    for examples in (0, 1):
        shown = f"selfplay.examples={examples}"
        few, all_of_them = (
            target_of(str(tmp_path), "smollm2-cpu", [shown, f"selfplay.heldout_tasks={number}"]) for number in (9, 0)
        )
        if examples:
            with pytest.raises(MeasurementError, match=r"heldout_tasks = 9 and 711"):
                check_comparable([few, all_of_them])
        else:
            check_comparable([few, all_of_them])


def run_with(folder: Path, *checkpoints: str) -> Path:
    config = load("smollm2-cpu", [f"run.dir={folder}", "run.name=run", "selfplay.max_solve_tokens=17"])
    run = RunFolder(config.folder)
    run.create()
    run.config.write_text(to_run_toml(config))
    for name in checkpoints:
        (run.checkpoints / name / "hf").mkdir(parents=True)
    return run.path


def test_a_run_is_measured_at_its_newest_checkpoint_with_its_own_settings(tmp_path: Path) -> None:
    run = run_with(tmp_path, "step_00000004", "step_00000016")
    target = target_of(str(run), "smollm2-cpu", ["selfplay.heldout_tasks=9"])
    assert target.config is not None and target.version == 16
    assert target.config.model.path == str(run / "checkpoints" / "step_00000016" / "hf")
    assert (target.config.selfplay.max_solve_tokens, target.config.selfplay.heldout_tasks) == (17, 9)
    earlier = target_of(str(run / "checkpoints" / "step_00000004"), "smollm2-cpu", [])
    assert earlier.version == 4 and earlier.config is not None and earlier.config.selfplay.max_solve_tokens == 17


def test_a_checkpoint_without_a_model_is_named(tmp_path: Path) -> None:
    run = run_with(tmp_path)
    with pytest.raises(MeasurementError, match="has no checkpoint to measure yet"):
        target_of(str(run), "smollm2-cpu", [])
    (run / "checkpoints" / "step_00000003").mkdir()
    with pytest.raises(MeasurementError, match="name an earlier checkpoint"):
        target_of(str(run), "smollm2-cpu", [])
    with pytest.raises(MeasurementError, match="there is no checkpoint .*checkpoints has step_00000003"):
        target_of(str(run / "checkpoints" / "step_00000004"), "smollm2-cpu", [])


def test_a_file_that_is_no_measurement_is_named_with_what_it_lacks(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    file.write_text("{}")
    with pytest.raises(MeasurementError, match="set: field required"):
        target_of(str(file), "smollm2-cpu", [])


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (("results",), {}, "it has no task"),
        (("results", "deduction-1", "correct"), [], "the task deduction-1 has no solution"),
        (("results", "deduction-1", "correct"), ["u"], "results.deduction-1.correct.0: input should be a valid bool"),
        (("results", "deduction-1", "kind"), "guess", "the task deduction-1 is of the kind guess"),
        (("samples",), "q", "samples: input should be a valid integer"),
        (("seconds",), "s", "seconds: input should be a valid number"),
        (("prompt_settings",), [1], "prompt_settings: input should be a valid"),
    ],
)
def test_damaged_measurements_are_refused(tmp_path: Path, place: tuple[str, ...], value: object, words: str) -> None:
    file = Path(measurement(tmp_path / "a.json", 8))
    data = table = json.loads(file.read_text())
    for part in place[:-1]:
        table = table[part]
    table[place[-1]] = value
    file.write_text(json.dumps(data))
    with pytest.raises(MeasurementError, match="no measurement on held-out tasks") as refused:
        read_measurement(file)
    assert words in str(refused.value)


def test_a_result_that_could_not_be_written_is_refused_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = measurement(tmp_path / "a.json", 8)
    for more, words in (
        (["--json", str(tmp_path)], "it is a folder"),
        (["--json", str(tmp_path / "none" / "x.json")], "is no folder that can be written to"),
        (["learner.steps=3"], "learner.steps=3 has no effect"),
        (["--samples", "3"], "selfplay.heldout_samples=3 has no effect"),
        ([""], "measures one target, or compares two"),
    ):
        assert main(["eval", first, *more]) == 2
        assert words in capsys.readouterr().err
