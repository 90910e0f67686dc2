"""Hands the measurement of the initial model from one run of a study to the next, which saves minutes a run.

Samples of held-out tasks do not depend on `run.seed`: runs that start from one model, on one machine and with one
version of the code, would measure the same again.
"""

from __future__ import annotations

import platform
from typing import Any

from actors.heldout.measurement import MeasurementError, prompt_settings, read_measurement
from launch.config import Config, load
from launch.recipe import ConfigError
from launch.run.measurements import files
from launch.study.definition import Study, StudyRun
from launch.study.folder import StudyFolder
from launch.versions import version_of
from launch.whole_file import write_text


def take_over(folder: StudyFolder, study: Study, run: StudyRun) -> StudyRun | None:
    """Put the initial model's measurement into the folder of a run that has not begun; returns the run that it is from.

    None where the run has begun, measures by itself (serial mode), has a budget of minutes, of which the measurement
    takes some in every run, or no run of the study has a sound measurement that was made here, by this version, with
    the same settings of model, engine, executor and prompts.
    """
    place = folder.run(run)
    if place.config.exists() or files(place) or study.budget.minutes is not None:
        return None
    try:
        config = load(folder.recipe, study.overrides_of(run))
    except ConfigError:  # the run itself will say more
        return None
    if config.run.mode == "serial":
        return None
    for other in study.runs_in_order():
        path = files(folder.run(other)).get(0)
        attempt = folder.run(other).newest_attempt()
        if path is None or attempt is None:
            continue
        began = attempt.began()
        if (began.get("host"), began.get("azr")) != (platform.node(), version_of("azr")):
            continue
        try:
            read_measurement(path)
            if _shaping(load(folder.recipe, study.overrides_of(other))) != _shaping(config):
                continue
        except (MeasurementError, ConfigError):
            continue
        place.heldout.mkdir(parents=True, exist_ok=True)
        write_text(place.heldout / path.name, path.read_text())
        return other
    return None


def _shaping(config: Config) -> list[Any]:
    """The settings that shape a measurement, but for those that are equal in all arms (`selfplay.heldout_...`)."""
    play = config.selfplay
    return [
        config.run.mode,
        config.model,
        config.engine,
        config.executor,
        play.rules,
        play.max_prompt_tokens,
        prompt_settings(play, play.heldout_tasks),
    ]
