"""`azr` as a process of its own, as a user starts it, and what its runs are started with."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

LOG_LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (\S+) (\S+) (\d+) (DEBUG|INFO|WARNING|ERROR) (\S+): .*")
"""Host, process and number of its log file, process id, level, module."""


def command(*arguments: str) -> list[str]:
    """The command line of `azr`."""
    return [sys.executable, "-m", "launch.cli", *arguments]


def azr(*arguments: str, program: list[str] | None = None, timeout_s: float = 800) -> subprocess.CompletedProcess[str]:
    """Run `azr` (or `program` in its place) to its end."""
    # On a busy machine, threads that spin at a barrier take the core from the one that they wait for.
    environment = {"OMP_WAIT_POLICY": "passive", **os.environ}
    return subprocess.run(
        [*program, *arguments] if program else command(*arguments),
        capture_output=True, text=True, check=False, timeout=timeout_s, env=environment, cwd=ROOT,
    )  # fmt: skip


def easy_tasks(path: Path, num_each: int = 4) -> str:
    """The override that starts a run with `num_each` tasks of each kind, which even the initial model solves now and
    then."""
    tasks = [
        {"kind": kind, "program": "def f(x):\n    return x", "message": "f gives back what it gets.",
         "inputs": [str(n), str(n + 1)][: 1 + (kind == "induction")]}
        for kind in ("deduction", "abduction", "induction")
        for n in range(num_each)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(task) + "\n" for task in tasks))
    return f"selfplay.seed_tasks={path}"


def check_logs(logs: Path, processes: set[str]) -> None:
    """Each of `processes`, and no other, has a log with lines of its own in the format of `launch/logs.py`."""
    assert {path.name.removesuffix(".log") for path in logs.iterdir()} == processes
    for process in processes:
        lines = (logs / f"{process}.log").read_text().splitlines()
        own = [match.groups() for line in lines if (match := LOG_LINE.fullmatch(line))]
        assert own, f"{process} has logged nothing: {lines[:5]}"
        assert {(host, name) for host, name, *_ in own} == {(os.uname().nodename, process)}
