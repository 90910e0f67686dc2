"""A run that a test submits with `azr submit`, and what it leaves."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.slurm.cluster import Cluster, Loopback

ROOT = Path(__file__).parents[2]
DEADLINE_S = 300.0
"""Seconds within which a job does the next thing, on a machine that is busy with much else."""

_PROGRAM = """\
import sys
if "--auto-resume" in sys.orig_argv:
    import os, runpy
    sys.path[:0] = {path!r}
    sys.argv = sys.orig_argv
    code = 0
    try:
        runpy.run_path({program!r}, run_name="__main__")
    except SystemExit as end:
        code = end.code
    sys.stdout.flush()
    os._exit(code)
"""
"""sitecustomize.py, which Python runs before the module it was started for: here in place of the driver."""


@dataclass(frozen=True)
class Submission:
    """A run and its job."""

    cluster: Cluster
    run: Path
    job: str

    @property
    def log(self) -> str:
        """SLURM's log of all starts of the job."""
        return (self.run / "slurm" / "job.log").read_text()

    def attempt(self, number: int = 0) -> dict[str, Any]:
        """What is recorded of a start of the job; empty before it has begun."""
        return _json(self.run / "slurm" / f"attempt.{number}" / "attempt.json")

    def result(self, number: int = 0) -> dict[str, Any]:
        """How a start of the job ended, by its first agent; empty before that."""
        return _json(self.run / "slurm" / f"attempt.{number}" / "result.json")

    def wait_for(self, *states: str, seconds: float = DEADLINE_S) -> dict[str, str]:
        """Wait until the job is in one of `states` (by default: has ended); returns what SLURM then says of it."""
        try:
            return self.cluster.wait_for(self.job, *states, seconds=seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.logs()}") from None

    def wait_until(self, condition: Any, seconds: float = DEADLINE_S) -> None:
        """Return once `condition()` holds; AssertionError with the job's logs after `seconds`, or after its end."""
        self.cluster.wait_until(condition, seconds, self.logs)

    def logs(self) -> str:
        """The ends of all logs of the job."""
        files = [self.run / "slurm" / "job.log", *sorted(self.run.glob("slurm/attempt.*/*"))]
        texts = ((file, file.read_text(errors="replace")) for file in files if file.is_file() and file.name != "token")
        return "\n".join(f"== {file}\n{text[-3000:]}" for file, text in texts)


def submit(
    cluster: Cluster,
    *overrides: str,
    driver: str | None = None,
    folder: Path | None = None,
) -> Submission:
    """Submit a run with one node or more, from a folder that is not its own.

    `overrides`: as on the command line. `driver`: a program that is run in place of `azr train`. `folder`: for the run
    folder; by default a new one.
    """
    folder = folder or cluster.new_folder()
    recipe = folder / "recipe.toml"
    recipe.write_text(f'[run]\ndir = "{folder}"\nname = "run"\n')
    path = [str(ROOT)]
    if driver is not None:
        site = folder / "site"
        site.mkdir()
        (site / "driver.py").write_text(driver)
        (site / "sitecustomize.py").write_text(_PROGRAM.format(path=path, program=str(site / "driver.py")))
        path.insert(0, str(site))
    own = ["slurm.exclusive=false", "slurm.cpus_per_task=1"]
    if isinstance(cluster, Loopback):
        own.append("slurm.interface=lo")
    command = [sys.executable, "-m", "launch.cli", "submit", str(recipe), "--parsable", *own, *overrides]
    job = cluster.run(*command, PYTHONPATH=":".join(path))
    assert job.isdecimal(), job
    return Submission(cluster, folder / "run", job)


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text())) if path.exists() else {}
