"""Starts, resumes and kills in any order: what a run has recorded stays in its folder, and each attempt says what it
does."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor.user_error import UserError
from launch.cli import main
from launch.config import Config, SftConfig, load, to_toml
from launch.run.attempt import Start, adopt, begin, find_origin, finished, former_run, new_run
from launch.run.changes import changes
from launch.run.configuration import load_run
from launch.run.folder import RunFolder, RunFolderError, usable
from launch.run.gate import make_gate
from launch.run.owner import owned
from launch.run.recorder import Recorder
from learner.checkpoint import CheckpointError, seal
from tests.examples import examples

ACTIONS = (
    "start",
    "resume",
    "start over",
    "auto",
    "steps",
    "checkpoint",
    "half a checkpoint",
    "kill",
    "learner restart",
)


def config(folder: RunFolder, *overrides: str) -> Config:
    return load("smollm2-cpu", [f"run.dir={folder.path.parent}", f"run.name={folder.path.name}", *overrides])


def checkpoint(folder: RunFolder, step: int, complete: bool = True) -> None:
    path = folder.checkpoints / f"step_{step:08d}"
    path.mkdir(parents=True, exist_ok=True)
    (path / "gate.json").write_text(json.dumps(make_gate(Config()).state_dict()))
    if complete:
        seal(path, step)


def measured(folder: RunFolder, version: int) -> None:
    """A measurement on held-out tasks, as far as a start looks at it."""
    folder.heldout.mkdir(exist_ok=True)
    (folder.heldout / f"version_{version:08d}.json").write_text("{}")


class Run:
    """A run without a learner: real folder, attempts and recorder, and an account of everything that was recorded."""

    def __init__(self, path: Path) -> None:
        self.folder = RunFolder(path)
        self.recorder: Recorder | None = None
        self.step = 0
        self.number = 0
        self.rows: set[int] = set()
        self.batches: set[str] = set()
        self.configs: set[str] = set()

    def begin(self, how: str) -> None:
        self.number += 1
        self.close()
        present = config(self.folder, f"run.seed={self.number}")
        former = present if how in ("resume", "start over") else None
        try:
            origin = find_origin(present, self.folder, Start(former, how == "start over", how == "auto"))
        except CheckpointError:
            return
        except RunFolderError:
            assert how != "auto", "it begins or goes on"
            return
        begin(present, self.folder, origin)
        self.record_from(origin.step)
        adopt(self.folder)
        self.configs.add(self.folder.config.read_text())

    def record_from(self, step: int) -> None:
        self.close()
        self.recorder, self.step = Recorder(self.folder, None, False, step), step

    def close(self) -> None:
        if self.recorder is not None:
            self.recorder.close()
            self.recorder = None

    def act(self, action: str) -> None:
        if action in ("start", "resume", "start over", "auto"):
            self.begin(action)
        elif self.recorder is None:
            return
        elif action == "steps":
            for _ in range(2):
                self.step += 1
                self.number += 1
                self.recorder.step({"step": self.step, "version": self.step, "loss": self.number}, [])
                batch = self.folder.trajectories / f"step_{self.step:08d}.jsonl"
                batch.write_text(f"batch {self.number}")
                self.rows.add(self.number)
                self.batches.add(f"batch {self.number}")
        elif action.endswith("checkpoint"):
            checkpoint(self.folder, self.step, complete=action == "checkpoint")
        elif action == "kill":
            with self.folder.metrics.open("a") as file:
                file.write('{"step": 1, "id')
            self.close()
        elif action == "learner restart":
            complete = [path.parent for path in self.folder.checkpoints.glob("step_*/complete.json")]
            self.record_from(max((int(path.name.removeprefix("step_")) for path in complete), default=0))

    def check(self) -> None:
        rows = [
            json.loads(line)
            for path in self.folder.path.rglob("metrics.jsonl")
            for line in path.read_text().splitlines(keepends=True)
            if line.endswith("}\n")
        ]
        assert self.rows <= {row["loss"] for row in rows}
        assert self.batches <= {path.read_text() for path in self.folder.path.rglob("step_*.jsonl")}
        assert self.configs <= {path.read_text() for path in self.folder.path.rglob("config.toml")}
        steps = [row["step"] for row in self.folder.read_metrics()]
        if self.recorder is not None:
            assert steps == sorted(set(steps)) and max(steps, default=0) == self.step, "each step is recorded once"


@examples(40)
@given(st.lists(st.sampled_from(ACTIONS), min_size=3, max_size=14))
def test_whatever_happens_everything_recorded_is_still_in_the_folder(actions: list[str]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        run = Run(Path(directory) / "run")
        for action in ("start", *actions):
            run.act(action)
            run.check()
        run.close()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run of four steps."""
    run = Run(tmp_path / "run")
    for action in ("start", "steps", "steps"):
        run.act(action)
    run.close()
    return run


