"""How one start of a job ended: `result.json` of the attempt."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from launch.json_file import write_json

FAILED = 1


@dataclass
class Ended(Exception):
    """A part of the job has ended for good, and with it the job."""

    exit_code: int
    part: str
    """`driver`, `ray`, `agent`, or `start` for what fails before the driver."""
    node: str
    reason: str
    node_failure: bool = False
    """Whether a node was lost, which is no failure of the run."""

    def __str__(self) -> str:
        return self.reason

    def write(self, path: Path) -> None:
        """Write the file in one piece."""
        write_json(path, asdict(self))
