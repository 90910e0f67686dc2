"""Many executions in a row: does the rate fall, does memory grow?"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from executor.outcomes import Status
from executor.pool import SandboxPool
from executor.settings import ExecutorSettings
from launch.bench.executor_paths import CALLERS_PER_WORKER, ERROR_PROGRAM, PROGRAM, new_program
from launch.bench.report import Goal, Report, progress

PARTS = 10
# Of twenty calls: thirteen of a program seen before, four of new ones, one that fails, two batches of ten.
_BATCH, _TURNS = 10, 20
_NEW, _ERROR, _BATCHES = 13, 17, 18
GOALS = {
    "rate_last_over_first": Goal(0.9),
    "sandbox_memory_last_over_first": Goal(1.1, at_most=True),
    "own_memory_last_over_first": Goal(1.1, at_most=True),
}


def run(executions: int, workers: int) -> Report:
    """Run `executions` in tenths, by many callers on `workers` sandboxes.

    Ctrl-C ends it with the tenths that are complete, and a note `interrupted`. Raises InfrastructureError.
    """
    report = Report("executor endurance", settings={"executions": executions, "workers": workers})
    report.notes["memory"] = memory_note()
    try:
        with progress(PARTS) as step:
            asyncio.run(_run(executions, workers, report, step))
    except KeyboardInterrupt:
        report.notes["interrupted"] = f"stopped after {len(report.rows)} of {PARTS} parts"
    if len(report.rows) > 1:
        first, last = report.rows[0], report.rows[-1]
        for name, key in (("rate", "rate"), ("sandbox_memory", "sandbox_mib"), ("own_memory", "own_mib")):
            ratio = f"{name}_last_over_first"
            report.ratio(ratio, [last[key] / first[key]], GOALS[ratio])
    return report


async def _run(executions: int, workers: int, report: Report, step: Callable[[str], None]) -> None:
    pool = SandboxPool(ExecutorSettings(workers=workers))
    await pool.start()
    try:
        for part in range(1, PARTS + 1):
            step(f"tenth {part} of {PARTS}")
            target = executions * part // PARTS - executions * (part - 1) // PARTS
            report.rows.append(await _part(pool, part, target))
        report.settings["tier"] = pool.tier.value
        report.notes["replaced"] = f"{pool.stats.replaced} fork servers were replaced"
    finally:
        await pool.close()


async def _part(pool: SandboxPool, part: int, target: int) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    started = loop.time()
    done = turn = 0

    async def caller() -> None:
        nonlocal done, turn
        while done < target:
            mine, turn = turn % _TURNS, turn + 1
            program = PROGRAM if mine < _NEW or mine >= _BATCHES else new_program() if mine < _ERROR else ERROR_PROGRAM
            inputs = [str(turn + i) for i in range(_BATCH if mine >= _BATCHES else 1)]
            done += len(inputs)
            outcomes = await pool.execute(program, inputs)
            expected = Status.ERROR if program == ERROR_PROGRAM else Status.OK
            assert all(outcome.status is expected for outcome in outcomes), outcomes

    await asyncio.gather(*(caller() for _ in range(CALLERS_PER_WORKER * pool.workers)))
    seconds = loop.time() - started
    sandboxes = sum(memory_mib(pid) for pid in pool.pids if pid)
    own = memory_mib(os.getpid(), with_children=False)
    return {
        "path": f"tenth {part}", "unit": "executions", "rate": round(done / seconds, 1), "rate_min": None,
        "rate_max": None, "p50_ms": None, "p99_ms": None, "executions": done, "sandbox_mib": round(sandboxes, 2),
        "own_mib": round(own, 2), "detail": f"sandboxes {sandboxes:.1f} MiB, this process {own:.1f} MiB",
    }  # fmt: skip


def memory_mib(pid: int, with_children: bool = True) -> float:
    """A process's memory in MiB, with that of its descendants: its share of what it uses, or all that it uses."""
    process = Path("/proc") / str(pid)
    try:
        rollup = (process / "smaps_rollup").read_text()
        mib = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")) / 1024
    except PermissionError:  # the sandbox is not dumpable, so an ordinary user may not look
        mib = int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except (FileNotFoundError, ProcessLookupError, StopIteration):
        return 0.0  # a child that has ended meanwhile
    if with_children:
        for children in process.glob("task/*/children"):
            mib += sum(memory_mib(int(child)) for child in children.read_text().split())
    return mib


def memory_note() -> str:
    """Which of the two measures of memory this user gets."""
    if os.geteuid() == 0:
        return "proportional set size: shared pages are divided among those who share them"
    return "resident set size of the sandboxes, proportional set size of this process"
