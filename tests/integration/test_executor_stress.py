"""Pools under attack, under fire, and abandoned: nobody else's result is ever wrong, and nothing is left behind.

The attacks are those of `tests/unit/executor/attacks`, here many times over in random order on two workers at once.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import ctypes
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from actors.environment import Environment
from executor.judge import Judge
from executor.outcomes import InfrastructureError, Limits, Outcome, Status
from executor.pool import SandboxPool
from executor.sandbox import request, sandbox
from executor.settings import ExecutorSettings
from executor.tasks import Proposal
from launch.bench import mix
from tests.unit.executor.attacks import ATTACKS, MARK, SYSV_KEY, attempt

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

ROOT = Path(sandbox.__file__).parents[2]
TIMES = 3
SEED = 20261124
PR_SET_CHILD_SUBREAPER = 36
DEADLINE_S = 60.0
"""For a condition that is waited for; usually it holds at once."""
LOOP = "def f(x):\n while x: pass\n return x"
WORK = "def f(x):\n n = 0\n for i in range(200_000): n += i % 7\n return [x, n]"
ANSWER = sum(i % 7 for i in range(200_000))


def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, what
        os.sched_yield()


def family(root: int) -> set[int]:
    """All that `root` started, and what that started, as far as it runs or waits to be reaped."""
    parents: dict[int, list[int]] = collections.defaultdict(list)
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            parents[int(path.read_text().rpartition(")")[2].split()[1])].append(int(path.parent.name))
    found: set[int] = set()
    rest = [root]
    while rest:
        for pid in parents[rest.pop()]:
            if pid not in found:
                found.add(pid)
                rest.append(pid)
    return found


def left_behind() -> set[str]:
    """Files and System V objects that bear the attacks' mark, and our own descriptors."""
    found = {
        f"{folder}/{name}"
        for folder in ("/tmp", "/var/tmp", "/dev/shm", ".")
        for name in os.listdir(folder)
        if MARK in name
    }
    for kind in ("shm", "sem", "msg"):
        table = Path("/proc/sysvipc") / kind
        if table.is_file():
            keys = [int(row.split()[0]) for row in table.read_text().splitlines()[1:]]
            found |= {f"{kind} {key}" for key in keys if key == SYSV_KEY}
    return found


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """Orphans become this process's children, so that none can hide."""
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    before, files = family(os.getpid()), left_behind()
    descriptors = len(os.listdir("/proc/self/fd"))
    try:
        yield
        eventually(lambda: family(os.getpid()) <= before, "processes were left behind")
        assert left_behind() == files
        assert len(os.listdir("/proc/self/fd")) <= descriptors
    finally:
        libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


@contextlib.asynccontextmanager
async def started(settings: ExecutorSettings, gate: bool = True) -> AsyncIterator[SandboxPool]:
    pool = SandboxPool(settings, gate=gate)
    await pool.start()
    try:
        yield pool
    finally:
        await pool.close()


async def each(work: list[Callable[[], object]], width: int) -> list[object]:
    """Await all, `width` at a time, in the given order."""
    rest = iter(work)
    results: list[object] = []

    async def one() -> None:
        for make in rest:
            results.append(await make())  # type: ignore[misc]

    await asyncio.gather(*[one() for _ in range(width)])
    return results


@pytest.mark.deep
def test_attacks_many_times_in_random_order() -> None:
    settings = ExecutorSettings(timeout_s=0.4, memory_mb=64)

    async def play() -> None:
        async with started(settings) as gated, started(settings, gate=False) as open_pool:
            judges = {True: Judge(gated, settings), False: Judge(open_pool, settings)}
            # What the wall stops, the policy must not let pass either; but what it says about it is its own affair.
            attacks = [(attack, attack.gate) for attack in ATTACKS * TIMES]
            random.Random(SEED).shuffle(attacks)
            work = [lambda a=attack, g=gate: attempt(judges[g], a) for attack, gate in attacks]
            complaints = [complaint for complaint in await each(work, 4) if complaint]
            assert not complaints
            assert gated.stats.replaced == open_pool.stats.replaced == 0, "a fork server died"

    asyncio.run(play())


