"""The report of a benchmark: rows, ratios with their spread, goals, notes; as a table and as JSON.

Absolute figures depend on the machine. What is compared is a *ratio* of two things measured in one run, in turns (A B B
A), and repeated: the median over the runs is the figure, the least and the greatest are its spread. A ratio that could
not be measured is absent, and `notes` says why.

The JSON:

    {"bench": name, "machine": {...}, "versions": {...}, "settings": {...},
     "rows": [{"path", "unit", "rate", "rate_min", "rate_max", "p50_ms", "p99_ms", "executions", "detail"}],
     "ratios": {key: {"median", "min", "max", "runs", "better": "more" or "less"}},
     "goals": {key: {"at_least" or "at_most", "value", "met"}},
     "tables": [{"title", "columns", "rows"}],
     "failures": [text],
     "notes": {key: text}}

`rate` is units a second, the median over the runs; `p50_ms` and `p99_ms` likewise, of single calls, in milliseconds,
null where a call is not one thing (many callers at once). `runs` is how many runs the ratio was measured in.
"""

from __future__ import annotations

import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from launch.json_lines import to_json
from launch.machine import describe_machine
from launch.versions import version_of


@dataclass(frozen=True)
class Slice:
    """One path measured for a while: how many units, in how many seconds, and each call's latency in seconds (may be
    empty)."""

    units: int
    seconds: float
    latencies_s: Sequence[float] = ()


def take_turns(call: Callable[[], int], seconds: float) -> Slice:
    """Call again and again for about `seconds`, at least once; `call` returns the units that it has done."""
    latencies: list[float] = []
    units = 0
    started = now = time.perf_counter()
    while not latencies or now - started < seconds:
        units += call()
        done = time.perf_counter()
        latencies.append(done - now)
        now = done
    return Slice(units, now - started, latencies)


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile: the least value that at least `percent` of them do not exceed."""
    if not values:
        raise ValueError("a percentile of nothing")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


@dataclass(frozen=True)
class Ratio:
    """A figure of every run, and what it comes to."""

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("a ratio needs at least one run; leave it out and say why in the notes")

    @property
    def median(self) -> float:
        """The middle of the runs."""
        return statistics.median(self.values)

    def to_json(self) -> dict[str, float]:
        """`median`, `min`, `max`, `runs`."""
        return {
            "median": _short(self.median), "min": _short(min(self.values)), "max": _short(max(self.values)),
            "runs": len(self.values),
        }  # fmt: skip


@dataclass(frozen=True)
class Goal:
    """A bound that a figure should keep: at least, or at most, `target`."""

    target: float
    at_most: bool = False

    def met(self, value: float) -> bool:
        """True if `value` keeps the bound."""
        return value <= self.target if self.at_most else value >= self.target

    def __str__(self) -> str:
        return f"{'<=' if self.at_most else '>='} {self.target:g}"


@dataclass
class Samples:
    """One path over all runs: `add` its slices, then `end_run`."""

    path: str
    unit: str = "executions"
    _current: list[Slice] = field(default_factory=list)
    _runs: list[Slice] = field(default_factory=list)

    def add(self, part: Slice) -> None:
        """A slice of the run that is under way."""
        self._current.append(part)

    def end_run(self) -> None:
        """Join the slices of a run; without any, the run does not count."""
        if self._current:
            units = sum(part.units for part in self._current)
            seconds = sum(part.seconds for part in self._current)
            latencies = [latency for part in self._current for latency in part.latencies_s]
            self._runs.append(Slice(units, seconds, latencies))
        self._current = []

    @property
    def rates(self) -> list[float]:
        """Units a second, by run."""
        return [run.units / run.seconds for run in self._runs]

    def latency_ms(self, percent: float) -> list[float]:
        """A percentile of the latency in milliseconds, by run; empty where latencies were not taken."""
        return [1000 * percentile(run.latencies_s, percent) for run in self._runs if run.latencies_s]

    def row(self, detail: str = "") -> dict[str, Any]:
        """The row of the report."""
        p50, p99 = self.latency_ms(50), self.latency_ms(99)
        return {
            "path": self.path,
            "unit": self.unit,
            "rate": _short(statistics.median(self.rates)),
            "rate_min": _short(min(self.rates)),
            "rate_max": _short(max(self.rates)),
            "p50_ms": _short(statistics.median(p50)) if p50 else None,
            "p99_ms": _short(statistics.median(p99)) if p99 else None,
            "executions": sum(run.units for run in self._runs),
            "detail": detail,
        }


def describe_versions(packages: Sequence[str] = ("azr",)) -> dict[str, str]:
    """Python's version and those of `packages`, as far as they are installed."""
    versions = {"python": platform.python_version()}
    for name in packages:
        if number := version_of(name):
            versions[name] = number
    return versions


