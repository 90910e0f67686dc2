"""Checks the files that a configuration names, before anything starts."""

from __future__ import annotations

from actors.seed_file import read_seeds
from launch.config import Config
from launch.rehearsal.lengths import lengths_of
from launch.run.task_buffer import seed_file


def check_inputs(config: Config) -> None:
    """Refuse a file of tasks or of lengths that a new run could not use. Raises SeedError, LengthsError.

    The model is no part of it: to check one that ships is to build it.
    """
    if config.selfplay.seed_tasks:
        read_seeds(seed_file(config.selfplay.seed_tasks))
    if config.run.mode == "rehearse":
        lengths_of(config)
