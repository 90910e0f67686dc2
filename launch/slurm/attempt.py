"""Begins and ends one start of a job: the batch script calls `python -m launch.slurm.attempt begin|end|stranded`.

- `begin RUN` makes the folder of this start; it prints the path and the nonce, a line each.
- `end ATTEMPT CODE` records how the start ended, `CODE` being the exit code of srun; it prints what the script does
  next: `exit CODE`, or `requeue JOB`.
- `stranded ATTEMPT` records that SLURM refused to queue the job again.
"""

from __future__ import annotations

import os
import secrets
import shlex
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from executor.user_error import UserError
from launch.json_file import read_json, write_json
from launch.recipe import read_recipe
from launch.run.interrupts import NOTHING_TO_SAVE
from launch.slurm.client import JobState, SlurmError, is_queued, job_state, lost_nodes
from launch.slurm.decision import Decision, Ending, Starts, count, decide
from launch.slurm.folder import JobAttempt, JobFolder
from launch.slurm.job_log import JobLog
from launch.slurm_settings import SlurmSettings
from launch.whole_file import write_text

PATIENCE_S = 60.0
"""Seconds for which the controller is asked for the job's state at the end of a start."""
PAUSE_S = 5.0
"""Seconds between two questions."""


class AttemptError(UserError):
    """A start of the job that must not go on; the message says why."""


def begin(run: Path, environment: Mapping[str, str]) -> tuple[JobAttempt, str]:
    """Make the folder of this start of the job, with Ray's token and a nonce; returns both.

    `environment`: that of the batch script. Raises AttemptError where another job runs in the folder, and where too
    many starts have ended without a word.
    """
    job = JobFolder(run)
    job_id = requeue_id(environment)
    _check_alone(job, job_id)
    _complete_former(job)
    preemptions, most = _starts(job).preemptions, _settings(job).max_preemptions
    if preemptions > most:
        raise AttemptError(
            f"{preemptions} starts of this job ended without a word of their own, more than slurm.max_preemptions = "
            f"{most}. {job.path} has a folder of each, with its logs. To go on: azr submit --resume "
            f"{shlex.quote(str(run))}"
        )
    attempt = job.new_attempt()
    nonce = secrets.token_hex(16)
    write_text(attempt.token, secrets.token_hex(32), mode=0o600)
    record: dict[str, Any] = {
        "job_id": job_id,
        "restarts": int(environment.get("SLURM_RESTART_COUNT", "0")),
        "nodes": _nodes(environment),
        "batch_host": os.uname().nodename,
        "nonce": nonce,
        "started": time.time(),
        # Where the log of this start begins: agents read there what srun says of their nodes.
        "log_bytes": job.log.stat().st_size if job.log.exists() else 0,
        "warning_s": read_json(job.submission).get("warning_s"),
    }
    write_json(attempt.record, record)
    return attempt, nonce


def end(attempt: JobAttempt, srun_code: int, environment: Mapping[str, str]) -> Decision:
    """Decide and record what follows this start of the job."""
    record = read_json(attempt.record)
    ending = _ending(attempt, srun_code, environment)
    state = _state(requeue_id(environment))
    settings = _settings(attempt.job)
    decision = decide(
        ending,
        state,
        _starts(attempt.job, attempt),
        settings.requeue,
        settings.max_requeues,
        settings.max_preemptions,
    )
    write_json(
        attempt.record,
        record
        | {
            **vars(ending),
            "ended": time.time(),
            "srun_code": srun_code,
            "job_state": state.state,
            "requeue": decision.requeue,
            "decision": decision.reason,
        },
    )
    return decision


def requeue_id(environment: Mapping[str, str]) -> str:
    """The id by which this job alone is queued again: that of the leader of a heterogeneous job, `ARRAY_TASK` in an
    array, of which the plain id of one task is that of the whole.

    Raises AttemptError outside of a job.
    """
    if "SLURM_ARRAY_JOB_ID" in environment:
        return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    found = environment.get("SLURM_JOB_ID_HET_GROUP_0") or environment.get("SLURM_JOB_ID")
    if not found:
        raise AttemptError("this is no SLURM job: SLURM_JOB_ID is not set. The batch script of a run calls this.")
    return found


