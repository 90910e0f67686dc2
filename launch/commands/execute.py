"""`azr exec`: runs programs in the sandbox by hand, one at a time or a file of them, as a proposed task is checked.

Exit codes: 0 every outcome is ok (one program), or every line has its result (a file); 1 an outcome is not ok; 2 the
command, an input or a line is wrong; 3 the sandbox itself failed; 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from launch.arguments import add_overrides, new_command, overrides_of

if TYPE_CHECKING:
    from executor.settings import ExecutorSettings

_LITERAL = (
    "An input is the text between the parentheses of the call to f: 1 is one argument, 'abc', [2] is two, (1, 2) is "
    "one tuple. Literals only (numbers, strings, bytes, lists, tuples, sets, dicts, True, False, None, inf, nan): "
    "nothing in it is evaluated. A string needs quotes of its own: --input \"'abc'\"."
)

_EPILOG = """\
An input is the text between the parentheses of the call to f: 1 is one argument, 'abc', [2] is two, (1, 2) is one
tuple. Literals only; nothing in it is evaluated.

exit codes: 0 ok, 1 another outcome, 2 wrong use, 3 the sandbox failed. With --jsonl, 0 means that every line has its
result; an input that is no literal is a result there (error).

examples:
  azr exec program.py --input 3
  azr exec program.py --input "'abc', [1, 2]" --input=-inf --json
  echo 'def f(x): return x + 1' | azr exec - --input 41 --timeout 0.5
  azr exec --jsonl programs.jsonl executor.workers=4 > results.jsonl
"""


def register(commands: Any) -> None:
    """Add `azr exec` to argparse's subcommands."""
    command = new_command(
        commands,
        "exec",
        "run a program in the sandbox, by hand",
        "Run the function f of a program on an input, twice, in two sandboxes that differ in their hash seed, as a "
        "proposed task is checked. With --jsonl, do so for every line of a file.",
        _EPILOG,
    )
    command.add_argument("file", nargs="?", metavar="FILE", help="a Python file that defines f; - reads stdin")
    command.add_argument(
        "--input", action="append", default=[], metavar="LITERAL", dest="inputs", help="arguments of f; may be repeated"
    )
    command.add_argument("--json", action="store_true", help="one JSON object an input, in place of text")
    command.add_argument(
        "--jsonl",
        metavar="FILE",
        help="lines {name, program, input} in, one line {name, status, value, detail} out each, in order; - reads "
        "stdin",
    )
    command.add_argument("--timeout", metavar="S", help="CPU seconds of one run (executor.timeout_s)")
    command.add_argument("--memory", metavar="MIB", help="MiB that one run may add (executor.memory_mb)")
    add_overrides(command, "settings of the executor, such as executor.workers=4")
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from executor.literals import parse_args
    from executor.values import CodecError
    from launch.exec.lines import ExecError, opened, shortened
    from launch.exec.programs import play, read_program, run_file, run_program

    if arguments.jsonl and arguments.file:
        if "=" not in arguments.file:
            raise ExecError(f"either a program ({arguments.file}) or --jsonl {arguments.jsonl}, not both")
        arguments.overrides.insert(0, arguments.file)  # after --jsonl FILE, the first positional is an override
        arguments.file = None
    settings = _settings(arguments)
    if arguments.jsonl:
        if arguments.inputs:
            raise ExecError("--jsonl takes its inputs from the file: leave out --input")
        with opened(arguments.jsonl) as fd:
            return play(run_file(settings, fd))
    if not arguments.file:
        raise ExecError("azr exec needs a program (FILE, or - for stdin) and --input LITERAL; or --jsonl FILE")
    if not arguments.inputs:
        raise ExecError(f"azr exec {arguments.file} needs --input LITERAL. {_LITERAL}")
    for text in arguments.inputs:
        try:
            parse_args(text)
        except CodecError as error:
            raise ExecError(f"--input {shortened(text)} is no literal: {error}.\n{_LITERAL}") from None
    return play(run_program(settings, read_program(arguments.file), arguments.inputs, arguments.json))


def _settings(arguments: argparse.Namespace) -> ExecutorSettings:
    from launch.config import executor_config

    given = [(text, f"override {text!r}") for text in overrides_of(arguments)]
    if arguments.timeout is not None:
        given.append((f"executor.timeout_s={arguments.timeout}", f"--timeout {arguments.timeout}"))
    if arguments.memory is not None:
        given.append((f"executor.memory_mb={arguments.memory}", f"--memory {arguments.memory}"))
    return executor_config(given, "azr exec").executor