def files(folder: RunFolder) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}


def damages(content: bytes) -> dict[str, bytes]:
    """What may be left of a file after a full disk, a loss of power or an editor, by name."""
    return {
        "emptied": b"",
        "cut short": content[: len(content) // 2],
        "zeros": bytes(len(content) or 100),
        "other content": b"[" + b" " * (len(content) - 2) + b"]",
        "another line": content + b'\xff[1e999, {"step": 1e999}\n{"step": true}\n[]\n',
        "half a line": content + b'{"step": 4, "ev',
    }


def test_a_resume_of_a_damaged_folder_goes_on_or_says_what_to_do(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    run = Run(whole)
    for action in ("start", "steps", "checkpoint", "steps", "checkpoint", "steps"):
        run.act(action)
    run.close()
    odd = (
        "trajectories/step_00000001 (copy).jsonl",
        "attempts/001/aside.old/x",
        "checkpoints/step_00000009",
        "logs",
        "checkpoints",
    )
    cases = [(file.relative_to(whole), how) for file in whole.rglob("*") if file.is_file() for how in damages(b"")]
    for file, how in [*cases, *((Path(name), "put there") for name in odd)]:
        folder = RunFolder(tmp_path / f"{'_'.join(file.parts)}, {how}")
        shutil.copytree(whole, folder.path)
        if how == "put there":
            shutil.rmtree(folder.path / file, ignore_errors=True)
            (folder.path / file).parent.mkdir(exist_ok=True)
            (folder.path / file).write_bytes(b"")
        else:
            (folder.path / file).write_bytes(damages((whole / file).read_bytes())[how])
        try:
            present, former = load_run(folder.path, [], Config)
            assert present.run.seed == 1, f"{file} {how}: the run keeps its settings"
            with owned(folder, print), usable(folder):
                begin(present, folder, origin := find_origin(present, folder, Start(former)))
                adopt(folder)
                Recorder(folder, None, False, origin.step).close()
        except UserError:
            continue  # whose text says what to do
        events = [line for line in folder.events.read_bytes().splitlines() if line.startswith(b"{")]
        assert any(b'"run_resumed"' in line and json.loads(line) for line in events), f"{file} {how}: {events}"
        assert all(row["step"] <= origin.step for row in folder.read_metrics()), f"{file} {how}"


@pytest.mark.parametrize("auto", [False, True])
def test_checkpoints_that_cannot_be_read_are_not_taken_for_none(
    run: Run, auto: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for action in ("start", "steps", "checkpoint"):
        run.act(action)
    run.close()
    listdir = os.listdir

    def refused(path: Path) -> list[str]:
        if Path(path).name == "checkpoints":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listdir(path)

    present = config(run.folder)
    monkeypatch.setattr(os, "listdir", refused)
    with pytest.raises(RunFolderError, match="Permission denied.*checkpoints"), usable(run.folder):
        find_origin(present, run.folder, Start(None if auto else present, auto=auto))


def test_steps_without_a_checkpoint_are_not_started_over_unasked(run: Run) -> None:
    before = files(run.folder)
    with pytest.raises(RunFolderError, match=r"4 recorded steps and no checkpoint.*--start-over"):
        former_run(config(run.folder), run.folder)
    assert files(run.folder) == before
    origin = former_run(config(run.folder), run.folder, start_over=True)
    assert "4 steps and all checkpoints were moved to" in begin(config(run.folder), run.folder, origin)[0]
    assert run.folder.read_metrics() == []
    assert len(list(run.folder.attempts.glob("002/aside.1/trajectories/*"))) == 4


def test_a_resume_says_what_it_goes_on_from_what_is_taken_again_and_what_changed(run: Run) -> None:
    checkpoint(run.folder, 3)
    (run.folder.checkpoints / "step_00000004").mkdir()
    present, former = load_run(run.folder.path, ["learner.optimizer.lr=1e-3", "run.max_minutes=none"], Config)
    lines = begin(present, run.folder, find_origin(present, run.folder, Start(former)))
    assert [line.partition(":")[0] if line.startswith("changed") else line for line in lines][1:] == [
        f"going on from {run.folder.checkpoints / 'step_00000003'}, after step 3",
        f"step 4 is taken again; what was recorded of that moves to {run.folder.attempts / '002'}",
        "changed",
        "changed",
    ]
    assert "step_00000004 is incomplete" in lines[0]
    limit = f"changed: run.max_minutes: {former.run.max_minutes} -> unset"
    assert {limit, "changed: learner.optimizer.lr: 4e-05 -> 0.001"} < set(lines)
    event = json.loads(run.folder.events.read_text().splitlines()[-1])
    assert (event["event"], event["step"], event["checkpoint"]) == ("run_resumed", 3, "step_00000003")
    assert event["changed"]["learner.optimizer.lr"] == [4e-5, 1e-3]


def test_a_resume_that_fails_leaves_the_settings_of_the_run_as_they_were(run: Run) -> None:
    checkpoint(run.folder, 4)
    before = run.folder.config.read_text()
    present, _ = load_run(run.folder.path, ["learner.parallel.tensor=2"], Config)
    begin(present, run.folder, former_run(present, run.folder))  # and its learner fails to load
    assert run.folder.config.read_text() == before
    assert load_run(run.folder.path, [], Config)[0].learner.parallel.tensor == 1
    assert "tensor = 2" in (run.folder.attempts / "002" / "config.toml").read_text()
    adopt(run.folder)
    assert load_run(run.folder.path, [], Config)[0].learner.parallel.tensor == 2


@pytest.mark.parametrize(("steps", "ended"), [(2, True), (4, True), (5, False)])
def test_a_run_that_has_its_steps_says_so(run: Run, steps: int, ended: bool) -> None:
    checkpoint(run.folder, 4)
    present = config(run.folder)
    origin = former_run(present, run.folder)
    assert finished(present, run.folder, origin, steps) is None, "its last version is still to be measured"
    lines = begin(config(run.folder, f"learner.steps={steps}"), run.folder, origin)
    assert any("only the last version" in line for line in lines) == ended
    measured(run.folder, 4)
    said = finished(present, run.folder, origin, steps)
    assert (said is not None) == ended
    if said:
        assert f"4 of {steps} steps are taken" in said and "learner.steps=N" in said


def test_a_command_that_has_nothing_to_do_or_is_refused_changes_nothing(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(run.folder.path)
    before = files(run.folder)
    for arguments, code, words in (
        (["--resume", path], 2, "no checkpoint"),
        (["smollm2-cpu", "--resume", path], 2, "a run keeps its recipe: leave smollm2-cpu out"),
        (["smollm2-cpu", "--start-over"], 2, "--resume RUN --start-over"),
        (["--resume", path, "--auto-resume"], 2, "azr train RECIPE --auto-resume"),
        (["smollm2-cpu", f"run.dir={run.folder.path.parent}", "run.name=run"], 2, "holds a run already"),
    ):
        assert main(["train", *arguments]) == code
        assert words in capsys.readouterr().err
        assert files(run.folder) == before
    checkpoint(run.folder, 4)
    measured(run.folder, 4)
    before = files(run.folder)
    assert main(["train", "--resume", path, "learner.steps=4"]) == 0
    assert "4 of 4 steps are taken" in capsys.readouterr().out
    assert files(run.folder) == before
    same = ["smollm2-cpu", f"run.dir={run.folder.path.parent}", f"run.name={run.folder.path.name}", "learner.steps=4"]
    assert main(["train", *same, "--auto-resume"]) == 0
    assert "4 of 4 steps are taken" in capsys.readouterr().out
    assert files(run.folder) == before


def test_auto_resume_begins_a_run_goes_on_with_it_and_begins_again_where_nothing_was_saved(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    auto = Start(auto=True)
    assert not find_origin(config(run.folder), run.folder, auto).resumes
    for action in ("auto", "steps"):
        run.act(action)
    origin = find_origin(config(run.folder), run.folder, auto)
    assert origin.start_over and not origin.goes_on, "two steps, and no checkpoint"
    checkpoint(run.folder, 1)
    present = config(run.folder, "learner.optimizer.lr=1e-3")
    origin = find_origin(present, run.folder, auto)
    assert (origin.step, origin.goes_on) == (1, True)
    assert "changed: learner.optimizer.lr: 4e-05 -> 0.001" in begin(present, run.folder, origin)
    run.close()


def test_auto_resume_refuses_a_folder_of_the_other_command(run: Run) -> None:
    overrides = [f"run.dir={run.folder.path.parent}", f"run.name={run.folder.path.name}"]
    with pytest.raises(RunFolderError, match="is a run of `azr train`"):
        find_origin(load("sft-smollm2-cpu", overrides, SftConfig), run.folder, Start(auto=True))


def test_a_run_is_resumed_from_any_directory_under_any_name(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = run.folder.path.parent / "else where" / "renamed"
    moved.parent.mkdir()
    run.folder.path.rename(moved)
    (moved.parent / "link").symlink_to(moved)
    for directory, name in ((moved.parent, "renamed"), (moved, "."), (moved / "logs", ".."), (moved.parent, "link")):
        monkeypatch.chdir(directory)
        present, former = load_run(Path(name), ["learner.steps=7"], Config)
        assert present.folder.resolve() == moved
        assert list(changes(former, present, None).values) == ["learner.steps"]


def test_a_file_that_a_setting_names_is_found_from_any_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "seeds.jsonl").write_text("")
    monkeypatch.chdir(tmp_path / "here")
    folder = RunFolder(tmp_path / "run")
    begin(config(folder, "selfplay.seed_tasks=seeds.jsonl"), folder, new_run(config(folder), folder))
    adopt(folder)
    present, _ = load_run(folder.path, [], Config)
    assert present.selfplay.seed_tasks == str(tmp_path / "here" / "seeds.jsonl")
    assert present.model.path == "smollm2-135m-instruct"


@pytest.mark.parametrize("key", ["run.dir", "run.name"])
def test_a_resumed_run_stays_in_its_folder(run: Run, key: str) -> None:
    with pytest.raises(RunFolderError, match=f"{key} cannot be changed with --resume"):
        load_run(run.folder.path, [f"{key}=x"], Config)


@pytest.mark.parametrize("mode", ["async", "serial", "sft"])
@pytest.mark.parametrize("resumes", [False, True])
def test_every_kind_of_run_is_refused_a_folder_that_another_process_owns(
    mode: str, resumes: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, recipe = ("sft", "sft-smollm2-cpu") if mode == "sft" else ("train", "smollm2-cpu")
    overrides = [f"run.dir={tmp_path}", "run.name=run", *([] if mode == "sft" else [f"run.mode={mode}"])]
    folder = RunFolder(tmp_path / "run")
    with owned(folder, lambda text: None):
        if resumes:
            folder.create()
            folder.config.write_text(to_toml(load(recipe, overrides, SftConfig if mode == "sft" else Config)))
        (folder.path / "checkpoints" / ".partial_00000009").mkdir(parents=True)
        before = files(folder)
        arguments = ["--resume", str(folder.path), "learner.checkpoint_every=3"] if resumes else [recipe, *overrides]
        assert main([command, *arguments]) == 2
        assert f"in use by process {os.getpid()}" in capsys.readouterr().err
        assert files(folder) == before and (folder.checkpoints / ".partial_00000009").exists()
