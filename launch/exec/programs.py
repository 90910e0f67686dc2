"""Runs programs in sandboxes with both runs of the determinism check, and prints what comes of each."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from pathlib import Path
from typing import Any

from executor.judge import Judge
from executor.outcomes import InfrastructureError, Outcome, Status
from executor.pool import SandboxPool
from executor.settings import ExecutorSettings
from executor.signals import requests
from executor.values import CodecError
from launch.exec.lines import ExecError, Line, read_lines, shortened
from launch.json_lines import to_json

OK, NOT_OK = 0, 1
INTERRUPTED = 130
CLOSE_S = 10.0
"""Seconds after Ctrl-C within which the sandboxes have to be closed; a start that is under way is waited for."""
LINES_PER_WORKER = 32
"""Lines that may be under way for each sandbox: enough that one slow program at the head leaves no other sandbox idle
for long, and few enough that memory does not depend on the file's length."""


def read_program(file: str) -> str:
    """The text of `file`, or of standard input for `-`. Raises ExecError."""
    try:
        return (sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()).decode()
    except OSError as error:
        raise ExecError(f"cannot read {file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ExecError(f"{file} is not UTF-8: {error.reason} at byte {error.start}") from None


def play(work: Coroutine[Any, Any, int]) -> int:
    """Run to the end; returns the exit code, also where stdout was closed. Raises InfrastructureError, and
    KeyboardInterrupt after a signal that asks to stop."""
    try:
        code = asyncio.run(_until_interrupted(work))
    except InfrastructureError as error:
        raise InfrastructureError(f"the sandbox failed, which says nothing about the program: {error}") from error
    except BrokenPipeError:
        # The reader of stdout has closed it, as `head` does. The interpreter would try to flush it once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return NOT_OK
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    return code


async def _until_interrupted(work: Coroutine[Any, Any, int]) -> int:
    """What `work` returns, or INTERRUPTED. The process ends `CLOSE_S` after a signal, whatever still runs."""
    working = asyncio.create_task(work)
    interrupted = False

    def stop() -> None:
        nonlocal interrupted
        interrupted = True
        _end_within(CLOSE_S)
        working.cancel()

    for number in requests():
        asyncio.get_running_loop().add_signal_handler(number, stop)
    try:
        return await working
    except asyncio.CancelledError:
        if interrupted:
            return INTERRUPTED
        raise


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


def _end_within(seconds: float) -> None:
    """End this process after `seconds`, if it has not ended until then; the kernel takes its sandboxes along."""
    timer = threading.Timer(seconds, os._exit, [INTERRUPTED])
    timer.daemon = True
    timer.start()


async def run_program(settings: ExecutorSettings, program: str, inputs: Sequence[str], as_json: bool) -> int:
    """Run one program on each of `inputs`, and print what comes of it, as text or as JSON; returns the exit code."""
    code = OK
    async with _judge(settings) as judge:
        for given in inputs:
            start = time.perf_counter()
            outcome = await judge.determine(program, given)
            found = {"input": given, **_described(outcome), "ms": round((time.perf_counter() - start) * 1000, 2)}
            if as_json:
                print(to_json(found), flush=True)
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


async def run_file(settings: ExecutorSettings, fd: int) -> int:
    """Results in the order of the lines, each as soon as it and all before it are there."""
    progress = _Progress()
    window: asyncio.Queue[_Running | Exception | None] = asyncio.Queue(settings.workers * LINES_PER_WORKER)
    tasks: set[asyncio.Task[Any]] = set()

    async def read(judge: Judge) -> None:
        try:
            async for line in read_lines(fd):
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
                print(to_json({"name": line.name, **_described(outcome)}), flush=True)
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
        raise InfrastructureError(f"line {line.number} ({shortened(line.name)}): {error}") from None


def _described(outcome: Outcome) -> dict[str, Any]:
    described: dict[str, Any] = {"status": outcome.status.value, "value": outcome.value, "detail": outcome.detail}
    if not outcome.isolated:
        described["isolated"] = False
    return described


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
