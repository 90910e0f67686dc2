"""`azr doctor`: reports what the sandbox is made of on this machine, why something is missing, and what to do about
it."""

from __future__ import annotations

import argparse
from typing import Any

from launch.arguments import add_overrides, new_command, overrides_of
from launch.json_lines import to_json

OK, NOT_OK = 0, 1

_EXAMPLES = """\
examples:
  azr doctor                                         the machine, and the sandbox with its default settings
  azr doctor smollm2-cpu                             the sandbox as a recipe sets it
  azr doctor executor.require=[landlock]             with a layer that must be there
  azr doctor smollm2-cpu run.dir=/scratch/runs       the file system for run folders
  azr doctor --json                                  for programs
"""


def register(commands: Any) -> None:
    """Add `azr doctor` to argparse's subcommands."""
    command = new_command(
        commands,
        "doctor",
        "what this machine has of what azr needs",
        "Start the sandbox of a recipe (or of the defaults), list its layers of protection, and try what must not be "
        "possible. Exit code 1: something must be mended before azr can run safely here.",
        _EXAMPLES,
    )
    command.add_argument("recipe", nargs="?", help="a TOML file, or the name of a recipe that ships")
    add_overrides(command, "settings on top")
    command.add_argument("--json", action="store_true", help="the report as one JSON object")
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from launch.config import executor_config, load
    from launch.doctor.leftovers import leftovers
    from launch.doctor.machine import machine
    from launch.doctor.report import as_json, as_text
    from launch.doctor.sandbox import sandbox
    from launch.doctor.slurm import slurm
    from launch.doctor.storage import storage

    overrides = overrides_of(arguments)
    if arguments.recipe and "=" in arguments.recipe:  # without a recipe, the first positional is an override
        overrides.insert(0, arguments.recipe)
        arguments.recipe = None
    if arguments.recipe:
        config = load(arguments.recipe, overrides)
    else:
        config = executor_config([(text, f"override {text!r}") for text in overrides], "azr doctor without a recipe")
    of_site = slurm(config)
    sections = [machine(config), storage(config), sandbox(config), *([of_site] if of_site else []), leftovers()]
    print(to_json(as_json(sections), indent=2) if arguments.json else as_text(sections))
    return NOT_OK if any(section.failed for section in sections) else OK
