"""The initial model's measurement is handed from run to run of a study."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.config import load
from launch.run.measurements import files, keep_in, measures_base
from launch.study.definition import Arm, Study, StudyRun
from launch.study.folder import StudyFolder
from launch.study.initial import take_over
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


def test_another_model_has_another_measurement(tmp_path: Path, folder: StudyFolder, study: Study) -> None:
    arms = (study.arms[0], Arm(name="K2", overrides=('model.path="other"',), baseline="K0"))
    assert take_over(folder, study.model_copy(update={"arms": arms}), SECOND) is None


def test_a_measurement_that_cannot_be_read_is_not_handed_on(folder: StudyFolder, study: Study) -> None:
    files(folder.run(FIRST))[0].write_text("{")
    assert take_over(folder, study, SECOND) is None
    assert not files(folder.run(SECOND))
