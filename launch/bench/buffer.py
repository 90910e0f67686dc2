"""The task buffer measured: what a request takes at a thousand, a hundred thousand, a million tasks, or more.

Each request is made to a `TaskBuffer` of each size, in this process: what the actor's own call takes besides (Ray's,
about a millisecond) is not in it. The sizes take turns, the second time backwards. A figure "x over y" is the median
latency at x tasks over that at y. Beside each size: the same draw in the naive way, `ORDER BY RANDOM()`, on the same
file.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from actors.buffer.file import row_of
from actors.buffer.task_buffer import NewTask, TaskBuffer
from executor.tasks import Task
from launch.bench.options import add_seconds, between, check_folder
from launch.bench.peers import PeerError
from launch.bench.report import Goal, Report, Samples, Slice, by_run, progress, take_turns

SIZES = (1_000, 100_000, 1_000_000)
REFERENCES = 6
"""Number of references of a draw, and of a task's proposer."""
MAX_ADDS = 250
"""Most tasks added in one slice: a buffer of a thousand tasks must not grow far beyond that size."""
OPERATIONS = ("add", "references", "replay", "record")
GOAL = Goal(2.0, at_most=True)
RUNS = 3

DESCRIPTION = """\
Measures the task buffer: requests a second and latency of add, references, replay and record at a thousand, a hundred
thousand and a million tasks, and of the same draw in the naive way, ORDER BY RANDOM(). The buffers lie in the folder
for temporary files while they are measured (about half a GiB a million tasks).
"""

EXAMPLES = """\
examples:
  azr bench buffer                                   up to a million tasks, about a minute
  azr bench buffer --tasks 100000                    a few seconds
  azr bench buffer --tasks 10000000 --folder /data   ten million: minutes, and 5 GiB of disk
  azr bench buffer --json buffer.json                the same findings as JSON too
"""

