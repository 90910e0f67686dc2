"""The base of deduction and abduction: a proposer writes a program and one input, and the executor adds the output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from actors.constructs import named, used
from actors.fences import blocks
from actors.kinds.kind import ProposalRequest, TaskKind
from actors.parsing import FormatError, first, inputs_of
from actors.prompts import FENCE, FUNCTION_START, PromptText, block, block_piece, fence_around, frame, r1, triplet
from executor.judge import Judge
from executor.tasks import Proposal, Rejection, RejectionReason, Task

_RULES = (
    "Write a Python function named f and one input for it. The function must be deterministic, return a value built "
    "from Python literals, make use of its input, and use no randomness, time, files, network or processes. The input "
    "is the text between the parentheses of the call, as Python literals. Make the function unlike the examples that "
    "follow. Answer with a fenced block named python and a fenced block named input. "
)
_COMPOSITE_R1 = "These functions are there already; f has to call them, and must not define them again.\n"


class TripletKind(TaskKind):
    """A kind whose task is one triplet of program, input and output."""

    difficulty: ClassVar[str]
    """Text for the proposer: the properties that make a task of this kind hard."""

    def proposal_prompt(self, request: ProposalRequest) -> PromptText:
        """See `TaskKind`: the references are examples, and the new function is to be unlike them."""
        examples = []
        count = len(request.constructs)
        for number, task in enumerate(request.references, start=1):
            examples.append([frame(_title(number, used(task.program, count))), *triplet(task)])
        definitions = request.definitions
        if request.prompt_format == "r1":
            earlier = [frame(_COMPOSITE_R1), block_piece("python", definitions)] if definitions else []
            asked = f" Let the function use {named(request.constructs)}." if request.constructs else ""
            rules = frame(f"{_RULES}{self.difficulty}{asked}\n\n")
            return r1([rules, *earlier, *(piece for one in examples for piece in one)])
        head = "Each example is a Python function f, an input, and its output. All functions differ."
        start = FUNCTION_START
        if definitions:
            head += " The last one makes use of the functions that are defined before it."
            start = f"{fence_around(definitions)}python\n{definitions}\ndef f("
        pieces = [frame(f"{head}\n\n")]
        for one in examples:
            pieces += [*one, frame("\n")]
        pieces.append(frame(_title(len(examples) + 1, request.constructs)))
        return PromptText(pieces, start, (f"{FENCE}output",))

    def read_proposal(self, text: str, references: Sequence[Task], num_inputs: int) -> Proposal | FormatError:
        """See `TaskKind`: of several programs or inputs the first counts."""
        found = blocks(text)
        program, inputs = first(found, "python"), inputs_of(found)
        if program is None:
            return FormatError.NO_PROGRAM
        if not inputs:
            return FormatError.NO_INPUT
        if not program.strip():
            return FormatError.EMPTY
        return Proposal(self.name, program, inputs[:1])

    async def validate(self, judge: Judge, proposal: Proposal) -> Task | Rejection:
        """See `TaskKind`: exactly one input, and a program that is sound for it."""
        if len(proposal.inputs) != 1:
            return Rejection(RejectionReason.INPUT_COUNT, f"{len(proposal.inputs)} inputs for {self.name}")
        found = await judge.validate(proposal.program, proposal.inputs)
        if isinstance(found, Rejection):
            return found
        texts = found.program, found.inputs, found.outputs, proposal.message
        return Task(self.name, *texts, ignores_input=found.ignores_input)

    def from_triplet(self, triplet: Task) -> Task | None:
        """See `TaskKind`: the triplet itself."""
        return Task(self.name, triplet.program, triplet.inputs, triplet.outputs)

    def proposal_reply(self, task: Task) -> str:
        """See `TaskKind`."""
        return block("python", task.program) + block("input", task.inputs[0])


def _title(number: int, constructs: Sequence[str]) -> str:
    """The line above an example; `constructs`: what its program uses."""
    return f"Example {number}: f uses {named(constructs)}\n" if constructs else f"Example {number}\n"
