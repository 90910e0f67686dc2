"""Makes the runs of a study here, one after another, each as `azr train` in a process of its own.

The state of a run is in its files alone, so a study goes on after any end of this process:

    a result file               the run is over: complete, or failed (which is made again on demand)
    a config.toml without one   it is begun: it goes on from its last checkpoint, or it has ended and is collected
    neither                     it is to be made

A run that outlives this process (which was killed, or whose terminal is gone) goes on; the next start waits for it.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import filelock

from executor.user_error import UserError
from launch.run.folder import RunFolder
from launch.run.interrupts import NOTHING_TO_SAVE, SAVED
from launch.run.owner import refusal
from launch.slurm import client
from launch.slurm.folder import JobFolder
from launch.study.definition import Study, StudyError, StudyRun
from launch.study.folder import StudyFolder
from launch.study.initial import take_over
from launch.study.progress import Progress
from launch.study.result import RunResult, collect, is_finished, read_result, write_result
from learner.disk import matches

POLL_S = 0.5
FAILURES_IN_A_ROW = 2
"""Runs that fail one after the other until the study stops: what ails them is probably not the arm."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)


class StudyFailed(StudyError):
    """Runs of a study fail."""

    exit_code = 1


@dataclass
class Signals:
    """The requests to stop that came, passed on to the run's process."""

    child: subprocess.Popen[bytes] | None = None
    came: int | None = None
    """The first of them."""
    _handlers: dict[int, Any] = field(default_factory=dict)

    @contextlib.contextmanager
    def caught(self) -> Iterator[Signals]:
        """Catch them until the block ends. SIGHUP stays ignored under `nohup`."""
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN or number == signal.SIGINT:
                self._handlers[number] = signal.signal(number, self._came)
        try:
            yield self
        finally:
            for caught, handler in self._handlers.items():
                signal.signal(caught, handler)

    def _came(self, number: int, frame: FrameType | None) -> None:
        self.came = self.came or number
        if self.child is not None:  # one that has ended gets nothing
            self.child.send_signal(number)


def results_of(folder: StudyFolder, study: Study) -> dict[str, RunResult]:
    """The results that there are, by the run's name. Raises StudyError."""
    found = ((run.name, read_result(folder, run)) for run in study.runs_in_order())
    return {name: result for name, result in found if result is not None}


def surplus_of(folder: StudyFolder, study: Study) -> list[str]:
    """The files beside the results that are of no run of the study; those that a retry has put aside are."""
    names = {f"{run.name}.json" for run in study.runs()}
    found = folder.results.iterdir() if folder.results.is_dir() else ()
    return sorted(
        str(path)
        for path in found
        if not path.name.startswith(".") and re.sub(r"\.failed-\d+$", ".json", path.name) not in names
    )


@contextlib.contextmanager
def alone(folder: StudyFolder) -> Iterator[None]:
    """Let no other process make runs of this study until the block ends. Raises StudyError."""
    lock = filelock.FileLock(folder.path / ".lock")
    with folder.usable():
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise StudyError(
                f"another process of this machine goes on with the study {folder.path}. Wait for it, or end it; "
                f"{folder.command_line('report')} shows what there is"
            ) from None
    try:
        yield
    finally:
        lock.release()


def retry_failed(folder: StudyFolder, study: Study) -> list[str]:
    """Put the results of failed runs aside, so that they go on; returns their names."""
    failed = [result.run for result in results_of(folder, study).values() if result.status == "failed"]
    for run in failed:
        path = folder.result(run)
        number = 1 + sum(1 for _ in folder.results.glob(f"{run.name}.failed-*"))
        path.rename(path.with_name(f"{run.name}.failed-{number}"))
    return [run.name for run in failed]


def make_run(folder: StudyFolder, study: Study, run: StudyRun, progress: Progress, signals: Signals) -> int:
    """Make one run, or go on with it; returns the exit code of `azr train`."""
    place = folder.run(run)
    if refusal(place):
        progress.say(f"{run.name} is under way in another process: waiting for its end")
        passed_on = False
        while refusal(place):
            if signals.came is not None and not passed_on:
                passed_on = True
                if not _pass_on(place, signals.came):
                    progress.say(f"{run.name} goes on, on another machine")
                    return SAVED
            progress.look(place)
            time.sleep(POLL_S)
        if passed_on and not is_finished(place):
            return SAVED
    if is_finished(place):
        return 0
    take_over(folder, study, run)
    folder.logs.mkdir(parents=True, exist_ok=True)
    with folder.log(run).open("ab") as log:
        # A process group of its own: Ctrl-C reaches this process alone, which passes it on once.
        child = subprocess.Popen(
            command(folder, study, run), stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0
        )
        signals.child = child
        if signals.came is not None:  # it came between two runs
            child.send_signal(signals.came)
        while child.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(POLL_S)
            progress.look(place)
    if child.returncode == UserError.exit_code and refusal(place):  # one that a killed study had just started
        return make_run(folder, study, run, progress, signals)
    return child.returncode