_BODY = """\
    words = {words}
    counts = {{}}
    for index, word in enumerate(words):
        counts[word] = counts.get(word, 0) + index * n
    return sorted(counts.items(), key=lambda item: (item[1], item[0]))[:{number} % 7 + 1]
"""


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    tasks: int = SIZES[-1]
    """The largest buffer."""
    runs: int = 3
    seconds: float = 0.1
    """Seconds of one request at one size, in each half of a run."""
    folder: Path | None = None
    """Folder of the buffers while they are measured; None: the folder for temporary files."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """The buffers' sizes, ascending."""
        return (*(size for size in SIZES if size < self.tasks), self.tasks)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `azr bench buffer`."""
    tasks = between(1000, 100_000_000, "at least 1000 tasks, at most 100 million")
    parser.add_argument(
        "--tasks", type=tasks, default=SIZES[-1], metavar="N", help="the largest buffer (default %(default)s)"
    )
    add_seconds(parser, 0.1, "a request's time at one size, twice in each run")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where the buffers lie while they are measured")


def measure(arguments: argparse.Namespace) -> Report:
    """Measure as the command line says. Raises UserError."""
    if arguments.folder:
        check_folder(arguments.folder, arguments.folder)
    try:
        return run(Options(arguments.tasks, arguments.runs, arguments.seconds, arguments.folder))
    except (OSError, sqlite3.Error) as error:
        raise PeerError(str(error)) from error


class _Filled:
    """A buffer of some size, and the requests that are made to it."""

    def __init__(self, path: Path, size: int) -> None:
        self.size = size
        started = time.perf_counter()
        fill(path, size)
        self.fill_s = time.perf_counter() - started
        started = time.perf_counter()
        self.store = TaskBuffer(path)
        self.open_s = time.perf_counter() - started
        self.bytes = os.path.getsize(path)
        self._naive = sqlite3.connect(path)
        self._naive.execute("PRAGMA cache_size=-65536")
        self._random = random.Random(size)
        self._numbers: Iterator[int] = itertools.count(size + 1)
        self.samples = {name: Samples(f"{name}, {size:,} tasks", "requests") for name in (*OPERATIONS, "naive")}

    def measure(self, name: str, seconds: float) -> Slice:
        """Make one kind of request for a while."""
        if name == "add":
            return self._adds(seconds)
        request: Callable[[], object] = {
            "references": lambda: self.store.references(("deduction",), REFERENCES, str(self._random.random())),
            "replay": lambda: self.store.replay("deduction", str(self._random.random())),
            "record": lambda: self.store.record(self._random.randint(1, self.size), 7, 8, 3),
            "naive": self._drawn_naively,
        }[name]

        def call() -> int:
            request()
            return 1

        return take_turns(call, seconds)

    def close(self) -> None:
        """Close the file."""
        self._naive.close()
        self.store.close()

    def _adds(self, seconds: float) -> Slice:
        """New tasks, made beforehand, so that only the request is timed."""
        tasks = [make_task(next(self._numbers)) for _ in range(MAX_ADDS)]
        latencies: list[float] = []
        started = now = time.perf_counter()
        for task in tasks:
            self.store.add(NewTask(task, task.program, 7, "7.7", references=tuple(range(1, REFERENCES + 1))))
            done = time.perf_counter()
            latencies.append(done - now)
            now = done
            if now - started > seconds:
                break
        return Slice(len(latencies), now - started, latencies)

    def _drawn_naively(self) -> None:
        rows = self._naive.execute(
            "SELECT id, program, inputs, outputs FROM tasks WHERE kind = 'deduction' ORDER BY RANDOM() LIMIT ?",
            (REFERENCES,),
        ).fetchall()
        assert len(rows) == REFERENCES


def run(options: Options) -> Report:
    """Fill the buffers and measure. Ctrl-C ends it with the runs that are complete, and a note `interrupted`. Raises
    OSError and sqlite3.Error, such as for a disk that is full."""
    sizes = options.sizes
    report = Report("buffer", settings={"tasks": options.tasks, "runs": options.runs, "seconds": options.seconds})
    report.versions["sqlite"] = sqlite3.sqlite_version
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="azr-bench-") as folder:
        buffers: list[_Filled] = []
        try:
            with progress(len(sizes) + options.runs * 2 * (len(OPERATIONS) + 1)) as step:
                for size in sizes:
                    step(f"filling {size:,} tasks")
                    buffers.append(_Filled(Path(folder) / f"{size}.sqlite", size))
                for _ in range(options.runs):
                    for backwards in (False, True):
                        for name in (*OPERATIONS, "naive"):
                            step(name)
                            for buffer in reversed(buffers) if backwards else buffers:
                                buffer.samples[name].add(buffer.measure(name, options.seconds))
                    for buffer in buffers:
                        for samples in buffer.samples.values():
                            samples.end_run()
        except KeyboardInterrupt:
            report.notes["interrupted"] = "stopped before the end: only the runs that were complete count"
        finally:
            for buffer in buffers:
                buffer.close()
        _conclude(report, buffers)
    return report


def _conclude(report: Report, buffers: list[_Filled]) -> None:
    """Rows, ratios, notes."""
    for name in (*OPERATIONS, "naive"):
        for buffer in buffers:
            if buffer.samples[name].rates:
                detail = "ORDER BY RANDOM()" if name == "naive" else ""
                report.rows.append(buffer.samples[name].row(detail))
    for buffer in buffers:
        report.notes[f"file_{short(buffer.size)}"] = (
            f"{buffer.size:,} tasks: {buffer.bytes / 2**20:,.0f} MiB on the disk, filled in {buffer.fill_s:.1f} s, "
            f"opened in {buffer.open_s:.3f} s; {8 * buffer.size / 2**20:,.1f} MiB of ids in memory"
        )
    if len(buffers) < 2 or not buffers[0].samples["naive"].rates:
        return
    first = buffers[0]
    for buffer in buffers[1:]:
        for name in OPERATIONS:
            values = by_run(buffer.samples[name].latency_ms(50), first.samples[name].latency_ms(50))
            report.ratio(f"{name}_p50_{short(buffer.size)}_over_{short(first.size)}", values, GOAL)
    last = buffers[-1]
    report.ratio(
        f"references_naive_over_ours_{short(last.size)}",
        by_run(last.samples["naive"].latency_ms(50), last.samples["references"].latency_ms(50)),
    )


def fill(path: Path, size: int) -> None:
    """A buffer of `size` tasks (the zero triplet among them), written quickly: what is measured is not this."""
    TaskBuffer(path).close()
    database = sqlite3.connect(path)
    try:
        database.execute("PRAGMA synchronous=OFF")
        database.execute("PRAGMA cache_size=-524288")
        (there,) = database.execute("SELECT count(*) FROM tasks").fetchone()
        database.executemany(
            "INSERT INTO tasks (kind, digest, program_digest, program, inputs, outputs, message, texts, "
            "proposer_version, episode_id, created, attempts, solved) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0.0, 8, ?)",
            (
                (*row_of(task, task.program, ()), number // 1000, f"{number}.0", number % 9)
                for number, task in _tasks(there, size)
            ),
        )
        database.executemany(
            "INSERT INTO task_references VALUES (?, ?)",
            ((number, other) for number in range(there + 1, size + 1) for other in _shown(number)),
        )
        database.execute(
            "INSERT INTO history SELECT id, proposer_version, attempts, solved FROM tasks WHERE attempts > 0"
        )
        database.commit()
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        database.close()


def make_task(number: int) -> Task:
    """The task of a number: 290 characters of program, about as self-play's are, two of three of them deduction."""
    words = [f"{'abcdefg'[(number + i) % 7]}{number * (i + 3) % 9973}" for i in range(8)]
    program = f"def f(n):\n{_BODY.format(words=words, number=number)}"
    kind = ("deduction", "deduction", "abduction")[number % 3]
    return Task(kind, program, (str(number),), (f"[('{words[0]}', {number})]",))


def short(size: int) -> str:
    """1000 -> 1e3; what is no power of ten stays as it is."""
    zeros = len(str(size)) - 1
    return f"1e{zeros}" if size == 10**zeros else str(size)


def _tasks(there: int, size: int) -> Iterator[tuple[int, Task]]:
    for number in range(there + 1, size + 1):
        yield number, make_task(number)


def _shown(number: int) -> set[int]:
    """References of a task: one, somewhere before it, so that filling a large buffer stays quick."""
    return {1 + (number * 2_654_435_761 >> 7) % (number - 1)}
