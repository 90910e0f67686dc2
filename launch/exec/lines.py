"""A file of programs, read line by line as it arrives."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

from executor.user_error import UserError

MAX_LINE_BYTES = 1 << 21
"""Longest line of a file of programs: a program and an input of the executor's limits fit, however they are escaped."""
_LINE = '{"name": "a", "program": "def f(x): return x", "input": "1"}'


class ExecError(UserError):
    """A command, a file, an input or a line that cannot be used; the message says what to do."""


@dataclass(frozen=True)
class Line:
    """One line of a file of programs."""

    number: int
    name: str
    program: str
    given: str


def shortened(text: str) -> str:
    """A text for a message: in ASCII, of at most 60 characters."""
    return ascii(text) if len(text) <= 60 else f"{text[:60]!a}..."


@contextlib.contextmanager
def opened(file: str) -> Iterator[int]:
    """Open `file` for reading, or standard input for `-`; gives the file descriptor. Raises ExecError."""
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


async def read_lines(fd: int) -> AsyncIterator[Line]:
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
    """Read what is there without blocking the event loop; empty at the end. A thread would not do: it cannot be
    interrupted."""
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
