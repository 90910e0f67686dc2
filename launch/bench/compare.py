"""`azr bench compare`: what became slower between two measurements, beyond what chance explains."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from executor.user_error import UserError
from launch.bench.options import positive

NOISE = 0.1
"""Least change, as a share, that counts."""
NOISE_OF_ONE_RUN = 0.2
"""The same where a side was measured in one run, which says nothing about its spread."""
STANDARD_ERRORS = 3.0
"""Standard errors of a change within which it says nothing."""
RANGE_OVER_DEVIATION = {2: 1.128, 3: 1.693, 4: 2.059, 5: 2.326, 6: 2.534, 7: 2.704, 8: 2.847, 9: 2.970, 10: 3.078}
"""Expected range of that number of normal values, over their standard deviation (d2 of control charts)."""
LEAST = 0.01
"""Least change of a ratio that counts, in the ratio's own unit: shares near 0 double by chance."""

DESCRIPTION = """\
Compares two measurements: two JSON files that a benchmark wrote with --json, or two folders of them. A figure is worse
if its median changed for the worse by more than the noise: three standard errors, which the range of each side's runs
gives, and at least 10%, or 20% where a side was measured once. Ratios are compared between any two machines; rates only
between measurements of one kind of processor and as many cores. Benchmarks with other settings are not compared.
"""

EXAMPLES = """\
exit codes:
  0   nothing is worse
  1   something is worse, failed, or is missing in AFTER; it is named
  2   there is nothing to compare

examples:
  azr bench compare before.json after.json
  azr bench compare docs/baselines/amd-epyc-2-cores bench-today --all
"""


class CompareError(UserError):
    """Measurements that cannot be compared; the message says why."""


@dataclass(frozen=True)
class Figure:
    """One figure of a measurement, over its runs."""

    median: float
    least: float
    greatest: float
    runs: int
    more_is_better: bool = True
    is_ratio: bool = True

    @property
    def error(self) -> float:
        """Standard error of the median, from the range of the runs; 0 for one run, which says nothing of it."""
        if self.runs < 2:
            return 0.0
        deviation = (self.greatest - self.least) / RANGE_OVER_DEVIATION[min(self.runs, max(RANGE_OVER_DEVIATION))]
        of_median = 1.0 if self.runs == 2 else 1.253  # the median of two is their mean
        return of_median * deviation / math.sqrt(self.runs)


@dataclass(frozen=True)
class Change:
    """One figure of both measurements."""

    bench: str
    name: str
    before: Figure
    after: Figure
    floor: float

    @property
    def share(self) -> float:
        """How much better it became, as a share of what it was; negative: worse."""
        gain = self.after.median - self.before.median
        gain = gain if self.before.more_is_better else -gain
        return gain / abs(self.before.median) if self.before.median else 0.0

    @property
    def noise(self) -> float:
        """The share up to which a change says nothing."""
        once = min(self.before.runs, self.after.runs) == 1
        floor = max(self.floor, NOISE_OF_ONE_RUN) if once else self.floor
        error = math.hypot(self.before.error, self.after.error)
        return max(floor, STANDARD_ERRORS * error / abs(self.before.median) if self.before.median else 0.0)

    @property
    def verdict(self) -> str:
        """`worse`, `better`, or nothing."""
        small = self.before.is_ratio and abs(self.after.median - self.before.median) < LEAST
        if small or abs(self.share) <= self.noise:
            return ""
        return "better" if self.share > 0 else "worse"


