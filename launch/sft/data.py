"""Makes examples for `azr sft` out of tasks, in the words of self-play's prompts.

Every task is validated by the executor first, which also says what its outputs are. A task then gives the example of
its solver, that of its proposer, or both; the replies end as the run's stop strings would end them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

from actors.constructs import asked_for
from actors.kinds.registry import kind_of
from actors.labelled import LabelledProgram
from actors.prompt_builder import Prompt, PromptBuilder
from actors.prompts import PromptFormat
from actors.responses import response_to
from actors.sampler import hash_seed
from actors.seed_file import validate_lines
from actors.solved_examples import is_copy
from executor.settings import ExecutorSettings
from executor.tasks import Task

_SOLVER_THOUGHT = "I go through it step by step, and check the result."
_PROPOSER_THOUGHT = "I write something that differs from what is there, and whose result has to be worked out."


class _Characters:
    """Stands in for a tokenizer: a token is a character, so that a prompt's pieces can be read off its spans."""

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return [ord(character) for character in text]


def examples(
    tasks: Sequence[Task],
    prompt_format: PromptFormat,
    roles: Sequence[str],
    num_references: int,
    seed: int,
    num_examples: int = 0,
    num_constructs: int = 0,
) -> Iterator[dict[str, Any] | None]:
    """Examples as `azr sft` reads them, task by task. References of a proposer, and the `num_examples` that a solver is
    shown (`selfplay.examples`), are tasks of other programs of `tasks`. A proposer's prompt names up to
    `num_constructs` constructs that the task's program uses (`selfplay.constructs`).

    None stands for one that the format cannot say: an answer with a fence in it, a program that begins with an import.
    """
    draw = random.Random(seed)
    for task in tasks:
        kind = kind_of(task.kind)
        builder = PromptBuilder(_Characters(), prompt_format, 1 << 30, len(task.inputs))
        if "solve" in roles:
            shown: list[Task] = []
            if num_examples:
                others = [other for other in tasks if other.kind == task.kind and other.program != task.program]
                shown = [other for other in draw.sample(others, len(others)) if not is_copy(other)][:num_examples]
            prompt = builder.solve(task, shown)
            yield _example(prompt, _SOLVER_THOUGHT, kind.answer_reply(task), prompt_format)
        if "propose" in roles:
            if kind.writes_program:
                others = [other for other in tasks if other.program != task.program and _is_example(other, task)]
                references = draw.sample(others, min(num_references, len(others)))
            else:
                references = [task]
            asked = asked_for(task.program, num_constructs, draw) if kind.writes_program else ()
            prompt = builder.propose(task.kind, references, constructs=asked)
            yield _example(prompt, _PROPOSER_THOUGHT, kind.proposal_reply(task), prompt_format)


def _is_example(other: Task, task: Task) -> bool:
    """Whether a proposer of `task` may be shown `other`: its own kind, or triplets where both kinds are made of
    them."""
    kinds = kind_of(other.kind), kind_of(task.kind)
    return other.kind in kinds[1].reference_kinds or all(kind.from_triplet(other) is not None for kind in kinds)


def _example(prompt: Prompt, thought: str, answer: str, prompt_format: PromptFormat) -> dict[str, Any] | None:
    """`answer`: whole blocks."""
    pieces = ["".join(map(chr, prompt.token_ids[span.start : span.end])) for span in prompt.spans]
    response = response_to(prompt, answer, prompt_format, thought)
    return None if response is None else {"prompt": pieces, "response": response}


Validated = list[tuple[Task, str]]
"""Tasks with their normalised programs."""


async def validated(lines: Sequence[tuple[int, str]]) -> tuple[Validated, list[tuple[int, str]]]:
    """The tasks of numbered lines, in order, and number and reason of each line that is none. Raises
    InfrastructureError."""
    results = await validate_lines(lines, ExecutorSettings())
    found = [result for _, result in results if not isinstance(result, str)]
    return found, [(number, result) for number, result in results if isinstance(result, str)]


def labelled_examples(
    programs: Sequence[LabelledProgram],
    num_inputs: int,
    prompt_format: PromptFormat,
    roles: Sequence[str],
    num_references: int,
    seed: int,
    num_examples: int = 0,
    num_constructs: int = 0,
) -> Iterator[dict[str, Any] | None]:
    """As `examples`, of labelled programs: each pair is solved once in every kind that it gives a task of, induction
    with all pairs, and each program is proposed once in every kind. `num_inputs`: those that a proposer of induction
    writes."""
    solved: dict[str, list[Task]] = {}
    proposed: dict[str, list[Task]] = {}
    for program in programs:
        for task in program.tasks(len(program.pairs)):
            solved.setdefault(task.kind, []).append(task)
        first: dict[str, Task] = {}
        for task in program.tasks(num_inputs):
            first.setdefault(task.kind, task)
        for kind, task in first.items():
            proposed.setdefault(kind, []).append(task)
    for role, tasks_of in (("solve", solved), ("propose", proposed)):
        for kind, tasks in tasks_of.items() if role in roles else ():
            drawn = hash_seed(seed, f"{role}/{kind}")
            yield from examples(tasks, prompt_format, (role,), num_references, drawn, num_examples, num_constructs)
