"""`azr bench buffer`: what is filled is a real buffer, and the findings have every figure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from actors.buffer.task_buffer import NewTask, TaskBuffer
from actors.kinds.registry import kind_of
from launch.bench import buffer
from launch.cli import main
from learner.settings import BatchSettings

KINDS = BatchSettings().kinds


def test_a_filled_buffer_is_like_one_that_grew(tmp_path: Path) -> None:
    quickly, slowly = tmp_path / "quickly.sqlite", tmp_path / "slowly.sqlite"
    buffer.fill(quickly, 50)
    grown = TaskBuffer(slowly)
    for number in range(3, 51):
        task = buffer.make_task(number)
        grown.add(NewTask(task, normal=task.program, proposer_version=0, episode_id="e"))
    filled = TaskBuffer(quickly)
    assert filled.sizes() == grown.sizes()
    assert sum(filled.sizes().values()) == 50
    for kind in KINDS:
        assert filled.references(kind_of(kind).reference_kinds, 6, "s") == grown.references(
            kind_of(kind).reference_kinds, 6, "s"
        )
    task = buffer.make_task(50)
    assert filled.add(NewTask(task, normal=task.program, proposer_version=0, episode_id="e")).duplicate
    filled.close()
    grown.close()


@pytest.mark.parametrize(
    ("tasks", "sizes"),
    [(1000, (1000,)), (5000, (1000, 5000)), (10**6, (1000, 10**5, 10**6)), (10**7, (1000, 10**5, 10**6, 10**7))],
)
def test_the_sizes_go_up_to_what_is_asked_for(tasks: int, sizes: tuple[int, ...]) -> None:
    assert buffer.Options(tasks).sizes == sizes


def test_the_findings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "findings.json"
    command = ["bench", "buffer", "--tasks", "3000", "--runs", "2", "--seconds", "0.01", "--json", str(file)]
    assert main([*command, "--folder", str(tmp_path)]) == 0
    findings = json.loads(file.read_text())
    assert len(findings["rows"]) == 2 * 5
    for name in buffer.OPERATIONS:
        ratio = findings["ratios"][f"{name}_p50_3000_over_1e3"]
        assert ratio["runs"] == 2
        assert ratio["min"] > 0
        assert f"{name}_p50_3000_over_1e3" in findings["goals"]
    assert findings["ratios"]["references_naive_over_ours_3000"]["median"] > 0
    assert "opened in" in findings["notes"]["file_1e3"]
    assert "ORDER BY RANDOM()" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["findings.json"], "the buffers are gone"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "10"], "at least 1000"),
        (["--folder", "/nowhere"], "no folder"),
        (["--json", "/nowhere/x"], "no folder"),
    ],
)
def test_wrong_use_is_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(["bench", "buffer", *arguments])
    except SystemExit as end:
        code = int(end.code or 0)
    assert code == 2
    assert message in capsys.readouterr().err
