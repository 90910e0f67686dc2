"""`azr exec`, as a user calls it. Not exercised here: progress on a terminal."""

from __future__ import annotations

import array
import fcntl
import io
import json
import os
import select
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launch.cli import main
from launch.exec import programs
from launch.exec.lines import MAX_LINE_BYTES

ROOT = Path(programs.__file__).parents[2]
pytestmark = pytest.mark.timeout(300)

LOOP = "def f(x):\n while True: pass"


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program.py"
    path.write_text("def f(x, *rest):\n    return {'got': x + 1, 'rest': rest}\n")
    return path


def lines(*items: Any) -> str:
    return "".join(json.dumps(item) + "\n" for item in items)


def item(name: str, program: str = "def f(x): return x", given: str = "1") -> dict[str, str]:
    return {"name": name, "program": program, "input": given}


def test_a_program_that_answers(program: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["exec", str(program), "--input", "-3, 'a'"]) == 0
    shown = dict(row.split(maxsplit=1) for row in capsys.readouterr().out.splitlines())
    assert shown.pop("ms")
    assert shown == {"status": "ok", "value": "{'got': -2, 'rest': ('a',)}"}


def test_json_of_several_inputs_one_of_which_fails(program: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["exec", str(program), "--json", "--input", "1.5", "--input", "'a'", "--timeout", "1"]) == 1
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [sorted(one) for one in found] == [["detail", "input", "ms", "status", "value"]] * 2
    assert [(one["status"], one["value"], one["detail"]) for one in found] == [
        ("ok", "{'got': 2.5, 'rest': ()}", ""),
        ("error", "", "TypeError"),
    ]


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("def f(x): return id(x)", "nondeterministic"),
        (LOOP, "timeout"),
        ("import os\ndef f(x): return os.getpid()", "unsafe"),
    ],
)
def test_outcomes_from_stdin(
    text: str, status: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert main(["exec", "-", "--input", "[]", "--json", "executor.timeout_s=0.3"]) == 1
    assert json.loads(capsys.readouterr().out)["status"] == status


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "needs a program"),
        (["{program}"], "needs --input LITERAL"),
        (["{program}", "--input", "open('a')"], "is no literal"),
        (["{program}", "--input", ""], "is no literal"),
        (["{program}", "--input", "1", "--timeout", "soon"], "executor.timeout_s = 'soon'"),
        (["{program}", "--input", "1", "--memory", "1"], "--memory 1"),
        (["{program}", "--input", "1", "learner.steps=3"], "learner.steps is none of them"),
        (["{program}", "--input", "1", "executor.wrokers=3"], "Did you mean executor.workers?"),
        (["{program}.py", "--input", "1"], "cannot read"),
        (["{program}", "--jsonl", "-"], "not both"),
        (["--jsonl", "nowhere.jsonl"], "cannot read nowhere.jsonl"),
        (["--jsonl", "-", "--input", "1"], "leave out --input"),
    ],
)
def test_wrong_use_says_what_to_do(
    arguments: list[str], why: str, program: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["exec", *(text.format(program=program) for text in arguments)]) == 2
    found = capsys.readouterr()
    assert why in found.err
    assert not found.out


