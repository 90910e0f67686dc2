"""Making the runs of a study: their order, ends of every kind, and going on, whatever was there before."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.run.interrupts import NOTHING_TO_SAVE, SAVED
from launch.slurm import client
from launch.slurm.folder import JobFolder
from launch.study import runner
from launch.study.definition import Budget, Study, StudyError, StudyRun
from launch.study.folder import StudyFolder
from launch.study.progress import Progress
from launch.study.result import read_result
from launch.study.runner import Signals, StudyFailed, carry_on, command, make_run, retry_failed
from tests.unit.launch.study.studies import make_study, row, write, write_run


@dataclass
class Making:
    """Stands for `azr train`: leaves a run folder, and ends as it is told."""

    ends: Iterator[str]
    made: list[tuple[str, str]] = field(default_factory=list)

    def __call__(self, folder: StudyFolder, study: Study, run: StudyRun, progress: Progress, signals: Signals) -> int:
        end = next(self.ends)
        self.made.append((run.name, end))
        assert not folder.result(run).exists(), "a run that is over is not made again"
        if end == "killed":
            raise KilledHere
        if end == "complete":
            write_run(folder.run(run), [row(1)])
        return {"complete": 0, "failed": 1, "stopped": SAVED, "nothing to save": NOTHING_TO_SAVE}[end]


class KilledHere(BaseException):
    """The study's process ends without a chance to write anything."""


ENDS = st.sampled_from(["complete", "failed", "stopped", "nothing to save", "killed"])


@settings(deadline=None)
@given(st.lists(ENDS, max_size=12), st.lists(st.integers(1, 3), max_size=5), st.booleans())
def test_a_study_goes_on_where_it_was(ends: list[str], limits: list[int], retry: bool) -> None:
    """However its processes ended: each run is complete once, in the study's order, and only a retry repeats."""
    study = make_study((0, 1), ("K0", "K2", "K8"))
    with TemporaryDirectory() as name:
        folder = write(study, Path(name))
        making = Making(iter([*ends, *["complete"] * 99]))
        for limit in [*limits, *[99] * (len(ends) + 1)]:
            if retry:
                retry_failed(folder, study)
            before = len(making.made)
            with contextlib.suppress(KilledHere, StudyFailed):
                carry_on(folder, folder.read(), Progress(study), limit, make=making)
            assert len(making.made) - before <= limit
        if retry:
            retry_failed(folder, study)
            carry_on(folder, study, Progress(study), make=making)
        complete = [name for name, end in making.made if end == "complete"]
        failed = [name for name, end in making.made if end == "failed"]
        assert len(complete) == len(set(complete))
        assert set(complete) | set(failed) == set(study.order)
        if retry:
            assert sorted(complete) == sorted(study.order)
        else:
            assert len(failed) == len(set(failed))
            assert [name for name in study.order if name in complete] == complete
        for run in study.runs():
            result = read_result(folder, run)
            assert result is not None
            assert (result.status == "complete") == (run.name in complete)


def test_a_study_stops_where_runs_fail_in_a_row(tmp_path: Path) -> None:
    study = make_study()
    folder = write(study, tmp_path)
    making = Making(iter(["failed", "failed"]))
    with pytest.raises(StudyFailed, match=r"2 runs in a row have failed, the last, K2-s0.*--retry"):
        carry_on(folder, study, Progress(study), make=making)
    assert len(making.made) == 2


def test_a_stop_ends_the_study_with_the_exit_code_of_the_run(tmp_path: Path) -> None:
    study = make_study()
    folder = write(study, tmp_path)
    making = Making(iter(["complete", "stopped"]))
    assert carry_on(folder, study, Progress(study), make=making) == SAVED
    assert [end for _, end in making.made] == ["complete", "stopped"]


