"""The solver's side of an episode: sample answers to a task, and have them judged together."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from actors.buffer.task_buffer import Buffer
from actors.engine.generation import Completion
from actors.environment import Environment
from actors.kinds.registry import kind_of
from actors.parsing import FormatError, answer_of
from actors.prompt_builder import Prompt
from actors.sampler import Sampler, together
from actors.solved_examples import SolvedExamples
from executor.tasks import Task, VerdictReason


class Solution(NamedTuple):
    """One answer, judged."""

    correct: bool
    formatted: bool
    outcome: str
    """Value of the `FormatError` or `VerdictReason`."""
    completion: Completion
    execute_s: float
    """Seconds until the answers of the task were judged."""
    answer: str | None = None
    """The answer as it was read; None where it could not be, and of a rehearsal."""
    copied: bool | None = None
    """Whether the answer repeats what the prompt shows (`TaskKind.is_copy`), for kinds that say so."""


class Solver(ABC):
    """Answers tasks."""

    @abstractmethod
    async def prompt(self, task: Task, seed: str) -> Prompt:
        """The prompt that asks for the solution of `task`. `seed`: of the examples that it shows. Raises
        PromptTooLong."""

    @abstractmethod
    async def solve(self, task: Task, prompt: Prompt, names: Sequence[str]) -> list[Solution]:
        """One solution a name, in that order. `prompt`: the task's, by `prompt`."""


class ModelSolver(Solver):
    """Has a model answer tasks, with one sampler, and one environment judge the answers."""

    def __init__(self, sampler: Sampler, environment: Environment, buffer: Buffer) -> None:
        self._sampler = sampler
        self._environment = environment
        self._examples = SolvedExamples(buffer, environment, sampler.settings.examples)

    async def prompt(self, task: Task, seed: str) -> Prompt:
        """See `Solver`."""
        return self._sampler.prompts.solve(task, await self._examples.draw(task, seed))

    async def solve(self, task: Task, prompt: Prompt, names: Sequence[str]) -> list[Solution]:
        """See `Solver`."""
        limit = self._sampler.settings.max_solve_tokens
        completions = await together(self._sampler.generate(prompt, limit, name) for name in names)
        return await self._judge_all(task, prompt, completions)

    async def _judge_all(self, task: Task, prompt: Prompt, completions: Sequence[Completion]) -> list[Solution]:
        """All solutions of one task in one request, so that the judge can share work among them."""
        prompt_format = self._sampler.settings.prompt_format
        texts = [answer_of(prompt.reply_start + one.text, prompt_format) for one in completions]
        kind = kind_of(task.kind)
        answers = [FormatError.NO_ANSWER if text is None else kind.read_answer(text) for text in texts]
        started = time.monotonic()
        verdicts = iter(
            await self._environment.verify_all(task, [a for a in answers if not isinstance(a, FormatError)])
        )
        execute_s = time.monotonic() - started
        solutions = []
        for completion, answer in zip(completions, answers, strict=True):
            if isinstance(answer, FormatError):
                solutions.append(Solution(False, False, answer.value, completion, 0.0))
                continue
            copied = kind.is_copy(task, answer)
            verdict = next(verdicts)
            formatted = verdict.reason is not VerdictReason.UNPARSEABLE
            read = answer if formatted else None
            solutions.append(
                Solution(verdict.correct, formatted, verdict.reason.value, completion, execute_s, read, copied)
            )
        return solutions
