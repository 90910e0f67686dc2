"""A run of real processes that is asked for more rollout actors, for fewer, and whether its engines run what it trains."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from launch.recorder import RunFolder

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

T = TypeVar("T")

OVERRIDES = [
    "run.name=run",
    "learner.steps=100000",
    "learner.checkpoint_every=0",
    "learner.batch.propose={deduction=4, abduction=2, induction=2}",
    "learner.batch.solve={deduction=8, abduction=4, induction=4}",
    "selfplay.proposals_per_prompt=2",
    "selfplay.max_propose_tokens=64",
    "actors.num_actors=1",
    "stream.curve=on",
    "run.verify_weights=true",
]


def azr(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "launch.cli", *arguments], capture_output=True, text=True, check=False, timeout=300
    )


class Run:
    """A run in a process of its own."""

    def __init__(self, directory: Path) -> None:
        self.folder = RunFolder(directory / "run")
        self.printed = directory / "printed.txt"
        command = [sys.executable, "-m", "launch.cli", "train", "smollm2-cpu", f"run.dir={directory}", *OVERRIDES]
        with self.printed.open("w") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)

    def events(self, name: str, actor: str) -> list[dict[str, Any]]:
        lines = self.folder.events.read_text().splitlines() if self.folder.events.exists() else []
        return [event for event in map(json.loads, lines) if event["event"] == name and event.get("actor") == actor]

    def trajectories(self) -> list[dict[str, Any]]:
        files = sorted(self.folder.trajectories.glob("step_*.jsonl"))
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]

    def wait_for(self, what: str, condition: Callable[[], T], timeout_s: float = 300.0) -> T:
        deadline = time.monotonic() + timeout_s
        while not (found := condition()):
            assert self.process.poll() is None, f"the run ended while waiting for {what}: {self.printed.read_text()}"
            assert time.monotonic() < deadline, f"{what} did not come: {self.printed.read_text()}"
            time.sleep(0.1)
        return found


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    run = Run(tmp_path)
    yield run
    if run.process.poll() is None:
        os.kill(run.process.pid, signal.SIGKILL)


def test_actors_come_and_go_and_run_what_the_learner_has(run: Run) -> None:
    steps = lambda: len(run.folder.read_metrics())  # noqa: E731
    run.wait_for("the first step", steps)

    assert azr("scale", str(run.folder.path), "--actors", "2").returncode == 0
    known = [steps()]

    def joined() -> bool:
        known.append(steps())  # before the look at the events: at most what the learner had when it joined
        return bool(run.events("actor_joined", "rollout1"))

    run.wait_for("the second actor", joined)
    at_joining = known[-2]
    assert at_joining >= 1

    def both_played() -> list[dict[str, Any]]:
        played = run.trajectories()
        last = [t for t in played if t["actor"] == "rollout1#0"]
        return played if last and played[-1]["actor"] == "rollout0#0" or len(last) > 20 else []

    played = run.wait_for("trajectories of both", both_played)
    assert {"rollout0#0", "rollout1#0"} == {t["actor"] for t in played}
    oldest = min(version for t in played if t["actor"] == "rollout1#0" for version, _, _ in t["versions"])
    assert oldest >= at_joining, "it played before it had the weights of the version at which it joined"

    verified = azr("verify", str(run.folder.path))
    assert verified.returncode == 0, verified.stdout + verified.stderr
    for actor in ("rollout0", "rollout1"):
        assert re.search(rf"{actor} equals the learner in all 272 tensors at version [1-9]", verified.stdout)

    assert azr("scale", str(run.folder.path), "--actors", "1").returncode == 0
    run.wait_for("the second actor's farewell", lambda: run.events("actor_left", "rollout1"))
    after = steps()
    run.wait_for("a step without it", lambda: steps() > after)
    run.process.send_signal(signal.SIGINT)
    assert run.process.wait(timeout=180) == 0, run.printed.read_text()

    printed = run.printed.read_text()
    assert "rollout1 has left" in printed
    assert "ledger: conserved" in printed
    assert "weights: rollout0 equals the learner in all 272 tensors, bit by bit" in printed
    assert not run.events("actor_lost", "rollout1") and not run.events("rollout_failed", "rollout1")
    assert run.folder.read_metrics()[-1]["ledger/dropped"] == 0, "it held something when it left"
    assert (run.folder.path / "keys" / "learner.key").stat().st_mode & 0o777 == 0o600


def test_a_run_that_is_not_there_is_no_crash(tmp_path: Path) -> None:
    for command in (("verify",), ("scale", "--actors", "2")):
        answer = azr(command[0], str(tmp_path), *command[1:])
        assert answer.returncode == 2
        assert "nobody answers for the run" in answer.stderr and "Traceback" not in answer.stderr
