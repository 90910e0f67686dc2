"""What the state of the standard streams may do to a command: never end a run, and never put text into other files."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import combinations
from pathlib import Path
from typing import TextIO

import pytest

from launch import cli, standard_streams
from launch.config import load
from launch.run.console import Console

ROOT = Path(cli.__file__).parents[1]

CLOSED = """
import os, subprocess, sys
from launch.standard_streams import prepare_streams
prepare_streams()
opened = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
print("to nobody"), print("to nobody", file=sys.stderr), sys.stdin.readline(), sys.stdout.flush()
inherited = subprocess.run(["ls", "/proc/self/fd"], stdout=subprocess.PIPE, text=True).stdout.split()
os.write(opened, f"{opened > 2} {set(inherited) >= {'0', '1', '2'}}".encode())
"""


def test_a_file_never_takes_the_place_of_a_closed_stream(tmp_path: Path) -> None:
    program = [sys.executable, "-c", CLOSED]
    for closed in (found for size in (1, 2, 3) for found in combinations("012", size)):
        file = tmp_path / "".join(closed)
        shell = 'exec "$@" ' + " ".join(f"{number}>&-" for number in closed)
        subprocess.run(["bash", "-c", shell, "-", *program, str(file)], cwd=ROOT, check=True, capture_output=True)
        assert file.read_text() == "True True", closed


def test_a_command_with_closed_streams_does_its_work() -> None:
    program = [sys.executable, "-m", "launch.cli", "model", "list"]
    closed = ["bash", "-c", 'exec "$@" <&- >&-', "-", *program]
    found = subprocess.run(closed, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_a_full_disk_refuses_is_an_error(unbuffered: str) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    program = [sys.executable, "-m", "launch.cli", "config", "schema"]
    with open("/dev/full", "w") as full:
        found = subprocess.run(
            program, cwd=ROOT, env=environment, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert found.returncode == 1
    assert found.stderr == (
        "azr: a file or standard output cannot be written: No space left on device. Make room, then try again\n"
    )


@contextmanager
def unread_pipe() -> Iterator[TextIO]:
    reader, writer = os.pipe()
    os.close(reader)
    yield os.fdopen(writer, "w")


@contextmanager
def terminal_that_hung_up() -> Iterator[TextIO]:
    ours, theirs = os.openpty()
    os.close(ours)
    yield os.fdopen(theirs, "w")


@contextmanager
def full_disk() -> Iterator[TextIO]:
    yield open("/dev/full", "w")  # noqa: SIM115


@contextmanager
def closed_file() -> Iterator[TextIO]:
    stream = io.StringIO()
    stream.close()
    yield stream


@pytest.mark.parametrize("output", [unread_pipe, terminal_that_hung_up, full_disk, closed_file])
def test_a_run_outlives_its_console(
    output: Callable[[], AbstractContextManager[TextIO]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with output() as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        console = Console(load("smollm2-cpu"))
        with caplog.at_level("INFO"):
            for number in range(3):
                console.say(f"line {number}")
    said = [record.getMessage() for record in caplog.records]
    assert [text for text in said if text.startswith("line")] == ["line 0", "line 1", "line 2"]
    assert sum("the console cannot be written" in text for text in said) == 1
    if not stream.closed:
        stream.close()  # what it held back goes nowhere, and raises nothing


def test_a_run_does_not_wait_for_a_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standard_streams, "PATIENCE_S", 0.05)
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream, os.fdopen(reader, "rb") as unread:
        monkeypatch.setattr(sys, "stdout", stream)
        console = Console(load("smollm2-cpu"))
        for number in range(50):  # a pipe takes 64 KiB, and the stream holds a few times that
            console.say(f"line {number} {'x' * 10_000}")
        text = b""
        while b"are left out" not in text:
            text += os.read(unread.fileno(), 1 << 16)
        console.say("the end")
        while b"the end" not in text:
            text += os.read(unread.fileno(), 1 << 16)
    seen = [int(number) for number in re.findall(rb"line (\d+)", text)]
    assert seen == list(range(len(seen))), "what is left out is at the end, in one piece"
    assert len(seen) < 50


ANY_TEXT = """
from launch.standard_streams import prepare_streams
prepare_streams()
from launch.config import load
from launch.run.console import Console
from launch.run.summary import learning_table, sparkline
from rich.console import Console as Terminal
console = Console(load("smollm2-cpu"))
console.say("a \\u00fc \\u6f22 \\udcff b")
console._terminal.print(learning_table([{"time_s": 1.0, "valid_rate/mean": 0.5}]))
print("\\u00fc \\udcff")
"""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_text_is_printed_in_any_encoding(encoding: str) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    found = subprocess.run(
        [sys.executable, "-c", ANY_TEXT], cwd=ROOT, env=environment, capture_output=True, check=False
    )
    assert found.returncode == 0, found.stderr.decode()
    assert "valid proposals" in found.stdout.decode(encoding)