def test_two_processes_do_not_make_runs_of_one_study(tmp_path: Path) -> None:
    study = make_study()
    folder = write(study, tmp_path)
    take = f"import filelock; lock = filelock.FileLock({str(tmp_path / '.lock')!r}); lock.acquire()"
    with subprocess.Popen(
        [sys.executable, "-c", f"{take}; print('held', flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(StudyError, match="another process"):
            carry_on(folder, study, Progress(study), make=Making(iter([])))
        other.kill()
    assert carry_on(folder, study, Progress(study), 1, make=Making(iter(["complete"]))) == 0


def test_a_run_that_ended_while_nobody_looked_is_only_collected(tmp_path: Path) -> None:
    study = make_study((0,))
    folder = write(study, tmp_path)
    first = study.runs_in_order()[0]
    write_run(folder.run(first), [row(1), row(2)])
    assert carry_on(folder, study, Progress(study), 1) == 0
    result = read_result(folder, first)
    assert result is not None
    assert (result.status, result.steps) == ("complete", 2)
    assert not folder.log(first).exists(), "nothing was started"


def test_a_run_goes_on_with_the_same_command_and_the_time_that_is_left(tmp_path: Path) -> None:
    study = make_study(budget=Budget(minutes=10))
    folder = write(study, tmp_path)
    run = study.runs_in_order()[1]
    words = command(folder, study, run)
    assert "--auto-resume" in words
    assert {"learner.max_staleness=2", "run.seed=0", f"run.name={run.name}"} < set(words)
    assert [word for word in words if word.startswith("run.max_minutes")][-1] == "run.max_minutes=10.000"
    place = folder.run(run)
    write_run(place, [row(step, step_s=60.0) for step in range(1, 6)])
    assert command(folder, study, run)[-1] == "run.max_minutes=10.000", "without a checkpoint it begins at step 1 again"
    (place.checkpoints / "step_00000004").mkdir(parents=True)
    assert command(folder, study, run)[-1] == "run.max_minutes=6.000", "the fifth step is lost, and is made again"


def test_a_study_that_has_failed_runs_says_so_by_its_exit_code(tmp_path: Path) -> None:
    study = make_study()
    folder = write(study, tmp_path)
    ends = ["complete", "failed", *["complete"] * 5]
    assert carry_on(folder, study, Progress(study), 1, make=Making(iter(ends))) == 0
    assert carry_on(folder, study, Progress(study), make=Making(iter(ends[1:]))) == 1
    assert carry_on(folder, study, Progress(study), make=Making(iter([]))) == 1, "as long as it has them"
    retry_failed(folder, study)
    assert carry_on(folder, study, Progress(study), make=Making(iter(["complete"]))) == 0


def test_a_run_that_slurm_has_a_job_for_is_not_made_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = make_study()
    folder = write(study, tmp_path)
    queued = study.runs_in_order()[1]
    script = JobFolder(folder.run(queued).path).script
    script.parent.mkdir(parents=True)
    script.write_text("#!/bin/bash\n")
    monkeypatch.setattr(client, "jobs_of", lambda asked: [client.QueuedJob("7", "PENDING", "(Priority)")])
    with pytest.raises(StudyError, match=f"SLURM has jobs for {queued.name}: go on with .* --slurm"):
        carry_on(folder, study, Progress(study), make=Making(iter([])))
    monkeypatch.setattr(client, "jobs_of", lambda asked: [])
    assert carry_on(folder, study, Progress(study), 1, make=Making(iter(["complete"]))) == 0


def test_a_run_of_equal_tokens_goes_on_with_the_same_limit(tmp_path: Path) -> None:
    """`azr train` counts what earlier starts have trained."""
    study = make_study(budget=Budget(tokens=5000))
    folder = write(study, tmp_path)
    run = study.runs_in_order()[1]
    words = command(folder, study, run)
    assert {"run.max_tokens=5000", "run.max_minutes=none"} < set(words)
    write_run(folder.run(run), [row(1)], why=None)
    assert command(folder, study, run) == words


@pytest.mark.slow
def test_a_failed_run_is_reported_with_the_words_of_azr(tmp_path: Path) -> None:
    """A recipe that cannot run: `azr train` itself says why."""
    study = make_study((0,), arms=("K0", "K2"))
    folder = write(study, tmp_path)
    folder.recipe.write_text('base = "no-such-recipe"\n')
    with pytest.raises(StudyFailed, match="no recipe at no-such-recipe"):
        carry_on(folder, study, Progress(study))
    result = read_result(folder, study.runs_in_order()[0])
    assert result is not None
    assert (result.status, result.exit_code) == ("failed", 2)
    assert runner.last_words(folder, result.run).startswith("azr: base = 'no-such-recipe'")


OWNER = """
import os, platform, signal, sys
from pathlib import Path
from launch.json_lines import to_json
from launch.run.folder import RunFolder, append_event
from launch.run.owner import owned

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
folder = RunFolder(Path(sys.argv[1]))
with owned(folder, print):
    began = {"host": platform.node(), "pid": os.getpid(), "attempt": 1, "time": "today"}
    folder.new_attempt().record.write_text(to_json(began))
    append_event(folder, "run_started", attempt=1, step=0)
    print("begun", flush=True)
    signal.sigwait({signal.SIGINT})
    append_event(folder, "run_ended", why=sys.argv[2])
"""


@pytest.mark.parametrize(("why", "code"), [("interrupted", SAVED), ("complete", 0)])
def test_an_interrupt_reaches_a_run_that_a_killed_study_has_left(tmp_path: Path, why: str, code: int) -> None:
    study = make_study()
    folder = write(study, tmp_path)
    run = study.runs_in_order()[0]
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(folder.run(run).path), why], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "begun\n"
        progress = Progress(study)
        progress.begin(run, {})
        try:
            assert make_run(folder, study, run, progress, Signals(came=signal.SIGINT)) == code
            assert other.wait() == 0
        finally:
            other.kill()
    assert not folder.log(run).exists(), "no second process was started"
