"""The whole run with the real parts: SmolLM2, Ray, vLLM, ZeroMQ under CURVE, Megatron, gloo, the sandbox.

One run in a process of its own is started, asked for more rollout actors and for fewer, asked whether its engines run
what it trains, stopped by a SIGTERM to all its processes, looked through, and resumed.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest
from safetensors.torch import load_file

from actors.heldout.measurement import read_measurement
from launch.commands.train import train
from launch.config import load
from launch.metric_catalogue import METRICS
from launch.models import prepare
from launch.run.folder import RunFolder
from launch.run.interrupts import SAVED
from launch.run.measurements import files
from launch.run.scratch import scratch_of
from learner.metrics.catalogue import Kind
from tests.integration.azr_process import azr, command, easy_tasks

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

T = TypeVar("T")

MAX_STALENESS = 2
SMALL = [
    "learner.batch.propose={deduction=4, abduction=2, induction=2}",
    "learner.batch.solve={deduction=8, abduction=4, induction=4}",
    "selfplay.proposals_per_prompt=2",
    "selfplay.heldout_every=0",
    "run.verify_weights=true",
]
OVERRIDES = [
    *SMALL,
    "run.name=run",
    f"learner.max_staleness={MAX_STALENESS}",
    "learner.steps=100000",
    "learner.checkpoint_every=0",
    "learner.keep_checkpoints=1",
    "selfplay.max_propose_tokens=64",
    "actors.num_actors=1",
    "stream.curve=on",
]


def read_batches(folder: RunFolder) -> list[list[dict[str, Any]]]:
    files = sorted(folder.trajectories.glob("step_*.jsonl"))
    return [[json.loads(line) for line in file.read_text().splitlines()] for file in files]


class Run:
    """A run in a process of its own."""

    def __init__(self, directory: Path) -> None:
        self.folder = RunFolder(directory / "run")
        self.printed = directory / "printed.txt"
        started = command(
            "train", "smollm2-cpu", *OVERRIDES, easy_tasks(directory / "seeds.jsonl"), f"run.dir={directory}"
        )
        with self.printed.open("w") as out:
            self.process = subprocess.Popen(started, stdout=out, stderr=subprocess.STDOUT)

    def steps(self) -> int:
        return len(self.folder.read_metrics())

    def events(self, name: str, actor: str) -> list[dict[str, Any]]:
        lines = self.folder.events.read_text().splitlines() if self.folder.events.exists() else []
        return [event for event in map(json.loads, lines) if event["event"] == name and event.get("actor") == actor]

    def played(self) -> list[dict[str, Any]]:
        return [one for batch in read_batches(self.folder) for one in batch]

    def wait_for(self, what: str, condition: Callable[[], T], timeout_s: float = 300.0) -> T:
        deadline = time.monotonic() + timeout_s
        while not (found := condition()):
            assert self.process.poll() is None, f"the run ended while waiting for {what}: {self.printed.read_text()}"
            assert time.monotonic() < deadline, f"{what} did not come: {self.printed.read_text()}"
            time.sleep(0.1)
        return found


@pytest.fixture(scope="module")
def run(runs_folder: Path) -> Iterator[Run]:
    run = Run(runs_folder)
    yield run
    if run.process.poll() is None:
        os.kill(run.process.pid, signal.SIGKILL)


def test_actors_come_and_go_and_run_what_the_learner_has(run: Run) -> None:
    run.wait_for("the first step", run.steps)

    assert azr("scale", str(run.folder.path), "--actors", "2").returncode == 0
    known = [run.steps()]

    def joined() -> bool:
        known.append(run.steps())  # before the look at the events: at most what the learner had when it joined
        return bool(run.events("actor_joined", "rollout1"))

    run.wait_for("the second actor", joined)
    at_joining = known[-2]
    assert at_joining >= 1

    def both_played() -> list[dict[str, Any]]:
        played = run.played()
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
    after = run.steps()
    run.wait_for("a step without it", lambda: run.steps() > after)
    processes = [psutil.Process(run.process.pid), *psutil.Process(run.process.pid).children(recursive=True)]
    for process in processes:  # as SLURM does at `scancel`, at preemption and at the time limit
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    assert run.process.wait(timeout=400) == SAVED, run.printed.read_text()
    assert not psutil.wait_procs(processes, timeout=60)[1], "it left processes behind"
    assert not scratch_of(run.folder.path).exists()

    printed = run.printed.read_text()
    assert "Traceback" not in printed
    assert "rollout1 has left" in printed
    assert "ledger: conserved" in printed
    assert "weights: rollout0 equals the learner in all 272 tensors, bit by bit" in printed
    assert not run.events("actor_lost", "rollout1") and not run.events("rollout_failed", "rollout1")
    assert run.folder.read_metrics()[-1]["ledger/dropped"] == 0, "it held something when it left"
    assert (run.folder.path / "keys" / "learner.key").stat().st_mode & 0o777 == 0o600


def test_what_the_run_recorded_keeps_its_promises(run: Run) -> None:
    rows = run.folder.read_metrics()
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    assert all(math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"]) for row in rows)
    assert any(row["grad_norm"] > 0 for row in rows)
    before: dict[str, float] = {}
    for row in rows:
        for name, value in row.items():
            metric = METRICS.find(name)
            assert metric is not None, f"{name} is in no catalogue"
            assert metric.kind is not Kind.SHARE or 0 <= value <= 1, (name, value)
            assert metric.kind is not Kind.COUNTER or value >= before.get(name, value), (name, value)
            before[name] = value
    assert sum("logprob_mismatch" in row for row in rows) > len(rows) / 2, "the engine is compared all the time"
    assert all(0 <= row["age_max"] <= MAX_STALENESS for row in rows)
    assert max(row["age_max"] for row in rows) >= 1
    assert any(row["logprob_mismatch"] < 0.1 for row in rows if "logprob_mismatch" in row)
    assert all(row[f"memory/{name}"] > 100 for row in rows for name in ("learner_mib", "actor_mib/max"))
    for row in rows:
        ended = sum(row[f"ledger/{state}"] for state in ("trained", "dropped", "returned", "queued", "in_flight"))
        assert row["ledger/granted"] == ended
        tokens = {name.removeprefix("token_ledger/"): n for name, n in row.items() if name.startswith("token_ledger/")}
        assert tokens["generated"] == sum(n for name, n in tokens.items() if name != "generated")
        assert tokens["unaccounted"] == 0, row["step"]
        assert row["learner_time/unaccounted_s"] < 0.02 * row["learner_time/total_s"]

    played = run.played()
    assert {(t["kind"], t["role"]) for t in played} == {
        (kind, role) for kind in ("deduction", "abduction", "induction") for role in ("propose", "solve")
    }
    rewards = {role: {t["reward"] for t in played if t["role"] == role} for role in ("propose", "solve")}
    assert rewards["solve"] <= {-1.0, -0.5, 1.0} and 1.0 in rewards["solve"] and len(rewards["solve"]) > 1
    assert -1.0 in rewards["propose"] and all(-1.0 <= reward <= 1.0 for reward in rewards["propose"])
    for t in played:
        terms = [value for name, value in t["reward_parts"].items() if name.startswith("reward/")]
        assert sum(terms) == pytest.approx(t["reward"])
    for trained_at, batch in enumerate(read_batches(run.folder)):
        for t in batch:
            versions, starts, ends = zip(*t["versions"], strict=True)
            assert (*starts, len(t["response_ids"])) == (0, *ends), "every token is of one version"
            assert list(versions) == sorted(set(versions)) and versions[-1] <= trained_at <= versions[0] + MAX_STALENESS


def test_the_weights_moved(run: Run) -> None:
    before = load_file(prepare("smollm2-135m-instruct") / "model.safetensors")
    newest = run.folder.checkpoints / f"step_{run.steps():08d}" / "hf"
    after = load_file(next(newest.glob("*.safetensors")))
    changed = [name for name in after if not before[name].equal(after[name])]
    assert len(changed) > len(after) / 2


def test_it_resumes_where_it_stopped(run: Run) -> None:
    rows = run.folder.read_metrics()
    resumed = azr("train", "--resume", str(run.folder.path), f"learner.steps={len(rows) + 2}")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "ledger: conserved" in resumed.stdout
    after = run.folder.read_metrics()
    assert after[: len(rows)] == rows
    assert [row["step"] for row in after] == list(range(1, len(rows) + 3))
    assert after[-1]["ledger/trained"] > rows[-1]["ledger/trained"]


def test_a_run_that_is_not_there_is_no_crash(tmp_path: Path) -> None:
    for asked in (("verify",), ("scale", "--actors", "2")):
        answer = azr(asked[0], str(tmp_path), *asked[1:])
        assert answer.returncode == 2
        assert "nobody answers for the run" in answer.stderr and "Traceback" not in answer.stderr


def test_a_run_seeds_itself_and_is_measured_on_held_out_tasks(tmp_path: Path) -> None:
    """It starts from triplets that the model itself proposed before, and is measured by itself, by a resume, and by
    `azr eval`. `test_parity.py` has more of `max_staleness = 0`."""
    config = load(
        "smollm2-cpu",
        [
            *SMALL,
            f"run.dir={tmp_path}",
            "run.name=sync",
            "learner.steps=1",
            "learner.max_staleness=0",
            "selfplay.seed_tasks_target=3",
            "selfplay.heldout_every=5",
            "selfplay.heldout_tasks=12",
            "selfplay.heldout_samples=2",
        ],
    )
    assert train(config) == 0
    folder = RunFolder(config.folder)
    (row,) = folder.read_metrics()
    assert row["buffer/deduction"] >= 3
    assert row["heldout/version"] == row["heldout/version_newest"] == 1, "the last version, which the run waited for"
    assert row["heldout/tasks"] == 12 and 0 <= row["heldout/mean_low"] <= row["heldout/mean"] < 1
    first, last = (read_measurement(path) for path in files(folder).values())
    assert (first.version, first.newest, last.version) == (0, 0, 1)
    assert first.digest == last.digest and set(first.results) == set(last.results)
    assert row["token_ledger/unaccounted"] == 0 and row["token_ledger/without_slot"] >= first.tokens
    (batch,) = read_batches(folder)
    assert batch and row["age_max"] == 0

    files(folder)[1].unlink()  # as if it had been stopped while it was measured
    resumed = azr("train", "--resume", str(folder.path))
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "only the last version is still to be measured" in resumed.stdout
    again = read_measurement(files(folder)[1])
    assert (again.version, again.digest) == (1, last.digest)
    assert [row["step"] for row in folder.read_metrics()] == [1]

    written = tmp_path / "eval.json"
    base, few = str(files(folder)[0]), ["--tasks", "12", "--samples", "1"]
    compared = azr("eval", base, str(folder.path), *few, "--json", str(written))
    assert compared.returncode == 0, compared.stdout + compared.stderr
    assert "difference, paired by task" in compared.stdout
    _, measured = json.loads(written.read_text())["targets"]
    assert (measured["version"], measured["samples"], measured["digest"]) == (1, 1, first.digest)
    assert measured["tokens"] > 0 and set(measured["results"]) == set(first.results)