@dataclass
class Comparison:
    """Everything that two measurements have in common, and what they have not."""

    changes: list[Change] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    """What fails the comparison besides figures that are worse."""
    notes: list[str] = field(default_factory=list)

    @property
    def worse(self) -> list[Change]:
        """The regressions."""
        return [change for change in self.changes if change.verdict == "worse"]

    def show(self, console: Console, everything: bool) -> None:
        """Print what changed; with `everything`, each figure."""
        shown = [change for change in self.changes if everything or change.verdict]
        if shown:
            # The name is what a narrow terminal wraps; the figures stay whole.
            table = Table(Column("figure", overflow="fold"), box=None, pad_edge=False, header_style="bold")
            for heading in ("before", "after", "change", "noise"):
                table.add_column(heading, justify="right", no_wrap=True)
            table.add_column("", no_wrap=True)
            for change in shown:
                table.add_row(
                    f"{change.bench}: {change.name}", f"{change.before.median:.4g}", f"{change.after.median:.4g}",
                    f"{100 * change.share:+.1f}%", f"{100 * change.noise:.0f}%", change.verdict,
                )  # fmt: skip
            console.print(table)
        for text in self.notes:
            console.print(f"note: {text}", markup=False)
        for text in self.faults:
            console.print(f"FAILED: {text}", markup=False)
        better = sum(change.verdict == "better" for change in self.changes)
        console.print(f"{len(self.changes)} figures compared: {len(self.worse)} worse, {better} better beyond noise")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `azr bench compare`."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES  # read late, as the options are
    parser.add_argument("before", type=Path, metavar="BEFORE", help="a JSON file, or a folder of them")
    parser.add_argument("after", type=Path, metavar="AFTER", help="the same, of later")
    parser.add_argument("--noise", type=positive(float), default=NOISE, metavar="SHARE", help="(default %(default)s)")
    parser.add_argument("--all", action="store_true", dest="everything", help="show each figure, changed or not")


def run(arguments: argparse.Namespace) -> int:
    """Compare as the command line says; returns the exit code. Raises UserError."""
    comparison = compare(read(arguments.before), read(arguments.after), arguments.noise)
    comparison.faults += unmeasured(arguments.after)
    # Elsewhere than on a terminal, wide enough for a whole row.
    width = None if sys.stdout.isatty() else 120
    comparison.show(Console(highlight=False, soft_wrap=True, width=width), arguments.everything)
    return int(bool(comparison.worse or comparison.faults))


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The measurements in a file or folder, by benchmark. Raises CompareError where there is none."""
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    found: dict[str, dict[str, Any]] = {}
    for file in files:
        try:
            report = json.loads(file.read_text())
        except OSError as error:
            raise CompareError(f"{file} cannot be read: {error.strerror}") from None
        except ValueError:
            raise CompareError(f"{file} is no JSON of a benchmark (azr bench NAME --json FILE)") from None
        if isinstance(report, dict) and {"bench", "machine", "ratios", "rows"} <= set(report):
            found[report["bench"]] = report
    if not found:
        raise CompareError(
            f"{path} holds no measurement: azr bench NAME --json FILE writes one, azr bench all a folder"
        )
    return found


def unmeasured(folder: Path) -> list[str]:
    """What `azr bench all` began in `folder` and did not measure: it left what was printed, and no figures."""
    printed = sorted(folder.glob("*.txt")) if folder.is_dir() else []
    broke = [file for file in printed if not file.with_suffix(".json").exists()]
    return [f"{file.stem} gave no figures; what it printed: {file}" for file in broke]


def compare(before: dict[str, dict[str, Any]], after: dict[str, dict[str, Any]], floor: float = NOISE) -> Comparison:
    """Compare what two measurements have in common. Raises CompareError where that is nothing."""
    found = Comparison()
    for bench, old in before.items():
        if bench not in after:
            found.notes.append(f"{bench} is in BEFORE only")
            continue
        new = after[bench]
        found.faults += [f"{bench}: {text}" for text in new.get("failures", [])]
        if old["settings"] != new["settings"]:
            found.notes.append(f"{bench} was measured with other settings, and is not compared")
            continue
        same = _same_machine(old["machine"], new["machine"])
        if not same:
            found.notes.append(f"{bench} was measured on another kind of machine: only ratios are compared")
        olds, news = dict(_figures(old, rates=same)), dict(_figures(new, rates=same))
        for name, figure in olds.items():
            if name in news:
                found.changes.append(Change(bench, name, figure, news[name], floor))
            else:
                found.faults.append(f"{bench}: {name} was not measured any more")
    if not found.changes:
        raise CompareError("; ".join(["nothing can be compared", *found.notes]))
    return found


def _figures(report: dict[str, Any], rates: bool) -> Iterator[tuple[str, Figure]]:
    for name, ratio in report["ratios"].items():
        more = ratio.get("better", "more") == "more"
        yield name, Figure(ratio["median"], ratio["min"], ratio["max"], ratio["runs"], more)
    runs = report["settings"].get("runs", 1)
    for row in report["rows"] if rates else ():
        figure = Figure(row["rate"], row["rate_min"], row["rate_max"], runs, is_ratio=False)
        yield f"{row['path']}, {row['unit']}/s", figure


def _same_machine(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(one.get(key) == other.get(key) for key in ("processor", "architecture", "cores"))