@dataclass(frozen=True)
class TableOfFigures:
    """Figures that are no rates of a path: a name and its values in each row."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | float]]

    def to_json(self) -> dict[str, Any]:
        """`title`, `columns`, `rows`."""
        rows = [[cell if isinstance(cell, str) else _short(cell) for cell in row] for row in self.rows]
        return {"title": self.title, "columns": list(self.columns), "rows": rows}

    def render(self) -> Table:
        """The table as the console shows it."""
        table = Table(box=None, pad_edge=False, header_style="bold", title=self.title, title_justify="left")
        for number, heading in enumerate(self.columns):
            table.add_column(heading, justify="right" if number else "left", no_wrap=True)
        for row in self.rows:
            table.add_row(*(cell if isinstance(cell, str) else _three(cell) for cell in row))
        return table


@dataclass
class Report:
    """One benchmark's findings."""

    bench: str
    settings: dict[str, Any]
    versions: dict[str, str] = field(default_factory=describe_versions)
    machine: dict[str, Any] = field(default_factory=describe_machine)
    rows: list[dict[str, Any]] = field(default_factory=list)
    ratios: dict[str, Ratio] = field(default_factory=dict)
    goals: dict[str, Goal] = field(default_factory=dict)
    """Goals of some of the ratios, and of some of `figures`."""
    figures: dict[str, float] = field(default_factory=dict)
    """Figures with a goal that are no ratios, such as milliseconds."""
    less_is_better: set[str] = field(default_factory=set)
    """Ratios without a goal of which less is better."""
    tables: list[TableOfFigures] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    """What makes the benchmark fail: it measured something that must not be."""
    notes: dict[str, str] = field(default_factory=dict)

    def ratio(
        self, key: str, values: Sequence[float], goal: Goal | None = None, *, less_is_better: bool = False
    ) -> None:
        """Add a ratio from its values by run; without any there has to be a note under the same key. With a goal, that
        says which way is better."""
        if less_is_better:
            self.less_is_better.add(key)
        if values:
            self.ratios[key] = Ratio(tuple(values))
        elif key not in self.notes:
            raise ValueError(f"{key} was not measured, and no note says why")
        if goal:
            self.goals[key] = goal

    def to_json(self) -> dict[str, Any]:
        """See the head of this file."""
        goals = {
            key: {
                "at_most" if goal.at_most else "at_least": goal.target,
                "value": _short(value),
                "met": goal.met(value),
            }
            for key, goal in self.goals.items()
            if (value := self._value(key)) is not None
        }
        return {
            "bench": self.bench,
            "machine": self.machine,
            "versions": self.versions,
            "settings": self.settings,
            "rows": self.rows,
            "ratios": {key: ratio.to_json() | {"better": self._better(key)} for key, ratio in self.ratios.items()},
            "goals": goals,
            "tables": [table.to_json() for table in self.tables],
            "failures": self.failures,
            "notes": self.notes,
        }

    def write(self, path: Path) -> None:
        """Write the JSON to `path`. Raises OSError."""
        path.write_text(to_json(self.to_json(), indent=1) + "\n")

    def show(self, console: Console) -> None:
        """Print the tables and the notes."""
        machine = self.machine
        console.print(
            f"{self.bench}: {machine['processor']}, {machine['cores']} cores, {machine['system']}, "
            f"Python {self.versions['python']}"
        )
        if self.rows:
            table = Table(Column("path", no_wrap=True), box=None, pad_edge=False, header_style="bold")
            for heading in ("rate/s", "p50 ms", "p99 ms"):
                table.add_column(heading, justify="right", no_wrap=True)
            table.add_column("", no_wrap=True)
            for row in self.rows:
                unit = "" if row["unit"] == "executions" else row["unit"]
                latencies = ["" if row[key] is None else _three(row[key]) for key in ("p50_ms", "p99_ms")]
                table.add_row(
                    row["path"], _three(row["rate"]), *latencies, ", ".join(t for t in (unit, row["detail"]) if t)
                )
            console.print(table)
        for figures in self.tables:
            console.print()
            console.print(figures.render())
        keys = [*self.ratios, *(key for key in self.figures if key not in self.ratios)]
        if keys:
            table = Table(Column("ratio", no_wrap=True), box=None, pad_edge=False, header_style="bold")
            for heading in ("median", "min", "max", "goal"):
                table.add_column(heading, justify="right", no_wrap=True)
            table.add_column("", no_wrap=True)
            for key in keys:
                ratio = self.ratios.get(key)
                spread = [_three(min(ratio.values)), _three(max(ratio.values))] if ratio else ["", ""]
                value = self._value(key)
                goal = self.goals.get(key)
                verdict = "" if goal is None or value is None else "met" if goal.met(value) else "missed"
                table.add_row(key, _three(value or 0.0), *spread, str(goal or ""), verdict)
            console.print()
            console.print(table)
        for key, text in self.notes.items():
            console.print(f"note: {key}: {text}", markup=False)
        for text in self.failures:
            console.print(f"FAILED: {text}", markup=False)

    def _better(self, key: str) -> str:
        less = key in self.less_is_better or (key in self.goals and self.goals[key].at_most)
        return "less" if less else "more"

    def _value(self, key: str) -> float | None:
        return self.ratios[key].median if key in self.ratios else self.figures.get(key)


@contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """Shows on standard error how far a measurement is; call what it gives before each of `total` steps, with a name.

    A bar on a terminal; elsewhere a line at the start of every tenth of the steps.
    """
    if sys.stderr.isatty():
        columns = (BarColumn(), TextColumn("{task.completed}/{task.total} {task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("starting", total=total, completed=-1)

            def advance(text: str) -> None:
                bar.update(task, advance=1, description=text)

            yield advance
        return
    started = time.monotonic()
    done = tenth = -1

    def advance_plainly(text: str) -> None:
        nonlocal done, tenth
        done += 1
        if done * 10 // max(total, 1) > tenth:
            tenth = done * 10 // max(total, 1)
            print(f"[{time.monotonic() - started:6.1f} s] {done}/{total} {text}", file=sys.stderr, flush=True)

    yield advance_plainly


def by_run(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """The ratio of two figures, run by run."""
    return [one / other for one, other in zip(over, under, strict=True)]


def _short(value: float) -> float:
    """Enough digits for any use, none that pretend."""
    return float(f"{value:.5g}")


def _three(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value == 0:
        return "0"
    digits = min(6, max(0, 2 - math.floor(math.log10(abs(value)))))
    return f"{value:,.{digits}f}"
