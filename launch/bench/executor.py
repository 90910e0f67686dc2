"""The executor measured: by path, in turns with what it is compared with, and on recorded self-play work.

Every run goes through all paths twice, the second time backwards, so that a machine that slows down does so for both sides of
a ratio. Single executions are measured on a sandbox that blocks, without an event loop; many callers on a pool.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actors.environment import Environment
from executor.judge import Judge, JudgeStats
from executor.pool import SandboxPool
from executor.sandbox import Outcome, Sandbox, Status
from executor.settings import ExecutorSettings
from executor.tasks import Proposal, Task
from launch.bench import PATHS, mix
from launch.bench.peers import Fork, PeerError, Reference, bubblewrap, fresh_python
from launch.bench.report import (
    Goal,
    Report,
    Samples,
    Slice,
    by_run,
    describe_versions,
    percentile,
    progress,
    take_turns,
)

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
MIX_TIMEOUT_S = 1.0
IN_FLIGHT = 64
"""Items of the mix that are judged at the same time, on both sides. A rollout actor has more under way."""
CALLERS_PER_WORKER = 4

GOALS = {
    "isolated_over_fork": Goal(0.5),
    "new_program_over_fork": Goal(0.36),
    "batch10_over_fork": Goal(4.5),
    "batch50_over_fork": Goal(13),
    "hardened_over_bare": Goal(0.9),
    "two_workers_over_one": Goal(1.8),
    "p99_over_p50": Goal(2, at_most=True),
    "mix_over_reference": Goal(5),
    "timeout_overshoot_ms": Goal(50, at_most=True),
}

_numbers = itertools.count()


def new_program() -> str:
    """A program like PROGRAM that this process has not given before."""
    return PROGRAM.replace("index * n + 3", f"index * n + {next(_numbers) + 4}")


@dataclass(frozen=True)
class Options:
    """What to measure: runs, a path's seconds in each, the pools' workers, the paths, and a mix other than the shipped one."""

    runs: int = 5
    seconds: float = 0.5
    workers: int = 2
    only: frozenset[str] = frozenset(PATHS)
    mix: Path | None = None


@dataclass
class _Path:
    """One path: its key, how to measure it for some seconds, and its samples."""

    key: str
    samples: Samples
    measure: Callable[[float], Slice]
    detail: str = ""


@dataclass
class _Bench:
    """What is open while the benchmark runs."""

    options: Options
    stack: ExitStack
    report: Report
    paths: dict[str, _Path] = field(default_factory=dict)
    sequence: list[str] = field(default_factory=list)
    """Keys of `paths` in the order of one pass; F comes several times."""

    def add(
        self, key: str, name: str, measure: Callable[[float], Slice], unit: str = "executions", detail: str = ""
    ) -> None:
        """A path at the end of the pass."""
        self.paths[key] = _Path(key, Samples(name, unit), measure, detail)
        self.sequence.append(key)

    def wants(self, *keys: str) -> bool:
        """Whether any of these was asked for."""
        return not self.options.only.isdisjoint(keys)


def run(options: Options) -> Report:
    """Measure. Ctrl-C ends it with the runs that are complete, and a note `interrupted`.

    Raises InfrastructureError or PeerError where there is no sandbox or no F, mix.MixError for a mix that cannot be read.
    """
    work = mix.load(options.mix or mix.SHIPPED) if "mix" in options.only else None
    settings = ExecutorSettings(workers=options.workers)
    report = Report(
        "executor",
        settings={
            "runs": options.runs, "seconds": options.seconds, "workers": options.workers,
            "only": sorted(options.only), "timeout_s": settings.timeout_s, "memory_mb": settings.memory_mb,
        },
        versions=describe_versions(("azr", "pebble")),
    )  # fmt: skip
    load, cores = report.machine["load_at_start"], report.machine["cores"]
    if load > 0.3 * cores:
        report.notes["load"] = f"the machine was busy at the start ({load} on {cores} cores); don't trust these figures"
    with ExitStack() as stack:
        bench = _Bench(options, stack, report)
        _open_paths(bench, settings)
        comparison = _Comparison(bench, work) if work else None
        mixes = list(comparison.samples.values()) if comparison else []
        done = 0
        try:
            with progress(options.runs * (2 * len(bench.sequence) + len(mixes))) as step:
                for number in range(1, options.runs + 1):

                    def say(text: str, number: int = number) -> None:
                        step(f"run {number} of {options.runs}: {text}")

                    for key in [*bench.sequence, *reversed(bench.sequence)]:
                        say(key)
                        path = bench.paths[key]
                        # F is there more than once, and shares its time.
                        path.samples.add(path.measure(options.seconds / 2 / bench.sequence.count(key)))
                    if comparison:
                        comparison.measure(say, backwards=number % 2 == 0)
                    for samples in [path.samples for path in bench.paths.values()] + mixes:
                        samples.end_run()
                    done = number
        except KeyboardInterrupt:
            report.notes["interrupted"] = f"stopped after {done} of {options.runs} runs"
    if done:
        _conclude(bench)
        if comparison:
            comparison.conclude()
    return report


def _open_paths(bench: _Bench, settings: ExecutorSettings) -> None:
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
            outcomes = sandbox.execute(program(), [str(start + i) for i in range(inputs)])
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
            bench.add(f"batch{inputs}", f"batch of {inputs}", single(sandbox, lambda: PROGRAM, inputs), "inputs")
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


def _sandbox(bench: _Bench, settings: ExecutorSettings, **options: Any) -> Sandbox:
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


def _open_pool(bench: _Bench, settings: ExecutorSettings) -> None:
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
    bench.add("one10", "one worker, batches of 10", many(0, 10), "inputs")
    bench.add("all10", f"{all_of_them}, batches of 10", many(None, 10), "inputs")


def _open_peers(bench: _Bench) -> None:
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


def _conclude(bench: _Bench) -> None:
    """Rows and ratios."""
    report, paths = bench.report, bench.paths
    over_fork = {
        "cached": "isolated_over_fork", "new": "new_program_over_fork", "batch10": "batch10_over_fork",
        "batch50": "batch50_over_fork",
    }  # fmt: skip
    ratios = [(ratio, key, "fork") for key, ratio in over_fork.items()] + [("hardened_over_bare", "cached", "bare")]
    if bench.options.workers == 2:
        ratios += [("two_workers_over_one", "all", "one"), ("two_workers_over_one_batch10", "all10", "one10")]
    else:
        ratios += [("all_workers_over_one", "all", "one"), ("all_workers_over_one_batch10", "all10", "one10")]
        report.notes["two_workers_over_one"] = (
            f"measured with {bench.options.workers} workers: see all_workers_over_one"
        )
    ratios += [("isolated_over_pebble", "cached", "pebble")]
    for ratio, over, under in ratios:
        if over in paths and under in paths:
            report.ratio(ratio, by_run(paths[over].samples.rates, paths[under].samples.rates), GOALS.get(ratio))
    if "cached" in paths:
        samples = paths["cached"].samples
        values = by_run(samples.latency_ms(99), samples.latency_ms(50))
        report.ratio("p99_over_p50", values, GOALS["p99_over_p50"])
    if "timeout" in paths:
        path = paths["timeout"]
        overshoot = [latency - 1000 * TIMEOUT_S for latency in path.samples.latency_ms(100)]
        path.detail = f"late by {percentile(overshoot, 50):.1f} ms at worst"
        report.figures["timeout_overshoot_ms"] = percentile(overshoot, 50)
        report.goals["timeout_overshoot_ms"] = GOALS["timeout_overshoot_ms"]
    report.rows += [path.samples.row(path.detail) for path in paths.values()]


class _Comparison:
    """Recorded work, judged here and in the reference's way, in turns."""

    def __init__(self, bench: _Bench, work: mix.Mix) -> None:
        self._bench = bench
        self._work = work
        self._settings = ExecutorSettings(workers=bench.options.workers, timeout_s=MIX_TIMEOUT_S)
        self._ours: list[list[str]] = []
        self._theirs: list[list[str]] = []
        self._shared = JudgeStats()
        self.samples = {"ours": Samples("mix, here", "judgements")}
        bench.report.settings["mix"] = {"file": str(bench.options.mix or "shipped"), **work.header}
        bench.report.notes["mix"] = work.describe()
        try:
            self._reference = bench.stack.enter_context(
                Reference(bench.options.workers, MIX_TIMEOUT_S, self._settings.memory_mb)
            )
            self._reference.load(bench.options.mix or mix.SHIPPED)
        except PeerError as error:
            bench.report.notes["mix_over_reference"] = str(error)
        else:
            self.samples["full"] = Samples("the same, its pool kept full", "judgements")
            self.samples["published"] = Samples("mix, the reference's way", "judgements")

    def measure(self, step: Callable[[str], None], backwards: bool) -> None:
        """Every side once."""
        count = self._work.proposals + self._work.verifications
        for key in reversed(self.samples) if backwards else self.samples:
            step(f"mix, {key}")
            if key == "ours":
                seconds, self._ours = asyncio.run(self._judge())
            else:
                allowed_s = 60.0 + count * MIX_TIMEOUT_S
                seconds, self._theirs = self._reference.judge(allowed_s, IN_FLIGHT if key == "full" else None)
            self.samples[key].add(Slice(count, seconds))

    async def _judge(self) -> tuple[float, list[list[str]]]:
        """Judge the mix once on a pool that has seen nothing of it: the seconds, and the findings of every item."""
        loop = asyncio.get_running_loop()
        pool = SandboxPool(self._settings)
        environment = Environment(Judge(pool, self._settings))
        findings: list[list[str]] = [[] for _ in self._work.items]
        waiting = iter(enumerate(self._work.items))

        async def caller() -> None:
            for index, item in waiting:
                if isinstance(item, Proposal):
                    result = await environment.validate(item)
                    findings[index] = ["ok" if isinstance(result, Task) else result.reason.value]
                else:
                    verdicts = await environment.verify_all(item.task, item.answers)
                    findings[index] = [verdict.reason.value for verdict in verdicts]

        await pool.start()
        try:
            started = loop.time()
            await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))
            self._shared = environment.stats
            return loop.time() - started, findings
        finally:
            await pool.close()

    def conclude(self) -> None:
        """Rows, ratios, and where the two sides differ."""
        report = self._bench.report
        rates = {key: samples.rates for key, samples in self.samples.items()}
        report.rows += [samples.row() for samples in self.samples.values()]
        shared = self._shared
        report.notes["mix_sharing"] = (
            f"{shared.executed} calls of programs here; of {shared.answers} answers {shared.shared_equal} were judged by an "
            f"equal one of the same task and {shared.shared_own} were the task's own input or program; "
            f"{shared.memo_hits} calls were remembered"
        )
        if "full" not in rates:
            return
        report.ratio("mix_over_reference", by_run(rates["ours"], rates["published"]), GOALS["mix_over_reference"])
        report.ratio("mix_over_reference_kept_full", by_run(rates["ours"], rates["full"]))
        report.notes["mix_agreement"] = agreement(self._work.items, self._ours, self._theirs)


def agreement(items: Sequence[mix.Item], ours: Sequence[Sequence[str]], theirs: Sequence[Sequence[str]]) -> str:
    """How many judgements accept on one side and refuse on the other, by both sides' reasons."""
    accepted = ("ok", "correct")
    total = 0
    differences: Counter[str] = Counter()
    for item, one, other in zip(items, ours, theirs, strict=True):
        name = f"validation ({item.kind})" if isinstance(item, Proposal) else f"verification ({item.task.kind})"
        for finding, reference in zip(one, other, strict=True):
            total += 1
            if (finding in accepted) != (reference in accepted):
                differences[f"{name}: here {finding}, there {reference}"] += 1
    text = f"{differences.total()} of {total} judgements differ between the two ways"
    return text + "".join(f"; {count} x {what}" for what, count in differences.most_common())
