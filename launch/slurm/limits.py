"""The time that SLURM leaves a job: when its limit is reached, and how long from SIGTERM to SIGKILL."""

from __future__ import annotations

import os
import re
import subprocess
from datetime import datetime

from launch.slurm.client import TIMEOUT_S, SlurmError, clean_environment, configuration


def job_ends_at(job_id: str) -> float | None:
    """When the job's time is up, in seconds since the epoch; None where it has no limit, or SLURM does not answer."""
    command = ["squeue", "--noheader", f"--jobs={job_id}", "--format=%e"]
    try:
        done = subprocess.run(
            command, env=clean_environment(os.environ), capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        return datetime.fromisoformat(done.stdout.strip()).timestamp()
    except (OSError, subprocess.TimeoutExpired, ValueError):  # ValueError: N/A
        return None


def kill_wait_s() -> float | None:
    """Seconds from SIGTERM to SIGKILL at the end of a job; None where SLURM does not answer."""
    try:
        found = re.match(r"\d+", configuration().get("KillWait", ""))
    except SlurmError:
        return None
    return float(found[0]) if found else None
