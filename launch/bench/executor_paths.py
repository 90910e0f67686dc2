"""The paths that `azr bench executor` measures: what each calls, and what has to be open for it.

Single executions are measured on a sandbox that blocks, without an event loop; many callers on a pool.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from executor.outcomes import Outcome, Status
from executor.pool import SandboxPool
from executor.sandbox.sandbox import Sandbox
from executor.settings import ExecutorSettings
from launch.bench.peers import Fork, PeerError, Reference, bubblewrap, fresh_python
from launch.bench.report import Report, Samples, Slice, take_turns

PATHS = (
    "cached", "new", "batch10", "batch50", "error", "timeout", "bare", "workers", "python", "bubblewrap", "pebble",
    "mix",
)  # fmt: skip
"""Choices of `--only`. F, the fork that the rest is compared with, is always measured."""

PROGRAM = """\
def f(n):
    words = ["alpha", "beta", "gamma", "delta"]
    counts = {}
    for index in range(20):
        word = words[(index * n + 3) % len(words)]
        counts[word] = counts.get(word, 0) + index
    total = sum(value for value in counts.values() if value % 2 == 0)
    ordered = sorted(counts.items(), key=lambda item: (item[1], item[0]))
    label = "-".join(word.upper() for word, _ in ordered)
    return [label, total, counts]
