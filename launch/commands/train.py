"""`azr train`: prepares the run's folder, runs it in the mode of its configuration, and ends with the summary."""

from __future__ import annotations

import argparse
import contextlib
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from launch.arguments import add_run, limits_of, new_command, run_config
from launch.run.interrupts import listening

if TYPE_CHECKING:
    from launch.cluster.workload import Workload
    from launch.config import Config
    from launch.run.attempt import Origin, Start
    from launch.run.console import Console
    from launch.run.folder import RunFolder
    from launch.run.interrupts import Interrupts

_LOG = logging.getLogger(__name__)

_EXAMPLES = """\
examples:
  azr train smollm2-cpu-learn                        what `make train` runs: a real 135M model learns, on two cores
  azr train smollm2-cpu learner.steps=200 run.name=long
  azr train --resume runs/smollm2-cpu learner.steps=40               go on from the last checkpoint, longer
  azr train smollm2-cpu --auto-resume                begin, or go on: the same command after every stop
  azr train smollm2-cpu run.mode=serial learner.max_staleness=0      one process, one thread, deterministic
  azr train my-recipe.toml --log-level debug         more in runs/NAME/logs
  azr config docs                                    every setting

exit codes:
  0    the run is complete, or its time (run.max_minutes) or tokens (run.max_tokens) are up
  75   stopped by Ctrl-C, SIGTERM, SIGUSR2 or SIGHUP, and saved: `azr train --resume` goes on
  130  stopped by one of these while there was nothing to save
  1    failed, or stopped at once by a second Ctrl-C
  2    the command, a setting or a file is wrong
  3    the sandbox failed
"""


def register(commands: Any) -> None:
    """Add `azr train` to argparse's subcommands."""
    command = new_command(
        commands,
        "train",
        "run self-play training",
        "Train from a recipe, or go on with a run. Ctrl-C, SIGTERM, SIGUSR2 or SIGHUP stops after the present step and "
        "saves; a second Ctrl-C, 5 s later or more, stops at once.",
        _EXAMPLES,
    )
    add_run(command, "a TOML file, or the name of a recipe that ships", "learner.steps=40", "runs/smollm2-cpu")
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    with listening(limits_of(arguments), to_exit=True) as interrupts:  # before the imports, which take seconds
        from launch.config import Config

        config, start = run_config(arguments, Config, "azr train", "smollm2-cpu")
        return train(config, start, interrupts)


def train(config: Config, start: Start | None = None, interrupts: Interrupts | None = None) -> int:
    """Run to the end; returns the exit code.

    `start`: what to do with a folder that holds a run; None refuses it. `interrupts`: where signals are listened to.
    """
    from launch.logs import close_log
    from launch.run.console import Console
    from launch.run.folder import end_at_once
    from launch.run.interrupts import Interrupts
    from launch.workloads.choose import workload_of

    interrupts = interrupts or Interrupts()
    console = Console(config)
    workload = workload_of(config)
    with begun(config, console, workload, start) as (folder, origin):
        if origin is None:
            return 0
        resume = origin.goes_on
        interrupts.last_acts.append(lambda why: end_at_once(folder, why))
        interrupts.loss = folder.loss
        # Each mode imports its own libraries (Ray, or vLLM in this process): only those that it needs are loaded.
        try:
            if config.run.mode == "serial":
                from launch.run import serial

                return serial.run(config, folder, resume, console, interrupts)
            from launch.cluster import driver

            return driver.run(config, folder, resume, console, workload, interrupts=interrupts)
        except Exception:
            _LOG.exception("the run failed")
            raise
        finally:
            close_log()


@contextlib.contextmanager
def begun(
    config: Config, console: Console, workload: Workload, start: Start | None = None
) -> Iterator[tuple[RunFolder, Origin | None]]:
    """Own the run's folder until the block ends, and begin an attempt in it.

    Yields the folder and the attempt's origin; None for a run that has nothing left to do. Also checks the workload,
    which prepares the model, and opens the log of this process. Raises RunFolderError, CheckpointError, ModelError,
    SeedError.
    """
    from launch.inputs import check_inputs
    from launch.logs import log_to_file
    from launch.run.attempt import Start, begin, find_origin, finished
    from launch.run.folder import RunFolder, usable
    from launch.run.owner import owned

    folder = RunFolder(config.folder)
    with owned(folder, console.say):
        with usable(folder):
            origin = find_origin(config, folder, start or Start())
        if origin.resumes and (done := finished(config, folder, origin, config.learner.steps)):
            console.say(done)
            yield folder, None
            return
        if origin.checkpoint is None:
            check_inputs(config)  # what is wrong with a file is said before anything starts
        workload.check(config, console.say)
        with usable(folder):
            lines = begin(config, folder, origin)
            process = "serial" if config.run.mode == "serial" else "driver"
            process = f"{process}.{folder.next_log(process)}"
            log_to_file(folder.logs / f"{process}.log", process, config.run.log_level)
        for line in [*lines, f"run folder: {folder.path}"]:
            console.say(line)
        yield folder, origin
