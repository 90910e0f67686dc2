"""`azr bench`: measures a part of azr on this machine, beside a peer or a limit that is measured in the same run."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from executor.user_error import UserError
from launch.arguments import new_command
from launch.bench.options import LateParser, check_folder, positive

if TYPE_CHECKING:
    from launch.bench.report import Report

SUBJECTS = {
    "e2e": "a whole run: throughput by max_staleness, and where every second and every token went",
    "executor": "the sandbox: executions a second, latency, recorded self-play work",
    "buffer": "the task buffer: requests a second, latency, by the number of tasks",
    "weights": "the weight broadcast: its rate beside a raw broadcast and a file, and what an engine pauses for it",
    "stream": "the stream: trajectories and bytes a second, latency, beside bare ZeroMQ and two queues",
    "peer": "one GRPO step beside TRL's: generation, training, both; the same model, prompts, token counts and cores",
    "learner": "the learner: tokens a second and memory beside transformers, share of the machine's peak, packing",
}
"""Benchmarks by name, with a line about each. The module `launch.bench.<name>` has DESCRIPTION, EXAMPLES, RUNS,
`add_options(parser)` and `measure(arguments)`, which returns the report; it is imported when it is asked for."""

COMMANDS = {
    "all": ("every benchmark below with short settings, about ten minutes, one JSON each in a folder", "suite"),
    "compare": ("two measurements: what became slower beyond noise", "compare"),
}
"""Commands about benchmarks: a line about each, and the module of `launch.bench` that has `add_options` and `run`."""

_EXAMPLES = """\
examples:
  azr bench executor                                 its options: azr bench executor --help
  azr bench executor --only cached new --runs 3
  azr bench weights --json weights.json              the findings as JSON too
  azr bench all bench-today                          all of them, shortly
  azr bench compare bench-before bench-today         what became slower
"""


class BenchError(UserError):
    """A benchmark that could not be run or written; the message says why."""

    exit_code = 1


def register(commands: Any) -> None:
    """Add `azr bench` to argparse's subcommands."""
    bench = new_command(
        commands,
        "bench",
        "measure a part of azr on this machine",
        "Measure a part of azr on this machine, in turns with what it is compared with. Run it on a machine that does "
        "nothing else.",
        _EXAMPLES,
    )
    subjects = bench.add_subparsers(required=True, metavar="WHAT", parser_class=LateParser)
    for name, (about, module) in COMMANDS.items():
        command = subjects.add_parser(name, help=about, formatter_class=argparse.RawDescriptionHelpFormatter)
        command.fill = lambda parser, module=module: _module(module).add_options(parser)
        command.set_defaults(run=lambda arguments, module=module: _module(module).run(arguments))
    for name, about in SUBJECTS.items():
        subject = subjects.add_parser(name, help=about, formatter_class=argparse.RawDescriptionHelpFormatter)
        subject.fill = lambda parser, name=name: _add_options(parser, _module(name))
        subject.set_defaults(run=lambda arguments, name=name: _run(name, arguments))


def _module(name: str) -> Any:
    # As in a run, and before torch is loaded: a thread that spins at a barrier takes the core from the one it waits
    # for.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    return importlib.import_module(f"launch.bench.{name}")


def _add_options(parser: argparse.ArgumentParser, subject: Any) -> None:
    parser.description, parser.epilog = subject.DESCRIPTION, subject.EXAMPLES
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the findings there, too")
    parser.add_argument("--runs", type=positive(int), default=subject.RUNS, help="repetitions (default %(default)s)")
    subject.add_options(parser)


def _run(name: str, arguments: argparse.Namespace) -> int:
    if arguments.json:
        check_folder(arguments.json, arguments.json.absolute().parent)
    try:
        report = _module(name).measure(arguments)
    except UserError as error:
        if error.exit_code == UserError.exit_code:  # wrong use, which its own message explains
            raise
        raise BenchError(f"nothing was measured: {error}") from error
    return _give(report, arguments.json)


def _give(report: Report, file: Path | None) -> int:
    """Show the findings and write them; returns the exit code."""
    from rich.console import Console

    # Elsewhere than on a terminal, wide enough for a whole row.
    report.show(Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120))
    if file:
        try:
            report.write(file)
        except OSError as error:
            raise BenchError(f"the findings could not be written: {error}") from None
    return 130 if "interrupted" in report.notes else int(bool(report.failures))
