"""Kills during a rehearsal: what they are called, when they come, and what is noted of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launch.rehearsal.kills import Kill, KillError, Kills
from launch.rehearsal.packed_ray import Packed
from launch.run.folder import RunFolder
from launch.run.status import RunStatus
from learner.phase import Phase
from tests.unit.launch.cluster.fake_ray import Clock


class Processes:
    """A supervisor with two processes of three actors each."""

    def __init__(self) -> None:
        self.phase, self.dropped, self.is_whole = Phase.WAITING_FOR_ACTORS, 0, True
        self.ended: list[Any] = []
        self.actors = {index: Packed(f"host{index // 3}", f"rollout{index}.0", ()) for index in range(6)}

    def status(self) -> RunStatus:
        return RunStatus(phase=self.phase, ledger={"dropped": self.dropped})

    def processes(self, part: str) -> dict[int, Any]:
        return dict(self.actors) if part == "actor" else {0: part}

    def end(self, process: Any) -> None:
        self.ended.append(process)

    def whole(self) -> bool:
        return self.is_whole


def test_a_kill_comes_at_its_time_and_what_it_cost_is_noted(tmp_path: Path) -> None:
    folder, clock, run = RunFolder(tmp_path), Clock(100.0), Processes()
    killing = Kills([Kill.parse("node:40"), Kill.parse("buffer:80")], folder, 20.0, 0, lambda text: None, clock)
    killing.watch(run)
    clock.now += 60
    killing.watch(run)  # the actors still connect: the time has not begun
    run.phase = Phase.WAITING_FOR_BATCH
    killing.watch(run)
    clock.now += 1.9
    killing.watch(run)
    assert run.ended == []
    clock.now += 0.2  # 40 s, 20 times as fast
    killing.watch(run)
    (host,) = run.ended
    assert killing.kills[0].actors == [f"rollout{index}" for index in (range(3) if host == "host0" else range(3, 6))]
    run.is_whole, run.dropped = False, 12
    clock.now += 2.0
    killing.watch(run)
    assert run.ended[1:] == ["buffer"]
    clock.now += 3.0
    run.is_whole = True
    killing.watch(run)
    assert (
        killing.kills[0].describe() == "node at 40 s with 3 actors: whole again after 5.0 s, 12 slots dropped meanwhile"
    )
    (first, second) = map(json.loads, folder.events.read_text().splitlines())
    assert (first["event"], first["part"], second["part"]) == ("rehearsal_kill", "node", "buffer")


def test_several_actors_are_killed_at_once(tmp_path: Path) -> None:
    run = Processes()
    run.phase = Phase.TRAINING
    killing = Kills([Kill.parse("actor:0x4")], RunFolder(tmp_path), 1.0, 0, lambda text: None, Clock())
    killing.watch(run)
    assert len(set(run.ended)) == 4
    assert set(run.ended) <= set(run.actors.values())


@pytest.mark.parametrize("text", ["node", "node:", "host:5", "node:-1", "node:5x", "actor:5x0", "actor:5 x2", "5"])
def test_a_kill_that_cannot_be_understood_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(KillError, match="node:60"):
        Kill.parse(text)
