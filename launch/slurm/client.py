"""Asks SLURM, by its own commands: `sbatch`, `squeue`, `scontrol`, `sinfo`."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from executor.user_error import UserError

TIMEOUT_S = 60.0
"""Seconds that a command of SLURM may take: a busy controller lets its clients wait."""
_OF_A_JOB = ("SLURM", "SBATCH_", "SRUN_", "SALLOC_", "PMI")
_KEPT = ("SLURM_CONF", "SLURM_JWT")
"""The file of the configuration, and a token of the user: they tell which SLURM is asked, and nothing about a job."""


class SlurmError(UserError):
    """SLURM refuses, does not answer, or is not there; the message has its own words."""


@dataclass(frozen=True)
class QueuedJob:
    """A job that SLURM knows and that has not ended."""

    job_id: str
    state: str
    """As `squeue` names it: PENDING, RUNNING, COMPLETING ..."""
    node: str
    """The nodes that it has, or the reason that it waits for, in parentheses."""


@dataclass(frozen=True)
class JobState:
    """A job's state, as `scontrol show job` has it."""

    state: str
    reason: str


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` without variables by which a surrounding job, or a shell, gives options to SLURM's commands."""
    return {name: value for name, value in environment.items() if name in _KEPT or not name.startswith(_OF_A_JOB)}


def require(command: str) -> None:
    """Raise SlurmError where `command` is not on PATH."""
    if shutil.which(command) is None:
        raise SlurmError(
            f"{command} is not on PATH. Submit from a login node of the cluster; --dry-run writes the batch script "
            "without SLURM."
        )


def submit(script: Path) -> str:
    """Submit a batch script; returns the job's id. Raises SlurmError with the words of sbatch."""
    return _run(["sbatch", "--parsable", str(script)]).strip().partition(";")[0]


def jobs_of(script: Path) -> list[QueuedJob]:
    """This user's jobs that were submitted with `script` and have not ended. Raises SlurmError."""
    listed = _run(["squeue", "--noheader", f"--user={os.getuid()}", "--format=%i|%T|%R|%o"])
    found = [line.split("|", 3) for line in listed.splitlines()]
    wanted = os.path.realpath(script)
    return [QueuedJob(*fields[:3]) for fields in found if len(fields) == 4 and os.path.realpath(fields[3]) == wanted]


def is_queued(job_id: str) -> bool:
    """Whether SLURM knows the job, and it has not ended. Raises SlurmError where SLURM does not answer."""
    try:
        return bool(_run(["squeue", "--noheader", f"--jobs={job_id}", "--format=%T"]).strip())
    except SlurmError as error:
        if "Invalid job id" in str(error):
            return False
        raise


def job_state(job_id: str) -> JobState:
    """The state of a job, the first of its components where it has several. Raises SlurmError."""
    shown = _run(["scontrol", "show", "job", "--oneliner", job_id])
    fields = dict(re.findall(r"\b(JobState|Reason)=(\S+)", shown.partition("\n")[0]))
    return JobState(fields.get("JobState", ""), fields.get("Reason", ""))


def lost_nodes(nodelist: str) -> list[str]:
    """The nodes of `nodelist` that are down or do not answer. Raises SlurmError."""
    listed = _run(["sinfo", "--noheader", "--Node", f"--nodes={nodelist}", "--format=%N %T"])
    found = [line.split() for line in listed.splitlines()]
    return sorted({node for node, state in found if state.endswith("*") or state.startswith(("down", "fail"))})


def configuration() -> dict[str, str]:
    """The site's configuration, as `scontrol show config` has it: name -> value. Raises SlurmError."""
    shown = _run(["scontrol", "show", "config"])
    return {name: value.strip() for name, value in re.findall(r"(?m)^(\w+) *= *(.*)$", shown)}


def partitions() -> list[dict[str, str]]:
    """The partitions, as `scontrol show partition` has them. Raises SlurmError."""
    shown = _run(["scontrol", "show", "partition", "--oneliner"])
    return [dict(re.findall(r"(\w+)=(\S*)", line)) for line in shown.splitlines() if line.strip()]


def _run(command: Sequence[str]) -> str:
    """The standard output of a command. Raises SlurmError with what it says on standard error."""
    try:
        done = subprocess.run(
            command,
            env=clean_environment(os.environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError:
        raise SlurmError(f"{command[0]} is not on PATH: this host has no SLURM") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{command[0]} gave no answer within {TIMEOUT_S:.0f} s: is the SLURM controller up?") from None
    if done.returncode:
        said = done.stderr.strip() or done.stdout.strip() or "no message"
        raise SlurmError(f"{command[0]} failed with exit code {done.returncode}: {said}")
    return done.stdout
