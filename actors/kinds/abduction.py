"""Abduction: program and output are given; the solver answers any input that gives the output."""

from __future__ import annotations

from collections.abc import Sequence

from actors.kinds.triplet import TripletKind
from actors.parsing import FormatError, arguments, last
from actors.prompts import (
    FENCE,
    ZERO_TASK,
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
from executor.tasks import Task, Verdict


class Abduction(TripletKind):
    """The kind of tasks to find an input for which a program gives an output."""

    name = "abduction"
    position = 1
    difficulty = (
        "Somebody who sees the function and the output will have to find an input: let it take many steps of reasoning "
        "to go back from the output to an input that gives it."
    )

    def solution_prompt(self, task: Task, prompt_format: PromptFormat, examples: Sequence[Task] = ()) -> PromptText:
        """See `TaskKind`."""
        given = [block_piece("python", task.program), block_piece("output", task.outputs[0])]
        if prompt_format == "r1":
            return r1([frame(_SOLVE_R1), *given])
        solved = [triplet(example) for example in examples or (ZERO_TASK,)]
        return worked_examples(
            "Each example is a Python function f, an output, and an input for which f gives that output.",
            [[program, output, found] for program, found, output in solved],
            given,
            f"{FENCE}input\n",
        )

    def read_answer(self, text: str) -> str | FormatError:
        """See `TaskKind`: an input."""
        found = last(text, "input", FormatError.NO_INPUT)
        return found if isinstance(found, FormatError) else arguments(found) or FormatError.EMPTY

    async def verify(self, judge: Judge, task: Task, answers: Sequence[str]) -> list[Verdict]:
        """See `TaskKind`: an answer is right if the program returns the output for it."""
        return await judge.check_inputs(task.program, task.outputs[0], answers, known=task.inputs)

    def answer_reply(self, task: Task) -> str:
        """See `TaskKind`."""
        return block("input", task.inputs[0])


_SOLVE_R1 = (
    "Find an input for which f returns this output. Answer with a fenced block named input that holds the text between "
    "the parentheses of the call, as Python literals.\n\n"
)
