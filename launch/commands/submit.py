"""`azr submit`: makes a SLURM job of a recipe, or goes on with a run as one."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

from launch.arguments import add_overrides, new_command, overrides_of

_EPILOG = """\
The recipe's table [slurm] says what the job asks for; everything on top of that can stand on the command line:

examples:
  azr submit smollm2-cpu                             one node, the site's default partition
  azr submit my-recipe.toml slurm.nodes=4 slurm.gpus_per_node=8 slurm.time=12:00:00 slurm.account=physics
  azr submit my-recipe.toml slurm.partition=gpu --sbatch nice=100 --sbatch mail-type=FAIL
  azr submit my-recipe.toml --dry-run                write the batch script and look at it; asks no SLURM
  azr submit --resume runs/smollm2-cpu learner.steps=40      go on with a run that has ended
  JOB=$(azr submit smollm2-cpu --parsable)           the job's id alone, for scripts

Below the run folder:
  slurm/job.sbatch     the batch script
  slurm/recipe.toml    the recipe with every setting resolved, which each start of the job reads
  slurm/job.log        SLURM's log, in which `tail -f` shows what goes on
  slurm/latest/        the present start of the job: its logs, and how it ended

Look and stop:
  squeue --me                                  the queue
  scancel --signal=USR2 --batch JOB            save, and queue the job again
  scancel JOB                                  save as far as SLURM's KillWait allows, and end for good

Before its time limit, the run saves and the job queues itself again, up to slurm.max_requeues times; after a preemption
or the loss of a node it goes on from the last checkpoint.

exit codes: 0 submitted, or written with --dry-run; 2 refused by sbatch, or a setting or a file is wrong
"""


def register(commands: Any) -> None:
    """Add `azr submit` to argparse's subcommands."""
    command = new_command(
        commands,
        "submit",
        "run a recipe as a SLURM job",
        "Write a recipe's batch script into its run folder and submit it with sbatch, from any directory. The job "
        "starts Ray on its nodes and the run in it; it goes on by itself after preemption, node loss and time limit.",
        _EPILOG,
    )
    command.add_argument("recipe", nargs="?", help="a TOML file of azr train or azr sft, or the name of one that ships")
    add_overrides(command, "settings on top, such as slurm.nodes=2")
    command.add_argument("--resume", metavar="RUN", help="a run folder to go on with, such as runs/smollm2-cpu")
    command.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="KEY[=VALUE]",
        help="any option of sbatch by its long name, such as dependency=afterok:12; the same as slurm.extra.KEY=VALUE",
    )
    command.add_argument("--dry-run", action="store_true", help="write the files and print the folder; asks no SLURM")
    command.add_argument("--parsable", action="store_true", help="print the job's id alone")
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from launch.slurm.submit import SubmitError, load_former, load_new, submit

    overrides = [*overrides_of(arguments), *map(_extra, arguments.sbatch)]
    if arguments.resume:
        if arguments.recipe and "=" not in arguments.recipe:
            raise SubmitError(
                f"a run keeps its recipe: leave {arguments.recipe} out, as in azr submit --resume "
                f"{shlex.quote(arguments.resume)} KEY=VALUE"
            )
        if arguments.recipe:
            overrides.insert(0, arguments.recipe)  # after --resume RUN, the first positional is an override
        config = load_former(Path(arguments.resume), overrides)
    elif arguments.recipe:
        config = load_new(arguments.recipe, overrides)
    else:
        raise SubmitError("azr submit needs a recipe (try smollm2-cpu) or --resume RUN")
    job, job_id = submit(config, arguments.dry_run)
    if job_id is None:
        print(job.path)
    elif arguments.parsable:
        print(job_id)
    else:
        nodes = "1 node" if config.slurm.nodes == 1 else f"{config.slurm.nodes} nodes"
        print(f"job {job_id}: {config.run.name}, {nodes}")
        print(f"run folder: {job.run}")
        print(f"log: {job.log}")
        print(f"to end it: scancel {job_id}")
    return 0


def _extra(option: str) -> str:
    """The override for an option of sbatch, whose value is text in any case."""
    key, _, value = option.partition("=")
    return f"slurm.extra.{key}={json.dumps(value, ensure_ascii=False, allow_nan=False)}"
