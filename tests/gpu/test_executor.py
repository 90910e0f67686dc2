"""The sandbox on this machine's kernel, by its commands: `azr doctor` says what it is made of, `azr exec` runs programs
in it.

The verdicts of the judge are held by tests/unit/executor, which run beside this file.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

AZR = [sys.executable, "-m", "launch.cli"]
EXPECTED = {
    "sum": ("def f(xs, k):\n    return [x + k for x in xs]", "[1, 2], 3", "ok", "[4, 5]"),
    "words": ("def f(s):\n    return sorted(set(s.split()))", "'b a b'", "ok", "['a', 'b']"),
    "number": ("def f(x):\n    return x ** 0.5", "2", "ok", "1.4142135623730951"),
    "error": ("def f(x):\n    return 1 / x", "0", "error", ""),
    "endless": ("def f(x):\n    while True: pass", "0", "timeout", ""),
    "memory": ("def f(x):\n    return len(bytearray(x << 30))", "8", "memory", ""),
    "unsafe": ("import os\ndef f(x):\n    return os.getpid()", "0", "unsafe", ""),
    "address": ("def f(x):\n    return id(x)", "[]", "nondeterministic", ""),
    "syntax": ("def f(x):\n    return (", "0", "error", ""),
}
"""Programs by name: source, input, and the status and value that every machine gives."""


@pytest.fixture(scope="module")
def doctor() -> dict[str, Any]:
    """The sandbox's section of `azr doctor`."""
    done = subprocess.run([*AZR, "doctor", "--json"], capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    (found,) = (section for section in json.loads(done.stdout)["sections"] if section["name"] == "sandbox")
    return found


def test_the_sandbox_holds(doctor: dict[str, Any], record_property: Callable[[str, object], None]) -> None:
    checks = {check["name"]: check for check in doctor["checks"]}
    record_property("tier", doctor.get("tier", "none"))
    record_property("layers_off", ", ".join(name for name, check in checks.items() if check["state"] == "off"))
    assert not doctor["failed"], [check for check in doctor["checks"] if check["state"] == "failed"]


def test_programs_have_the_outcomes_of_every_machine(doctor: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "programs.jsonl"
    items = [{"name": name, "program": source, "input": given} for name, (source, given, _, _) in EXPECTED.items()]
    file.write_text("".join(json.dumps(item) + "\n" for item in items))
    done = subprocess.run(
        [*AZR, "exec", "--jsonl", str(file), "executor.timeout_s=1", "executor.workers=2"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = {line["name"]: (line["status"], line["value"]) for line in map(json.loads, done.stdout.splitlines())}
    assert found == {name: (status, value) for name, (_, _, status, value) in EXPECTED.items()}
