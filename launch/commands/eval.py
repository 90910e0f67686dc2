"""`azr eval`: measures a model, or a run's newest checkpoint, on the held-out tasks; two of them are compared."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from launch.arguments import new_command, whole

_EXAMPLES = """\
A target is a model (a name or a folder), a run's folder, one of its checkpoints, or a file that --json wrote or that a
run keeps in heldout/. A run's settings are its own; a model has those of --recipe. The difference of two targets is
paired by task, so both have to be measured on the same tasks, with the same prompts and limits of replies.

examples:
  azr eval smollm2-135m-instruct                     480 tasks, one sample each, as the recipe says
  azr eval smollm2-135m-instruct --tasks 0 --samples 4      all 711 tasks, four samples each
  azr eval runs/smollm2-cpu --json after.json        the newest checkpoint, and a file to compare with
  azr eval smollm2-135m-instruct runs/smollm2-cpu    both, and the difference
  azr eval runs/smollm2-cpu/heldout/version_00000000.json runs/smollm2-cpu/heldout/version_00000016.json
  azr eval runs/smollm2-cpu --tasks 240 --samples 1 --set engine.threads=2
"""


def register(commands: Any) -> None:
    """Add `azr eval` to argparse's subcommands."""
    command = new_command(
        commands,
        "eval",
        "measure a model, or a run's checkpoint, on the held-out tasks",
        "Solve the held-out tasks, which no run trains on, with one engine, and print the share of correct solutions "
        "by kind and difficulty, with 95% intervals; of two targets also the difference.",
        _EXAMPLES,
    )
    command.add_argument(
        "targets", nargs="+", metavar="TARGET", help="what to measure; one or two. KEY=VALUE is a setting"
    )
    command.add_argument("--samples", type=whole(1), metavar="N", help="solutions a task (selfplay.heldout_samples)")
    command.add_argument("--tasks", type=whole(0), metavar="N", help="tasks; 0: all (selfplay.heldout_tasks)")
    command.add_argument("--temperature", type=float, metavar="T", help="of sampling (selfplay.heldout_temperature)")
    command.add_argument(
        "--recipe", default="smollm2-cpu", help="whose settings a model without a run has: smollm2-cpu by default"
    )
    command.add_argument("--json", type=Path, metavar="FILE", help="write the measurement to a file")
    command.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="sets", help="a setting, may be repeated"
    )
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from actors.heldout.measurement import not_recorded
    from executor.user_error import UserError
    from launch.evaluation import check_comparable, footer, measure, table_of, target_of
    from launch.json_lines import to_json
    from launch.whole_file import check_place, write_text

    overrides = [text for text in arguments.targets if "=" in text and not os.path.exists(text)]
    names = [text for text in arguments.targets if text not in overrides]
    if not 1 <= len(names) <= 2 or not all(names):
        raise UserError("azr eval measures one target, or compares two")
    overrides += arguments.sets
    given = {name: getattr(arguments, name) for name in ("samples", "tasks", "temperature")}
    overrides += [f"selfplay.heldout_{name}={value}" for name, value in given.items() if value is not None]
    targets = [target_of(text, arguments.recipe, overrides) for text in names]
    if overrides and all(one.measurement for one in targets):
        raise UserError(f"{overrides[0]} has no effect: what is in a file was measured already")
    check_comparable(targets)
    if arguments.json:
        check_place(arguments.json)
    measurements = measure(targets, lambda text: print(text, file=sys.stderr))
    found = [(one.name, measurement) for one, measurement in zip(targets, measurements, strict=True)]
    if arguments.json:
        data = [measurement.to_json() | {"metrics": measurement.numbers()} for _, measurement in found]
        write_text(arguments.json, to_json(data[0] if len(data) == 1 else {"targets": data}) + "\n")
    terminal = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    terminal.print(table_of(found))
    if len(measurements) == 2 and (lacking := not_recorded(*measurements)):
        terminal.print(lacking, markup=False)
    for name, measurement in found:
        terminal.print(f"{name}: {footer(measurement)}", markup=False)
    return 0
