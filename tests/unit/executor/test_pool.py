"""Pools: what an execution finds, and that sandboxes are replaced, released, and never outlive their pool."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from executor.outcomes import InfrastructureError, Outcome, Status
from executor.pool import SandboxPool, SerialPool
from executor.sandbox import request, sandbox
from executor.settings import ExecutorSettings

Run = Callable[..., list[Outcome]]
ROOT = Path(sandbox.__file__).parents[2]
LOOP = "def f(x):\n while x: pass\n return x"


@pytest.mark.parametrize(
    ("program", "status", "detail"),
    [
        ("def f(x: return 1", Status.ERROR, "SyntaxError"),
        ("def g(x): return 1", Status.ERROR, "MissingFunction"),
        ("f = 3", Status.ERROR, "MissingFunction"),
        ("def f(x, y): return 1", Status.ERROR, "TypeError"),
        ("def f(x): raise SystemExit(0)", Status.ERROR, "SystemExit"),
        ("class E(BaseException): pass\ndef f(x): raise E", Status.ERROR, "E"),
        ("def f(x): return f(x)", Status.ERROR, "RecursionError"),
        ("def f(x):\n    return " + "(" * 500 + ")" * 500, Status.ERROR, "SyntaxError"),
        ("def f(x): return 1\n#" + "a" * 70_000, Status.ERROR, "ProgramTooLarge"),
        (LOOP, Status.TIMEOUT, ""),
        ("while True:\n try:\n  while True: pass\n except BaseException: pass", Status.TIMEOUT, ""),
        ("def f(x): return len(bytearray(1 << 30))", Status.MEMORY, ""),
        ("def f(x): return 'a' * 70_000", Status.OUTPUT_TOO_LARGE, ""),
        ("def f(x): return 10 ** 5000", Status.OUTPUT_TOO_LARGE, ""),
        ("def f(x): return f", Status.UNSERIALISABLE, "function"),
        ("class S(str):\n def __repr__(s): return '1'\ndef f(x): return [S()]", Status.UNSERIALISABLE, "S"),
        ("import os\ndef f(x): return os.getpid()", Status.UNSAFE, "import: os"),
        ("def f(x): return getattr(f, '__' + 'globals__')", Status.UNSAFE, "attribute: __globals__"),
    ],
)
def test_findings(run: Run, program: str, status: Status, detail: str) -> None:
    assert run(program, "1") == [Outcome(status, "", detail)]


@pytest.mark.parametrize(
    ("program", "given", "value"),
    [
        ("def f(x): return x + 1", "1", "2"),
        ("def f(a, b): return {'k': [a, (b, None)], 2: {1, 2}}", "1, 'z'", "{'k': [1, ('z', None)], 2: {1, 2}}"),
        ("f = lambda p: p", "(1, 2)", "(1, 2)"),
        ("def f(x): return '\\ud800' + x", "'a\\x00\\n'", "'\\ud800a\\x00\\n'"),
        ("def f(x): print('noise' * 9999, x)", "1", "None"),
        ("class A:\n def __del__(s):\n  while True: pass\nk = A()\ndef f(x): return 3", "1", "3"),
        ("import re, math\ndef f(x): return [math.inf, re.sub('a', 'b', x)]", "'a'", "[inf, 'b']"),
        ("from dataclasses import dataclass\n@dataclass\nclass P:\n x: int\ndef f(x): return P(x).x", "4", "4"),
        ("from collections import namedtuple\nP = namedtuple('P', 'x')\ndef f(x): return P(x).x", "4", "4"),
        ("def f(x): return x.encode('utf-16').decode('utf-16')", "'é'", "'é'"),
    ],
)
def test_values(run: Run, program: str, given: str, value: str) -> None:
    assert run(program, given) == [Outcome(Status.OK, value)]


def test_a_batch_is_aligned_and_goes_on_after_its_child_died(run: Run) -> None:
    program = """
def f(x):
    if x == 2: return len(bytearray(1 << 30))
    if x == 3: raise KeyError
    while x == 1: pass
    return x
