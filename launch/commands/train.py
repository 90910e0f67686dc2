"""`azr train`: prepares the run's folder, runs it in the mode of its configuration, and ends with the summary."""

from __future__ import annotations

import argparse
import logging
from typing import TYPE_CHECKING, Any

from launch.arguments import add_run, new_command, run_config

if TYPE_CHECKING:
    from launch.config import Config
    from launch.run.console import Console
    from launch.run.folder import RunFolder

_LOG = logging.getLogger(__name__)

_EXAMPLES = """\
examples:
  azr train smollm2-cpu                              the default run: a real 135M model on a laptop's CPU
  azr train smollm2-cpu learner.steps=200 run.name=long
  azr train --resume runs/smollm2-cpu learner.steps=40               go on from the last checkpoint, longer
  azr train smollm2-cpu run.mode=serial learner.max_staleness=0      one process, one thread, deterministic
  azr train my-recipe.toml --log-level debug         more in runs/NAME/logs
  azr config docs                                    every setting
"""


def register(commands: Any) -> None:
    """Add `azr train` to argparse's subcommands."""
    command = new_command(
        commands,
        "train",
        "run self-play training",
        "Train from a recipe, or go on with a run. Ctrl-C once stops after the present step and saves; twice stops at once.",
        _EXAMPLES,
    )
    add_run(command, "a TOML file, or the name of a recipe that ships", "learner.steps=40", "runs/smollm2-cpu")
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from launch.config import Config

    return train(run_config(arguments, Config, "azr train", "smollm2-cpu"), resume=bool(arguments.resume))


def train(config: Config, resume: bool = False) -> int:
    """Run to the end; returns the exit code."""
    from launch.logs import close_log
    from launch.run.console import Console

    console = Console(config)
    folder = begin(config, console, resume)
    # Each mode imports its own libraries (Ray, or vLLM in this process): only those of the mode that runs are loaded.
    try:
        if config.run.mode == "serial":
            from launch.run import serial

            return serial.run(config, folder, resume, console)
        from launch.cluster import driver

        return driver.run(config, folder, resume, console)
    except Exception:
        _LOG.exception("the run failed")
        raise
    finally:
        close_log()


def begin(config: Config, console: Console, resume: bool = False) -> RunFolder:
    """Prepare the model, the run's folder, and the log of this process."""
    from launch.config import to_toml
    from launch.logs import log_to_file
    from launch.models import prepare
    from launch.run.folder import RunFolder, append_event
    from learner.checkpoint import Checkpoints

    prepare(config.model.path, console.say)
    folder = RunFolder(config.folder)
    folder.create()
    process = "serial" if config.run.mode == "serial" else "driver"
    log_to_file(folder.logs / f"{process}.0.log", f"{process}.0", config.run.log_level)
    if resume:
        for notice in Checkpoints(folder.checkpoints, config.learner.keep_checkpoints).recover():
            console.say(notice)
            append_event(folder, "checkpoint_incomplete", notice=notice)
    folder.config.write_text(to_toml(config))
    console.say(f"run folder: {folder.path}")
    return folder
