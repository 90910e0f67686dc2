"""`azr exec`: the executor by hand, one program at a time or a file of them, with both runs of the determinism check.

Exit codes: 0 every outcome is ok (one program), or every line has its result (a file); 1 an outcome is not ok; 2 the
command, an input or a line is wrong; 3 the sandbox itself failed; 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from executor.judge import Judge
from executor.literals import parse_args
from executor.pool import InfrastructureError, Outcome, SandboxPool, Status
from executor.settings import ExecutorSettings
from executor.user_error import UserError
from executor.values import CodecError
from launch import config as configuration
from launch.arguments import add_overrides, overrides_of

OK, NOT_OK, INFRASTRUCTURE = 0, 1, 3

MAX_LINE_BYTES = 1 << 21
"""Longest line of a file of programs: a program and an input of the executor's limits fit, however they are escaped."""
LINES_PER_WORKER = 32
"""Lines that may be under way for each sandbox: enough that one slow program at the head leaves no other sandbox idle
for long, and few enough that memory does not depend on the file's length."""

_LINE = '{"name": "a", "program": "def f(x): return x", "input": "1"}'
_LITERAL = (
    "An input is the text between the parentheses of the call to f: 1 is one argument, 'abc', [2] is two, (1, 2) is one "
    "tuple. Literals only (numbers, strings, bytes, lists, tuples, sets, dicts, True, False, None, inf, nan): nothing "
    "in it is evaluated. A string needs quotes of its own: --input \"'abc'\"."
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


class ExecError(UserError):
    """A command, a file, an input or a line that cannot be used; the message says what to do."""


@dataclass(frozen=True)
class Line:
    """One line of a file of programs."""

    number: int
    name: str
    program: str
    given: str


def register(commands: Any) -> None:
    """Add `azr exec` to argparse's subcommands."""
    command = commands.add_parser(
        "exec",
        help="run a program in the sandbox, by hand",
        description="Run the function f of a program on an input, twice, in two sandboxes that differ in their hash seed, "
        "as a proposed task is checked. With --jsonl, do so for every line of a file.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("file", nargs="?", metavar="FILE", help="a Python file that defines f; - reads stdin")
    command.add_argument(
        "--input", action="append", default=[], metavar="LITERAL", dest="inputs", help="arguments of f; may be repeated"
    )
    command.add_argument("--json", action="store_true", help="one JSON object an input, in place of text")
    command.add_argument(
        "--jsonl",
        metavar="FILE",
        help="lines {name, program, input} in, one line {name, status, value, detail} out each, in order; - reads stdin",
    )
    command.add_argument("--timeout", metavar="S", help="wall-clock seconds of one run (executor.timeout_s)")
    command.add_argument("--memory", metavar="MB", help="MiB that one run may add (executor.memory_mb)")
    add_overrides(command, "settings of the executor, such as executor.workers=4")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """`azr exec`; returns the exit code. Raises ConfigError and ExecError, which are wrong use."""
    if arguments.jsonl and arguments.file:
        if "=" not in arguments.file:
            raise ExecError(f"either a program ({arguments.file}) or --jsonl {arguments.jsonl}, not both")
        arguments.overrides.insert(0, arguments.file)  # after --jsonl FILE, the first positional is an override
        arguments.file = None
    settings = _settings(arguments)
    if arguments.jsonl:
        if arguments.inputs:
            raise ExecError("--jsonl takes its inputs from the file: leave out --input")
        with _opened(arguments.jsonl) as fd:
            return _play(_run_file(settings, fd))
    if not arguments.file:
        raise ExecError("azr exec needs a program (FILE, or - for stdin) and --input LITERAL; or --jsonl FILE")
    if not arguments.inputs:
        raise ExecError(f"azr exec {arguments.file} needs --input LITERAL. {_LITERAL}")
    for text in arguments.inputs:
        try:
            parse_args(text)
        except CodecError as error:
            raise ExecError(f"--input {_shortened(text)} is no literal: {error}.\n{_LITERAL}") from None
    return _play(_run_program(settings, _program(arguments.file), arguments.inputs, arguments.json))


# --------------------------------------------------------------------------------------------------- what is asked for


def _settings(arguments: argparse.Namespace) -> ExecutorSettings:
    table: dict[str, Any] = {}
    sources: dict[str, str] = {}
    asked = overrides_of(arguments)
    options = {"--timeout": "executor.timeout_s", "--memory": "executor.memory_mb"}
    given = {"--timeout": arguments.timeout, "--memory": arguments.memory}
    for text, source in [
        *((text, f"override {text!r}") for text in asked),
        *((f"{options[name]}={value}", f"{name} {value}") for name, value in given.items() if value is not None),
    ]:
        key, value = configuration.parse_override(text)
        section, _, name = key.partition(".")
        if section != "executor" or not name or "." in name:
            raise configuration.ConfigError(f"azr exec takes settings of [executor] only, and {key} is none of them")
        table[name] = value
        sources[key] = source
    return configuration.build({"executor": table}, sources).executor


def _program(file: str) -> str:
    try:
        return (sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()).decode()
    except OSError as error:
        raise ExecError(f"cannot read {file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ExecError(f"{file} is not UTF-8: {error.reason} at byte {error.start}") from None


@contextlib.contextmanager
def _opened(file: str) -> Any:
    """A descriptor of `file` for reading."""
    if file == "-":
        yield 0
        return
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        if Path(file).is_dir():
            os.close(fd)
            raise IsADirectoryError(0, "it is a folder")
    except OSError as error:
        raise ExecError(f"cannot read {file}: {error.strerror}") from None
    try:
        yield fd
    finally:
        os.close(fd)


def _shortened(text: str) -> str:
    return ascii(text) if len(text) <= 60 else f"{text[:60]!a}..."


# ------------------------------------------------------------------------------------------------------------- running


def _play(work: Coroutine[Any, Any, int]) -> int:
    """Run to the end, and turn the sandbox's failures and a closed stdout into exit codes."""
    try:
        return asyncio.run(work)
    except InfrastructureError as error:
        print(f"azr: the sandbox failed, which says nothing about the program: {error}", file=sys.stderr)
        return INFRASTRUCTURE
    except BrokenPipeError:
        # Whoever read stdout has left, as `head` does. The interpreter would try to flush it once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return NOT_OK


@contextlib.asynccontextmanager
async def _judge(settings: ExecutorSettings) -> AsyncIterator[Judge]:
    pool = SandboxPool(settings)
    try:
        await pool.start()
    except asyncio.CancelledError:
        await pool.close()
        raise
    try:
        yield Judge(pool, settings)
    finally:
        await pool.close()


async def _run_program(settings: ExecutorSettings, program: str, inputs: Sequence[str], as_json: bool) -> int:
    code = OK
    async with _judge(settings) as judge:
        for given in inputs:
            start = time.perf_counter()
            outcome = await judge.determine(program, given)
            found = {"input": given, **_described(outcome), "ms": round((time.perf_counter() - start) * 1000, 2)}
            if as_json:
                print(json.dumps(found), flush=True)
            else:
                shown = {key: value for key, value in found.items() if value not in ("", None)}
                if len(inputs) == 1:
                    del shown["input"]
                text = "\n".join(f"{key:10}{value}" for key, value in shown.items())
                # An argument may hold bytes that are no text.
                print(text.encode("utf-8", "backslashreplace").decode(), flush=True)
            if outcome.status is not Status.OK:
                code = NOT_OK
    return code


async def _run_file(settings: ExecutorSettings, fd: int) -> int:
    """Results in the order of the lines, each as soon as it and all before it are there."""
    progress = _Progress()
    window: asyncio.Queue[_Running | Exception | None] = asyncio.Queue(settings.workers * LINES_PER_WORKER)
    tasks: set[asyncio.Task[Any]] = set()

    async def read(judge: Judge) -> None:
        try:
            async for line in _lines(fd):
                task = asyncio.create_task(_run_line(judge, line))
                tasks.add(task)
                await window.put((line, task))
            await window.put(None)
        except Exception as error:  # a malformed line: raised once the lines before it have been written
            await window.put(error)

    async with _judge(settings) as judge:
        try:
            tasks.add(asyncio.create_task(read(judge)))
            while (item := await window.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                line, task = item
                outcome = await task
                tasks.discard(task)
                print(json.dumps({"name": line.name, **_described(outcome)}), flush=True)
                progress.add(outcome)
        finally:
            progress.end()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    return OK


_Running = tuple[Line, asyncio.Task[Outcome]]


async def _run_line(judge: Judge, line: Line) -> Outcome:
    try:
        return await judge.determine(line.program, line.given)
    except CodecError as error:
        return Outcome(Status.ERROR, detail=f"UnparseableInput: {error}")
    except InfrastructureError as error:
        raise InfrastructureError(f"line {line.number} ({_shortened(line.name)}): {error}") from None


def _described(outcome: Outcome) -> dict[str, Any]:
    described: dict[str, Any] = {"status": outcome.status.value, "value": outcome.value, "detail": outcome.detail}
    if not outcome.isolated:
        described["isolated"] = False
    return described


# ------------------------------------------------------------------------------------------------------ a file's lines


async def _lines(fd: int) -> AsyncIterator[Line]:
    """The lines of a descriptor as they arrive; blank ones are skipped. Raises ExecError with the line's number."""
    number = 0
    data = bytearray()
    more = True
    while more:
        part = await _read(fd)
        more = bool(part)
        data += part or b"\n"  # the last line may lack its end
        *whole, rest = data.split(b"\n")
        data = rest
        for text in whole:
            number += 1
            if text.strip():
                yield _line(number, bytes(text))
        if len(data) > MAX_LINE_BYTES:
            raise ExecError(f"line {number + 1} is longer than {MAX_LINE_BYTES} bytes")


async def _read(fd: int) -> bytes:
    """What there is to read, without blocking the loop; empty at the end. No thread, which could not be interrupted."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    try:
        loop.add_reader(fd, ready.set)
    except PermissionError:  # a plain file, which is always ready and can't be watched
        await asyncio.sleep(0)
        return os.read(fd, 1 << 16)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)
    return os.read(fd, 1 << 16)


def _line(number: int, text: bytes) -> Line:
    if len(text) > MAX_LINE_BYTES:
        raise ExecError(f"line {number} is longer than {MAX_LINE_BYTES} bytes")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ExecError(f"line {number} is no JSON: {why}. A line looks like {_LINE}") from None
    if not isinstance(found, dict):
        raise ExecError(f"line {number} is no JSON object. A line looks like {_LINE}")
    for key in ("name", "program", "input"):
        if not isinstance(found.get(key), str):
            why = f"its {key!r} is no string" if key in found else f"it has no {key!r}"
            raise ExecError(f"line {number}: {why}. A line looks like {_LINE}; other keys are ignored")
    return Line(number, found["name"], found["program"], found["input"])


class _Progress:
    """A line of progress on stderr where a person looks at it, and stdout goes elsewhere."""

    INTERVAL_S = 0.2

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty() and not sys.stdout.isatty()
        self._start = self._last = time.monotonic()
        self._done = self._not_ok = 0

    def add(self, outcome: Outcome) -> None:
        """Count one result."""
        self._done += 1
        self._not_ok += outcome.status is not Status.OK
        if self._shown and time.monotonic() - self._last > self.INTERVAL_S:
            self._last = time.monotonic()
            self._write()

    def end(self) -> None:
        """Leave the last figures, and a new line, behind."""
        if self._shown:
            self._write()
            print(file=sys.stderr)

    def _write(self) -> None:
        rate = self._done / max(1e-9, time.monotonic() - self._start)
        print(f"\r{self._done} done, {self._not_ok} not ok, {rate:.0f}/s  ", end="", file=sys.stderr, flush=True)
