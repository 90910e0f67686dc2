"""Serial mode: one process, one thread, the same numbers every time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

OVERRIDES = [
    "run.mode=serial",
    "learner.steps=2",
    "learner.max_staleness=1",
    "learner.batch.propose={deduction=2, abduction=2, induction=2}",
    "learner.batch.solve={deduction=4, abduction=4, induction=4}",
    "selfplay.proposals_per_prompt=2",
    "selfplay.max_propose_tokens=48",
]
TIMES = ("_s", "time_s", "tokens_per_s")


def run(folder: Path) -> list[dict]:
    """A process of its own: two engines in one process share random states."""
    command = [sys.executable, "-m", "launch.cli", "train", "smollm2-cpu", *OVERRIDES, f"run.dir={folder}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ledger: conserved" in done.stdout
    rows = [json.loads(line) for line in (folder / "smollm2-cpu" / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.endswith(TIMES)} for row in rows]


def test_two_serial_runs_with_one_seed_are_equal(tmp_path: Path) -> None:
    first, second = run(tmp_path / "first"), run(tmp_path / "second")
    assert len(first) == 2
    assert first == second