"""
    statuses = [outcome.status for outcome in run(program, "0", "1", "2", "3", "4")]
    assert statuses == [Status.OK, Status.TIMEOUT, Status.MEMORY, Status.ERROR, Status.OK]


def test_inputs_of_a_batch_do_not_share_globals(run: Run) -> None:
    program = "n = 0\nclass A: n = 0\ndef f(x):\n global n\n n += 1; A.n += 1; x.append(n)\n return (n, A.n, x)"
    assert [outcome.value for outcome in run(program, "[]", "[]")] == ["(1, 1, [1])"] * 2


def test_fail_fast_stops_at_the_first_failure(serial_pool: SerialPool) -> None:
    program = "def f(x): return 1 // x"
    outcomes = asyncio.run(serial_pool.execute(program, ["1", "0", "2"], fail_fast=True))
    assert [outcome.status for outcome in outcomes] == [Status.OK, Status.ERROR]


def test_a_program_means_the_same_before_and_after_it_is_cached(run: Run) -> None:
    for program in ("def f(x): return x # cached", "import os # cached", "def f(x): # cached"):
        first = run(program, "1")
        assert [run(program, "1") for _ in range(3)] == [first] * 3


def test_workers_differ_in_their_hash_seed(serial_pool: SerialPool) -> None:
    outcomes = [asyncio.run(serial_pool.execute("def f(x): return hash(x)", ["'a'"], worker)) for worker in (0, 1)]
    assert outcomes[0] != outcomes[1]


def test_serial_execution_never_yields(serial_pool: SerialPool) -> None:
    with pytest.raises(StopIteration) as finished:
        serial_pool.execute("def f(x): return x", ["7"]).send(None)
    assert finished.value.value == [Outcome(Status.OK, "7")]


def test_requests_run_side_by_side_and_in_any_loop() -> None:
    """As in an actor: the event loop is not in the main thread."""
    results: list[list[Outcome]] = []

    async def play() -> None:
        pool = SandboxPool(ExecutorSettings(timeout_s=0.5))
        await pool.start()
        requests = [pool.execute("def f(x): return x * x", [str(i)], i % 3 if i % 3 < 2 else None) for i in range(40)]
        results.extend(await asyncio.gather(*requests))
        await pool.close()
        assert pool.pids == [None] * pool.seeds

    thread = threading.Thread(target=asyncio.run, args=(play(),))
    thread.start()
    thread.join()
    assert [outcome.value for (outcome,) in results] == [str(i * i) for i in range(40)]


def test_a_cancelled_request_keeps_its_sandbox_until_it_ends() -> None:
    async def play() -> None:
        pool = SandboxPool(ExecutorSettings(timeout_s=0.3))
        await pool.start()
        running = asyncio.create_task(pool.execute(LOOP, ["1"], 0))
        waiting = asyncio.create_task(pool.execute(LOOP, ["1"], 0))
        await asyncio.sleep(0)
        running.cancel()
        waiting.cancel()
        assert (await pool.execute(LOOP, ["0"], 0))[0].value == "0"
        assert running.cancelled()
        assert waiting.cancelled()
        await pool.close()

    asyncio.run(play())


def test_close_fails_what_is_under_way() -> None:
    async def play() -> list[object]:
        pool = SandboxPool(ExecutorSettings(timeout_s=60))
        await pool.start()
        requests = [asyncio.create_task(pool.execute(LOOP, ["1"], 0)) for _ in range(3)]
        await asyncio.sleep(0)
        await pool.close()
        with pytest.raises(InfrastructureError):
            await pool.execute(LOOP, ["0"])
        return await asyncio.gather(*requests, return_exceptions=True)

    assert [type(result) for result in asyncio.run(play())] == [InfrastructureError] * 3


def test_a_dead_sandbox_is_replaced_and_its_request_repeated(serial_pool: SerialPool) -> None:
    dead = serial_pool.pids[0]
    assert dead is not None
    os.kill(dead, signal.SIGKILL)
    assert asyncio.run(serial_pool.execute("def f(x): return x", ["1"]))[0].value == "1"
    assert serial_pool.pids[0] not in (None, dead)


@pytest.mark.slow
def test_a_wedged_sandbox_is_replaced(serial_pool: SerialPool, monkeypatch: pytest.MonkeyPatch) -> None:
    wedged = serial_pool.pids[0]
    assert wedged is not None
    monkeypatch.setattr(request, "GRACE_S", 0.5)
    os.kill(wedged, signal.SIGSTOP)
    assert asyncio.run(serial_pool.execute("def f(x): return x", ["1"]))[0].value == "1"
    assert serial_pool.pids[0] not in (None, wedged)


def test_a_sandbox_that_fails_twice_is_an_error_and_no_verdict(
    serial_pool: SerialPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(request, "GRACE_S", -60)
        with pytest.raises(InfrastructureError, match="twice"):
            asyncio.run(serial_pool.execute(LOOP, ["1"]))  # can't answer before that deadline
    assert asyncio.run(serial_pool.execute("def f(x): return x", ["1"]))[0].value == "1"


_ORPHANS = """
import asyncio, os, signal
from executor.pool import {pool}
from executor.settings import ExecutorSettings
async def main():
    pool = {pool}(ExecutorSettings(timeout_s=600))
    await pool.start()
    print(*filter(None, pool.pids), flush=True)
    input()
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""


