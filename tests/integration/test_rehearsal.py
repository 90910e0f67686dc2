"""A rehearsal under Ray: many actors in a process, kills of a process and of an actor, checkpoint and resume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch.commands.drill import audit
from launch.run.folder import RunFolder
from tests.integration.azr_process import azr

pytestmark = pytest.mark.integration

RECIPE = """
[run]
name = "r"
[learner]
checkpoint_every = 2
max_staleness = 1
[learner.batch]
propose = { deduction = 6, abduction = 6, induction = 2 }
solve = { deduction = 12, abduction = 12, induction = 4 }
[rehearsal]
time_scale = 20
learner_step_s = 20
"""


def test_a_rehearsal_survives_kills_and_is_resumed_as_an_ordinary_run(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    options = ("--actors", "9", "--actors-per-process", "3", "--steps", "8", "--kill", "node:25", "--kill", "actor:50")
    done = azr("rehearse", str(tmp_path / "recipe.toml"), *options, f"run.dir={tmp_path}", "run.name=r")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ledger: conserved" in done.stdout
    folder = RunFolder(tmp_path / "r")
    found = json.loads((folder.path / "rehearsal.json").read_text())
    assert (found["actors"], found["connected"], found["steps"]) == (9, 9, 8)
    assert found["age_max"] <= 1
    assert found["kills"][0].startswith("node at 25 s with 3 actors") and len(found["kills"]) == 2
    assert audit(folder) == []

    more = azr("train", "--resume", str(folder.path), "learner.steps=10", "run.verify_weights=true")
    assert more.returncode == 0, more.stdout + more.stderr
    assert "going on from" in more.stdout and "ledger: conserved" in more.stdout
    assert more.stdout.count("equals the learner in all") == 9
    assert audit(folder) == []
