"""What deduction and abduction share: the proposer writes a program and one input, and the executor adds the output."""

from __future__ import annotations

from actors.kinds.kind import TaskKind
from executor.judge import Judge
from executor.tasks import Proposal, Rejection, RejectionReason, Task


class TripletKind(TaskKind):
    """A kind whose task is one triplet of program, input and output."""

    async def validate(self, judge: Judge, proposal: Proposal) -> Task | Rejection:
        """See `TaskKind`: exactly one input, and a program that is sound for it."""
        if len(proposal.inputs) != 1:
            return Rejection(RejectionReason.INPUT_COUNT, f"{len(proposal.inputs)} inputs for {self.name}")
        found = await judge.validate(proposal.program, proposal.inputs)
        if isinstance(found, Rejection):
            return found
        texts = found.program, found.inputs, found.outputs, proposal.message
        return Task(proposal.kind, *texts, ignores_input=found.ignores_input)
