"""Five kills of real processes, each part at least once: the run goes on each time, and nothing is lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integration.azr_process import azr

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

OVERRIDES = [
    "learner.batch.propose={deduction=4, abduction=4, induction=2}",
    "learner.batch.solve={deduction=8, abduction=8, induction=4}",
    "selfplay.proposals_per_prompt=2",
    "selfplay.heldout_every=0",
]


@pytest.mark.deep
def test_a_run_survives_five_kills(tmp_path: Path) -> None:
    options = ["--times", "5", "--seed", "3", f"run.dir={tmp_path}", "run.name=drill"]
    held = azr("drill", "smollm2-cpu-small", *OVERRIDES, *options)
    said = held.stdout + held.stderr
    assert held.returncode == 0, said
    assert "ledger: conserved" in held.stdout
    assert "drill: PASSED" in held.stdout
    lines = (tmp_path / "drill" / "events.jsonl").read_text().splitlines()
    kills = [event["part"] for event in map(json.loads, lines) if event["event"] == "drill_kill"]
    assert len(kills) == 5 and set(kills) == {"actor", "executor", "buffer", "learner"}
