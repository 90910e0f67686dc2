"""A study under Ray: its process is killed, then interrupted, and it goes on where it was."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest

from launch.run.folder import RunFolder
from tests.integration.azr_process import ROOT, azr, command
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

RECIPE = """
[run]
mode = "rehearse"
record_trajectories = false
[learner.batch]
propose = { deduction = 6, abduction = 6, induction = 2 }
solve = { deduction = 12, abduction = 12, induction = 4 }
[rehearsal]
time_scale = 20
learner_step_s = 30
"""
DEADLINE_S = 300.0


def test_a_study_that_is_killed_and_interrupted_goes_on_where_it_was(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    folder = tmp_path / "study"
    options = ("--staleness", "0,1", "--seeds", "0", "--steps", "8", "--out", str(folder), "--dry-run")
    begun = azr("study", "staleness", str(tmp_path / "recipe.toml"), *options)
    assert begun.returncode == 0, begun.stderr
    assert "held-out accuracy is not measured" in begun.stdout
    first, second = (RunFolder(folder / "runs" / f"clip-K{bound}-s0") for bound in (0, 1))

    with _resume(folder) as study:  # killed in its first run, which goes on, and is waited for
        wait_until(lambda: bool(first.read_metrics()), DEADLINE_S)
        study.kill()
    # Interrupted in its second run, which saves.
    with _resume(folder) as study:
        wait_until(lambda: bool(second.read_metrics()), DEADLINE_S)
        study.send_signal(signal.SIGINT)
        said, _ = study.communicate(timeout=DEADLINE_S)
        assert study.returncode == 75, said
    assert "clip-K0-s0 is complete: 8 steps" in said
    assert "go on: azr study resume" in said
    assert first.newest_attempt().number == 1, "it was not made twice"  # type: ignore[union-attr]

    done = azr("study", "resume", str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 runs are complete" in done.stdout
    results = [json.loads((folder / "results" / f"{run.path.name}.json").read_text()) for run in (first, second)]
    assert [(result["status"], result["steps"], result["attempts"]) for result in results] == [
        ("complete", 8, 1),
        ("complete", 8, 2),
    ]
    assert [[row["step"] for row in run.read_metrics()] for run in (first, second)] == [[*range(1, 9)]] * 2
    assert results[0]["age_max"] == 0 and results[1]["age_max"] <= 1
    assert "| `clip-K1-s0` | complete | 8 |" in (folder / "report.md").read_text()


def _resume(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(command("study", "resume", str(folder)), stdout=subprocess.PIPE, text=True, cwd=ROOT)
