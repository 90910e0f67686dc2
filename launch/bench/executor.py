"""The executor measured: by path, in turns with what it is compared with, and on recorded self-play work.

Every run goes through all paths twice, the second time backwards, so that a machine that slows down does so for both
sides of a ratio. `executor_paths.py` has the paths, `mix_comparison.py` the recorded work.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path

from executor.settings import ExecutorSettings
from launch.bench import endurance, mix
from launch.bench.executor_paths import PATHS, TIMEOUT_S, Bench, Options, open_paths
from launch.bench.mix_comparison import GOAL as MIX_GOAL
from launch.bench.mix_comparison import Comparison
from launch.bench.options import add_seconds, between, positive
from launch.bench.report import Goal, Report, by_run, describe_versions, percentile, progress

GOALS = {
    "isolated_over_fork": Goal(0.5),
    "new_program_over_fork": Goal(0.36),
    "batch10_over_fork": Goal(4.5),
    "batch50_over_fork": Goal(13),
    "hardened_over_bare": Goal(0.9),
    "two_workers_over_one": Goal(1.8),
    "p99_over_p50": Goal(2, at_most=True),
    "mix_over_reference": MIX_GOAL,
    "timeout_overshoot_ms": Goal(50, at_most=True),
}

RUNS = 5

DESCRIPTION = """\
Measures executions a second and latency of the sandbox by path, in turns with what it is compared with: F, the fork,
exit and wait of a process with the sandbox's modules loaded; a fresh `python -I` for each; bubblewrap, where
installed; and a warm pebble pool that runs programs in process without isolation, the public reference's way. Then
recorded self-play work (`mix`), judged here and in the reference's way.

A ratio is the median over the runs, with the least and the greatest. Run it on a machine that does nothing else.
"""

EXAMPLES = """\
paths:
  cached, new           one execution of a program seen before, or never seen before
  batch10, batch50      10 or 50 inputs of one program, counted in inputs
  error, timeout        a program that raises; one that never ends, by how much the limit is overshot
  bare                  the same server with every layer of the wall switched off, for hardened_over_bare
  workers               many callers on all workers, and on one of them
  python, bubblewrap    a fresh interpreter for every execution, and the same in namespaces of its own
  pebble                the public reference's way, one execution after another (pip install 'azr[bench]')
  mix                   recorded self-play work: validations with two runs, verifications of all three kinds

examples:
  azr bench executor                                 everything, one to two minutes
  azr bench executor --only cached new --runs 3      two paths and F
  azr bench executor --json executor.json            the same findings as JSON too
  azr bench executor --only mix --mix runs/NAME/executor_work.rollout0.jsonl     your own run's (executor.record_work)
  azr bench executor --endurance 100000              does rate or memory drift?
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `azr bench executor`."""
    add_seconds(parser, 0.5, "a path's time in each run")
    workers = between(2, 512, "at least 2, since determinism is checked across two sandboxes, at most 512")
    parser.add_argument(
        "--workers", type=workers, default=2, metavar="N", help="sandboxes, and processes of the reference (default 2)"
    )
    parser.add_argument("--mix", type=Path, metavar="FILE", help="recorded work in place of the one that ships")
    parser.add_argument(
        "--only", nargs="+", choices=PATHS, metavar="PATH", help="these paths (default: all; see below)"
    )
    parser.add_argument(
        "--endurance", type=positive(int), metavar="N", help="N executions instead; rate and memory at every tenth"
    )


def measure(arguments: argparse.Namespace) -> Report:
    """Measure as the command line says. Raises UserError."""
    if arguments.endurance:
        return endurance.run(arguments.endurance, arguments.workers)
    only = frozenset(arguments.only or PATHS)
    return run(Options(arguments.runs, arguments.seconds, arguments.workers, only, arguments.mix))


def run(options: Options) -> Report:
    """Measure. Ctrl-C ends it with the runs that are complete, and a note `interrupted`.

    Raises InfrastructureError or PeerError where there is no sandbox or no F, mix.MixError for a mix that cannot be
    read.
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
        bench = Bench(options, stack, report)
        open_paths(bench, settings)
        comparison = Comparison(bench, work) if work else None
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


def _conclude(bench: Bench) -> None:
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
