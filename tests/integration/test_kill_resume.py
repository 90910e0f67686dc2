"""A serial run that is killed again and again ends with the same bits as one that never was.

The kills are real (SIGKILL), and come where they hurt. What runs is this file as a program: `azr` with one function
wrapped, so that the process kills itself at a chosen point of a chosen version.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.integration import azr_process

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800)]

STEPS = 3
KILLS = [("generation", 1), ("optimizer", 1), ("write", 2), ("renamed", 2)]
"""Where each life of the killed run ends, and at which version."""
OVERRIDES = [
    "run.mode=serial",
    "run.name=run",
    "run.max_minutes=100",
    f"learner.steps={STEPS}",
    "learner.checkpoint_every=1",
    "learner.keep_checkpoints=1",
    "learner.threads=1",
    "learner.max_staleness=1",
    "learner.batch.propose={deduction=2, abduction=1, induction=1}",
    "learner.batch.solve={deduction=4, abduction=2, induction=2}",
    "selfplay.solutions=2",
    "selfplay.proposals_per_prompt=1",
    "selfplay.references=1",
    "selfplay.max_propose_tokens=32",
    "selfplay.max_solve_tokens=8",
    "selfplay.heldout_every=2",
    "selfplay.heldout_tasks=9",
    "selfplay.heldout_samples=1",
    "selfplay.intrinsic.answer_diversity=0.5",
    "selfplay.label_pairs=3",
    "selfplay.constructs=1",
    "selfplay.complete_inputs=true",
    "learner.updates_per_batch=2",
    "selfplay.examples=1",
    "buffer.sampling=learnability",
    "learner.loss.supervised=0.5",
    "learner.loss.entropy_floor=3.0",
    "learner.batch.labelled=4",
    "actors.concurrency=9",
    "executor.timeout_s=10",
]
OF_THE_MACHINE = ("_s", "_per_s", "_share", "_s/mean", "_s/max", "_mib", "tokens_generated", "tokens_generated_step")


def azr(arguments: list[str], kill: tuple[str, int] | None = None) -> subprocess.CompletedProcess[str]:
    where = [kill[0], str(kill[1])] if kill else ["nowhere", "0"]
    return azr_process.azr(
        *arguments, program=[sys.executable, "-m", "tests.integration.test_kill_resume", *where], timeout_s=1600
    )


@pytest.fixture(scope="module")
def runs(runs_folder: Path) -> tuple[Path, Path]:
    """The folders of a run that was never killed and of one that was killed at every point of `KILLS`."""
    root = runs_folder
    start = ["train", "smollm2-cpu", *OVERRIDES, azr_process.easy_tasks(root / "seeds.jsonl", 3)]
    with (root / "seeds.jsonl").open("a") as file:  # the easy ones give back their input: nothing to learn from
        for number in range(4):
            task = {"kind": "deduction", "program": f"def f(x):\n    return x * 3 - {number}", "inputs": ["5"]}
            file.write(f"{json.dumps(task)}\n")
    whole, killed = root / "whole" / "run", root / "killed" / "run"
    done = azr([*start, f"run.dir={whole.parent}"])
    assert done.returncode == 0, done.stdout + done.stderr
    for life, kill in enumerate(KILLS):
        # Killed before its first checkpoint, a run can only begin again.
        begun = ["--start-over"] if not list((killed / "checkpoints").glob("step_*")) else []
        again = ["train", "--resume", str(killed), *begun]
        done = azr(again if life else [*start, f"run.dir={killed.parent}"], kill)
        assert done.returncode == -signal.SIGKILL, f"{kill} was not reached: {done.stdout}{done.stderr}"
    done = azr(["train", "--resume", str(killed)])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ledger: conserved" in done.stdout
    return whole, killed


def last(run: Path) -> Path:
    return run / "checkpoints" / f"step_{STEPS:08d}"


def test_weights_are_equal_bit_by_bit(runs: tuple[Path, Path]) -> None:
    whole, killed = ((last(run) / "hf" / "model-00001.safetensors").read_bytes() for run in runs)
    assert whole == killed


def test_masters_and_moments_are_equal_bit_by_bit(runs: tuple[Path, Path]) -> None:
    whole, killed = ((last(run) / "model" / "__0_0.distcp").read_bytes() for run in runs)
    assert whole == killed


def test_ledger_and_counts_are_equal(runs: tuple[Path, Path]) -> None:
    for name in ("gate.json", "serial.json"):
        whole, killed = (json.loads((last(run) / name).read_text()) for run in runs)
        for found in (whole, killed):
            found.get("measured", {}).pop("heldout/time_s", None)  # by the clock
        assert whole == killed, name


def test_trajectories_are_equal(runs: tuple[Path, Path]) -> None:
    whole, killed = (trajectories(run) for run in runs)
    assert len(whole) == STEPS
    assert whole == killed


def test_task_buffers_are_equal(runs: tuple[Path, Path]) -> None:
    whole, killed = (rows(run / "tasks.sqlite") for run in runs)
    assert len(whole["tasks"]) > 9, "the model proposed nothing valid: the buffer was not put to the test"
    assert whole == killed


def test_every_step_learned_from_labels(runs: tuple[Path, Path]) -> None:
    for run in runs:
        with closing(sqlite3.connect(run / "tasks.sqlite")) as database:
            assert database.execute("SELECT count(*) FROM labelled").fetchone()[0] >= 4
        assert all(row["labelled_examples"] > 0 and row["supervised_loss"] > 0 for row in metrics(run))


def test_every_step_is_recorded_once_with_the_same_numbers(runs: tuple[Path, Path]) -> None:
    whole, killed = (metrics(run) for run in runs)
    assert [row["step"] for row in killed] == list(range(1, STEPS + 1))
    assert whole == killed


def test_nothing_is_left_over(runs: tuple[Path, Path]) -> None:
    assert list((runs[1] / "checkpoints").iterdir()) == [last(runs[1])]


def trajectories(run: Path) -> dict[str, list[dict[str, Any]]]:
    found = {}
    for path in sorted((run / "trajectories").iterdir()):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        found[path.name] = [{key: value for key, value in line.items() if key != "timings"} for line in lines]
    return found


def test_what_a_killed_run_did_in_vain_is_in_its_totals(runs: tuple[Path, Path]) -> None:
    whole, killed = (json.loads((run / "metrics.jsonl").read_text().splitlines()[-1]) for run in runs)
    assert killed["tokens_generated"] >= whole["tokens_generated"]


def metrics(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.endswith(OF_THE_MACHINE)} for line in lines]


def rows(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    found = {}
    with closing(sqlite3.connect(path)) as database:
        for table in ("tasks", "task_references", "history", "meta", "labelled", "labels_tried"):
            columns = [name for _, name, *_ in database.execute(f"PRAGMA table_info({table})") if name != "created"]
            found[table] = database.execute(f"SELECT {', '.join(columns)} FROM {table} ORDER BY 1, 2").fetchall()
    return found


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(where: str, version: int) -> None:
    """Wrap what the process is to die in."""
    from actors.engine.serial_engine import SerialEngine
    from learner.checkpoint import Checkpoints
    from learner.model.convert import HfWriter
    from learner.model.policy import PolicyModel
    from learner.trainer import Trainer

    engine_step, train, optimizer_step = SerialEngine._step, Trainer.train, PolicyModel.step
    finish, name = HfWriter.finish, Checkpoints._name
    steps = 0
    training = -1

    def generation(self: Any) -> Any:
        nonlocal steps
        steps += self._version == version
        if steps == 10:
            die()
        return engine_step(self)

    def remember(self: Any, *args: Any) -> Any:
        nonlocal training
        training = self.version
        return train(self, *args)

    def optimizer(self: Any, lr: float) -> Any:
        result = optimizer_step(self, lr)
        if training == version:
            die()
        return result

    def write(self: Any, *args: Any) -> None:
        if f"{version:08d}" in str(self._dir):
            die()
        finish(self, *args)

    def renamed(self: Any, newest: int, *args: Any) -> None:
        name(self, newest, *args)
        if newest == version:
            die()

    if where == "generation":
        SerialEngine._step = generation
    elif where == "optimizer":
        Trainer.train, PolicyModel.step = remember, optimizer
    elif where == "write":
        HfWriter.finish = write
    elif where == "renamed":
        Checkpoints._name = renamed


if __name__ == "__main__":
    arm(sys.argv[1], int(sys.argv[2]))
    from launch.cli import main

    sys.exit(main(sys.argv[3:]))