@pytest.mark.parametrize("pool", ["SandboxPool", "SerialPool"])
def test_sandboxes_die_with_their_process(pool: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _ORPHANS.format(pool=pool)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    ) as process:  # fmt: skip
        assert process.stdin
        assert process.stdout
        handles = [os.pidfd_open(int(pid)) for pid in process.stdout.readline().split()]
        process.communicate("\n")
    assert process.returncode == -signal.SIGKILL
    assert len(handles) == 2
    for handle in handles:
        assert select.select([handle], [], [], 10)[0], "a sandbox outlived its supervisor"
        os.close(handle)


_WITHOUT_SECCOMP = """
import asyncio, struct
from executor.sandbox import jail
from executor.pool import SerialPool
from executor.settings import ExecutorSettings
column = jail._machine()[0]
prctl = jail._SERVER_ONLY["prctl"][column]
jail._prctl(jail.PR_SET_NO_NEW_PRIVS, 1)
refuse = [(0x20, 0, 0, 0), (0x15, 0, 3, prctl), (0x20, 0, 0, 16), (0x15, 0, 1, jail.PR_SET_SECCOMP),
          (0x06, 0, 0, jail.ERRNO | 22), (0x06, 0, 0, jail.ALLOW)]
jail._install(b"".join(struct.pack("=HBBI", *step) for step in refuse))
asyncio.run(SerialPool(ExecutorSettings()).start())
"""


def test_without_seccomp_nothing_runs() -> None:
    """On a kernel that refuses the filter, the pool does not start, and says why."""
    result = subprocess.run(
        [sys.executable, "-c", _WITHOUT_SECCOMP], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert result.returncode == 1
    assert "InfrastructureError: the wall is too weak" in result.stderr
    assert "seccomp" in result.stderr


@pytest.mark.parametrize(
    ("program", "values"),
    [
        ("def f(x): return x", ["1", "2"]),
        ("def f(x): return 7", ["7", "7", "7", "7"]),
        ("def f(x): return 7 if x < 3 else x", ["7", "7", "3"]),
        ("def f(x): return 1 // (2 - x) * 0", ["0", "error", "0", "0"]),
        ("def f(x): return 5 // (1 - x)", ["error", "-5", "-3"]),
        ("def f(x):\n while x == 2: pass\n return 1", ["1"]),
        ("def f(x): return {8, 1, x // 9}", ["{0, 1, 8}"] * 4),
        ("def f(x): return bytearray(1 << 40)", ["memory"]),
        ("def f(x): return 1 +", ["error"] * 4),
    ],
)
def test_a_probe_stops_where_a_value_differs(serial_pool: SerialPool, program: str, values: list[str]) -> None:
    outcomes = asyncio.run(serial_pool.probe(program, ["1", "2", "3", "4"], stop_at_difference=True))
    assert [outcome.value or outcome.status.value for outcome in outcomes] == values


def test_a_probe_of_nothing_runs_nothing(serial_pool: SerialPool) -> None:
    before = serial_pool.stats.executions
    assert asyncio.run(serial_pool.probe("def f(x): return 1", [])) == []
    assert serial_pool.stats.executions == before
