"""The runs of a study as SLURM jobs: one job a run, which queues itself again, and results when a job has ended.

A job for each run and no array: a job saves before its time limit and goes on by itself under its own id, and its
script and logs lie in its run folder (`launch/slurm/`). SLURM orders and limits them as it does an array's tasks.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

from launch.json_file import read_json
from launch.run.console import counted
from launch.slurm import client
from launch.slurm.folder import JobFolder
from launch.slurm.submit import load_former, load_new, submit
from launch.study.definition import Budget, Study, StudyError, StudyRun
from launch.study.folder import StudyFolder
from launch.study.result import collect, is_finished, write_result
from launch.study.runner import alone, results_of, retry_failed


def submit_runs(
    folder: StudyFolder,
    study: Study,
    say: Callable[[StudyRun, str], None],
    limit: int | None = None,
    retry: bool = False,
) -> None:
    """Submit every run that has neither a result nor a job, in the study's order, at most `limit`. `say`: told of each,
    with its job's id. `retry`: also those that have failed.

    Raises StudyError, SubmitError, and SlurmError: where SLURM refuses a job, those before it are submitted.
    """
    check(study.budget)
    client.require("sbatch")
    with alone(folder), _begun(folder, study):
        collect_ended(folder, study)
        if retry:  # after that, or a failed run whose job is gone would be collected once more
            retry_failed(folder, study)
        results = results_of(folder, study)
        submitted = 0
        for run in study.runs_in_order():
            if submitted == limit:
                break
            if run.name in results:
                continue
            try:
                if client.jobs_of(JobFolder(folder.run(run).path).script):
                    continue
                job = _submit(folder, study, run)
            except client.SlurmError as error:
                raise client.SlurmError(
                    f"{run.name}: {error}. Submitted before it: {counted(submitted, 'run')}. To submit the others: "
                    f"{folder.command_line('resume')} --slurm"
                ) from None
            say(run, job)
            submitted += 1


@contextlib.contextmanager
def _begun(folder: StudyFolder, study: Study) -> Iterator[None]:
    """Note that the study begins; take that back where the block raises before any run was submitted."""
    is_new = not folder.began.exists()
    folder.begin(study)
    try:
        yield
    except BaseException:
        if is_new and not was_submitted(folder, study):
            folder.began.unlink()
        raise


def check(budget: Budget) -> None:
    """Refuse a budget that jobs would make unequal. Raises StudyError."""
    if budget.minutes is not None:
        raise StudyError(
            f"a budget of time ({budget}) does not work as SLURM jobs: a job that is queued again gets its "
            "minutes anew, and a preempted arm would train longer. Use --steps or --tokens"
        )


def was_submitted(folder: StudyFolder, study: Study) -> bool:
    """Whether runs of the study were made as SLURM jobs."""
    return any(JobFolder(folder.run(run).path).script.exists() for run in study.runs())


def collect_ended(folder: StudyFolder, study: Study) -> list[StudyRun]:
    """Write the results of submitted runs whose jobs have ended; returns these runs. A run that is not complete and
    whose job SLURM does not know any more has failed."""
    ended = []
    for run in study.runs_in_order():
        place = folder.run(run)
        job = JobFolder(place.path)
        if folder.result(run).exists() or not job.script.exists():
            continue
        if is_finished(place):
            write_result(collect(place, run, 0), folder.result(run))
        elif not client.jobs_of(job.script):
            attempts = job.attempts()
            record = read_json(attempts[-1].record) if attempts else {}
            code, why = record.get("exit_code"), record.get("why") or f"its job has ended; see {job.log}"
            write_result(collect(place, run, code if isinstance(code, int) else 1, str(why)), folder.result(run))
        else:
            continue
        ended.append(run)
    return ended


def _submit(folder: StudyFolder, study: Study, run: StudyRun) -> str:
    place = folder.run(run)
    if JobFolder(place.path).recipe.exists() or place.config.exists():
        config = load_former(place.path, [])
    else:
        own = [f"run.dir={os.path.abspath(folder.runs)}", f"run.name={run.name}"]
        config = load_new(str(folder.recipe), [*study.overrides_of(run), *own])
    _, job_id = submit(config)
    assert job_id is not None  # only of a dry run
    return job_id
