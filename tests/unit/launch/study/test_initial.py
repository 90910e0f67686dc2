"""The initial model's measurement is handed from run to run of a study."""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path

import pytest

from launch.config import load
from launch.run.measurements import files, keep_in, measures_base
from launch.study import runner
from launch.study.definition import Arm, Budget, Study, StudyRun
from launch.study.folder import StudyFolder
from launch.study.initial import take_over
from launch.study.progress import Progress
from launch.versions import version_of
from tests.unit.launch.study.studies import make_study, row, write, write_run
from tests.unit.launch.study.test_result import measurement

FIRST, SECOND = StudyRun("K0", 0), StudyRun("K2", 0)


@pytest.fixture
def study() -> Study:
    return make_study((0,), ("K0", "K2"))


@pytest.fixture
def folder(tmp_path: Path, study: Study) -> StudyFolder:
    folder = write(study, tmp_path)
    write_run(folder.run(FIRST), [row(1)])
    attempt = folder.run(FIRST).new_attempt()
    attempt.record.write_text(json.dumps({"host": platform.node(), "azr": version_of("azr")}))
    for version in (0, 1):
        keep_in(folder.run(FIRST))(measurement(version, 0.25 + version))
    return folder


def test_a_run_that_has_not_begun_takes_the_first_version_alone(folder: StudyFolder, study: Study) -> None:
    assert take_over(folder, study, SECOND) == FIRST
    (path,) = files(folder.run(SECOND)).values()
    assert path.read_bytes() == files(folder.run(FIRST))[0].read_bytes()
    assert not measures_base(load(folder.recipe, study.overrides_of(SECOND)), folder.run(SECOND))
    assert take_over(folder, study, SECOND) is None, "it has one"


def test_a_run_that_has_begun_is_left_as_it_is(folder: StudyFolder, study: Study) -> None:
    place = folder.run(SECOND)
    place.create()
    place.config.write_text("")
    assert take_over(folder, study, SECOND) is None
    assert not files(place)


@pytest.mark.parametrize(
    "override",
    [
        'model.path="other"',
        "engine.threads=3",
        "executor.timeout_s=9",
        "selfplay.max_solve_tokens=9",
        'run.mode="serial"',
    ],
)
def test_other_settings_have_another_measurement(folder: StudyFolder, study: Study, override: str) -> None:
    arms = (study.arms[0], Arm(name="K2", overrides=(override,), baseline="K0"))
    assert take_over(folder, study.model_copy(update={"arms": arms}), SECOND) is None


def test_runs_of_equal_minutes_all_spend_some_on_it(folder: StudyFolder, study: Study) -> None:
    assert take_over(folder, study.model_copy(update={"budget": Budget(minutes=5)}), SECOND) is None


@pytest.mark.parametrize("record", [{"host": "elsewhere"}, {"azr": "0.0.1"}, None])
def test_another_machine_or_version_has_another_measurement(
    folder: StudyFolder, study: Study, record: dict[str, str] | None
) -> None:
    attempt = folder.run(FIRST).newest_attempt()
    assert attempt is not None
    attempt.record.write_text(
        json.dumps({"host": platform.node(), "azr": version_of("azr")} | record) if record else ""
    )
    assert take_over(folder, study, SECOND) is None


def test_a_measurement_that_cannot_be_read_is_not_handed_on(folder: StudyFolder, study: Study) -> None:
    files(folder.run(FIRST))[0].write_text("{")
    assert take_over(folder, study, SECOND) is None
    assert not files(folder.run(SECOND))


def test_the_study_hands_it_to_each_run_that_it_starts(
    folder: StudyFolder, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "command", lambda *arguments: [sys.executable, "-c", ""])
    progress = Progress(study)
    progress.begin(SECOND, {})
    assert runner.make_run(folder, study, SECOND, progress, runner.Signals()) == 0
    assert list(files(folder.run(SECOND))) == [0]