"""
ERROR_PROGRAM = "def f(n):\n    return [n][n + 1]\n"
ENDLESS_PROGRAM = "def f(n):\n    while True:\n        n += 1\n"

TIMEOUT_S = 0.25
"""The limit of the timeout path: what counts is by how much it is overshot."""
CALLERS_PER_WORKER = 4

MIX_TIMEOUT_S = 1.0
"""Wall-clock limit of a program of the mix, on both sides."""

_numbers = itertools.count()


def new_program() -> str:
    """A program like PROGRAM that this process has not given before."""
    return PROGRAM.replace("index * n + 3", f"index * n + {next(_numbers) + 4}")


@dataclass(frozen=True)
class Options:
    """Options of the benchmark: runs, a path's seconds in each, workers of the pools, paths, a mix other than the
    shipped one."""

    runs: int = 5
    seconds: float = 0.5
    workers: int = 2
    only: frozenset[str] = frozenset(PATHS)
    mix: Path | None = None


@dataclass
class MeasuredPath:
    """One path: its key, how to measure it for some seconds, and its samples."""

    key: str
    samples: Samples
    measure: Callable[[float], Slice]
    detail: str = ""


@dataclass
class Bench:
    """The state of a running benchmark: options, open resources, report, paths."""

    options: Options
    stack: ExitStack
    report: Report
    paths: dict[str, MeasuredPath] = field(default_factory=dict)
    sequence: list[str] = field(default_factory=list)
    """Keys of `paths` in the order of one pass; F comes several times."""

    def add(
        self, key: str, name: str, measure: Callable[[float], Slice], unit: str = "executions", detail: str = ""
    ) -> None:
        """A path at the end of the pass."""
        self.paths[key] = MeasuredPath(key, Samples(name, unit), measure, detail)
        self.sequence.append(key)

    def wants(self, *keys: str) -> bool:
        """True if any of these paths was asked for."""
        return not self.options.only.isdisjoint(keys)


def open_paths(bench: Bench, settings: ExecutorSettings) -> None:
    """Start what is measured, in the order of one pass."""
    seconds_of_f = bench.stack.enter_context(Fork()).measure
    singles = bench.wants("cached", "new", "batch10", "batch50", "error", "bare")
    sandbox = _sandbox(bench, settings) if singles else None
    if sandbox:
        bench.report.settings["tier"] = sandbox.tier.value
        missing = [layer.value for layer, why in sandbox.layers.items() if why]
        if missing:
            bench.report.notes["layers"] = (
                f"tier {sandbox.tier.value}; not in force: {', '.join(missing)} (see azr doctor)"
            )

    def put_fork() -> None:
        if "fork" in bench.paths:
            if bench.sequence[-1] != "fork":
                bench.sequence.append("fork")
        else:
            bench.add("fork", "F: fork, exit, wait", seconds_of_f, detail="runs nothing")

    def single(sandbox: Sandbox, program: Callable[[], str], inputs: int = 1, expected: Status = Status.OK) -> Any:
        numbers = itertools.count()

        def call() -> int:
            start = next(numbers)
            texts = [str(start + i) for i in range(inputs)]
            outcomes = sandbox.probe(program(), texts) if inputs > 1 else sandbox.execute(program(), texts)
            _expect(outcomes, expected, inputs)
            return inputs

        for _ in range(20):  # compiled, cached, pages touched
            call()
        return lambda seconds: take_turns(call, seconds)

    put_fork()
    if sandbox and bench.wants("cached", "bare"):
        bench.add("cached", "program seen before", single(sandbox, lambda: PROGRAM))
    if bench.wants("bare"):
        bare = _sandbox(bench, settings.model_copy(update={"allow_unsafe": True}), layers=frozenset())
        bench.add("bare", "the same without any layer", single(bare, lambda: PROGRAM), detail="no isolation")
    if sandbox and bench.wants("new"):
        bench.add("new", "program never seen", single(sandbox, new_program))
    put_fork()
    for inputs in (10, 50):
        if sandbox and bench.wants(f"batch{inputs}"):
            bench.add(
                f"batch{inputs}",
                f"probe: {inputs} inputs, one child",
                single(sandbox, lambda: PROGRAM, inputs),
                "inputs",
            )
    put_fork()
    if sandbox and bench.wants("error"):
        bench.add("error", "error", single(sandbox, lambda: ERROR_PROGRAM, 1, Status.ERROR))
    if bench.wants("timeout"):
        limited = _sandbox(bench, settings.model_copy(update={"timeout_s": TIMEOUT_S}))

        def time_out() -> int:
            _expect(limited.execute(ENDLESS_PROGRAM, ["1"]), Status.TIMEOUT, 1)
            return 1

        bench.add("timeout", f"timeout, limit {1000 * TIMEOUT_S:.0f} ms", lambda seconds: take_turns(time_out, seconds))
    if bench.wants("workers"):
        _open_pool(bench, settings)
    _open_peers(bench)


def _sandbox(bench: Bench, settings: ExecutorSettings, **options: Any) -> Sandbox:
    sandbox = Sandbox(settings, hash_seed=1, **options)
    bench.stack.callback(sandbox.close)
    sandbox.start()
    return sandbox


def _expect(outcomes: Sequence[Outcome], status: Status, count: int) -> None:
    """A benchmark of something that does not work would be fast."""
    if len(outcomes) != count or any(outcome.status is not status for outcome in outcomes):
        raise PeerError(
            f"the executor gave {[o.status.value for o in outcomes]} where {count} x {status.value} is right"
        )


def _open_pool(bench: Bench, settings: ExecutorSettings) -> None:
    """Many callers: on one worker of a pool, and on all of it."""
    runner = bench.stack.enter_context(asyncio.Runner())
    pool = SandboxPool(settings)
    bench.stack.callback(lambda: runner.run(pool.close()))
    runner.run(pool.start())

    def many(worker: int | None, inputs: int) -> Callable[[float], Slice]:
        async def drive(seconds: float) -> Slice:
            loop = asyncio.get_running_loop()
            started = loop.time()
            texts = [str(i) for i in range(inputs)]
            units = 0

            async def caller() -> None:
                nonlocal units
                while loop.time() - started < seconds or not units:
                    _expect(await pool.execute(PROGRAM, texts, worker), Status.OK, inputs)
                    units += inputs

            await asyncio.gather(*(caller() for _ in range(CALLERS_PER_WORKER * settings.workers)))
            return Slice(units, loop.time() - started)

        for _ in range(2):
            runner.run(drive(0.02))
        return lambda seconds: runner.run(drive(seconds))

    all_of_them = f"{settings.workers} workers"
    bench.add("one", "one worker, many callers", many(0, 1))
    bench.add("all", f"{all_of_them}, many callers", many(None, 1))
    bench.add("one10", "one worker, 10 inputs a request", many(0, 10), "inputs")
    bench.add("all10", f"{all_of_them}, 10 inputs a request", many(None, 10), "inputs")


def _open_peers(bench: Bench) -> None:
    """The ways that are only there for comparison; a note for each that cannot be had."""
    numbers = itertools.count()

    def once(wrapper: tuple[str, ...] = ()) -> Callable[[float], Slice]:
        def call() -> int:
            fresh_python(PROGRAM, str(next(numbers)), wrapper)
            return 1

        return lambda seconds: take_turns(call, seconds)

    if bench.wants("python"):
        bench.add("python", "a fresh python -I", once(), detail="no isolation")
    if bench.wants("bubblewrap"):
        try:
            bench.add("bubblewrap", "bubblewrap --unshare-all", once(bubblewrap()))
        except PeerError as error:
            bench.report.notes["bubblewrap"] = str(error)
    if bench.wants("pebble"):
        try:
            reference = bench.stack.enter_context(Reference(1, MIX_TIMEOUT_S, ExecutorSettings().memory_mb))
        except PeerError as error:
            bench.report.notes["pebble"] = str(error)
        else:
            bench.add(
                "pebble", "warm pebble pool, in process", lambda s: reference.measure(PROGRAM, s), detail="no isolation"
            )