def test_a_file_of_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In order, though the first takes longest; inputs that are refused are results; the rest of a line is ignored."""
    path = tmp_path / "programs.jsonl"
    path.write_text(
        lines(item("slow", LOOP), item("refused", given="f()"))
        + "\n"
        + lines(
            {**item("half", "def f(x): return '\ud800' + x", "'\ud800'"), "expect": "ok"}, item("set", given="{2, 1}")
        )
        + json.dumps(item("last, without a newline"))
    )
    assert main(["exec", "--jsonl", str(path), "executor.workers=3", "--set", "executor.timeout_s=0.3"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    refused = found.pop(1)
    assert (refused["name"], refused["status"]) == ("refused", "error")
    assert refused["detail"].startswith("UnparseableInput: ")
    assert found[1].pop("detail").startswith("UnparseableInput: ")
    assert [(one["name"], one["status"]) for one in found][::3] == [
        ("slow", "timeout"),
        ("last, without a newline", "ok"),
    ]
    assert found[2] == {"name": "set", "status": "ok", "value": "{1, 2}", "detail": ""}


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ('{"name": "a", "program": "def f(', "is no JSON"),
        ("[1]", "is no JSON object"),
        ('{"name": "a", "program": "def f(x): return 1"}', "it has no 'input'"),
        ('{"name": "a", "program": 3, "input": "1"}', "its 'program' is no string"),
        ("[" * 100_000, "is no JSON"),
        ('"' + "a" * MAX_LINE_BYTES + '"', "is longer than"),
    ],
)
def test_a_malformed_line_stops_after_the_lines_before_it(
    bad: str, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "programs.jsonl"
    path.write_text(lines(item("a"), item("b")) + bad + "\n" + lines(item("c")))
    assert main(["exec", "--jsonl", str(path)]) == 2
    found = capsys.readouterr()
    assert [json.loads(line)["name"] for line in found.out.splitlines()] == ["a", "b"]
    assert "line 3" in found.err
    assert why in found.err


@pytest.fixture
def streaming() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-m", "launch.cli", "exec", "--jsonl", "-", "--timeout", "600"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    ) as process:  # fmt: skip
        yield process
        process.kill()


def test_results_stream_while_the_input_is_still_open(streaming: subprocess.Popen[str]) -> None:
    assert streaming.stdin
    assert streaming.stdout
    for name in ("first", "second"):
        streaming.stdin.write(lines(item(name)))
        streaming.stdin.flush()
        assert json.loads(streaming.stdout.readline())["name"] == name
    streaming.stdin.close()
    assert streaming.wait(120) == 0


@pytest.mark.slow
def test_no_more_of_a_file_is_read_than_the_window(streaming: subprocess.Popen[str]) -> None:
    """While the first program runs, the writer is made to wait, however much it has."""
    assert streaming.stdin
    assert streaming.stdout
    line = lines(item("x", "def f(x): return x #" + "a" * 30_000)).encode()
    fd = streaming.stdin.fileno()
    os.write(fd, lines(item("first")).encode())
    assert json.loads(streaming.stdout.readline())["name"] == "first", "the command has started, and reads"
    os.write(fd, lines(item("endless", LOOP)).encode())
    os.set_blocking(fd, False)
    written, most = 0, 2 * programs.LINES_PER_WORKER * len(line) + (1 << 18)
    # The reader is done when it has left the pipe full for so long.
    while written <= most and select.select([], [fd], [], 4.0)[1]:
        written += os.write(fd, line[written % len(line) :])
    assert written <= most
    assert written > programs.LINES_PER_WORKER * len(line)


def test_ctrl_c_stops_and_leaves_nothing(streaming: subprocess.Popen[str]) -> None:
    assert streaming.stdin
    assert streaming.stdout
    for line in (item("first"), item("endless", LOOP)):
        streaming.stdin.write(lines(line))
        streaming.stdin.flush()
        if line["name"] == "first":
            assert json.loads(streaming.stdout.readline())["name"] == "first"  # it is past its start
    unread = array.array("i", [1])
    while unread[0]:
        fcntl.ioctl(streaming.stdin, termios.FIONREAD, unread)
    handles = [os.pidfd_open(pid) for pid in children(streaming.pid)]
    assert handles
    streaming.send_signal(signal.SIGINT)
    assert streaming.wait(30) == 130
    for handle in handles:
        assert select.select([handle], [], [], 10)[0], "a sandbox outlived azr exec"
        os.close(handle)


def children(pid: int) -> list[int]:
    """The processes that `pid` started and that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:  # it has ended
            continue
        if int(parent) == pid and state != "Z":
            found.append(int(path.parent.name))
    return found


def test_a_reader_that_leaves_is_no_error_message(tmp_path: Path) -> None:
    path = tmp_path / "programs.jsonl"
    path.write_text(lines(*(item(str(i)) for i in range(3000))))
    command = [sys.executable, "-m", "launch.cli", "exec", "--jsonl", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout
        assert process.stderr
        assert json.loads(process.stdout.readline())["name"] == "0"
        process.stdout.close()
        assert not process.stderr.read()
    assert process.returncode == 1


def test_a_sandbox_that_cannot_start_is_no_outcome(program: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Refused(programs.SandboxPool):
        async def start(self) -> None:
            raise programs.InfrastructureError("no wall")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(programs, "SandboxPool", Refused)
        assert main(["exec", str(program), "--input", "1"]) == 3
    found = capsys.readouterr()
    assert "no wall" in found.err
    assert not found.out
