"""What a run records of its steps, and what a resumed run forgets of it."""

from __future__ import annotations

import json
import math
from pathlib import Path

from launch.run.folder import RunFolder
from launch.run.recorder import Recorder


def test_held_out_numbers_are_written_once_a_version(tmp_path: Path) -> None:
    """Actors report the newest with every heartbeat; a curve is made of what was measured."""

    def step(recorder: Recorder, number: int, version: int | None) -> bool:
        measured = {} if version is None else {"heldout/mean": 0.5, "heldout/version": float(version)}
        recorder.step({"step": number, "version": number, **measured}, [])
        assert "version" in recorder.last
        return "heldout/mean" in recorder.last

    recorder = Recorder(RunFolder(tmp_path), None, False)
    assert [step(recorder, n, v) for n, v in ((1, None), (2, 0), (3, 0), (4, 0), (5, 5))] == [
        False,
        True,
        False,
        False,
        True,
    ]
    recorder.close()
    resumed = Recorder(RunFolder(tmp_path), None, False, resumed_step=4)
    assert not step(resumed, 5, 0), "version 0 is in the rows that were kept"
    assert step(resumed, 6, 5), "version 5 was in a row that was forgotten"
    resumed.close()


def test_a_resumed_run_forgets_what_lies_beyond_its_checkpoint(tmp_path: Path) -> None:
    """Steps, trajectories, and the line that a kill cut short."""
    folder = RunFolder(tmp_path)
    recorder = Recorder(folder, None, True)
    for number in (1, 2, 3):
        recorder.step({"step": number, "version": number}, [])
    recorder.close()
    with folder.metrics.open("a") as file:
        file.write('{"step": 4, "ver')
    assert [row["step"] for row in folder.read_metrics()] == [1, 2, 3]
    resumed = Recorder(folder, None, True, resumed_step=2)
    resumed.step({"step": 3, "version": 3}, [])
    resumed.close()
    assert [row["step"] for row in folder.read_metrics()] == [1, 2, 3]
    Recorder(folder, None, True, resumed_step=1).close()
    assert [path.name for path in folder.trajectories.iterdir()] == ["step_00000001.jsonl"]


def test_a_skipped_update_is_an_event_with_its_norm(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    recorder = Recorder(folder, None, False)
    recorder.step({"step": 1, "version": 1, "skipped_update": 0.0, "grad_norm": 1.0}, [])
    recorder.step({"step": 2, "version": 2, "skipped_update": 1.0, "grad_norm": math.inf}, [])
    recorder.close()
    (event,) = (json.loads(line) for line in folder.events.read_text().splitlines())
    assert (event["event"], event["step"], event["grad_norm"]) == ("update_skipped", 2, None)
