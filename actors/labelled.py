"""Labelled programs: programs that were proposed, with several inputs and the outputs that the executor gives for them.

They are what a supervised loss learns from: every pair of input and output is a task whose right answer is known, of
every kind (`TaskKind.from_pairs`). `labeller.py` makes them.
"""

from __future__ import annotations

from dataclasses import dataclass

from actors.kinds.registry import kinds
from executor.tasks import Task


@dataclass(frozen=True)
class LabelledProgram:
    """A program with pairs of canonical input and output, all inputs different."""

    program: str
    normal: str
    """Its normalised form (`Facts.normal`): the same program under other names is equal."""
    pairs: tuple[tuple[str, str], ...]
    message: str = ""
    """A proposer's hint at what the program does, or nothing."""

    def tasks(self, num_inputs: int) -> list[Task]:
        """The tasks of all kinds that the pairs give. `num_inputs`: N, of kinds that take several
        (`selfplay.induction_inputs`)."""
        return [
            task for kind in kinds() for task in kind.from_pairs(self.program, self.pairs, self.message, num_inputs)
        ]
