"""Induction: half of the pairs of input and output and a message are given; the solver answers a program that gives the
other half. The proposer is given a program, and writes the inputs and the message.
"""

from __future__ import annotations

from collections.abc import Sequence

from actors.constructs import named, used
from actors.fences import blocks
from actors.kinds.kind import ProposalRequest, TaskKind
from actors.parsing import FormatError, first, inputs_of, last
from actors.prompts import (
    FENCE,
    FUNCTION_START,
    ZERO_MESSAGE,
    ZERO_TASK,
    Piece,
    PromptFormat,
    PromptText,
    block,
    block_piece,
    frame,
    r1,
    triplet,
    worked_examples,
)
from executor.judge import Judge
from executor.tasks import Proposal, Rejection, RejectionReason, Task, Verdict

MIN_INPUTS = 2
"""One pair to show and one to hide."""
_ZERO_INPUTS = ("'Hello World'", "7", "[1, 2, 3]", "{'a': 1}", "-2.5", "(1, 'x')", "True", "''", "[[0], [1]]", "None")


class Induction(TaskKind):
    """The kind of tasks to find a program from examples of its inputs and outputs."""

    name = "induction"
    position = 2
    writes_program = False
    difficulty = (
        "Somebody who sees half of the inputs with their outputs, and the message, will have to write f: let the "
        "inputs together show all that f does, so that it can be found, but not at a glance."
    )
    """Text for the proposer: the properties that make such a task hard."""

    @property
    def reference_kinds(self) -> tuple[str, ...]:
        """See `TaskKind`: where the programs come from."""
        return ("deduction", "abduction")

    def proposal_prompt(self, request: ProposalRequest) -> PromptText:
        """See `TaskKind`: the reference's program alone is shown; the proposer is to write inputs of its own."""
        if request.prompt_format == "r1":
            programs = [block_piece("python", reference.program) for reference in request.references]
            return r1([frame(f"{_PROPOSE_R1.format(n=request.num_inputs)}{self.difficulty}\n\n"), *programs])
        (reference,) = request.references
        pieces = [
            frame(
                "Each example is a Python function f, a message that says what f does, and "
                f"{request.num_inputs} different inputs for f.\n\n"
            ),
            frame("Example 1\n"),
            block_piece("python", ZERO_TASK.program),
            block_piece("message", ZERO_MESSAGE),
            *(block_piece("input", text) for text in zero_inputs(request.num_inputs)),
            frame("\nExample 2\n"),
            block_piece("python", reference.program),
        ]
        return PromptText(pieces, f"{FENCE}message\n", (f"{FENCE}python", "Example"))

    def read_proposal(self, text: str, references: Sequence[Task], num_inputs: int) -> Proposal | FormatError:
        """See `TaskKind`: more than N inputs are cut to N; of several messages the first counts."""
        found = blocks(text)
        message, inputs = first(found, "message"), inputs_of(found)
        if message is None:
            return FormatError.NO_MESSAGE
        if len(inputs) < num_inputs:
            return FormatError.TOO_FEW_INPUTS
        if not all(inputs[:num_inputs]):
            return FormatError.EMPTY
        return Proposal(self.name, references[0].program, inputs[:num_inputs], message.strip())

    def solution_prompt(self, task: Task, prompt_format: PromptFormat, examples: Sequence[Task] = ()) -> PromptText:
        """See `TaskKind`: of the pairs, the first half."""
        given = _given(task)
        if prompt_format == "r1":
            return r1([frame(_SOLVE_R1), *given])
        program, zero_input, zero_output = triplet(ZERO_TASK)
        solved = [[*_given(example), block_piece("python", example.program)] for example in examples]
        return worked_examples(
            "Each example is a message, inputs with their outputs, and a Python function f that gives these outputs.",
            solved or [[block_piece("message", ZERO_MESSAGE), zero_input, zero_output, program]],
            given,
            FUNCTION_START,
        )

    def read_answer(self, text: str) -> str | FormatError:
        """See `TaskKind`: a program."""
        return last(text, "python", FormatError.NO_PROGRAM)

    async def validate(self, judge: Judge, proposal: Proposal) -> Task | Rejection:
        """See `TaskKind`: two or more different inputs, and a program that is sound for each."""
        if len(proposal.inputs) < MIN_INPUTS:
            return Rejection(RejectionReason.INPUT_COUNT, f"{len(proposal.inputs)} inputs for {self.name}")
        found = await judge.validate(proposal.program, proposal.inputs)
        if isinstance(found, Rejection):
            return found
        texts = found.program, found.inputs, found.outputs, proposal.message
        return Task(self.name, *texts, ignores_input=found.ignores_input)

    async def verify(self, judge: Judge, task: Task, answers: Sequence[str]) -> list[Verdict]:
        """See `TaskKind`: an answer is right if it maps every hidden input to its output."""
        return await judge.check_programs(hidden(task), answers, known=[task.program])

    def identity(self, task: Task) -> tuple[str, ...]:
        """See `TaskKind`: the message is part of what a solver is given."""
        return ("", task.message.strip())

    def from_pairs(self, program: str, pairs: Sequence[tuple[str, str]], message: str, num_inputs: int) -> list[Task]:
        """See `TaskKind`: one task of the first pairs, whose outputs are not all the same. Without a message, one that
        names the constructs of the program; none where it has none of those either."""
        if not message and (found := used(program)):
            message = f"f uses {named(found)}."
        if not message or len(pairs) < num_inputs:
            return []
        chosen = list(pairs[:num_inputs])
        if len({output for _, output in chosen}) == 1:
            chosen[-1] = next((pair for pair in pairs if pair[1] != chosen[0][1]), chosen[-1])
        inputs, outputs = zip(*chosen, strict=True)
        return [Task(self.name, program, inputs, outputs, message)]

    def proposal_reply(self, task: Task) -> str:
        """See `TaskKind`."""
        return block("message", task.message) + "".join(block("input", given) for given in task.inputs)

    def answer_reply(self, task: Task) -> str:
        """See `TaskKind`."""
        return block("python", task.program)


def num_shown(task: Task) -> int:
    """Number of pairs that the solver sees: the first half, rounded down."""
    return len(task.inputs) // 2


def shown(task: Task) -> tuple[tuple[str, str], ...]:
    """The (input, output) pairs that the solver sees."""
    return tuple(zip(task.inputs, task.outputs, strict=True))[: num_shown(task)]


def _given(task: Task) -> list[Piece]:
    """What a solver sees of a task: the message and the shown pairs."""
    pairs = [(block_piece("input", given), block_piece("output", result)) for given, result in shown(task)]
    return [block_piece("message", task.message), *(piece for pair in pairs for piece in pair)]


def hidden(task: Task) -> tuple[tuple[str, str], ...]:
    """The (input, output) pairs that an answer is judged by."""
    return tuple(zip(task.inputs, task.outputs, strict=True))[num_shown(task) :]


def zero_inputs(count: int) -> list[str]:
    """`count` different inputs of the zero program, for the example that shows how many are wanted."""
    return [*_ZERO_INPUTS[:count], *(str(100 + number) for number in range(count - len(_ZERO_INPUTS)))]


_PROPOSE_R1 = (
    "Below is a Python function f. Write {n} inputs for it, as different from each other as possible, and a message "
    "that hints at what f does without giving its code. Answer with one fenced block named input for each input, and "
    "one fenced block named message. "
)
_SOLVE_R1 = (
    "Write the Python function f that fits the message and maps each input to its output; it will be tried on further "
    "inputs. Answer with a fenced block named python.\n\n"
)
