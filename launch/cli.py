"""The `azr` command: collects the commands of `launch/commands`, runs one, and turns errors into a message and an exit
code."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from executor.user_error import UserError
from launch.commands import bench, config, doctor, drill, execute, model, scale, seeds, sft, sft_data, train, verify

COMMANDS = (train, scale, verify, drill, config, model, execute, doctor, seeds, sft, sft_data, bench)
"""The commands, in the order of `azr --help`. Their modules import quickly; slow imports wait until a command runs."""

_EXAMPLES = """\
examples:
  azr train smollm2-cpu                              the default run: a real 135M model on a laptop's CPU
  azr train smollm2-cpu learner.steps=200 run.name=long
  azr train --resume runs/smollm2-cpu learner.steps=40
  azr train smollm2-cpu run.mode=serial learner.max_staleness=0    one process, one thread, deterministic
  azr scale runs/smollm2-cpu --actors 3              more rollout actors, or fewer, while it runs
  azr verify runs/smollm2-cpu                        do its engines run what the learner has, bit by bit?
  azr config show smollm2-cpu                        every setting of a recipe, resolved
  azr sft sft-smollm2-cpu                            supervised fine-tuning first, as a warm start
  azr seeds save runs/first seeds.jsonl              a run's tasks, to start another with (selfplay.seed_tasks)
  azr model prepare smollm2-135m-instruct            build the model's folder in the cache
  azr exec program.py --input "[3, 1], 'abc'"        run a program in the sandbox, by hand
  azr doctor                                         what the sandbox is made of on this machine

Every command has examples: azr COMMAND --help
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code. 2: the command or the configuration is wrong; 130: Ctrl-C."""
    parser = make_parser()
    # argparse takes positionals in one stretch only: overrides that follow a --set come back as unknown.
    arguments, rest = parser.parse_known_args(argv)
    if any(text.startswith("-") or "=" not in text for text in rest) or (rest and "sets" not in arguments):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    try:
        return int(arguments.run(arguments))
    except UserError as error:
        print(f"azr: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("azr: interrupted", file=sys.stderr)
        return 130


def make_parser() -> argparse.ArgumentParser:
    """The parser with every command; each sets `run`, a function of the parsed arguments that returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="azr",
        description="Absolute Zero self-play: a language model proposes Python tasks, solves them, and learns from "
        "what an executor says is true.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.register(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
