"""Command-line parts that several commands share: help, overrides of settings, a recipe or a run to go on with."""

from __future__ import annotations

import argparse
import shlex
import shutil
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.run.folder import RunFolderError

if TYPE_CHECKING:
    from launch.config import AnyConfig
    from launch.run.attempt import Start
    from launch.run.interrupts import StopLimits

LOG_LEVELS = ("debug", "info", "warning", "error")


def new_command(commands: Any, name: str, about: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """Add a command to argparse's subcommands (what `add_subparsers` returned), and return its parser.

    `about`: a line for the list of commands. `description`: what the command does. `epilog`: its examples; shown as it
    is.
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=about,
        description=textwrap.fill(description, min(120, shutil.get_terminal_size().columns - 2)),
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def add_overrides(command: argparse.ArgumentParser, about: str) -> None:
    """Add settings on top of a recipe, as positionals or after `--set`. `about`: the help text of the positionals."""
    command.add_argument("overrides", nargs="*", default=[], metavar="KEY=VALUE", help=about)
    command.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="sets", help="the same, as an option"
    )


def add_run(command: argparse.ArgumentParser, about_recipe: str, setting: str, run: str) -> None:
    """Add a recipe, overrides, and the options of a run.

    `setting`, `run`: an example of each, for the help.
    """
    command.add_argument("recipe", nargs="?", help=about_recipe)
    add_overrides(command, f"settings on top, such as {setting}")
    command.add_argument("--resume", metavar="RUN", help=f"a run folder to go on with, such as {run}")
    command.add_argument(
        "--start-over",
        action="store_true",
        help="with --resume: begin at step 1 again; what the run recorded moves to attempts/ in its folder",
    )
    command.add_argument(
        "--auto-resume",
        action="store_true",
        help="with a recipe: go on with the run where its folder holds one, and begin it otherwise; a run that has all "
        "its steps ends at once with exit code 0",
    )
    command.add_argument(
        "--grace-s",
        type=positive,
        metavar="SECONDS",
        help="seconds that a stop by a signal other than SIGUSR2 may take: the wait for rollouts is cut, the step "
        "under way is given up if it takes longer, and nothing is exported to hf/",
    )
    command.add_argument(
        "--stop-by",
        type=positive,
        metavar="UNIX_SECONDS",
        help="a time by which the run has to be saved, such as a job's end: it stops by itself before it, exit code 75",
    )
    command.add_argument(
        "--log-level", choices=LOG_LEVELS, metavar="LEVEL", help="of the files in logs/: " + ", ".join(LOG_LEVELS)
    )


def limits_of(arguments: argparse.Namespace) -> StopLimits:
    """The bounds of a stop that `--grace-s` and `--stop-by` give."""
    from launch.run.interrupts import StopLimits

    return StopLimits(arguments.grace_s, arguments.stop_by)


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """A function that reads a whole number from `least` on, up to `most`: an option's `type`."""

    def read(text: str) -> int:
        if not (text.isascii() and text.isdecimal()) or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is no whole number from {least} on")
        if most is not None and int(text) > most:
            raise argparse.ArgumentTypeError(f"{text} is above {most}")
        return int(text)

    return read


def positive(text: str) -> float:
    """Read a number above 0: an option's `type`."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no number above 0")
    return value


def overrides_of(arguments: argparse.Namespace) -> list[str]:
    """All overrides; where two set the same key, the last one wins."""
    level = getattr(arguments, "log_level", None)
    return [*arguments.overrides, *arguments.sets, *([f"run.log_level={level}"] if level else [])]


def run_config(
    arguments: argparse.Namespace, root: type[AnyConfig], command: str, example: str
) -> tuple[AnyConfig, Start]:
    """The configuration of the run that `recipe` starts or that `--resume` goes on with, and how it starts.

    `command`: as the user calls it, `azr train`; `example`: a recipe of this command that ships. Raises ConfigError,
    RunFolderError.
    """
    from launch.config import load
    from launch.run.attempt import Start

    overrides = overrides_of(arguments)
    if arguments.resume:
        if arguments.auto_resume:
            raise RunFolderError(
                f"--resume names a folder, and --auto-resume finds the recipe's own: {command} --resume "
                f"{shlex.quote(arguments.resume)}, or {command} RECIPE --auto-resume"
            )
        if arguments.recipe and "=" not in arguments.recipe:
            raise RunFolderError(
                f"a run keeps its recipe: leave {arguments.recipe} out. "
                f"{command} --resume {shlex.quote(arguments.resume)} KEY=VALUE changes settings; "
                f"{command} {shlex.quote(arguments.recipe)} run.name=NAME starts another run."
            )
        if arguments.recipe:
            overrides.insert(0, arguments.recipe)  # after --resume RUN, the first positional is an override
        from launch.run.configuration import load_run

        config, former = load_run(Path(arguments.resume), overrides, root)
        return config, Start(former, over=arguments.start_over)
    if arguments.start_over:
        raise RunFolderError(f"--start-over is for a run that there is: {command} --resume RUN --start-over")
    if not arguments.recipe:
        raise RunFolderError(f"{command} needs a recipe (try {example}) or --resume RUN")
    return load(arguments.recipe, overrides, root), Start(auto=arguments.auto_resume)
