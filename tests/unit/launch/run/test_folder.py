"""A run's folder: the log of the executor's work."""

from __future__ import annotations

import json
from pathlib import Path

from launch.run.folder import RunFolder, work_log


def test_work_is_appended_to_a_file_of_its_actor(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert work_log(folder, "rollout0", wanted=False) is None
    assert list(tmp_path.iterdir()) == []
    for number in (1, 2):  # the second life of an actor goes on where the first was cut off
        record = work_log(folder, "rollout0", wanted=True)
        assert record is not None
        record({"op": "verify", "answers": ["\ud800", "2\n3"], "number": number})
    lines = [json.loads(line) for line in (tmp_path / "executor_work.rollout0.jsonl").read_text().splitlines()]
    assert lines == [{"op": "verify", "answers": ["\ud800", "2\n3"], "number": number} for number in (1, 2)]
