"""A pytest plugin that writes what each test found as a JSON line, as soon as it ends.

So what was found before a part is stopped is not lost. Loaded with `-p tests.gpu.findings --findings FILE`. A line:
{"test": name, "outcome": "passed", "failed" or "skipped", "seconds", "message", "figures": {name: value}}.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

MESSAGE_CHARACTERS = 2000

# Their assertions are explained as those of test files are.
pytest.register_assert_rewrite("tests.unit.learner.reference", "tests.unit.learner.training", "tests.unit.learner.tiny")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--findings FILE`."""
    parser.addoption("--findings", type=Path, help="write each test's finding there, a JSON line each")


def pytest_configure(config: pytest.Config) -> None:
    """Write the findings of this session."""
    file = config.getoption("--findings")
    if file:
        config.pluginmanager.register(_Findings(file))
    for mark in ("slow", "timeout"):
        config.addinivalue_line("markers", f"{mark}: without meaning here")


class _Findings:
    def __init__(self, file: Path) -> None:
        self._file = file

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._write(report.nodeid, "failed", 0.0, report.longreprtext)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        message = report.longreprtext
        if report.skipped and isinstance(report.longrepr, tuple):
            message = report.longrepr[2]
        self._write(report.nodeid, report.outcome, report.duration, message, dict(report.user_properties))

    def _write(
        self, test: str, outcome: str, seconds: float, message: str, figures: dict[str, Any] | None = None
    ) -> None:
        finding = {
            "test": test.rpartition("/")[2], "outcome": outcome, "seconds": seconds,
            "message": message[-MESSAGE_CHARACTERS:],
            "figures": {name: _number(value) for name, value in (figures or {}).items()},
        }  # fmt: skip
        with self._file.open("a") as out:
            out.write(json.dumps(finding, allow_nan=False) + "\n")


def _number(value: Any) -> Any:
    """A figure as JSON can hold it: not-a-number and the infinities become text."""
    return value if isinstance(value, (int, str)) or math.isfinite(value) else str(value)
