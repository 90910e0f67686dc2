"""A study as SLURM jobs: one job a run, and results once jobs have ended."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from tests.slurm.cluster import Loopback
from tests.slurm.submission import DEADLINE_S, ROOT
from tests.slurm.test_runs import REHEARSAL

OWN = ("slurm.exclusive=false", "slurm.cpus_per_task=2", "slurm.interface=lo", "slurm.requeue=false")


def azr_study(cluster: Loopback, *arguments: str) -> str:
    return cluster.run(sys.executable, "-m", "launch.cli", "study", *arguments, PYTHONPATH=str(ROOT))


def test_runs_are_jobs_and_their_results_are_collected(loopback: Loopback) -> None:
    folder: Path = loopback.new_folder() / "study"
    options = ("--staleness", "0,1", "--seeds", "3", "--steps", "4", "--slurm", "--out", str(folder))
    said = azr_study(loopback, "staleness", "smollm2-cpu-small", *REHEARSAL, *OWN, *options)
    jobs = dict(reversed(found) for found in re.findall(r"^job (\d+): (\S+)$", said, re.MULTILINE))
    assert list(jobs) == ["clip-K0-s3", "clip-K1-s3"]
    assert "job " not in azr_study(loopback, "resume", str(folder), "--slurm"), "each run has a job or a result"
    # One job ends before its run is complete.
    loopback.run("scancel", jobs["clip-K1-s3"])
    ended = {name: loopback.wait_for(job, seconds=DEADLINE_S)["JobState"] for name, job in jobs.items()}
    assert ended == {"clip-K0-s3": "COMPLETED", "clip-K1-s3": "CANCELLED"}, said
    said = azr_study(loopback, "report", str(folder))
    assert "1 of 2 runs are complete" in said
    assert "FAILED: clip-K1-s3" in said
    said = azr_study(loopback, "resume", str(folder), "--slurm", "--retry")
    again = re.search(r"^job (\d+): clip-K1-s3$", said, re.MULTILINE)
    assert again is not None, said
    assert loopback.wait_for(again[1], seconds=DEADLINE_S)["JobState"] == "COMPLETED"
    assert "2 of 2 runs are complete" in azr_study(loopback, "report", str(folder))
    results = [json.loads((folder / "results" / f"{name}.json").read_text()) for name in jobs]
    assert [(result["status"], result["steps"], result["seed"]) for result in results] == [("complete", 4, 3)] * 2
