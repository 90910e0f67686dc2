"""Induction: half of the pairs of input and output and a message are given; the solver answers a program that gives the
other half.
"""

from __future__ import annotations

from collections.abc import Sequence

from actors.kinds.kind import TaskKind
from executor.judge import Judge
from executor.tasks import Proposal, Rejection, RejectionReason, Task, Verdict

MIN_INPUTS = 2
"""One pair to show and one to hide."""


class Induction(TaskKind):
    """Find a program from what it does."""

    name = "induction"
    position = 2

    async def validate(self, judge: Judge, proposal: Proposal) -> Task | Rejection:
        """See `TaskKind`: two or more different inputs, and a program that is sound for each."""
        if len(proposal.inputs) < MIN_INPUTS:
            return Rejection(RejectionReason.INPUT_COUNT, f"{len(proposal.inputs)} inputs for {self.name}")
        found = await judge.validate(proposal.program, proposal.inputs)
        if isinstance(found, Rejection):
            return found
        texts = found.program, found.inputs, found.outputs, proposal.message
        return Task(proposal.kind, *texts, ignores_input=found.ignores_input)

    async def verify(self, judge: Judge, task: Task, answers: Sequence[str]) -> list[Verdict]:
        """See `TaskKind`: an answer is right if it maps every hidden input to its output."""
        return await judge.check_programs(hidden(task), answers, known=[task.program])


def num_shown(task: Task) -> int:
    """How many pairs the solver sees: the first half, rounded down."""
    return len(task.inputs) // 2


def shown(task: Task) -> tuple[tuple[str, str], ...]:
    """The (input, output) pairs that the solver sees."""
    return tuple(zip(task.inputs, task.outputs, strict=True))[: num_shown(task)]


def hidden(task: Task) -> tuple[tuple[str, str], ...]:
    """The (input, output) pairs that an answer is judged by."""
    return tuple(zip(task.inputs, task.outputs, strict=True))[num_shown(task) :]
