"""What SLURM says of nodes that cannot start an agent: srun writes it into the job's log."""

from __future__ import annotations

import re
from pathlib import Path

_ENDED = re.compile(r"^srun: error: (?P<node>\S+): task \d+: (?P<how>.+)$")
_NOT_LAUNCHED = re.compile(r"^srun: error: Task launch for \S+ failed on node (?P<node>[^\s:]+): (?P<how>.+)$")
_MOST_BYTES = 1 << 20


class JobLog:
    """The job's log, from one start of the job on."""

    def __init__(self, path: Path, start: int) -> None:
        """`start`: the bytes of the log that are of earlier starts."""
        self._path = path
        self._start = start

    def refusals(self) -> dict[str, str]:
        """Nodes whose agent did not start, or has ended -> why, in the words of SLURM and of the agent."""
        lines = self._lines()
        found: dict[str, str] = {}
        for line in lines:
            if match := _ENDED.match(line) or _NOT_LAUNCHED.match(line):
                words = re.compile(
                    rf"(azr: {re.escape(match['node'])}|slurmstepd-{re.escape(match['node'])}: error): (.+)"
                )
                said = [told[2] for other in lines if (told := words.match(other))]
                found[match["node"]] = "; ".join([*said, match["how"]])
        return found

    def _lines(self) -> list[str]:
        try:
            with self._path.open("rb") as log:
                log.seek(self._start)
                return log.read(_MOST_BYTES).decode(errors="replace").splitlines()
        except OSError:
            return []
