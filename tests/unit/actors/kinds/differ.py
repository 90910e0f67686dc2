"""A fourth kind of task, which azr knows nothing of: two programs are given, and an input is asked for on which they
differ."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from actors.fences import blocks
from actors.kinds.kind import ProposalRequest, TaskKind
from actors.parsing import FormatError, arguments, inputs_of, last
from actors.prompts import FENCE, FUNCTION_START, Piece, PromptFormat, PromptText, block, block_piece, frame, r1
from executor.judge import UNPARSEABLE, Judge
from executor.outcomes import Status
from executor.tasks import Proposal, Rejection, RejectionReason, Task, Verdict, VerdictReason


class DifferRejection(StrEnum):
    """Why a proposal is no task of this kind, beyond what the executor finds."""

    SAME_OUTPUT = "same_output"
    """The two programs do not differ on the proposal's input."""


class Differ(TaskKind):
    """Find an input on which two programs differ."""

    name = "differ"

    def proposal_prompt(self, request: ProposalRequest) -> PromptText:
        """See `TaskKind`."""
        examples = [
            piece for task in request.references for piece in (*programs(task), block_piece("input", task.inputs[0]))
        ]
        if request.prompt_format == "r1":
            ask = (
                "Write two Python functions f that look alike, and an input for which they return different values.\n\n"
            )
            return r1([frame(ask), *examples])
        head = frame("Each example is two Python functions f and an input for which they return different values.\n\n")
        return PromptText([head, *examples, frame("Example\n")], FUNCTION_START, ("Example",))

    def read_proposal(self, text: str, references: Sequence[Task], num_inputs: int) -> Proposal | FormatError:
        """See `TaskKind`."""
        found = blocks(text)
        both, inputs = [block.text for block in found if block.name == "python"], inputs_of(found)
        if len(both) < 2:
            return FormatError.NO_PROGRAM
        if not inputs:
            return FormatError.NO_INPUT
        return Proposal(self.name, both[0], inputs[:1], texts={"other": both[1]})

    def solution_prompt(self, task: Task, prompt_format: PromptFormat, examples: Sequence[Task] = ()) -> PromptText:
        """See `TaskKind`."""
        ask = frame("Below are two Python functions f. For which input do they return different values?\n\n")
        if prompt_format == "r1":
            return r1([ask, *programs(task)])
        return PromptText([ask, *programs(task)], f"{FENCE}input\n", (f"\n{FENCE}",))

    def read_answer(self, text: str) -> str | FormatError:
        """See `TaskKind`."""
        found = last(text, "input", FormatError.NO_INPUT)
        return found if isinstance(found, FormatError) else arguments(found) or FormatError.EMPTY

    async def validate(self, judge: Judge, proposal: Proposal) -> Task | Rejection:
        """See `TaskKind`: both programs are sound for the input, and differ on it."""
        if len(proposal.inputs) != 1:
            return Rejection(RejectionReason.INPUT_COUNT, f"{len(proposal.inputs)} inputs")
        one = await judge.validate(proposal.program, proposal.inputs)
        if isinstance(one, Rejection):
            return one
        other = await judge.validate(proposal.texts["other"], proposal.inputs)
        if isinstance(other, Rejection):
            return other
        if judge.same(one.outputs[0], other.outputs[0]):
            return Rejection(DifferRejection.SAME_OUTPUT, one.outputs[0])
        return Task(self.name, one.program, one.inputs, one.outputs, texts={"other": other.program})

    async def verify(self, judge: Judge, task: Task, answers: Sequence[str]) -> list[Verdict]:
        """See `TaskKind`: both programs return a value for the answer, and the values differ."""
        keys = [judge.read_input(answer) for answer in answers]
        inputs = [key for key in dict.fromkeys(keys) if key is not None]
        ones = await judge.evaluate(task.program, inputs)
        others = await judge.evaluate(task.texts["other"], inputs)
        found = {}
        for given, *both in zip(inputs, ones, others, strict=True):
            failed = next((outcome for outcome in both if outcome.status is not Status.OK), None)
            if failed is not None:
                found[given] = Verdict(False, VerdictReason(failed.status.value))
            elif judge.same(both[0].value, both[1].value):
                found[given] = Verdict(False, VerdictReason.WRONG)
            else:
                found[given] = Verdict(True, VerdictReason.CORRECT)
        return [UNPARSEABLE if key is None else found[key] for key in keys]

    def facts(self, task: Task) -> dict[str, float]:
        """See `TaskKind`: how many lines the second program has."""
        return {"other_lines": float(len(task.texts["other"].splitlines()))}

    def identity(self, task: Task) -> tuple[str, ...]:
        """See `TaskKind`: the second program."""
        return (task.texts["other"],)

    def proposal_reply(self, task: Task) -> str:
        """See `TaskKind`."""
        return block("python", task.program) + block("python", task.texts["other"]) + block("input", task.inputs[0])

    def answer_reply(self, task: Task) -> str:
        """See `TaskKind`."""
        return block("input", task.inputs[0])


def programs(task: Task) -> list[Piece]:
    """Both programs as blocks."""
    return [block_piece("python", task.program), block_piece("python", task.texts["other"])]