def _pass_on(run: RunFolder, number: int) -> bool:
    """Send a signal to the process of a run that this one did not start; False where it is on another machine."""
    attempt = run.newest_attempt()
    began = attempt.began() if attempt is not None else {}
    if began.get("host") != platform.node():
        return False
    with contextlib.suppress(ProcessLookupError):  # it has just ended
        os.kill(int(began["pid"]), number)
    return True


Make = Callable[[StudyFolder, Study, StudyRun, Progress, Signals], int]


def carry_on(
    folder: StudyFolder,
    study: Study,
    progress: Progress,
    limit: int | None = None,
    *,
    retry: bool = False,
    make: Make = make_run,
) -> int:
    """Make the runs that are left, in the study's order, at most `limit`. `retry`: also those that have failed. `make`:
    what makes one of them.

    Returns an exit code: 0, that of a stop by a signal, or 1 where the study has failed runs. Raises StudyFailed where
    runs fail one after the other, and StudyError.
    """
    with alone(folder), Signals().caught() as signals:
        folder.begin(study)
        results = results_of(folder, study)
        if retry:
            results = {name: result for name, result in results.items() if result.status != "failed"}
        left = [run for run in study.runs_in_order() if run.name not in results]
        _refuse_queued(folder, left[:limit])
        if retry and (failed := retry_failed(folder, study)):
            progress.say(f"to be gone on with: {', '.join(failed)}")
        in_a_row = 0
        for run in left[:limit]:
            progress.begin(run, results)
            code = make(folder, study, run, progress, signals)
            if code in (SAVED, NOTHING_TO_SAVE) or (signals.came is not None and code != 0):
                progress.end(f"stopped in {run.name}; go on: {folder.command_line('resume')}")
                return code if code in (SAVED, NOTHING_TO_SAVE) else 1
            result = collect(folder.run(run), run, code, "" if code == 0 else last_words(folder, run))
            write_result(result, folder.result(run))
            results[run.name] = result
            progress.ended(result)
            in_a_row = 0 if result.status == "complete" else in_a_row + 1
            if in_a_row == FAILURES_IN_A_ROW:
                raise StudyFailed(
                    f"{in_a_row} runs in a row have failed, the last, {run.name}, with: {result.error}. Its output: "
                    f"{folder.log(run)}. Once that is mended: {folder.command_line('resume')} --retry"
                )
            if signals.came is not None and run != left[:limit][-1]:
                progress.end(f"stopped; go on: {folder.command_line('resume')}")
                return SAVED
    return 1 if any(result.status == "failed" for result in results.values()) else 0


def _refuse_queued(folder: StudyFolder, runs: Sequence[StudyRun]) -> None:
    """Raise StudyError where SLURM has a job for one of `runs`, which would be made twice."""
    scripts = {run.name: JobFolder(folder.run(run).path).script for run in runs}
    try:
        queued = [name for name, script in scripts.items() if script.exists() and client.jobs_of(script)]
    except client.SlurmError as error:
        raise StudyError(
            f"runs of this study were submitted to SLURM, which may still have them: {error}. Go on from a login node "
            f"of the cluster, or remove the folders slurm/ of the runs in {folder.runs} whose jobs have ended"
        ) from None
    if queued:
        raise StudyError(
            f"SLURM has jobs for {', '.join(queued)}: go on with {folder.command_line('resume')} --slurm, or end these "
            "jobs first (scancel)"
        )


def command(folder: StudyFolder, study: Study, run: StudyRun) -> list[str]:
    """The command that begins a run, or goes on with it."""
    overrides = study.overrides_of(run)
    if study.budget.minutes is not None:  # the minutes of `azr train` count from each start
        left = max(study.budget.minutes - spent_s(folder.run(run)) / 60, 1 / 60)
        overrides.append(f"run.max_minutes={left:.3f}")
    place = [f"run.dir={os.path.abspath(folder.runs)}", f"run.name={run.name}"]
    recipe = os.path.abspath(folder.recipe)
    return [sys.executable, "-m", "launch.cli", "train", recipe, "--auto-resume", *place, *overrides]


def spent_s(run: RunFolder) -> float:
    """Seconds that a run trained for the steps that its next start keeps, those up to its newest checkpoint."""
    kept = int(newest[-1].name.removeprefix("step_")) if (newest := matches(run.checkpoints, r"step_\d+")) else 0
    return sum(float(row.get("step_s", 0.0)) for row in run.read_metrics() if row["step"] <= kept)


def last_words(folder: StudyFolder, run: StudyRun) -> str:
    """The line of a run's output that says why it failed: the last one of `azr`, or else the last one."""
    try:
        lines = [line.strip() for line in folder.log(run).read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        return ""
    said = [line for line in lines if "azr: " in line or "FAILED" in line]
    return (said or lines or [""])[-1][:500]