def _ending(attempt: JobAttempt, srun_code: int, environment: Mapping[str, str]) -> Ending:
    """How the attempt ended: as its first agent wrote, or as far as it can be told without that."""
    result = read_json(attempt.result)
    if result:
        known = {name: result[name] for name in ("part", "node", "reason") if result.get(name) is not None}
        return Ending(int(result.get("exit_code", 1)), **known, node_failure=bool(result.get("node_failure")))
    if srun_code == NOTHING_TO_SAVE:
        return Ending(srun_code, "batch script", reason="stopped before the run had begun")
    refusals = JobLog(attempt.job.log, int(read_json(attempt.record).get("log_bytes") or 0)).refusals()
    told = "; ".join(f"{node}: {why}" for node, why in refusals.items())
    try:
        lost = lost_nodes(_nodes(environment))
    except SlurmError:
        lost = []
    reason = f"the first agent left no result; srun ended with exit code {srun_code}" + (f" ({told})" if told else "")
    if lost:
        return Ending(srun_code or 1, "node", ",".join(lost), f"{reason}; these nodes are down", node_failure=True)
    return Ending(srun_code or 1, "agent", ",".join(refusals), reason)


def _state(job_id: str) -> JobState:
    """The state of this job. Asks for `PATIENCE_S`: a controller that is started again answers within that."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return job_state(job_id)
        except SlurmError as error:
            if time.monotonic() > deadline:
                return JobState("unknown", str(error))
        time.sleep(PAUSE_S)


def _starts(job: JobFolder, but: JobAttempt | None = None) -> Starts:
    """The starts since the last submission, without the attempt `but`."""
    first = int(read_json(job.submission).get("first_attempt", 0))
    return count(
        read_json(attempt.record)
        for attempt in job.attempts()
        if attempt.number >= first and (but is None or attempt.number != but.number)
    )


def _settings(job: JobFolder) -> SlurmSettings:
    """The settings of `[slurm]` that the job was submitted with."""
    data, _ = read_recipe(job.recipe)
    return SlurmSettings.model_validate(data.get("slurm", {}))


def _check_alone(job: JobFolder, job_id: str) -> None:
    attempts = job.attempts()
    former = read_json(attempts[-1].record) if attempts else {}
    other = former.get("job_id")
    if other and other != job_id and "ended" not in former and is_queued(other):
        raise AttemptError(
            f"job {other} runs in {job.run} on {former.get('nodes')}, and job {job_id} must not run beside it. "
            f"To end the other: scancel {other}"
        )


def _complete_former(job: JobFolder) -> None:
    """Complete the record of a start whose script SLURM ended before it came to that, by what its first agent wrote."""
    for attempt in job.attempts()[-1:]:
        record, result = read_json(attempt.record), read_json(attempt.result)
        if result and "ended" not in record:
            ended = attempt.result.stat().st_mtime
            decision = "SLURM ended this start before the batch script had decided, and started the job again"
            write_json(attempt.record, record | result | {"ended": ended, "requeue": False, "decision": decision})


def _nodes(environment: Mapping[str, str]) -> str:
    """The names of the job's nodes, in SLURM's short form, all components of a heterogeneous job together."""
    groups = int(environment.get("SLURM_HET_SIZE", "0"))
    if groups:
        return ",".join(environment[f"SLURM_JOB_NODELIST_HET_GROUP_{group}"] for group in range(groups))
    return environment.get("SLURM_JOB_NODELIST", "")


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    # SLURM signals every process of a job that it ends, and the record is to be complete all the same.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    match arguments:
        case ["begin", run]:
            attempt, nonce = begin(Path(run), os.environ)
            print(attempt.path, nonce, sep="\n")
        case ["end", path, code]:
            attempt = JobAttempt(Path(path))
            decision = end(attempt, int(code), os.environ)
            _say(attempt, "requeued" if decision.requeue else f"exit code {decision.exit_code}", decision.reason)
            print(f"requeue {requeue_id(os.environ)}" if decision.requeue else f"exit {decision.exit_code}")
        case ["stranded", path]:
            attempt = JobAttempt(Path(path))
            reason = "SLURM refused both scontrol requeue and a new sbatch"
            write_json(attempt.record, read_json(attempt.record) | {"requeue": False, "decision": reason})
            run = shlex.quote(str(attempt.job.run))
            _say(attempt, "not requeued", f"{reason}. To go on: azr submit --resume {run}")
        case _:
            raise AttemptError(f"unknown arguments {list(arguments)!r}: begin RUN, end ATTEMPT CODE, stranded ATTEMPT")
    return 0


def _say(attempt: JobAttempt, what: str, why: str) -> None:
    record = read_json(attempt.record)
    told = f" ({record['reason']})" if record.get("reason") else ""
    print(f"azr: attempt {attempt.number} of job {record.get('job_id')}: {what}: {why}{told}", file=sys.stderr)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as failure:
        print(f"azr: {failure}", file=sys.stderr)
        sys.exit(failure.exit_code)
    except OSError as failure:  # a full disk, a file system that is away
        print(f"azr: the run folder cannot be used: {failure}", file=sys.stderr)
        sys.exit(1)
