"""Checks the files that a configuration names, before anything starts."""

from __future__ import annotations

import os
from pathlib import Path

from actors.seed_file import read_seeds
from launch.config import Config, SftConfig
from launch.models import KNOWN, prepare
from launch.recipe import RECIPES, ConfigError
from launch.rehearsal.lengths import lengths_of
from launch.run.task_buffer import seed_file


def check_inputs(config: Config | SftConfig) -> None:
    """Refuse a file of tasks, of examples or of lengths that a new run could not use, and a model that is neither a
    path nor known. Raises SeedError, LengthsError, ConfigError, ModelError.

    A model's folder is not looked for: it may be on other machines than this one.
    """
    if isinstance(config, SftConfig):
        data_files(config)
    else:
        if config.selfplay.seed_tasks:
            read_seeds(seed_file(config.selfplay.seed_tasks))
        if config.run.mode == "rehearse":
            lengths_of(config)
    if os.sep not in config.model.path and config.model.path not in KNOWN:
        prepare(config.model.path)


def data_files(config: SftConfig) -> tuple[Path, Path | None]:
    """The files of examples to learn and, where it is given, to validate: as the user names them or among those that
    ship. Raises ConfigError."""
    sft = config.sft
    validation = _find(sft.validation_data, "sft.validation_data") if sft.validation_data else None
    return _find(sft.data, "sft.data"), validation


def _find(name: str, key: str) -> Path:
    shipped = [] if "/" in name else [RECIPES / name]
    for path in (Path(os.path.expanduser(name)), *shipped):
        if os.path.isfile(path):
            return path
    raise ConfigError(f"{key} = {name} is no file, neither from {Path.cwd()} nor among those that ship ({RECIPES})")
