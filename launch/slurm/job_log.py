"""What SLURM says of nodes that cannot start an agent: srun writes it into the job's log."""

from __future__ import annotations

import re
from collections.abc import Sequence
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
        """Nodes whose agent did not start, or has ended -> why, in the words of SLURM and of the agent.

        Where srun could not reach a node, only such nodes: srun has then killed the agents of the others.
        """
        lines = self._lines()
        return _found(_NOT_LAUNCHED, lines) or _found(_ENDED, lines)

    def _lines(self) -> list[str]:
        try:
            with self._path.open("rb") as log:
                log.seek(self._start)
                return log.read(_MOST_BYTES).decode(errors="replace").splitlines()
        except OSError:
            return []


def _found(what: re.Pattern[str], lines: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in lines:
        if match := what.match(line):
            node = re.escape(match["node"])
            words = re.compile(rf"(azr: {node}|slurmstepd-{node}: error): (.+)")
            said = [told[2] for other in lines if (told := words.match(other))]
            found[match["node"]] = "; ".join([*said, match["how"]])
    return found
