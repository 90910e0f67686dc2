"""The drill's schedule, on processes of its own and a supervisor that only says what it is told."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launch.commands import drill
from launch.config import load
from launch.run.console import Console
from launch.run.folder import RunFolder
from launch.run.status import RunStatus


class Part:
    """A part whose process is a real one."""

    def __init__(self) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)


class Run:
    """What a drill sees of a run."""

    def __init__(self) -> None:
        self.step = 0
        self.is_whole = True
        self.stopped = ""
        self.made = {part: {0: Part()} for part in ("actor", "buffer", "learner")}

    def status(self) -> RunStatus:
        return RunStatus(last={"step": self.step})

    def whole(self) -> bool:
        return self.is_whole

    def processes(self, part: str) -> dict[int, Part]:
        return self.made[part]

    def ask(self, part: Part, method: str) -> Any:
        return [part.process.pid] if method == "sandbox_pids" else part.process.pid

    def stop(self, why: str) -> None:
        self.stopped = why

    def dead(self) -> list[str]:
        return [part for part, found in self.made.items() if found[0].process.poll() is not None]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(drill, "LONGEST_WAIT_S", 0.0)
    run = Run()
    yield run
    for found in run.made.values():
        found[0].process.kill()
        found[0].process.wait()


def make(times: int, tmp_path: Path, parts: list[str] | None = None) -> drill.Drill:
    folder = RunFolder(tmp_path)
    folder.create()
    (folder.checkpoints / "step_00000001").mkdir(exist_ok=True)
    (folder.checkpoints / "step_00000001" / "complete.json").write_text("{}")
    return drill.Drill(parts or ["actor", "buffer", "learner"], times, 0, folder, Console(load("smollm2-cpu")))


def test_it_kills_only_a_run_that_is_whole_and_has_moved_on(run: Any, tmp_path: Path) -> None:
    held = make(3, tmp_path)
    held.watch(run)
    assert not run.dead(), "no step was taken yet"
    run.step, run.is_whole = 1, False
    held.watch(run)
    assert not run.dead(), "a part is missing"
    run.is_whole = True
    held.watch(run)
    assert held.killed.total() == 1
    (killed,) = held.killed
    assert run.made[killed][0].process.wait(10) == -signal.SIGKILL
    held.watch(run)
    assert held.killed.total() == 1, "it has not recovered from the last one"


def test_every_part_has_its_turn_and_the_run_ends_after_more_steps(run: Any, tmp_path: Path) -> None:
    held = make(3, tmp_path)
    for _ in range(3):
        run.step += 1
        held.watch(run)
    assert held.killed == {"actor": 1, "buffer": 1, "learner": 1}
    run.step += drill.MORE_STEPS - 1
    held.watch(run)
    assert not run.stopped
    run.step += 1
    held.watch(run)
    assert run.stopped
    assert held.done


def test_a_learner_that_went_back_to_its_checkpoint_has_recovered_with_its_next_step(run: Any, tmp_path: Path) -> None:
    held = make(2, tmp_path)
    run.step = 10
    held.watch(run)
    run.step = 8  # from the checkpoint
    held.watch(run)
    assert held.killed.total() == 1
    run.step = 9
    held.watch(run)
    assert held.killed.total() == 2


def test_one_seed_one_order(tmp_path: Path) -> None:
    first, second = make(20, tmp_path), make(20, tmp_path)
    assert first._order == second._order
    assert all(first._order.count(part) in (6, 7) for part in ("actor", "buffer", "learner"))


def test_unknown_parts_are_refused() -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="choose from actor"):
        drill._parts("actor,coffee")


def recorded(tmp_path: Path, versions: list[int], slots: list[list[int]], trained: int) -> RunFolder:
    folder = RunFolder(tmp_path)
    folder.create()
    rows = [{"step": version, "version": version, "ledger/trained": trained} for version in versions]
    folder.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for step, batch in enumerate(slots, 1):
        path = folder.trajectories / f"step_{step:08d}.jsonl"
        path.write_text("".join(json.dumps({"slot": slot}) + "\n" for slot in batch))
    return folder


def test_the_audit_counts_versions_and_slots(tmp_path: Path) -> None:
    assert drill.audit(recorded(tmp_path, [1, 2], [[0, 1], [3]], trained=3)) == []
    assert "MISSING: [1, 3]" in drill.audit(recorded(tmp_path, [1, 3], [[0, 1], [3]], trained=3))[0]
    assert "TWICE: [1]" in drill.audit(recorded(tmp_path, [1, 2], [[0, 1], [1]], trained=3))[0]
    assert "says 4 trained, but 3" in drill.audit(recorded(tmp_path, [1, 2], [[0, 1], [3]], trained=4))[0]
