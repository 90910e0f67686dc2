"""Deduction: program and input are given; the solver answers the output."""

from __future__ import annotations

from collections.abc import Sequence

from actors.kinds.triplet import TripletKind
from actors.parsing import FormatError, last
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


class Deduction(TripletKind):
    """The kind of tasks to find the output of a program for an input."""

    name = "deduction"
    position = 0
    difficulty = (
        "Somebody who sees the function and the input will have to find the output: let it take many steps of "
        "reasoning to follow the function from the input to its output."
    )

    def solution_prompt(self, task: Task, prompt_format: PromptFormat, examples: Sequence[Task] = ()) -> PromptText:
        """See `TaskKind`."""
        given = [block_piece("python", task.program), block_piece("input", task.inputs[0])]
        if prompt_format == "r1":
            return r1([frame(_SOLVE_R1), *given])
        return worked_examples(
            "Each example is a Python function f, an input, and the output of f for that input.",
            [triplet(example) for example in examples or (ZERO_TASK,)],
            given,
            f"{FENCE}output\n",
        )

    def read_answer(self, text: str) -> str | FormatError:
        """See `TaskKind`: a value."""
        return last(text, "output", FormatError.NO_OUTPUT)

    def is_copy(self, task: Task, answer: str) -> bool | None:
        """See `TaskKind`: the answer is the input, as text but for spaces; with or without brackets where it is several
        arguments."""
        given, said = "".join(task.inputs[0].split()), "".join(answer.split())
        return said in (given, f"({given})")

    async def verify(self, judge: Judge, task: Task, answers: Sequence[str]) -> list[Verdict]:
        """See `TaskKind`: an answer is right if it is the output, in value and type. Nothing runs."""
        return judge.check_values(task.outputs[0], answers)

    def answer_reply(self, task: Task) -> str:
        """See `TaskKind`."""
        return block("output", task.outputs[0])


_SOLVE_R1 = (
    "What does f return for this input? Answer with a fenced block named output that holds the value as a Python "
    "literal.\n\n"
)
