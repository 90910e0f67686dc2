"""`azr sft-data`: makes fine-tuning examples out of tasks."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

from launch.arguments import new_command, whole

MOST_PAIRS = 64
"""Bound of `--pairs`: more inputs of one program teach little, and take long to find."""
INPUTS = 2
"""`--inputs` where it is left out."""

_EPILOG = """\
A task is a line of the form that `azr seeds save` writes; outputs may be left out:

  {"kind": "deduction", "program": "def f(x):\\n    return x + 1", "inputs": ["2"]}

examples:
  azr seeds save runs/first tasks.jsonl
  azr sft-data tasks.jsonl mine.jsonl --role solve
  azr sft-data tasks.jsonl mine.jsonl --pairs 4      other inputs of the same programs as well
  azr sft sft-smollm2-cpu sft.data=mine.jsonl run.name=mine
"""


def register(commands: Any) -> None:
    """Add `azr sft-data` to argparse's subcommands."""
    command = new_command(
        commands,
        "sft-data",
        "make fine-tuning examples out of tasks",
        "Validate tasks and write the prompts and right replies of their solvers and proposers, one a line.",
        _EPILOG,
    )
    command.add_argument("tasks", type=Path, metavar="TASKS", help="JSON Lines file of tasks")
    command.add_argument("file", type=Path, metavar="OUT", help="where to write; a file that is there is kept")
    command.add_argument(
        "--format",
        choices=["completion", "r1"],
        default="completion",
        help="selfplay.prompt_format of the run to come. r1's thoughts are one fixed sentence: they teach the form, "
        "not to think",
    )
    command.add_argument("--role", choices=["solve", "propose", "both"], default="both", help="whose replies")
    command.add_argument(
        "--pairs",
        type=whole(0, MOST_PAIRS),
        default=0,
        metavar="N",
        help="take each program once, whatever its names, and have the executor label other inputs of it, up to N "
        "pairs. Programs that ignore or give back their input, and held-out ones, are left out. 0: the tasks as "
        "they are (default)",
    )
    command.add_argument(
        "--inputs",
        type=whole(1),
        metavar="N",
        help="with --pairs: inputs that a proposer of induction writes, selfplay.induction_inputs (default: 2)",
    )
    command.add_argument("--references", type=whole(0), default=2, metavar="K", help="selfplay.references (default: 2)")
    command.add_argument("--examples", type=whole(0), default=0, metavar="N", help="selfplay.examples (default: 0)")
    command.add_argument("--constructs", type=whole(0), default=0, metavar="N", help="selfplay.constructs (default: 0)")
    command.add_argument("--seed", type=int, default=0, help="of the draw of references")
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    import asyncio

    from actors.kinds.registry import names
    from actors.seed_file import SeedError, label_tasks
    from executor.settings import ExecutorSettings
    from launch.sft.data import examples, labelled_examples, validated
    from launch.whole_file import check_new

    if arguments.inputs is not None and not arguments.pairs:
        raise SeedError("--inputs is of labelled programs: give --pairs, too")
    check_new(arguments.file)
    try:
        text = arguments.tasks.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise SeedError(f"{arguments.tasks} cannot be read: {error}") from None
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    found, rejected = asyncio.run(validated(lines))
    for number, why in rejected:
        print(f"{arguments.tasks}, line {number} left out: {why}")
    if not found:
        raise SeedError(f"{arguments.tasks} has no task")
    tasks = [task for task, _ in found]
    roles = ("solve", "propose") if arguments.role == "both" else (arguments.role,)
    shared = arguments.format, roles, arguments.references, arguments.seed, arguments.examples, arguments.constructs
    if arguments.pairs:
        programs = asyncio.run(label_tasks(found, ExecutorSettings(), arguments.pairs, arguments.seed))
        distinct = len({normal for _, normal in found})
        print(
            f"{len(programs)} of {distinct} distinct programs labelled, {sum(len(one.pairs) for one in programs)} pairs"
        )
        made = list(labelled_examples(programs, arguments.inputs or INPUTS, *shared))
    else:
        made = list(examples(tasks, *shared))
    written = [example for example in made if example is not None]
    if not written:
        raise SeedError(f"{arguments.tasks} gives no example with these options: no file was written")
    try:
        with arguments.file.open("x") as target:
            target.writelines(f"{json.dumps(example, ensure_ascii=False, allow_nan=False)}\n" for example in written)
    except FileExistsError:
        raise SeedError(f"{arguments.file} exists already: give another name, or remove it") from None
    except OSError as error:
        raise SeedError(f"{arguments.file} cannot be written: {error}") from None
    kinds = Counter(task.kind for task in tasks)
    told = ", ".join(f"{kinds[kind]} {kind}" for kind in names())
    print(f"{len(written)} examples to {arguments.file}, of {len(tasks)} tasks ({told})")
    if len(written) < len(made):
        print(f"{len(made) - len(written)} left out: the {arguments.format} format cannot say them (fences, imports)")
    return 0
