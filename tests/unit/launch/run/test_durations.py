"""What a run measures of itself, and what a stop plans with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch.run.durations import CHECKPOINT_S, Durations, Measured, read_durations
from launch.run.folder import RunFolder, append_event, checkpoint_event
from launch.run.recorder import Recorder
from launch.run.status import Progress
from learner.phase import Phase


def test_durations_are_those_of_the_newest_steps_and_checkpoints(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert read_durations(folder) == Durations()
    recorder = Recorder(folder, None, False)
    for step in range(1, 9):
        row = {"step": step, "version": step, "wait_for_batch_s": 900.0}
        recorder.step(row | {"train_s": 90.0 / step, "weights/send_s": 1.0, "weights/wait_loaded_s": 0.5}, [])
        checkpoint_event(folder)(step, 80.0 / step)
        append_event(folder, "scaled", actors=2)
    recorder.close()
    with folder.events.open("a") as file:
        file.write('{"event": "checkpoint", "seco')
    assert read_durations(folder) == Durations(90.0 / 4 + 1.5, 20.0)
    with folder.events.open("a") as file:
        file.write("\n" + "".join(json.dumps({"event": "watchdog", "text": "x" * 1000}) + "\n" for _ in range(300)))
    assert read_durations(folder).checkpoint_s is None, "only the end of a long file is read"


def test_a_run_plans_with_earlier_attempts_until_it_has_measured() -> None:
    measured = Measured(Durations(10.0, 20.0))
    assert measured.durations == Durations(10.0, 20.0)
    measured.step(3.0)
    assert measured.durations == Durations(3.0, 20.0)
    measured.checkpoint(4.0)
    assert measured.durations == Durations(3.0, 4.0)
    assert Durations().save_s > CHECKPOINT_S
    assert Durations(8.0, 4.0).stop_s == Durations(None, 4.0).save_s + 10.0


@pytest.mark.parametrize(
    ("step_s", "save_in_s", "gives_up"),
    [(None, 1000.0, False), (None, -1.0, True), (500.0, 1000.0, False), (1500.0, 1000.0, True), (1e9, None, False)],
)
def test_a_step_is_given_up_if_it_ends_after_the_time_to_begin_to_save(
    step_s: float | None, save_in_s: float | None, gives_up: bool
) -> None:
    progress = Progress(Durations(step_s, 1.0))
    progress.enter(Phase.TRAINING, 1)
    assert not progress.gives_up_step()
    progress.ask_to_stop("interrupted", save_in_s)
    assert progress.gives_up_step() is gives_up
    assert progress.is_hurried() is (save_in_s is not None)
    progress.enter(Phase.DRAINING)
    assert not progress.gives_up_step()
    assert progress.measured.durations.step_s == step_s, "a step that was given up is not measured"


def test_the_steps_of_a_run_are_measured_without_the_wait_for_their_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("launch.run.status.time.monotonic", lambda: now)
    progress = Progress()
    for phase, seconds in (
        (Phase.WAITING_FOR_BATCH, 100.0),
        (Phase.TRAINING, 7.0),
        (Phase.PUBLISHING, 2.0),
        (Phase.RECORDING, 1.0),
        (Phase.SAVING, 50.0),
        (Phase.WAITING_FOR_BATCH, 0.0),
    ):
        progress.enter(phase)
        now += seconds
    assert progress.measured.durations.step_s == 10.0
