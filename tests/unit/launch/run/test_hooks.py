"""What the loop's hooks add to a step's metrics."""

from __future__ import annotations

import time
from pathlib import Path

from launch.config import Config, load
from launch.run.folder import RunFolder
from launch.run.hooks import make_hooks
from launch.run.recorder import Recorder
from launch.run.status import Progress
from learner.phase import Phase


def test_the_buffers_numbers_are_recorded_with_each_step(tmp_path: Path) -> None:
    recorder = Recorder(RunFolder(tmp_path), None, False)
    hooks = make_hooks(Config(), recorder, lambda version: None, Progress(), lambda: {"buffer/deduction": 4.0})
    hooks.on_step({"step": 1, "version": 1, "tokens_generated": 10.0}, [])
    recorder.close()
    assert RunFolder(tmp_path).read_metrics()[0]["buffer/deduction"] == 4.0


def test_a_learner_that_is_restarted_has_the_minutes_that_are_left() -> None:
    config = load("smollm2-cpu", ["run.max_minutes=10"])
    first = Progress()
    assert not make_hooks(config, None, lambda version: None, first).interrupted()
    assert first.ends_at is not None and 590 < first.ends_at - time.time() <= 600
    later = Progress()
    later.ends_at = time.time() - 1
    interrupted = make_hooks(config, None, lambda version: None, later).interrupted
    later.enter(Phase.WAITING_FOR_ACTORS)
    assert not interrupted(), "its actors measure the last version"
    later.enter(Phase.PUBLISHING)
    assert interrupted()
    assert later.stop == "run.max_minutes = 10 is over"


def test_who_waits_for_whom_is_said_in_shares_of_their_own_time(tmp_path: Path) -> None:
    recorder = Recorder(RunFolder(tmp_path), None, False)
    hooks = make_hooks(Config(), recorder, lambda version: None, Progress())
    for step, (waited, connected) in enumerate([(3.0, 10.0), (4.0, 30.0)], 1):
        row = {"wait_for_policy_actor_s": waited, "connected_actor_s": connected, "wait_for_batch_s": 0.0}
        hooks.on_step({"step": step, "version": step, **row}, [])
    recorder.close()
    rows = RunFolder(tmp_path).read_metrics()
    assert [row["wait_for_policy_share"] for row in rows] == [0.3, 0.05]
    assert [row["wait_for_batch_share"] for row in rows] == [0.0, 0.0]
