"""`azr seeds`: writes tasks to a seed file, which a run can start with: those of a run, or what a model proposes."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from launch.arguments import add_overrides, new_command, overrides_of, positive, whole
from launch.run.interrupts import listening

_EXAMPLES = """\
The file's tasks start a run's buffer; each is validated anew when it is loaded.

examples:
  azr seeds save runs/first seeds.jsonl
  azr seeds save runs/first seeds.jsonl --max-version 0          only what the initial model proposed
  azr seeds save runs/first few.jsonl --kind deduction --kind abduction --limit 100
  azr seeds propose smollm2-cpu seeds.jsonl --minutes 2          what the recipe's model proposes, without training
  azr train smollm2-cpu run.name=second selfplay.seed_tasks=seeds.jsonl
"""


def register(commands: Any) -> None:
    """Add `azr seeds` to argparse's subcommands."""
    group = new_command(
        commands,
        "seeds",
        "tasks to start a run with",
        "Write tasks to a seed file: those of a run (save), or what a model proposes (propose). The setting "
        "selfplay.seed_tasks starts a run with it.",
        _EXAMPLES,
    ).add_subparsers(required=True, metavar="WHAT")
    save = new_command(
        group,
        "save",
        "write a run's tasks to a seed file",
        "Write the tasks that a run's proposers found, in the order of their entry, one JSON object a line. Works "
        "while the run goes on.",
        _EXAMPLES,
    )
    save.add_argument(
        "folder", type=Path, metavar="RUN", help="a run folder, such as runs/smollm2-cpu, or a tasks.sqlite"
    )
    save.add_argument("file", type=Path, metavar="FILE", help="where to write; a file that is there is kept")
    save.add_argument("--kind", metavar="KIND", action="append", help="only this kind of task; may be repeated")
    save.add_argument(
        "--max-version",
        type=whole(0),
        metavar="V",
        help="only what policy V or an older one proposed; 0: the initial model",
    )
    save.add_argument("--limit", type=whole(1), metavar="N", help="the first N tasks of each kind")
    save.set_defaults(run=_save)
    propose = new_command(
        group,
        "propose",
        "have a model propose tasks, without training",
        "Start a recipe's engine and sandboxes in this process, let the model propose for some minutes from the zero "
        "triplet on, and write the valid tasks. No learner runs.",
        _EXAMPLES,
    )
    propose.add_argument("recipe", help="a TOML file, or the name of a recipe that ships")
    propose.add_argument("file", type=Path, metavar="FILE", help="where to write; a file that is there is kept")
    propose.add_argument("--minutes", type=positive, default=2.0, metavar="M", help="how long to propose (default: 2)")
    propose.add_argument(
        "--programs",
        type=whole(1),
        default=10**9,
        metavar="N",
        help="stop when the valid tasks have N distinct programs that use their input",
    )
    add_overrides(propose, "settings on top, such as selfplay.references=4")
    propose.set_defaults(run=_propose)


def _propose(arguments: argparse.Namespace) -> int:
    with listening(to_exit=True) as interrupts:  # before the imports, which take seconds
        from launch.config import Config, load
        from launch.seeds import propose

        config = load(arguments.recipe, overrides_of(arguments), Config)
        seconds = 60 * arguments.minutes
        found = propose(config, arguments.file, seconds, arguments.programs, interrupts, _say)
    print(f"{found.tasks.total()} tasks to {arguments.file}: {found}")
    return 0


def _say(text: str) -> None:
    print(text, flush=True)


def _save(arguments: argparse.Namespace) -> int:
    from actors.kinds.registry import kind_of, names
    from actors.seed_file import SeedError, save

    path: Path = arguments.folder
    if os.path.isdir(path):
        path = path / "tasks.sqlite"
    if not os.path.isfile(path):
        raise SeedError(f"{arguments.folder} is no run folder: it has no tasks.sqlite. `ls runs` shows what there is.")
    kinds = [kind_of(kind).name for kind in arguments.kind] if arguments.kind else None
    counts = save(path, arguments.file, kinds, arguments.max_version, arguments.limit)
    print(f"{counts.total()} tasks to {arguments.file}: " + ", ".join(f"{counts[kind]} {kind}" for kind in names()))
    return 0
