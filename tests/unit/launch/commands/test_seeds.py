"""Seed files: what one run found starts another, and nothing in a file is believed."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from actors.buffer.task_buffer import NewTask, TaskBuffer
from actors.seed_file import SeedError, SeedReport, load_seeds, save
from executor.settings import ExecutorSettings
from executor.tasks import Task, ValidationRules
from launch.cli import main
from launch.config import Config
from launch.run.folder import RunFolder
from launch.run.task_buffer import open_tasks
from learner.checkpoint import seal

DOUBLE = "def f(x):\n    return x + x"
TASKS = [
    Task("deduction", DOUBLE, ("2",), ("4",)),
    Task("abduction", DOUBLE, ("'é'",), ("'éé'",)),
    Task("induction", DOUBLE, ("1", "2", "3", "4"), ("2", "4", "6", "8"), "twice"),
    Task("deduction", DOUBLE, ("[0]",), ("[0, 0]",)),
]


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    store = TaskBuffer(folder / "tasks.sqlite")
    for version, task in enumerate(TASKS):
        store.add(NewTask(task, normal=task.program, proposer_version=version, episode_id="e"))
    store.close()
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Any:
    store = TaskBuffer(tmp_path / "new.sqlite")
    yield store
    store.close()


def load(file: Path, store: TaskBuffer) -> SeedReport:
    return load_seeds(file, ExecutorSettings(), store, ValidationRules())


def stored(path: Path) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as database:
        return database.execute(
            "SELECT kind, program, inputs, outputs, message, proposer_version, episode_id FROM tasks "
            "WHERE episode_id <> 'zero' ORDER BY id"
        ).fetchall()


def test_what_is_saved_loads(
    run_folder: Path, store: TaskBuffer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "seeds.jsonl"
    assert main(["seeds", "save", str(run_folder), str(file)]) == 0
    assert capsys.readouterr().out == f"4 tasks to {file}: 2 deduction, 1 abduction, 1 induction\n"
    report = load(file, store)
    assert report.counts() == {"deduction": 2, "abduction": 1, "induction": 1, "duplicates": 0, "rejected": 0}
    assert stored(tmp_path / "new.sqlite") == [
        (t.kind, t.program, json.dumps(t.inputs), json.dumps(t.outputs), t.message, -1, f"seed:seeds.jsonl:{number}")
        for number, t in enumerate(TASKS, 1)
    ]
    assert load(file, store).duplicates == 4


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        (["--max-version", "1"], [0, 1]),
        (["--kind", "deduction"], [0, 3]),
        (["--kind", "deduction", "--kind", "induction", "--limit", "1"], [0, 2]),
    ],
)
def test_a_part_of_the_tasks(run_folder: Path, tmp_path: Path, options: list[str], kept: list[int]) -> None:
    file = tmp_path / "seeds.jsonl"
    assert main(["seeds", "save", str(run_folder / "tasks.sqlite"), str(file), *options]) == 0
    inputs = [json.loads(line)["inputs"] for line in file.read_text().splitlines()]
    assert inputs == [list(TASKS[index].inputs) for index in kept]


BAD = {
    "no JSON": "{",
    "nested": "[" * 100_000,
    "a line is an object": "[]",
    "kind, program": json.dumps({"kind": "deduction", "program": 3, "inputs": ["1"]}),
    "kind, program and": json.dumps({"kind": "deduction", "program": DOUBLE}),
    "inputs and outputs": json.dumps({"kind": "deduction", "program": DOUBLE, "inputs": [1]}),
    "kind 'guess'": json.dumps({"kind": "guess", "program": DOUBLE, "inputs": ["1"]}),
    "input_count": json.dumps({"kind": "deduction", "program": DOUBLE, "inputs": ["1", "2"]}),
    "unparseable_input": json.dumps({"kind": "deduction", "program": DOUBLE, "inputs": ["open('x')"]}),
    "error": json.dumps({"kind": "deduction", "program": "def f(x): return x.y", "inputs": ["1"]}),
    "unsafe": json.dumps({"kind": "deduction", "program": "import os\ndef f(x): return os.getpid()", "inputs": ["1"]}),
    "outputs differ": json.dumps({"kind": "deduction", "program": DOUBLE, "inputs": ["1"], "outputs": ["3"]}),
}


def test_what_is_no_task_is_rejected_by_line_and_reason(store: TaskBuffer, tmp_path: Path) -> None:
    good = json.dumps({"kind": "deduction", "program": DOUBLE, "inputs": ["1"]})
    file = tmp_path / "seeds.jsonl"
    file.write_text("\n".join(["", *BAD.values(), good, ""]))
    report = load(file, store)
    assert [number for number, _ in report.rejected] == list(range(2, 2 + len(BAD)))
    for (_, why), expected in zip(report.rejected, BAD, strict=True):
        assert expected in why
    assert report.added == {"deduction": 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["none/seeds.jsonl"], "is no folder that can be written to"),
        (["."], "exists already"),
        (["seeds.jsonl", "--minutes", "0"], "0 is no number above 0"),
        (["seeds.jsonl", "--minutes=-1"], "-1 is no number above 0"),
    ],
)
def test_proposing_refuses_what_it_could_not_write_before_an_engine_starts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code = main(["seeds", "propose", "smollm2-cpu", *options])
    except SystemExit as stopped:
        code = stopped.code  # type: ignore[assignment]
    assert code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"), [(None, "cannot be read"), ("", "none of its 0"), ("{", "line 1: no JSON")]
)
def test_a_file_without_a_task_stops_the_run(store: TaskBuffer, tmp_path: Path, text: str | None, message: str) -> None:
    file = tmp_path / "seeds.jsonl"
    if text is not None:
        file.write_text(text)
    with pytest.raises(SeedError, match=message):
        load(file, store)


def test_a_new_run_starts_with_them_once_and_names_the_rejected(run_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "seeds.jsonl"
    save(run_folder / "tasks.sqlite", file)
    with file.open("a") as more:
        more.write("{\n")
    config = Config.model_validate({"selfplay": {"seed_tasks": str(file)}})
    folder = RunFolder(tmp_path / "second")
    folder.create()
    store = open_tasks(config, folder, resume=False)
    assert store.sizes() == {"deduction": 3, "abduction": 2, "induction": 1}
    checkpoint = folder.checkpoints / "step_00000001"
    checkpoint.mkdir()
    store.snapshot(checkpoint / "tasks.sqlite")
    seal(checkpoint, 1)
    store.close()
    lines = [json.loads(line) for line in folder.events.read_text().splitlines()]
    assert [(line["event"], line.get("line"), line.get("rejected")) for line in lines] == [
        ("seed_rejected", 5, None), ("seeds_loaded", None, 1),
    ]  # fmt: skip
    file.unlink()
    again = open_tasks(config, folder, resume=True)
    assert again.sizes() == {"deduction": 3, "abduction": 2, "induction": 1}
    again.close()


def test_wrong_use_is_named(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "seeds.jsonl"
    file.write_text("mine")
    assert main(["seeds", "save", str(run_folder), str(file)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert file.read_text() == "mine"
    assert main(["seeds", "save", str(tmp_path), str(tmp_path / "x")]) == 2
    assert "no run folder" in capsys.readouterr().err
    assert main(["seeds", "save", str(file), str(tmp_path / "x")]) == 2
    assert "cannot be read as a task buffer" in capsys.readouterr().err
