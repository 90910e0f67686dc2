"""The `azr` command: collects the commands of `launch/commands`, runs one, and turns errors into a message and an exit
code."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Sequence

COMMANDS = (
    "train",
    "submit",
    "scale",
    "verify",
    "drill",
    "rehearse",
    "config",
    "model",
    "execute",
    "doctor",
    "eval",
    "seeds",
    "sft",
    "sft_data",
    "bench",
    "tune",
    "study",
)
"""The modules of `launch.commands`, in the order of `azr --help`. They import quickly: what a command needs to run, it
imports when it runs."""

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""Errors of a disk that is full or broken, which can meet every file that is written."""

FAILED = 1
INTERRUPTED = 130
BROKEN_PIPE = 141
"""Exit code where the reader of the output has gone, as `head` does: what a shell reports for a death by SIGPIPE."""

_EXAMPLES = """\
examples:
  azr train smollm2-cpu-learn                        what `make train` runs: a real 135M model learns, on two cores
  azr train smollm2-cpu learner.steps=200 run.name=long
  azr train --resume runs/smollm2-cpu learner.steps=40
  azr train smollm2-cpu run.mode=serial learner.max_staleness=0    one process, one thread, deterministic
  azr submit smollm2-cpu                             the same as a SLURM job, from a login node
  azr scale runs/smollm2-cpu --actors 3              more rollout actors, or fewer, while it runs
  azr verify runs/smollm2-cpu                        do its engines run what the learner has, bit by bit?
  azr config show smollm2-cpu                        every setting of a recipe, resolved
  azr eval runs/smollm2-cpu                          its newest checkpoint on the held-out tasks
  azr sft sft-smollm2-cpu                            supervised fine-tuning first, as a warm start
  azr seeds save runs/first seeds.jsonl              a run's tasks, to start another with (selfplay.seed_tasks)
  azr model prepare smollm2-135m-instruct            build the model's folder in the cache
  azr tune smollm2-cpu --calibration here.json       predict speed and age; choose staleness and split
  azr study staleness smollm2-cpu-small              which max_staleness learns as well? over seeds, by a margin
  azr study arms smollm2-cpu ablations               arms of named settings, such as the paper's ablations
  azr exec program.py --input "[3, 1], 'abc'"        run a program in the sandbox, by hand
  azr doctor                                         what the sandbox is made of on this machine

exit codes: 0 done, 1 failed, 2 the command, a setting or a file is wrong, 3 the sandbox failed, 75 a run was stopped
early and saved, 130 interrupted with nothing to save.

Every command has examples: azr COMMAND --help
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    try:
        from launch.standard_streams import prepare_streams, silence  # here: a Ctrl-C during imports is one too

        prepare_streams()
        try:
            return _main(argv)
        finally:
            sys.stdout.flush()  # here, where a reader that has gone can be dealt with
    except KeyboardInterrupt:
        print("azr: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        silence(sys.stdout)
        return BROKEN_PIPE
    except OSError as error:
        if error.errno not in _DISK:
            raise
        silence(sys.stdout)  # where it is the output that cannot be written, the interpreter would try once more
        where = error.filename or "a file or standard output"
        print(f"azr: {where} cannot be written: {error.strerror}. Make room, then try again", file=sys.stderr)
        return FAILED


def _main(argv: Sequence[str] | None) -> int:
    from executor.user_error import UserError

    parser = make_parser()
    # argparse takes positionals in one stretch only: overrides that follow a --set come back as unknown.
    arguments, rest = parser.parse_known_args(argv)
    if any(text.startswith("-") or "=" not in text for text in rest) or (rest and "sets" not in arguments):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    try:
        _check_directory()
        return int(arguments.run(arguments))
    except UserError as error:
        print(f"azr: {error}", file=sys.stderr)
        return error.exit_code


def _check_directory() -> None:
    """Raise UserError where the working directory was removed: libraries then fail with other words."""
    import os

    from executor.user_error import UserError

    try:
        os.getcwd()
    except OSError as error:
        raise UserError(f"the working directory cannot be used ({error.strerror}): cd to one that exists") from None


def make_parser() -> argparse.ArgumentParser:
    """The parser with every command; each sets `run`, a function of the parsed arguments that returns the exit code."""
    from importlib import import_module

    parser = argparse.ArgumentParser(
        prog="azr",
        description="Absolute Zero self-play: a language model proposes Python tasks, solves them, and learns from "
        "what an executor says is true.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, help="show the version of azr and of what it runs on, and exit")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        import_module(f"launch.commands.{command}").register(commands)
    return parser


class _Version(argparse.Action):
    """Prints the version. An action of its own, because reading the versions takes longer than parsing."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *args: object, **kwargs: object) -> None:
        import platform

        from launch.versions import version_of

        versions = {name: version_of(name) for name in ("torch", "vllm", "megatron-core", "ray")}
        found = [f"{name} {number}" if number else f"no {name}" for name, number in versions.items()]
        print(f"azr {version_of('azr')} (Python {platform.python_version()}, {', '.join(found)})")
        parser.exit()


if __name__ == "__main__":
    sys.exit(main())
