"""Rehearsed runs that are stopped as schedulers stop them, and that another start takes over: nothing is lost, and no
two runs write in one folder. Control plane, checkpoints and signals are real."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from launch.cluster.control import ask
from launch.run.folder import RunFolder
from launch.run.interrupts import SAVED
from learner.checkpoint import read_stream_state
from tests.integration import azr_process
from tests.waiting import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

LEASE_S = 4.0
PROGRAM = f"""
import sys
import launch.run.owner as owner
owner.owned.__wrapped__.__defaults__ = ({LEASE_S},)
from launch.cli import main
sys.exit(main(sys.argv[1:]))
"""
"""`azr` with a lease that is short."""
OVERRIDES = [
    "run.mode=rehearse",
    "run.name=run",
    "learner.steps=100000",
    "learner.checkpoint_every=2",
    "rehearsal.learner_step_s=0.5",
    "rehearsal.tokens_per_s=20000",
    "rehearsal.request_tokens_per_s=4000",
    "selfplay.seed_tasks_target=4",
    "selfplay.heldout_every=0",
]


@contextmanager
def started(folder: RunFolder, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """`azr train --auto-resume` in `folder`, killed with all its processes at the end of the block."""
    command = [sys.executable, "-c", PROGRAM, "train", "smollm2-cpu-small", *OVERRIDES, "--auto-resume", *arguments]
    with (folder.path.parent / "output").open("ab") as output:
        process = subprocess.Popen(
            [*command, f"run.dir={folder.path.parent}"], stdout=output, stderr=output, cwd=azr_process.ROOT
        )
    try:
        yield process
    finally:
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
        process.kill()
        process.wait()


def steps(folder: RunFolder) -> list[int]:
    return [row["step"] for row in folder.read_metrics()]


def events(folder: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in folder.events.read_text().splitlines()]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def test_a_run_that_is_stopped_again_and_again_goes_on_where_it_was(folder: RunFolder) -> None:
    for number in (signal.SIGUSR2, signal.SIGTERM):
        before = len(steps(folder))
        with started(folder, "--grace-s=30") as process:
            wait_until(lambda before=before: len(steps(folder)) >= before + 3, 300)
            assert ask(folder.path, "scale", actors=1) == {"actors": 1}
            time.sleep(random.random())
            for _ in range(3):
                process.send_signal(number)
            assert process.wait(120) == SAVED, (folder.path.parent / "output").read_text()
        newest = sorted(folder.checkpoints.glob("step_*"))[-1]
        gate, queued = read_stream_state(newest)
        assert int(newest.name.removeprefix("step_")) == gate["trained_batches"] == steps(folder)[-1]
        assert steps(folder) == list(range(1, steps(folder)[-1] + 1)), "no step twice, and none is missing"
        assert queued, "what had come in is there"
        assert not folder.owner.exists() and not folder.control.exists()
    assert "ledger: conserved" in (folder.path.parent / "output").read_text().splitlines()[-1]


@pytest.mark.deep
def test_a_driver_that_was_frozen_and_replaced_has_no_process_that_writes(folder: RunFolder) -> None:
    with started(folder) as process:
        wait_until(lambda: len(steps(folder)) >= 3, 300)
        old = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
        os.kill(process.pid, signal.SIGSTOP)  # its learner goes on
        lines = folder.owner.read_text().splitlines(keepends=True)
        folder.owner.write_text("".join("host=elsewhere\n" if line.startswith("host=") else line for line in lines))
        with started(folder, "stream.port=0", "run.log_level=debug") as other:
            wait_until(lambda: folder.newest_attempt().number == 2, 120)  # type: ignore[union-attr]
            log = folder.logs / "learner0.0.log"
            wait_until(lambda: "does not own" in log.read_text(), 60)
            reached = len(steps(folder))
            os.kill(process.pid, signal.SIGCONT)
            assert process.wait(60) == 1
            wait_until(lambda: not any(psutil.pid_exists(pid) and lives(pid) for pid in old), 60)
            wait_until(lambda: events(folder)[-1]["event"] == "checkpoint" and len(steps(folder)) > reached, 300)
            other.send_signal(signal.SIGTERM)
            assert other.wait(120) == SAVED
        assert steps(folder) == list(range(1, steps(folder)[-1] + 1))
        assert "owner_replaced" in [event["event"] for event in events(folder)]


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
