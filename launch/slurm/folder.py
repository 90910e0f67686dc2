"""The paths of a run's SLURM job, `slurm/` in the run folder, and of each start of the job, `slurm/attempt.N/`."""

from __future__ import annotations

import secrets
from pathlib import Path


class JobFolder:
    """`slurm/` in the folder of a run."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.path = run / "slurm"
        self.script = self.path / "job.sbatch"
        self.recipe = self.path / "recipe.toml"
        self.log = self.path / "job.log"
        self.submission = self.path / "submission.json"
        self.latest_link = self.path / "latest"

    def attempts(self) -> list[JobAttempt]:
        """All starts of the job, the oldest first."""
        found = [JobAttempt(path) for path in self.path.glob("attempt.*") if path.suffix[1:].isdecimal()]
        return sorted(found, key=lambda attempt: attempt.number)

    def new_attempt(self) -> JobAttempt:
        """Make the folder of the next start, for its user alone, and switch `latest` to it."""
        attempts = self.attempts()
        attempt = JobAttempt(self.path / f"attempt.{attempts[-1].number + 1 if attempts else 0}")
        attempt.path.mkdir(mode=0o700)
        fresh = self.path / f".latest.{secrets.token_hex(4)}"
        fresh.symlink_to(attempt.path.name)
        fresh.rename(self.latest_link)
        return attempt


class JobAttempt:
    """`slurm/attempt.N/`: one start of the job."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.number = int(path.suffix[1:])
        self.record = path / "attempt.json"
        self.token = path / "token"
        self.result = path / "result.json"

    @property
    def job(self) -> JobFolder:
        """The folder of the job."""
        return JobFolder(self.path.parent.parent)
