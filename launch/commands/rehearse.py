"""`azr rehearse`: runs a recipe with its real control plane, and engines and a learner that only take time."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from executor.user_error import UserError
from launch.arguments import add_overrides, new_command, overrides_of
from launch.run.interrupts import listening

if TYPE_CHECKING:
    from launch.cluster.supervisor import Supervisor
    from launch.config import Config
    from launch.rehearsal.kills import Kill
    from launch.run.interrupts import Interrupts

PROCESSES = 8
"""Processes that the rollout actors share, where there are more actors than that."""
STEPS = 10
"""Steps of a rehearsal, where the command says no other number."""

_EXAMPLES = """\
examples:
  azr rehearse smollm2-cpu                                 the recipe's own actors, with the default speeds
  azr rehearse qwen2.5-7b-8gpu --actors 128 --tokens-per-s 2500 --learner-step-s 20
  azr rehearse qwen2.5-7b-8gpu --actors 128 --time-scale 20          an hour of it in three minutes
  azr rehearse my-recipe.toml --actors 64 --kill node:60 --kill actor:120x5
  azr rehearse --record runs/smollm2-cpu lengths.json      lengths and rates of a real run ...
  azr rehearse smollm2-cpu --lengths lengths.json          ... to rehearse with
  azr train my-recipe.toml run.mode=rehearse               the same without the closing table; --resume works on both

What is real: Ray, placement, supervision and restarts, the stream, grants and batches, the ledger, episodes, the task
buffer, the weight group and its broadcast, metrics and checkpoints. What only takes time: sampling, the executor, the
training step. The run folder is an ordinary one, and --kill is a real death. Every speed and size is a setting of
[rehearsal] (`azr config docs`); docs/rehearsal.md says where to take them from, and what a rehearsal cannot show.
"""


class RehearsalError(UserError):
    """A rehearsal that cannot be held; the message says what to do."""


def register(commands: Any) -> None:
    """Add `rehearse` to argparse's subcommands."""
    command = new_command(
        commands,
        "rehearse",
        "run a recipe without its model: do all actors connect, is the learner fed, what do kills cost?",
        "Rehearse a launch before it costs a GPU hour: the recipe's run with its real control plane, and with engines "
        "and a learner that only take time. It needs no GPU and no model. Ends with a table.",
        _EXAMPLES,
    )
    command.add_argument("recipe", nargs="?", help="a TOML file, or the name of a recipe that ships")
    add_overrides(command, "settings on top, such as learner.max_staleness=2")
    command.add_argument("--actors", type=int, metavar="N", help="rollout actors (default: the recipe's)")
    command.add_argument(
        "--actors-per-process", type=int, metavar="N", help=f"of them (default: as many as make {PROCESSES} processes)"
    )
    command.add_argument("--tokens-per-s", type=float, metavar="T", help="that one actor samples with a full batch")
    command.add_argument("--learner-step-s", type=float, metavar="S", help="seconds of a training step")
    command.add_argument("--time-scale", type=float, metavar="X", help="how much faster than that it all goes")
    command.add_argument("--steps", type=int, default=STEPS, metavar="N", help="training steps (default %(default)s)")
    command.add_argument("--lengths", metavar="FILE", help="lengths and rates of a real run, by --record")
    command.add_argument(
        "--kill",
        action="append",
        default=[],
        metavar="PART:AT_S",
        help="kill a node (a process with all its actors), an actor, the learner or the buffer AT_S seconds of the "
        "rehearsed run after its start; node:60x2 kills two; may be repeated",
    )
    command.add_argument("--json", metavar="FILE", help="write the table's figures to a file as well")
    command.add_argument(
        "--record",
        nargs=2,
        metavar=("RUN", "FILE"),
        help="rehearse nothing; write the lengths and rates of the run in folder RUN to FILE",
    )
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    """Hold the rehearsal; returns the run's exit code."""
    if arguments.record:
        return _record(*map(Path, arguments.record))
    with listening(to_exit=True) as interrupts:  # before the imports, which take seconds
        return _rehearse(arguments, interrupts)


def _record(run: Path, file: Path) -> int:
    from launch.rehearsal.lengths import record_lengths
    from launch.run.folder import RunFolder

    for cell, count in record_lengths(RunFolder(run), file).items():
        print(f"{cell}: {count} trajectories")
    print(f"wrote {file}. Rehearse with it: azr rehearse RECIPE --lengths {file}")
    return 0


def _rehearse(arguments: argparse.Namespace, interrupts: Interrupts) -> int:
    import json

    from launch.cluster import driver
    from launch.commands.train import begun
    from launch.rehearsal.cpu_samples import CpuSamples
    from launch.rehearsal.kills import Kill, Kills
    from launch.rehearsal.report import describe_rehearsal, print_rehearsal
    from launch.run.console import Console
    from launch.run.folder import end_at_once
    from launch.workloads.choose import workload_of

    kills = [Kill.parse(text) for text in arguments.kill]
    config = configuration(arguments, kills)
    if config.folder.exists():
        raise RehearsalError(f"{config.folder} is there already: add run.name=NAME, or remove it")
    console = Console(config)
    workload = workload_of(config)
    with begun(config, console, workload) as (folder, _):
        interrupts.last_acts.append(lambda why: end_at_once(folder, why))
        samples = CpuSamples()
        killing = Kills(kills, folder, config.rehearsal.time_scale, config.run.seed, console.say)

        def watch(supervisor: Supervisor) -> None:
            folder.check_owner()
            killing.watch(supervisor)
            samples.watch(supervisor)

        code = driver.run(config, folder, False, console, workload, watch, interrupts)
        found = describe_rehearsal(config, folder, samples.shares(), killing.kills)
    print_rehearsal(found)
    for path in (folder.path / "rehearsal.json", *([Path(arguments.json)] if arguments.json else [])):
        path.write_text(json.dumps(found, indent=2, allow_nan=False) + "\n")
    return code


def configuration(arguments: argparse.Namespace, kills: list[Kill]) -> Config:
    """The configuration that the command's options ask for. Raises ConfigError, RehearsalError."""
    from launch.config import load

    if not arguments.recipe:
        raise RehearsalError("name a recipe, such as: azr rehearse smollm2-cpu --actors 64")
    if arguments.steps < 1:
        raise RehearsalError(f"--steps {arguments.steps}: at least one")
    options = {
        "actors.num_actors": arguments.actors,
        "rehearsal.tokens_per_s": arguments.tokens_per_s,
        "rehearsal.learner_step_s": arguments.learner_step_s,
        "rehearsal.time_scale": arguments.time_scale,
        "rehearsal.lengths": arguments.lengths,
        "rehearsal.actors_per_process": arguments.actors_per_process,
    }
    given = [f"{key}={value}" for key, value in options.items() if value is not None]
    plain = load(arguments.recipe, ["run.mode=rehearse", *given, *overrides_of(arguments)])
    first = [
        "run.mode=rehearse",
        f"run.name={plain.run.name}-rehearsal",
        "run.verify_weights=false",
        "run.max_minutes=none",
        "run.max_tokens=none",
        f"learner.steps={arguments.steps}",
        f"supervision.max_actor_restarts={len(kills) + 3}",
        f"supervision.max_learner_restarts={len(kills) + 3}",
    ]
    if arguments.actors_per_process is None:
        first.append(f"rehearsal.actors_per_process={math.ceil(plain.actors.num_actors / PROCESSES)}")
    if any(kill.part == "learner" for kill in kills):
        first.append("learner.checkpoint_every=1")  # a learner that is killed goes on from a checkpoint
    return load(arguments.recipe, [*first, *given, *overrides_of(arguments)])
