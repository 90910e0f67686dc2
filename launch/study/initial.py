"""Hands the measurement of the initial model from one run of a study to the next, which saves minutes a run.

Held-out tasks are asked alike in all arms, and their samples do not depend on `run.seed`: runs that start from one
model would measure the same again.
"""

from __future__ import annotations

from actors.heldout.measurement import MeasurementError, read_measurement
from launch.config import load
from launch.recipe import ConfigError
from launch.run.measurements import files
from launch.study.definition import Study, StudyRun
from launch.study.folder import StudyFolder
from launch.whole_file import write_text


def take_over(folder: StudyFolder, study: Study, run: StudyRun) -> StudyRun | None:
    """Put the initial model's measurement into the folder of a run that has not begun; returns the run that it is
    from. None where the run has begun, or no run of the study with the same `[model]` has a sound one."""
    place = folder.run(run)
    if place.config.exists() or files(place):
        return None
    for other in study.runs_in_order():
        path = files(folder.run(other)).get(0)
        if path is None:
            continue
        try:
            read_measurement(path)
            models = [load(folder.recipe, study.overrides_of(one)).model for one in (run, other)]
        except (MeasurementError, ConfigError):  # of the latter the run itself will say more
            continue
        if models[0] != models[1]:
            continue
        place.heldout.mkdir(parents=True, exist_ok=True)
        write_text(place.heldout / path.name, path.read_text())
        return other
    return None