def test_attacks_on_the_wall_do_not_get_past_the_policy_either() -> None:
    settings = ExecutorSettings(timeout_s=0.3, memory_mb=64)
    attacks = [attack for attack in ATTACKS if not attack.gate]

    async def play() -> None:
        async with started(settings) as pool:
            judge = Judge(pool, settings)
            for attack in attacks:
                outcome = await judge.determine(attack.program, attack.given)
                if outcome.status is Status.OK:
                    assert not attack.complaint(outcome)

    asyncio.run(play())


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP])
def test_a_server_that_is_struck_mid_request_costs_nobody_a_result(
    blow: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed, or stopped for good: it is replaced, and its request is run again."""
    monkeypatch.setattr(request, "GRACE_S", 0.5)
    blows = 6 if blow is signal.SIGKILL else 2

    async def play() -> None:
        async with started(ExecutorSettings(timeout_s=1.5)) as pool:
            for turn in range(blows):
                struck = turn % 2
                pid = pool.pids[struck]
                assert pid is not None
                inputs = list(range(6))
                requests = [asyncio.create_task(pool.execute(WORK, [str(i)], (struck + i) % 2)) for i in inputs]
                # The next request of this sandbox is on its way when the first has come back.
                await asyncio.wait([requests[0]])
                os.kill(pid, blow)
                outcomes = [(await request)[0] for request in requests]
                assert outcomes == [Outcome(Status.OK, f"[{i}, {ANSWER}]") for i in inputs]
                assert pool.pids[struck] not in (None, pid)
                assert pool.stats.replaced == turn + 1
            assert pool.stats.running == pool.stats.waiting == 0

    asyncio.run(play())


def test_closing_a_busy_pool() -> None:
    async def play() -> None:
        for _ in range(3):
            async with started(ExecutorSettings(timeout_s=600)) as pool:
                requests = [asyncio.create_task(pool.execute(LOOP, ["1"])) for _ in range(8)]
                while pool.stats.running < 2 or pool.stats.waiting < 6:
                    await asyncio.sleep(0)
            results = await asyncio.gather(*requests, return_exceptions=True)
            assert [type(result) for result in results] == [InfrastructureError] * 8

    asyncio.run(play())


HOGS = 4
SHARES = (0.1, 0.25, 0.4, 0.55)
"""CPU time of programs, in parts of their limit."""


@contextlib.contextmanager
def hogs(count: int) -> Iterator[None]:
    """Processes that compute without end."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


@pytest.mark.deep
def test_verdicts_beside_busy_processes_are_those_of_a_quiet_machine() -> None:
    """Recorded work, and programs that use up to half of their CPU time, or much more than all of it.

    A busy machine makes the same work use more CPU time (caches, hyper-threads), so nothing here is close to the limit.
    """
    settings = ExecutorSettings(timeout_s=1.0)
    items = mix.sample(mix.load(mix.SHIPPED), 30)
    loop = "def f(n):\n t = 0\n for i in range(n): t += i * i % 7\n return t"

    async def judge_all(sizes: list[int]) -> list[object]:
        async with started(settings) as pool:
            judge = Judge(pool, settings)
            environment = Environment(judge)
            found: list[object] = [(await judge.determine(loop, str(size))).status for size in sizes]
            for item in items:
                if isinstance(item, Proposal):
                    found.append(await environment.validate(item))
                else:
                    found.append(await environment.verify_all(item.task, item.answers))
            return found

    async def cpu_s(size: int) -> float:
        """What `loop` uses in a sandbox, from the time that its limit must have."""
        low, high = 0.0, 8.0
        async with started(settings) as pool:
            while high - low > 0.1:
                middle = (low + high) / 2
                limits = Limits(middle, settings.memory_mb, settings.output_bytes)
                (outcome,) = await pool.execute(loop, [str(size)], limits=limits)
                low, high = (low, middle) if outcome.status is Status.OK else (middle, high)
        return high

    unit = asyncio.run(cpu_s(4_000_000)) / 4_000_000
    sizes = [int(share * settings.timeout_s / unit) for share in SHARES] + [int(4 * settings.timeout_s / unit)]
    quiet = asyncio.run(judge_all(sizes))
    assert quiet[: len(sizes)] == [Status.OK] * len(SHARES) + [Status.TIMEOUT]
    with hogs(HOGS):
        assert asyncio.run(judge_all(sizes)) == quiet


_BUSY = f"""
import asyncio
from executor.pool import SandboxPool
from executor.settings import ExecutorSettings
async def main():
    pool = SandboxPool(ExecutorSettings(timeout_s=600))
    await pool.start()
    requests = [asyncio.create_task(pool.execute({LOOP!r}, ["1"])) for _ in range(4)]
    while pool.stats.running < 2: await asyncio.sleep(0)
    print("busy", flush=True)
    await asyncio.gather(*requests)
asyncio.run(main())
"""


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_dies_takes_its_sandboxes_with_it(blow: signal.Signals) -> None:
    """They are busy, so that each has a running program of its own, too."""
    with subprocess.Popen([sys.executable, "-c", _BUSY], stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout
        assert process.stdout.readline() == "busy\n"
        # The programs run once each sandbox has a process below it that never was there when it was idle.
        eventually(lambda: busy(family(process.pid)) >= 2, "the programs do not run")
        handles = {pid: os.pidfd_open(pid) for pid in family(process.pid)}
        process.send_signal(blow)
    assert process.returncode == -blow
    for pid, handle in handles.items():
        assert select.select([handle], [], [], DEADLINE_S)[0], f"process {pid} outlived the one that started it"
        os.close(handle)
        with contextlib.suppress(ChildProcessError):  # its own parent reaped it
            os.waitpid(pid, 0)


def busy(pids: set[int]) -> int:
    """How many of them use the processor, now."""
    states = []
    for pid in pids:
        with contextlib.suppress(OSError):
            states.append(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0])
    return states.count("R")
