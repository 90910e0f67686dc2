"""What a part of the suite came to, and the report of all of them for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.gpu.parts import Part

EXCERPT_LINES = 40
"""Lines of a log that are kept."""


@dataclass
class Result:
    """What a part came to."""

    name: str
    status: str
    seconds: float
    limit_s: float
    tests: list[dict[str, Any]] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] | None = None
    log_excerpt: str = ""

    @property
    def ok(self) -> bool:
        """True unless it failed or timed out."""
        return self.status in ("passed", "skipped")

    def counts(self) -> str:
        """How many tests passed, failed, and were skipped, in words."""
        outcomes = [test["outcome"] for test in self.tests]
        return ", ".join(f"{outcomes.count(o)} {o}" for o in ("passed", "failed", "skipped") if o in outcomes)


def result_of(part: Part, code: int | None, seconds: float, limit_s: float, findings: Path, log: str) -> Result:
    """Return what a part came to; `code`: its exit code, None if it was stopped at its limit."""
    result = Result(part.name, "passed", seconds, limit_s)
    text = findings.read_text() if findings.is_file() else ""
    if part.bench:
        # It is written as the benchmark goes on: of one that failed or was stopped there are the figures until then.
        with suppress(json.JSONDecodeError):
            result.report = json.loads(text)
        result.figures = {name: each["median"] for name, each in (result.report or {}).get("ratios", {}).items()}
        done = code == 0 and result.report is not None
    else:
        result.tests = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
        result.figures = {name: value for test in result.tests for name, value in test["figures"].items()}
        outcomes = {test["outcome"] for test in result.tests}
        done = code == 0 and "failed" not in outcomes and bool(outcomes)
        if done and outcomes == {"skipped"}:
            result.status = "skipped"
    if not done:
        result.status = "failed" if code is not None else "timed out"
        result.log_excerpt = _excerpt(log)
    return result


def table(results: Sequence[Result]) -> str:
    """The report for people: failures, then figures, then a line a part."""
    lines: list[str] = []
    for result in results:
        for test in result.tests:
            if test["outcome"] != "passed":
                why = test["message"].strip().splitlines() or [""]
                errors = [line for line in why if line.startswith("E ")] or why[-1:]
                lines += [f"{test['outcome']}: {test['test']}", *(f"    {line}" for line in errors[:8])]
        if not result.ok and not any(test["outcome"] == "failed" for test in result.tests):
            lines += [f"{result.status}: {result.name}; of its log:"]
            lines += [f"    {line}" for line in result.log_excerpt.splitlines()]
    width = max((len(name) for result in results for name in result.figures), default=0)
    for result in results:
        lines += ["", f"{result.name}:"] if result.figures else []
        lines += [f"  {name:{width}}  {_shown(value)}" for name, value in result.figures.items()]
        for name, goal in (result.report or {}).get("goals", {}).items():
            if not goal["met"]:
                lines.append(f"  goal missed: {name} is {_shown(goal['value'])}")
    lines += ["", f"{'part':14}  {'result':9}  {'seconds':>7}  {'limit':>5}  tests"]
    for result in results:
        row = f"{result.name:14}  {result.status:9}  {result.seconds:7.1f}  {result.limit_s:5.0f}  {result.counts()}"
        lines.append(row.rstrip())
    return "\n".join(lines)


def _excerpt(log: str) -> str:
    """The end of a log; of a part that was stopped, the beginning of its stacks, where it stood."""
    lines = [line[:300] for line in log.splitlines() if not line.startswith("Extension modules:")]
    stacks = [number for number, line in enumerate(lines) if line.startswith("Fatal Python error")]
    start = max(0, stacks[0] - 10) if stacks else -EXCERPT_LINES
    return "\n".join(lines[start:][:EXCERPT_LINES])


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
