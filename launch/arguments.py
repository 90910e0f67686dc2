"""What commands that take a recipe have in common on the command line: overrides, and a run folder to go on with."""

from __future__ import annotations

import argparse
from pathlib import Path

from launch.config import AnyConfig, load


class RunFolderError(ValueError):
    """A run folder that cannot be used; the message says what to do."""


def add_overrides(command: argparse.ArgumentParser, about: str) -> None:
    """Settings on top of a recipe, as positionals or after `--set`. `about`: what the positionals are, for `--help`."""
    command.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=about)
    command.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="sets", help="the same, as an option"
    )


def overrides_of(arguments: argparse.Namespace) -> list[str]:
    """All overrides, the last one wins."""
    return [*arguments.overrides, *arguments.sets]


def run_config(arguments: argparse.Namespace, root: type[AnyConfig], command: str, example: str) -> AnyConfig:
    """The configuration of the run that `recipe` starts or `--resume` goes on with. Raises ConfigError, RunFolderError.

    `command`: as the user calls it, `azr train`; `example`: a recipe of its that ships.
    """
    overrides = overrides_of(arguments)
    if arguments.resume:
        if arguments.recipe:
            overrides.insert(0, arguments.recipe)  # after --resume RUN, the first positional is an override
        folder = Path(arguments.resume)
        if not (folder / "config.toml").is_file():
            raise RunFolderError(f"{folder} is no run folder: it has no config.toml. `ls runs` shows what there is.")
        config = load(folder / "config.toml", overrides, root)
        if config.folder.resolve() != folder.resolve():
            raise RunFolderError(
                f"run.dir and run.name say {config.folder}, but --resume says {folder}; resume where the run lies"
            )
        return config
    if not arguments.recipe:
        raise RunFolderError(f"{command} needs a recipe (try {example}) or --resume RUN")
    config = load(arguments.recipe, overrides, root)
    if (config.folder / "metrics.jsonl").exists():
        raise RunFolderError(
            f"{config.folder} holds a run already. Go on with it: {command} --resume {config.folder}. Start another: "
            f"add run.name=NAME. Forget it: rm -r {config.folder}."
        )
    return config
